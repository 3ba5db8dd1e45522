// Bytes of one rank of the engine, as its set-up takes them.
#include <algorithm>

#include "base/math.h"
#include "cost/engine_step.h"
#include "graph/buckets.h"

namespace tessera::cost {

namespace {

using layout::ParamKind;
using layout::ParamSpec;
using schedule::ActionKind;

constexpr std::int64_t kAlignment = 64;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

std::int64_t element_bytes(const spec::Job& job) {
  return job.train.precision == spec::Precision::f64 ? 8 : 4;
}

// Slots of one stage: what the executor of the schedule needs.
struct Slots {
  std::int64_t live = 0, gradient = 0, deferred = 0;
  bool split = false;
};

Slots slots_of(const EngineJob& j, const schedule::CheckReport& proof, StageId stage, std::int32_t pp_rank) {
  const schedule::StageSlots& proven = proof.stages.at(at(stage.value));
  Slots s{.live = proven.peak_live, .gradient = proven.peak_unreceived_backward + 1};
  const bool local = stage.value > 0 && j.layout.stage_rank.at(at(stage.value - 1)) == pp_rank;
  std::int64_t deferred = 0, waiting = 0;  // waiting: handed to a stage of the same rank, not yet taken
  for (const schedule::Action& a : j.schedule.ranks.at(at(pp_rank))) {
    const bool input = a.kind == ActionKind::backward_input || a.kind == ActionKind::backward;
    if (input && a.stage.value == stage.value - 1) --waiting;
    if (a.stage != stage) continue;
    if (input && local) s.gradient = std::max(s.gradient, ++waiting);
    if (a.kind == ActionKind::backward_input) {
      s.deferred = std::max(s.deferred, ++deferred);
      s.split = true;
    }
    if (a.kind == ActionKind::backward) s.deferred = std::max(s.deferred, deferred + 1);
    if (a.kind == ActionKind::backward_weight) --deferred;
  }
  return s;
}

void add_activations(EngineMemory& m, const EngineJob& j, Rank rank) {
  // One micro-batch stands for all: what is kept does not depend on the routing.
  const graph::StepGraph g = graph::build(j.job, j.layout, rank);
  const schedule::CheckReport proof = schedule::check(j.schedule);
  const std::int32_t pp_rank = j.layout.dense.coordinate(rank, layout::Axis::pp);
  const spec::Recipe& r = j.job.train;
  const std::int64_t all_tokens = r.micro_batch_size * r.sequence_length;
  const std::int64_t tokens = div_exact(all_tokens, j.job.parallel.cp);
  const std::int64_t stream =
      round_up(tokens / j.job.parallel.tp * j.job.model.hidden_size * element_bytes(j.job), kAlignment);
  for (const graph::StageGraph& s : g.stages) {
    const Slots slots = slots_of(j, proof, s.stage, pp_rank);
    m.saved += Bytes(slots.live * s.saved_bytes().value + slots.gradient * stream);
    m.deferred +=
        slots.deferred * s.deferred_bytes(slots.split ? graph::Backward::split : graph::Backward::fused);
    if (slots.split) m.deferred += s.discarded_bytes();
  }
  constexpr std::int64_t kIndexBytes = 4;
  // With cp what was loaded stays beside its part.
  const std::int64_t kept = tokens + (j.job.parallel.cp > 1 ? all_tokens : 0);
  m.tokens = Bytes(2 * g.num_microbatches * kept * kIndexBytes);
}

bool is_packed(const ParamSpec& p) {
  return p.num_dims == 2 && !layout::is_input(p.kind) && p.kind != ParamKind::mtp_embedding;
}

}  // namespace

MemoryCost EngineMemory::cost(std::int32_t pipeline_rank) const {
  MemoryCost c;
  const auto part = [&](MemoryPart p) -> double& { return c.parts[static_cast<std::size_t>(p)]; };
  part(MemoryPart::weights) = static_cast<double>(weights.value);
  part(MemoryPart::gradients) = static_cast<double>(gradients.value);
  part(MemoryPart::optimizer) = static_cast<double>(optimizer.value);
  part(MemoryPart::activations) = static_cast<double>((saved + deferred).value);
  part(MemoryPart::buffers) = static_cast<double>((packed_weights + tokens).value);
  c.pipeline_rank = pipeline_rank;
  return c;
}

EngineMemory engine_memory(const EngineJob& j, Rank rank) {
  const spec::Job& job = j.job;
  const std::int64_t element = element_bytes(job);
  const graph::BucketOptions options = graph::bucket_options(job);
  const std::vector<ParamSpec> params = layout::parameters(job.model, j.layout, rank);
  const bool embedding_here =
      std::ranges::any_of(params, [](const ParamSpec& s) { return s.kind == ParamKind::embedding; });
  EngineMemory m;
  const std::vector<graph::GradBucket> buckets = graph::gradient_buckets(params, options);
  const std::int32_t zero = job.train.zero_stage;
  for (const graph::GradBucket& b : buckets) {
    const std::int64_t whole = b.num_elements * element;
    const std::int64_t part = div_exact(whole, graph::group_size(options, b.group));
    m.gradients += Bytes(zero >= 2 ? part : whole);
    if (b.tied_copy && embedding_here) continue;  // shares the embedding's values
    m.weights += Bytes(zero == 3 ? part : whole);
    m.optimizer += Bytes(2 * (zero >= 1 ? part : whole));
  }
  const graph::TransientElements transient = graph::transient_elements(buckets, options);
  m.gradients += Bytes(transient.gradients * element);
  m.weights += Bytes(transient.values * element);
  for (const ParamSpec& s : params)
    if (s.buffer) m.weights += Bytes(round_up(s.num_elements() * element, kAlignment));
  const std::int64_t rows = div_exact(job.train.sequence_length, job.parallel.cp);
  const std::int64_t table = rows * (job.model.rotated_dim() / 2) * element;
  m.weights += Bytes(2 * round_up(table, kAlignment));  // cosines and sines
  // Values that come and go are not packed.
  const auto is_whole = [&](const ParamSpec& s) {
    return zero < 3 || graph::group_size(options, s.group) == 1;
  };
  for (const ParamSpec& s : params) {
    if (is_packed(s) && is_whole(s)) m.packed_weights += Bytes(2 * s.num_elements() * element);
  }
  add_activations(m, j, rank);
  return m;
}

}  // namespace tessera::cost
