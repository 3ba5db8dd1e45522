// Layouts of every kind that the engine runs, and what it counts on each: for tests that compare a
// description of the engine with the engine.
#pragma once
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "exec/measure_steps.h"
#include "graph/graph.h"
#include "run.h"
#include "slots.h"

namespace tessera::testing {

inline void unchanged(spec::Recipe& /*r*/) {}

struct Case {
  std::string name;
  bool moe = false;
  bool tied = false;
  spec::ParallelSpec parallel;
  void (*change)(spec::Recipe&) = unchanged;
  std::int64_t hidden = 16;  // odd: parameters that need padding in their buckets
  std::string family = "";   // a model of tests/golden/hf instead of the small ones
};

// What one rank counted in one step, by communicator label and call.
struct Counted {
  std::map<std::pair<std::string, std::string>, std::pair<std::int64_t, std::int64_t>> calls;  // calls, bytes
  Flops flops;
  Bytes activations;
  plan::RankMemory memory;  // planned, which is what the arenas hold
};

struct Observed {
  std::vector<Counted> ranks;
  graph::RoutingCounts routing;
};

inline Counted counted(exec::RankEngine& engine) {
  const plan::RankMemory& memory = engine.planned_memory();
  Counted c{.calls = {},
            .flops = engine.step_flops(),
            .activations = memory[plan::MemoryKind::saved] + memory[plan::MemoryKind::deferred],
            .memory = memory};
  for (comm::Communicator* comm : engine.comms().all()) {
    if (comm->size() == 1) continue;
    for (std::int32_t i = 0; i < comm::kNumCalls; ++i) {
      const comm::CallCount& n = comm->counters()[i];
      const auto call = static_cast<comm::Call>(i);
      if (n.calls == 0 || call == comm::Call::recv) continue;
      c.calls[{std::string(comm->label()), std::string(comm::name(call))}] = {n.calls, n.bytes_sent.value};
    }
  }
  return c;
}

inline Observed observe(const spec::Job& job) {
  Observed o;
  const std::int32_t world = job.parallel.world_size();
  o.ranks.resize(world);
  o.routing = exec::no_routing(plan::make_plan(job));
  (void)run_job(job, {.steps = 2, .inspect = [&](exec::RankEngine& engine) {
                        const std::int32_t rank = engine.rank().value;
                        o.ranks[rank] = counted(engine);
                        exec::note_routing(engine, o.routing);
                      }});
  return o;
}

inline spec::ParallelSpec scheduled(spec::ParallelSpec p, const char* schedule) {
  p.schedule = schedule;
  return p;
}

inline spec::ParallelSpec on_nodes(spec::ParallelSpec p, std::int32_t ranks_per_node) {
  p.ranks_per_node = ranks_per_node;
  return p;
}

inline void zero(spec::Recipe& r) {
  r.zero_stage = 1;
}
inline void zero_2(spec::Recipe& r) {
  r.zero_stage = 2;
}
inline void zero_3(spec::Recipe& r) {
  r.zero_stage = 3;
}
inline void zero_3_small_buckets(spec::Recipe& r) {
  zero_3(r);
  r.bucket_bytes = 1;
}
inline void zero_3_f32_full(spec::Recipe& r) {
  zero_3(r);
  r.precision = spec::Precision::f32;
  r.recompute = spec::Recompute::full;
}
inline void one_bucket(spec::Recipe& r) {
  r.bucket_bytes = 1 << 30;
}
inline void small_buckets(spec::Recipe& r) {
  r.bucket_bytes = 1;
}
inline void f32(spec::Recipe& r) {
  r.precision = spec::Precision::f32;
}
inline void selective(spec::Recipe& r) {
  r.recompute = spec::Recompute::selective;
}
inline void full(spec::Recipe& r) {
  r.recompute = spec::Recompute::full;
}
inline void drops_by_weight(spec::Recipe& r) {
  r.moe.capacity_factor = 1.0;
  r.moe.drop_policy = spec::DropPolicy::probs;
}
inline void drops_by_position(spec::Recipe& r) {
  r.moe.capacity_factor = 1.25;
  r.moe.aux_loss_unit = spec::BalanceUnit::sequence;
}
inline void global_unit(spec::Recipe& r) {
  r.moe.aux_loss_unit = spec::BalanceUnit::global_batch;
}
inline void hash(spec::Recipe& r) {
  r.moe.router = spec::RouterChoice::hash;
  r.moe.balancing = spec::Balancing::none;
  r.moe.aux_loss_coef = 0.0;
}
inline void expert_choice(spec::Recipe& r) {
  hash(r);
  r.moe.router = spec::RouterChoice::expert_choice;
  r.moe.capacity_factor = 0.5;
}
inline void joined_and_padded(spec::Recipe& r) {
  r.moe.aux_loss_normalisation = spec::AuxNormalisation::huggingface;
  r.moe.capacity_factor = 1.25;
  r.moe.pad_to_capacity = true;
  r.moe.router_jitter = 0.1;
}
inline void joined_sequences(spec::Recipe& r) {
  r.recompute = spec::Recompute::full;
  r.moe.aux_loss_normalisation = spec::AuxNormalisation::huggingface;
  r.moe.aux_loss_unit = spec::BalanceUnit::sequence;
}
inline void no_aux(spec::Recipe& r) {
  r.moe.aux_loss_coef = 0.0;
}
inline void all_gather(spec::Recipe& r) {
  r.moe.dispatch = spec::DispatchForm::all_gather;
}
inline void all_gather_drops(spec::Recipe& r) {
  all_gather(r);
  selective(r);
  r.moe.capacity_factor = 0.9;
}
inline void by_node(spec::Recipe& r) {
  r.moe.dispatch = spec::DispatchForm::hierarchical;
}
inline void by_node_selective_drops(spec::Recipe& r) {
  by_node(r);
  selective(r);
  r.moe.capacity_factor = 0.9;
}
inline void by_node_full(spec::Recipe& r) {
  by_node(r);
  full(r);
}
inline void everything(spec::Recipe& r) {
  zero(r);
  full(r);
  r.moe.capacity_factor = 1.0;
}
inline void zero_f32(spec::Recipe& r) {
  zero(r);
  f32(r);
}

inline spec::Job job_of(const Case& c) {
  spec::Job job = small_job({.moe = c.moe, .tied = c.tied});
  if (c.family.empty()) {
    job.model.hidden_size = c.hidden;
  } else if (c.family == "mtp") {
    job.model = mtp_model(2);
    job.train.mtp_loss_coef = 0.3;
  } else {
    job.model = spec::read_hf_config(fmt::format("{}/tests/golden/hf/{}", TESSERA_SOURCE_DIR, c.family));
  }
  job.parallel = c.parallel;
  if (c.name.starts_with("placed_")) job.parallel.expert_slots = shuffled_slots(job.model, 5);
  if (job.parallel.cp > 1) job.train.sequence_length = 16;
  c.change(job.train);
  return job;
}

// Two MTP layers in every kind of layout; tied: the head's copy of the table serves them.
inline void add_mtp(std::vector<Case>& cases) {
  const auto add = [&](const char* what, spec::ParallelSpec p, void (*change)(spec::Recipe&) = unchanged) {
    cases.push_back(
        {.name = fmt::format("mtp_{}", what), .parallel = std::move(p), .change = change, .family = "mtp"});
  };
  add("one_rank", {});
  add("tp_dp_zero", {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, zero);
  add("zero_2", {.dp = 2, .pp = 2, .ep = 2}, zero_2);
  add("zero_3", {.tp = 2, .dp = 2, .ep = 2}, zero_3);
  add("pp_small_buckets", {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, small_buckets);
  add("pp_selective", {.tp = 2, .pp = 2, .etp = 2}, selective);
  add("split_full", scheduled({.dp = 2, .pp = 2, .ep = 2}, "zb-h1"), full);
  add("everything", scheduled({.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2}, "zb-h1"), everything);
}

// Sequences cut over 2 and 4 ranks, alone and with every other axis.
inline void add_context(std::vector<Case>& cases) {
  const auto add = [&](const char* what, bool moe, spec::ParallelSpec p,
                       void (*change)(spec::Recipe&) = unchanged, std::string family = "") {
    cases.push_back({.name = fmt::format("cp_{}", what),
                     .moe = moe,
                     .parallel = std::move(p),
                     .change = change,
                     .family = std::move(family)});
  };
  add("dense", false, {.cp = 2});
  add("of_four", false, {.cp = 4});
  add("tp_pp", false, {.tp = 2, .cp = 2, .pp = 2});
  add("dp_zero", false, {.cp = 2, .dp = 2, .pp = 2}, zero);
  add("zero_3", false, {.tp = 2, .cp = 2, .dp = 2}, zero_3);
  add("tp_overlap", false, {.tp = 2, .cp = 2, .pp = 2, .tp_comm_overlap = true});
  add("zero_3_alone", true, {.cp = 4, .ep = 2}, zero_3_small_buckets);
  add("selective", false, {.tp = 2, .cp = 4}, selective);
  add("split_full", false, scheduled({.cp = 2, .dp = 2, .pp = 2}, "zb-h1"), full);
  add("moe_ep", true, {.cp = 4, .ep = 4});
  add("moe_ep_etp", true, {.tp = 2, .cp = 2, .dp = 2, .ep = 2, .etp = 2}, drops_by_position);
  add("moe_drops", true, {.tp = 2, .cp = 2, .ep = 4}, drops_by_weight);
  add("moe_all_gather", true, {.cp = 2, .dp = 2, .ep = 4}, all_gather_drops);
  add("moe_by_node", true, on_nodes({.cp = 2, .dp = 2, .ep = 4}, 2), by_node_selective_drops);
  add("moe_joined_and_padded", true, {.tp = 2, .cp = 2, .ep = 2}, joined_and_padded);
  add("moe_expert_choice", true, {.tp = 2, .cp = 2, .ep = 2}, expert_choice);
  add("moe_global_unit", true, {.cp = 2, .pp = 2, .ep = 2}, global_unit);
  add("windows_and_sinks", false, {.tp = 2, .cp = 2}, unchanged, "gpt_oss");
  add("windows", false, {.cp = 4, .pp = 2}, unchanged, "mistral");
  add("positions", false, {.tp = 2, .cp = 2}, unchanged, "gpt2");
  add("latent", false, {.tp = 2, .cp = 2, .pp = 2, .ep = 2}, selective, "deepseek_v3");
  add("latent_full", false, scheduled({.cp = 4, .pp = 2, .ep = 2}, "zb-h1"), full, "deepseek_v2");
  add("mtp", false, {.cp = 2, .dp = 2, .pp = 2, .ep = 2}, zero, "mtp");
}

// Every family that the engine trains, with its experts on as many ranks as divide them.
inline void add_families(std::vector<Case>& cases) {
  struct Family {
    std::string name;
    std::int32_t ep;  // 0: no experts
  };
  for (const Family& f : std::vector<Family>{{"llama", 0},
                                             {"mistral", 0},
                                             {"qwen2", 0},
                                             {"qwen3", 0},
                                             {"gpt2", 0},
                                             {"mixtral", 1},
                                             {"qwen2_moe", 1},
                                             {"qwen3_moe", 2},
                                             {"olmoe", 2},
                                             {"deepseek_v2", 2},
                                             {"deepseek_v3", 2},
                                             {"gpt_oss", 1}}) {
    const std::int32_t ep = std::max(1, f.ep);
    const std::int32_t etp = f.ep > 0 ? 2 : 1;
    const auto add = [&](const char* what, spec::ParallelSpec p, void (*change)(spec::Recipe&)) {
      cases.push_back({.name = fmt::format("{}_{}", f.name, what),
                       .parallel = std::move(p),
                       .change = change,
                       .family = f.name});
    };
    add("one_rank", {}, unchanged);
    add("tp_dp", {.tp = 2, .dp = 2, .ep = ep, .etp = etp}, zero);
    add("selective", {.tp = 2, .pp = 2, .etp = etp}, selective);
    add("zero_3", {.tp = 2, .dp = 2, .ep = ep}, zero_3);
    add("split_full", scheduled({.dp = 2, .pp = 2, .ep = ep}, "zb-h1"), full);
  }
}

// ZeRO-2 and -3 on layouts that cut, tie and split what they gather.
inline void add_zero(std::vector<Case>& cases) {
  const std::vector<Case> more{
      Case{"zero_2", false, false, {.tp = 2, .dp = 4}, zero_2},
      Case{"zero_2_moe", true, false, {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, zero_2},
      Case{"zero_2_tied", false, true, {.tp = 2, .dp = 2, .pp = 2}, zero_2},
      Case{"zero_2_tied_vee", false, true, scheduled({.dp = 2, .pp = 2, .vpp = 2}, "zb-v"), zero_2},
      Case{"zero_3", false, false, {.tp = 2, .dp = 4}, zero_3},
      Case{"zero_3_moe", true, false, {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, zero_3_small_buckets},
      Case{"zero_3_tied", false, true, {.tp = 2, .dp = 2, .pp = 2}, zero_3},
      Case{"zero_3_tied_one_stage", true, true, {.tp = 2, .dp = 2, .etp = 2}, zero_3},
      Case{"zero_3_tied_vee", false, true, scheduled({.dp = 2, .pp = 2, .vpp = 2}, "zb-v"), zero_3},
      Case{"zero_3_f32_full", true, false, scheduled({.dp = 4, .pp = 2, .ep = 2}, "zb-h1"), zero_3_f32_full}};
  cases.insert(cases.end(), more.begin(), more.end());
}

inline std::vector<Case> agreement_cases() {
  std::vector<Case> cases{

      Case{"one_rank", false, false, {}},
      Case{"one_rank_moe", true, false, {}},
      Case{"tp", false, false, {.tp = 4}},
      Case{"dp", false, false, {.dp = 4}},
      Case{"dp_of_three_stage_cuts", false, false, {.dp = 2, .pp = 3, .stage_layers = {1, 2, 1}}},
      Case{"tp_dp_pp", false, false, {.tp = 2, .dp = 2, .pp = 2}},
      Case{"tied_pp", false, true, {.tp = 2, .dp = 2, .pp = 2}},
      Case{"tied_one_stage", false, true, {.tp = 2, .dp = 2}},
      Case{"tied_zero", false, true, {.tp = 2, .dp = 2, .pp = 2}, zero},
      Case{"tied_vee", false, true, scheduled({.dp = 2, .pp = 2, .vpp = 2}, "zb-v"), zero},
      Case{"zero", false, false, {.tp = 2, .dp = 4}, zero},
      Case{"one_bucket", true, false, {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, one_bucket},
      Case{"small_buckets", true, false, {.tp = 2, .dp = 4, .ep = 2}, small_buckets},
      Case{"f32", true, false, {.tp = 2, .dp = 2, .ep = 2}, f32},
      Case{"selective", false, false, {.tp = 2, .pp = 2}, selective},
      Case{"tp_overlap", false, false, {.tp = 4, .dp = 2, .tp_comm_overlap = true}},
      Case{"tp_overlap_selective",
           true,
           false,
           {.tp = 2, .pp = 2, .ep = 2, .tp_comm_overlap = true},
           selective},
      Case{"full", false, false, {.tp = 2, .pp = 2}, full},
      Case{"interleaved", true, false, scheduled({.tp = 2, .pp = 2, .ep = 2, .vpp = 2}, "interleaved")},
      Case{"zb_h1", true, false, scheduled({.dp = 2, .pp = 2, .ep = 2}, "zb-h1")},
      Case{"zb_h1_full", true, false, scheduled({.dp = 2, .pp = 2, .ep = 2}, "zb-h1"), full},
      Case{"gpipe", true, false, scheduled({.dp = 2, .pp = 2, .ep = 2}, "gpipe")},
      Case{"moe_ep", true, false, {.dp = 4, .ep = 4}},
      Case{"moe_ep_over_tp", true, false, {.tp = 2, .dp = 2, .ep = 4}},
      Case{"moe_etp", true, false, {.tp = 4, .etp = 4}},
      Case{"moe_ep_etp", true, false, {.tp = 2, .dp = 4, .ep = 2, .etp = 2}},
      Case{"moe_ep_etp_selective", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, selective},
      Case{"moe_ep_etp_full", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, full},
      Case{"moe_drops", true, false, {.tp = 2, .dp = 2, .ep = 4}, drops_by_weight},
      Case{"moe_drops_by_position", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, drops_by_position},
      Case{"moe_all_gather", true, false, {.dp = 4, .ep = 4}, all_gather},
      Case{"moe_all_gather_etp", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, all_gather},
      Case{"moe_all_gather_drops", true, false, {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, all_gather_drops},
      Case{"moe_by_node", true, false, on_nodes({.dp = 4, .ep = 4}, 2), by_node},
      Case{"moe_by_node_of_one", true, false, on_nodes({.dp = 4, .ep = 4}, 1)},
      Case{"moe_by_node_etp", true, false, on_nodes({.tp = 2, .dp = 4, .ep = 4, .etp = 2}, 4), by_node},
      Case{"moe_by_node_tp_drops", true, false, on_nodes({.tp = 2, .dp = 2, .pp = 2, .ep = 4}, 2),
           by_node_selective_drops},
      Case{"moe_by_node_full", true, false, on_nodes({.tp = 4, .ep = 2, .etp = 2}, 2), by_node_full},
      Case{"placed_ep", true, false, {.dp = 4, .ep = 4}},
      Case{"placed_etp_drops", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, drops_by_position},
      Case{"placed_by_node", true, false, on_nodes({.tp = 2, .dp = 2, .pp = 2, .ep = 4}, 2), by_node},
      Case{"moe_global_unit", true, false, {.tp = 4, .ep = 2}, global_unit},
      Case{"moe_no_aux", true, false, {.tp = 4, .ep = 2}, no_aux},
      Case{"moe_hash", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, hash},
      Case{"moe_expert_choice", true, false, {.tp = 2, .dp = 2, .ep = 4}, expert_choice},
      Case{"moe_joined_and_padded", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, joined_and_padded},
      Case{"moe_joined_sequences", true, false, {.tp = 2, .ep = 2}, joined_sequences},
      Case{"odd_sizes", true, true, {.tp = 4, .pp = 2, .ep = 2}, unchanged, 13},
      Case{"odd_sizes_zero", false, false, {.tp = 4, .dp = 2}, zero_f32, 7},
      Case{"moe_everything", true, true, scheduled({.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2}, "zb-h1"),
           everything}};
  add_zero(cases);
  add_families(cases);
  add_mtp(cases);
  add_context(cases);
  return cases;
}

}  // namespace tessera::testing
