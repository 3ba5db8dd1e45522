// What tessera place predicts for a routing is what the engine then does: the tokens of every expert rank and
// the bytes that cross between nodes, with copies to one node sent once, and without, equal to the last one.
#include <gtest/gtest.h>

#include "comm/thread_world.h"
#include "exec/routing_dump.h"
#include "place/evaluate.h"
#include "place/methods.h"
#include "run.h"

namespace tessera::testing {
namespace {

constexpr std::int32_t kRanks = 4, kPerNode = 2, kExperts = 8, kTopK = 2;
constexpr std::int64_t kHidden = 16, kElement = 8, kTokens = 64;  // of small_job, f64
const place::Machine kMachine{.nodes = 2, .gpus = kRanks, .slots = kExperts};

struct Measured {
  trace::RoutingStats routing;
  std::vector<std::vector<std::int64_t>> rows;            // [layer][rank] that the rank's experts computed
  std::map<std::string, std::vector<std::int64_t>> sent;  // all_to_all_v by communicator: bytes of each rank
};

// One step of 64 tokens.
Measured measure(const spec::Job& job) {
  const plan::Plan plan = plan::make_plan(job);
  const SyntheticTokens data(job.model.vocab_size, job.train.sequence_length);
  comm::ThreadWorld world({.size = kRanks, .timeout = Seconds(60)});
  Measured out;
  out.rows.assign(job.model.num_hidden_layers, std::vector<std::int64_t>(kRanks));
  for (const char* label : {"ep", "ep_inter"}) out.sent[label].assign(kRanks, 0);
  world.run([&](Rank rank) {
    exec::RankEngine engine({.plan = &plan,
                             .data = &data,
                             .rank = rank,
                             .kernels = kernels::make_reference(),
                             .communicators = [&](std::span<const Rank> members, std::string_view label) {
                               return world.communicator(rank, members, label);
                             }});
    engine.initialise();
    exec::RoutingDump dump(plan, engine, {.first_step = 0, .last_step = 1, .tokens = kTokens});
    dump.begin_step(0);
    engine.train_step(0);
    for (exec::Stage& stage : engine.stages()) {
      for (const exec::Stage::Mixture& m : stage.mixtures())
        out.rows[m.layer][rank.value] = m.moe->stats().received_rows;
    }
    for (comm::Communicator* c : engine.comms().all()) {
      const auto sent = out.sent.find(std::string(c->label()));
      if (sent != out.sent.end() && c->size() > 1)
        sent->second[rank.value] =
            c->counters()[static_cast<std::int32_t>(comm::Call::all_to_all_v)].bytes_sent.value;
    }
    dump.end_step(engine.last_result());
    trace::RoutingStats stats = dump.finish();
    if (rank.value == 0) out.routing = std::move(stats);
  });
  return out;
}

spec::Job job_of(spec::DispatchForm form) {
  spec::Job job = small_job({.moe = true});
  job.parallel = {.dp = kRanks, .ep = kRanks, .ranks_per_node = kPerNode};
  if (form == spec::DispatchForm::all_to_all) job.parallel.ranks_per_node = 0;
  job.train.moe.dispatch = form;
  return job;
}

// Rank of each token: micro-batches go round the replicas.
std::vector<std::int32_t> sources(const spec::Job& job, std::int32_t ranks_per_source) {
  const std::int64_t each = job.train.micro_batch_size * job.train.sequence_length;
  std::vector<std::int32_t> out;
  for (std::int64_t t = 0; t < kTokens; ++t)
    out.push_back(static_cast<std::int32_t>(t / each % kRanks) / ranks_per_source);
  return out;
}

// The routing of a run in order, and the slots that `method` makes of it.
struct Placed {
  place::PlaceInput input;
  place::Placement placement;
  std::vector<std::int32_t> slots;
};
Placed place_for(const spec::Job& job, place::Method method) {
  Placed p{.input = place::input_of(measure(job).routing)};
  p.placement =
      place::place_experts(p.input, {.machine = kMachine, .method = method, .seed = 5, .effort = 0.1})
          .placement;
  for (const place::LayerMap& map : p.placement.maps) p.slots.insert(p.slots.end(), map.begin(), map.end());
  return p;
}

void expect_rows(const Placed& p, const Measured& seen) {
  ASSERT_EQ(std::ssize(seen.rows), p.input.num_layers());
  for (std::int32_t l = 0; l < p.input.num_layers(); ++l) {
    const std::vector<double> loads = place::gpu_loads(p.placement.maps[l], p.input.data[l].load, kMachine);
    EXPECT_EQ(std::vector<double>(seen.rows[l].begin(), seen.rows[l].end()), loads) << "layer " << l;
  }
}

TEST(PlacementTraffic, OfHierarchicalDispatchIsWhatPlacePredicts) {
  for (const place::Method method :
       {place::Method::traffic, place::Method::random, place::Method::contiguous}) {
    spec::Job job = job_of(spec::DispatchForm::hierarchical);
    const Placed p = place_for(job, method);
    job.parallel.expert_slots = p.slots;
    const Measured seen = measure(job);
    EXPECT_EQ(seen.routing.choices, measure(job_of(spec::DispatchForm::hierarchical)).routing.choices);
    expect_rows(p, seen);

    const std::vector<std::int32_t> node_of_token = sources(job, kPerNode);
    std::vector<double> bytes(kMachine.nodes, 0.0);
    for (std::int32_t l = 0; l < p.input.num_layers(); ++l) {
      const place::Traffic t = place::traffic_of(p.placement.maps[l], kMachine, p.input.data[l].tokens,
                                                 kExperts, kTopK, {.sources = node_of_token});
      // Out: choices and weights, the row, and its gradient; the results back, and the weights' gradient.
      for (std::int32_t n = 0; n < kMachine.nodes; ++n) {
        bytes[n] += kTokens * t.egress[n] * (kTopK * (4 + kElement) + 2 * kHidden * kElement) +
                    kTokens * t.ingress[n] * (2 * kHidden * kElement + kTopK * kElement);
      }
    }
    std::vector<double> sent(kMachine.nodes, 0.0);
    for (std::int32_t r = 0; r < kRanks; ++r)
      sent[r / kPerNode] += static_cast<double>(seen.sent.at("ep_inter")[r]);
    EXPECT_GT(sent[0], 0.0);
    for (std::int32_t n = 0; n < kMachine.nodes; ++n)
      EXPECT_NEAR(sent[n], bytes[n], 1e-6) << place::name(method);
  }
}

TEST(PlacementTraffic, OfOneCopyForEachChoiceIsWhatPlacePredicts) {
  spec::Job job = job_of(spec::DispatchForm::all_to_all);
  const Placed p = place_for(job, place::Method::balance);
  job.parallel.expert_slots = p.slots;
  const Measured seen = measure(job);
  expect_rows(p, seen);
  // Every rank a node of its own: a copy between nodes is one between ranks.
  const place::Machine flat{.nodes = kRanks, .gpus = kRanks, .slots = kExperts};
  const std::vector<std::int32_t> rank_of_token = sources(job, 1);
  double rows = 0.0;
  for (std::int32_t l = 0; l < p.input.num_layers(); ++l) {
    rows += kTokens * place::traffic_of(p.placement.maps[l], flat, p.input.data[l].tokens, kExperts, kTopK,
                                        {.sources = rank_of_token})
                          .across_all;
  }
  double sent = 0.0;
  for (const std::int64_t bytes : seen.sent.at("ep")) sent += static_cast<double>(bytes);
  EXPECT_NEAR(sent, 4.0 * kHidden * kElement * rows, 1e-6) << "a row there and back, forward and backward";
}

}  // namespace
}  // namespace tessera::testing
