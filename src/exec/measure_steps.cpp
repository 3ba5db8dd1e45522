#include "exec/measure_steps.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "base/clock.h"
#include "base/random.h"
#include "comm/thread_world.h"
#include "comm/worker.h"
#include "exec/rank_engine.h"
#include "graph/dispatch_form.h"
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

namespace {

// Every process knows the rows of its own ranks; after this those of all. `mine`: null where another thread
// of this process has them.
void share_routing(comm::Communicator& all, const plan::Plan& plan, graph::RoutingCounts* mine) {
  if (!plan.job.model.moe) return;
  const auto experts = static_cast<std::size_t>(plan.job.model.moe->num_experts);
  const auto nodes = static_cast<std::size_t>(graph::dispatch_nodes(plan.job));
  const auto layers =
      static_cast<std::size_t>(plan.job.model.num_hidden_layers + plan.job.model.num_nextn_predict_layers);
  std::vector<std::int64_t> flat(layers * static_cast<std::size_t>(all.size()) * (experts + nodes));
  const auto visit = [&](const auto& f) {
    std::size_t at = 0;
    for (std::size_t l = 0; l < layers; ++l) {
      for (std::size_t r = 0; r < static_cast<std::size_t>(all.size()); ++r) {
        f(mine->kept[l][r], &flat[at], experts);
        f(mine->node_rows[l][r], &flat[at + experts], nodes);
        at += experts + nodes;
      }
    }
  };
  using Rows = std::vector<std::int64_t>;
  if (mine != nullptr)
    visit([](const Rows& rows, std::int64_t* to, std::size_t) { std::ranges::copy(rows, to); });
  all.all_reduce_direct({flat.data(), tensor::DType::i64, {std::ssize(flat)}}, comm::Op::sum);
  if (mine == nullptr) return;
  visit([](Rows& rows, const std::int64_t* from, std::size_t n) {
    const bool any = std::any_of(from, from + n, [](std::int64_t x) { return x != 0; });
    if (any) rows.assign(from, from + n);
  });
}

}  // namespace

MeasuredSteps measure_steps(const plan::Plan& plan, std::int32_t steps, const StepsOptions& options) {
  const RandomTokens data(plan.job.model.vocab_size, plan.job.train.sequence_length);
  const std::int32_t size = plan.layout.world_size();
  std::optional<comm::ThreadWorld> threads;
  comm::World& world =
      options.world != nullptr ? *options.world : threads.emplace(comm::ThreadWorld::Options{.size = size});
  std::vector<Rank> everyone;
  for (std::int32_t r = 0; r < size; ++r) everyone.emplace_back(r);
  MeasuredSteps out;
  out.routing = no_routing(plan);
  world.run([&](Rank rank) {
    comm::CommWorker worker({.on_unwind = [&] { world.abort(rank, "left while its reductions ran"); }});
    std::unique_ptr<kernels::Kernels> kernels = kernels_for(rank, options.compute.kernels);
    std::unique_ptr<comm::DeviceNetwork> network;
    if (options.compute.network) network = options.compute.network(rank, kernels->memory());
    RankEngine engine(
        {.plan = &plan,
         .data = &data,
         .rank = rank,
         .kernels = std::move(kernels),
         .communicators = [&](std::span<const Rank> members,
                              std::string_view label) { return world.communicator(rank, members, label); },
         .network = std::move(network),
         .worker = size > 1 ? &worker : nullptr,
         .whereabouts = &world.whereabouts(rank)});
    const auto all = world.communicator(rank, everyone, "steps");
    StepGatherer gatherer(plan, size, FlopsPerSecond(1e9));  // its shares of a peak are not used
    engine.initialise();
    (void)engine.train_step(0);
    if (options.warm) options.warm(rank);
    for (std::int32_t s = 1; s <= steps; ++s) {
      all->barrier();
      const std::int64_t start = wall_ns();
      (void)engine.train_step(s);
      all->barrier();
      const Seconds wall(static_cast<double>(wall_ns() - start) * 1e-9);
      StepMetrics metrics = gatherer.gather(engine, s, wall);
      if (rank.value != 0) continue;
      out.seconds.push_back(wall.value);
      out.each.push_back(std::move(metrics));
    }
    note_routing(engine, out.routing);  // ranks write different elements
    all->barrier();
    if (world.spans_processes())
      share_routing(*all, plan, rank == world.local_ranks().front() ? &out.routing : nullptr);
  });
  return out;
}

}  // namespace tessera::exec
