// Any layout equals one rank: loss, gradient norm, every gradient, updated weights and router counts after
// three optimiser steps in f64, within 1e-10 of each tensor's largest value.
//
// The matrix: {dense, mixtral-like, with drops, tied, all-gather dispatch, dispatch by node} x every layout
// of 2, 4 and 8 ranks over tp, pp, dp, ep, etp x every schedule x ZeRO off/on. The ordinary run takes 640 of
// them, the same ones in every run, evenly over the layouts of each model and over model x world x schedule x
// ZeRO; TESSERA_PARITY=all takes all. A second matrix cuts the sequences over 2 and 4 context-parallel ranks
// as well, with more models (a sliding window; experts that choose; jitter and padding), 240 of them in the
// ordinary run.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <tuple>

#include "base/random.h"
#include "run.h"
#include "support/emulated_place.h"
#include "support/fake_network.h"

namespace tessera::testing {
namespace {

struct Combination {
  std::string model;
  spec::ParallelSpec parallel;
  std::int32_t zero_stage;
  [[nodiscard]] std::string layout() const {
    return fmt::format("{} tp{} cp{} dp{} pp{} ep{} etp{}", model, parallel.tp, parallel.cp, parallel.dp,
                       parallel.pp, parallel.ep, parallel.etp);
  }
  [[nodiscard]] std::string kind() const {
    return fmt::format("{} on {} ranks, {}, zero {}", model, parallel.world_size(), parallel.schedule,
                       zero_stage);
  }
  [[nodiscard]] std::string text() const {
    return fmt::format("{} vpp{} {} zero{}", layout(), parallel.vpp, parallel.schedule, zero_stage);
  }
  // As few as the stages allow, but enough to cut.
  [[nodiscard]] std::int32_t layers() const { return std::max(4, parallel.pp * parallel.vpp); }
  // 2 cp divides it.
  [[nodiscard]] std::int64_t sequence() const { return parallel.cp > 1 ? 16 : 4; }
  [[nodiscard]] std::uint64_t hash() const { return philox_word(stream_of(text())); }

 private:
  static std::uint64_t philox_word(std::uint64_t stream) { return philox(17, stream, 0)[0]; }
};

bool has_experts(const std::string& model) {
  return model != "dense" && model != "tied" && model != "window";
}

spec::Job job_of(const std::string& model, std::int32_t layers, std::int64_t sequence) {
  spec::Job job = small_job({.moe = has_experts(model), .tied = model == "tied", .layers = layers});
  job.train.sequence_length = sequence;
  if (model == "window") {
    job.model.family = spec::Family::mistral;
    job.model.sliding_window = 5;
    job.model.layer_spans.assign(static_cast<std::size_t>(layers), spec::AttentionSpan::sliding);
  }
  if (model == "experts_choose") {
    job.train.moe.router = spec::RouterChoice::expert_choice;
    job.train.moe.balancing = spec::Balancing::none;
    job.train.moe.aux_loss_coef = 0.0;
    job.train.moe.capacity_factor = 0.5;
  }
  if (model == "padded") {
    job.train.moe.aux_loss_unit = spec::BalanceUnit::sequence;
    job.train.moe.capacity_factor = 1.25;
    job.train.moe.pad_to_capacity = true;
    job.train.moe.router_jitter = 0.1;
  }
  if (model == "gathered") job.train.moe.dispatch = spec::DispatchForm::all_gather;
  if (model == "drops") {
    job.train.moe.capacity_factor = 1.0;
    job.train.moe.drop_policy = spec::DropPolicy::probs;
    job.train.moe.aux_loss_unit = spec::BalanceUnit::sequence;
  }
  return job;
}

const RunResult& one_rank(const std::string& model, std::int32_t layers, std::int64_t sequence) {
  static std::map<std::tuple<std::string, std::int32_t, std::int64_t>, RunResult> cache;
  const auto [it, is_new] = cache.try_emplace({model, layers, sequence});
  if (is_new) it->second = run_job(job_of(model, layers, sequence));
  return it->second;
}

void add_schedules(std::vector<Combination>& out, const std::string& model, spec::ParallelSpec p) {
  for (const auto& [schedule, vpp] :
       std::vector<std::pair<std::string, std::int32_t>>{{"naive", 1},
                                                         {"gpipe", 1},
                                                         {"1f1b", 1},
                                                         {"zb-h1", 1},
                                                         {"interleaved", 2},
                                                         {"zb-v", 2},
                                                         {"combined-1f1b", 1}}) {
    for (const std::int32_t zero : {0, 1, 2, 3}) {
      p.schedule = schedule;
      p.vpp = vpp;
      out.push_back({model, p, zero});
    }
  }
}

std::vector<Combination> all_combinations() {
  std::vector<Combination> out;
  for (const std::string model : {"dense", "moe", "drops", "tied", "gathered", "by_node"}) {
    const bool moe = model != "dense" && model != "tied";
    const bool travels = model == "gathered" || model == "by_node";
    for (const std::int32_t world : {2, 4, 8}) {
      for (std::int32_t tp = 1; tp <= world; tp *= 2) {
        for (std::int32_t pp = 1; pp * tp <= world; pp *= 2) {
          const std::int32_t dp = world / tp / pp;
          for (std::int32_t ep = travels ? 2 : 1; ep <= (moe ? tp * dp : 1); ep *= 2) {
            for (std::int32_t etp = 1; etp * ep <= (moe ? tp * dp : 1); etp *= 2) {
              spec::ParallelSpec p{.tp = tp, .dp = dp, .pp = pp, .ep = ep, .etp = etp};
              if (model == "by_node") p.ranks_per_node = ep * etp / 2;
              add_schedules(out, model, p);
            }
          }
        }
      }
    }
  }
  return out;
}

// Takes `count`: always one of the layout and the kind taken least so far, ties broken by a hash.
std::vector<Combination> spread(std::vector<Combination> all, std::size_t count) {
  std::ranges::sort(all, {}, &Combination::hash);
  std::map<std::string, int> layouts;
  std::map<std::string, int> kinds;
  std::vector<std::pair<int*, int*>> taken;  // parallel to all
  for (const Combination& c : all) taken.emplace_back(&layouts[c.layout()], &kinds[c.kind()]);
  std::vector<Combination> out;
  // What the sample must have comes first: each layout and each kind once.
  const auto cost = [](const std::pair<int*, int*>& t) {
    const int missing = (*t.first == 0 ? 1 : 0) + (*t.second == 0 ? 1 : 0);
    return *t.first + *t.second - 1000 * missing;
  };
  while (out.size() < count && !all.empty()) {
    const auto best = std::ranges::min_element(taken, {}, cost);
    const auto at = best - taken.begin();
    ++*best->first;
    ++*best->second;
    out.push_back(all[static_cast<std::size_t>(at)]);
    all.erase(all.begin() + at);
    taken.erase(best);
  }
  return out;
}

std::vector<Combination> cut_sequences() {
  std::vector<Combination> out;
  for (const std::string model :
       {"dense", "window", "tied", "moe", "drops", "gathered", "by_node", "experts_choose", "padded"}) {
    const bool travels = model == "gathered" || model == "by_node";
    for (const std::int32_t world : {2, 4, 8}) {
      for (const std::int32_t cp : {2, 4}) {
        for (std::int32_t tp = 1; tp * cp <= world; tp *= 2) {
          for (std::int32_t pp = 1; pp * tp * cp <= world; pp *= 2) {
            const std::int32_t most = has_experts(model) ? world / pp : 1;
            for (std::int32_t ep = travels ? 2 : 1; ep <= most; ep *= 2) {
              for (std::int32_t etp = 1; etp * ep <= most; etp *= 2) {
                spec::ParallelSpec p{
                    .tp = tp, .cp = cp, .dp = world / tp / pp / cp, .pp = pp, .ep = ep, .etp = etp};
                if (model == "by_node") p.ranks_per_node = ep * etp / 2;
                add_schedules(out, model, p);
              }
            }
          }
        }
      }
    }
  }
  return out;
}

// All of `chosen`, or so many of them.
void expect_equal_to_one_rank(std::vector<Combination> chosen, std::size_t count) {
  const std::size_t all = chosen.size();
  const char* wanted = std::getenv("TESSERA_PARITY");
  if (wanted == nullptr || std::string(wanted) != "all") chosen = spread(std::move(chosen), count);
  std::size_t ran = 0;
  for (const Combination& c : chosen) {
    spec::Job job = job_of(c.model, c.layers(), c.sequence());
    job.parallel = c.parallel;
    job.train.zero_stage = c.zero_stage;
    const bool worker = c.hash() % 2 == 0;
    expect_parity(one_rank(c.model, c.layers(), c.sequence()), run_job(job, {.worker = worker}), c.text());
    ++ran;
    if (::testing::Test::HasFailure()) break;
  }
  fmt::print("parity: {} of {} combinations\n", ran, all);
  EXPECT_TRUE(::testing::Test::HasFailure() || ran == chosen.size());
}

TEST(Parity, TheSampleTakesEveryLayoutAndEveryKind) {
  const std::vector<Combination> all = all_combinations();
  std::map<std::string, int> layouts;
  std::map<std::string, int> kinds;
  for (const Combination& c : all) {
    layouts[c.layout()] = 0;
    kinds[c.kind()] = 0;
  }
  EXPECT_EQ(kinds.size(), 6U * 3U * 7U * 4U);
  for (const Combination& c : spread(all, 640)) {
    ++layouts[c.layout()];
    ++kinds[c.kind()];
  }
  for (const auto& [name, times] : layouts) EXPECT_GE(times, 1) << name;
  for (const auto& [name, times] : kinds) EXPECT_GE(times, 1) << name;
}

TEST(Parity, AnyLayoutEqualsOneRank) {
  expect_equal_to_one_rank(all_combinations(), 640);
}

TEST(Parity, AnyLayoutWithCutSequencesEqualsOneRank) {
  expect_equal_to_one_rank(cut_sequences(), 240);
}

const std::vector<Combination>& device_combinations() {
  static const std::vector<Combination> list = {
      {"dense", {.dp = 2}, 1},
      {"dense", {.dp = 2}, 3},
      {"tied", {.dp = 2, .pp = 2, .schedule = "zb-h1"}, 2},
      {"tied", {.tp = 2, .tp_comm_overlap = true}, 0},
      {"window", {.cp = 2, .dp = 2}, 1},
      {"moe", {.dp = 2, .ep = 2}, 1},
      {"moe", {.tp = 2, .dp = 2, .pp = 2, .ep = 4, .vpp = 2, .schedule = "interleaved"}, 0},
      {"drops", {.dp = 2, .ep = 2, .schedule = "combined-1f1b"}, 2},
      {"gathered", {.dp = 2, .ep = 2, .etp = 1}, 0},
      {"by_node", {.dp = 4, .ep = 4, .ranks_per_node = 2}, 1},
      {"experts_choose", {.cp = 2}, 0},
  };
  return list;
}

void expect_devices_equal_one_rank(const std::function<RunOptions()>& options) {
  for (const Combination& c : device_combinations()) {
    spec::Job job = job_of(c.model, c.layers(), c.sequence());
    job.parallel = c.parallel;
    job.train.zero_stage = c.zero_stage;
    expect_parity(one_rank(c.model, c.layers(), c.sequence()), run_job(job, options()), c.text());
  }
}

// On the kernels of the CUDA backend, compiled for the host (docs/gpu.md): every rank's tensors lie in a
// memory that the host cannot touch, with lanes of its own, and the ranks meet through the host.
TEST(Parity, RanksWithDeviceMemoryEqualOneRankOfTheHost) {
  expect_devices_equal_one_rank(
      [] { return RunOptions{.worker = true, .make_kernels = &kernels::emulated::make_device}; });
}

// The same, and tensors go from device to device, behind each other's work alone: no host waits for them.
TEST(Parity, RanksWithDeviceMemoryAndANetworkEqualOneRankOfTheHost) {
  expect_devices_equal_one_rank([] {
    const auto hub = std::make_shared<test::FakeNetwork::Hub>();
    return RunOptions{.worker = true,
                      .make_kernels = &kernels::emulated::make_device_beside,
                      .make_network = [hub](Rank rank, const std::shared_ptr<tensor::Memory>& memory) {
                        return std::make_unique<test::FakeNetwork>(hub, memory,
                                                                   fmt::format("GPU-{}", rank.value));
                      }};
  });
}

}  // namespace
}  // namespace tessera::testing
