#include "exec/measure_steps.h"

#include <memory>
#include <span>

#include "base/clock.h"
#include "base/random.h"
#include "comm/thread_world.h"
#include "comm/worker.h"
#include "exec/rank_engine.h"
#include "spec/model.h"

namespace tessera::exec {

namespace {

class RandomTokens : public BatchSource {
 public:
  RandomTokens(std::int64_t vocab, std::int64_t seq) : vocab_(vocab), seq_(seq) {}
  void fill(std::int64_t index, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const override {
    for (std::int64_t t = 0; t < seq_; ++t) {
      ids[static_cast<std::size_t>(t)] = token(index * (seq_ + 1) + t);
      targets[static_cast<std::size_t>(t)] = token(index * (seq_ + 1) + t + 1);
    }
  }
  [[nodiscard]] std::int64_t num_targets(std::int64_t /*first*/, std::int64_t count) const override {
    return count * seq_;
  }

 private:
  [[nodiscard]] std::int32_t token(std::int64_t i) const {
    return static_cast<std::int32_t>(
        uniform_below(static_cast<std::uint64_t>(vocab_), 1, 2, static_cast<std::uint64_t>(i)));
  }
  std::int64_t vocab_, seq_;
};

}  // namespace

graph::RoutingCounts no_routing(const plan::Plan& plan) {
  graph::RoutingCounts r;
  if (!plan.job.model.moe) return r;
  const spec::ModelSpec& m = plan.job.model;
  r.num_microbatches = plan.num_microbatches();
  r.kept.assign(static_cast<std::size_t>(m.num_hidden_layers + m.num_nextn_predict_layers),
                std::vector<std::vector<std::int64_t>>(static_cast<std::size_t>(plan.layout.world_size())));
  r.node_rows = r.kept;
  return r;
}

void note_routing(RankEngine& engine, graph::RoutingCounts& routing) {
  for (Stage& stage : engine.stages()) {
    for (const Stage::Mixture& m : stage.mixtures()) {
      std::vector<std::int64_t> kept = m.moe->stats().chosen;
      for (std::size_t e = 0; e < kept.size(); ++e) kept[e] -= m.moe->stats().dropped[e];
      const auto layer = static_cast<std::size_t>(m.layer);
      const auto rank = static_cast<std::size_t>(engine.rank().value);
      routing.kept[layer][rank] = std::move(kept);
      routing.node_rows[layer][rank] = m.moe->stats().node_rows;
    }
  }
}

MeasuredSteps measure_steps(const plan::Plan& plan, std::int32_t steps) {
  const RandomTokens data(plan.job.model.vocab_size, plan.job.train.sequence_length);
  const std::int32_t size = plan.layout.world_size();
  comm::ThreadWorld world({.size = size});
  std::vector<Rank> everyone;
  for (std::int32_t r = 0; r < size; ++r) everyone.emplace_back(r);
  MeasuredSteps out;
  out.routing = no_routing(plan);
  world.run([&](Rank rank) {
    comm::CommWorker worker({.on_unwind = [&] { world.abort(rank, "left while its reductions ran"); }});
    RankEngine engine(
        {.plan = &plan,
         .data = &data,
         .rank = rank,
         .kernels = kernels::make_cpu(),
         .communicators = [&](std::span<const Rank> members,
                              std::string_view label) { return world.communicator(rank, members, label); },
         .worker = size > 1 ? &worker : nullptr});
    const auto all = world.communicator(rank, everyone, "steps");
    engine.initialise();
    (void)engine.train_step(0);
    for (std::int32_t s = 1; s <= steps; ++s) {
      all->barrier();
      const std::int64_t start = wall_ns();
      (void)engine.train_step(s);
      all->barrier();
      if (rank.value == 0) out.seconds.push_back(static_cast<double>(wall_ns() - start) * 1e-9);
    }
    note_routing(engine, out.routing);  // ranks write different elements
  });
  return out;
}

}  // namespace tessera::exec
