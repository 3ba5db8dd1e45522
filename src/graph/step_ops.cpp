#include "graph/step_ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/math.h"
#include "graph/buckets.h"
#include "graph/closed_forms.h"

namespace tessera::graph {

namespace {

Axis axis_of(layout::GradGroup group) {
  switch (group) {
    case layout::GradGroup::dp:
      return Axis::dp;
    case layout::GradGroup::tp_dp:
      return Axis::tp_dp;
    case layout::GradGroup::edp:
      return Axis::edp;
  }
  return Axis::dp;
}

class StepOps {
 public:
  StepOps(const spec::Job& job, const layout::Layout& layout, Rank rank, const Sizes& sizes)
      : job_(job), layout_(layout), rank_(rank), sizes_(sizes) {}

  [[nodiscard]] OpList run() const {
    OpList out;
    add_reductions(out);
    add_scalars(out);
    add_gathers(out);
    return out;
  }

 private:
  // bytes: of one call.
  void add_step(OpList& out, std::string op_name, Axis axis, Call call, std::int64_t bytes,
                std::int64_t calls = 1) const {
    Op op;
    op.name = std::move(op_name);
    op.kind = OpKind::collective;
    op.axis = axis;
    op.call = call;
    op.bytes_sent = Bytes(bytes * calls);
    op.calls = calls;
    out.push_back(std::move(op));
  }

  // The rank inside a gradient group.
  [[nodiscard]] std::int32_t rank_in(layout::GradGroup group) const {
    using layout::Axis;
    std::vector<Rank> members;
    switch (group) {
      case layout::GradGroup::dp:
        members = layout_.dense.group(rank_, {Axis::cp, Axis::dp});
        break;
      case layout::GradGroup::tp_dp:
        members = layout_.dense.group(rank_, {Axis::tp, Axis::cp, Axis::dp});
        break;
      case layout::GradGroup::edp:
        members = layout_.expert.group(rank_, {Axis::edp});
        break;
    }
    return static_cast<std::int32_t>(std::find(members.begin(), members.end(), rank_) - members.begin());
  }

  // First and last stage, when they lie on two ranks and this is one of them.
  [[nodiscard]] bool has_tie_partner() const {
    if (!layout::shares_embedding(job_.model)) return false;
    const std::int32_t first = layout_.stage_rank.front();
    const std::int32_t last = layout_.stage_rank.back();
    const std::int32_t here = layout_.dense.coordinate(rank_, layout::Axis::pp);
    return first != last && (here == first || here == last);
  }

  void add_reductions(OpList& out) const {
    const BucketOptions options = bucket_options(job_);
    const bool sharded = job_.train.zero_stage >= 1;
    const std::int64_t sums = job_.train.zero_stage >= 2 ? sizes_.num_microbatches : 1;
    const std::vector<layout::ParamSpec> params = layout::parameters(job_.model, layout_, rank_);
    OpList ties;
    std::int32_t index = 0;
    for (const GradBucket& b : gradient_buckets(params, options)) {
      const std::int32_t n = group_size(options, b.group);
      const std::string bucket = fmt::format("bucket {} of stage {}", index++, b.stage.value);
      const std::int64_t bytes = b.num_elements * sizes_.element;
      if (n > 1 && sharded) {
        add_step(out, "reduce " + bucket, axis_of(b.group), Call::reduce_scatter,
                 (n - 1) * div_exact(bytes, n), sums);
      } else if (n > 1) {
        add_step(out, "reduce " + bucket, axis_of(b.group), Call::all_reduce,
                 ring_all_reduce_elements(b.num_elements, rank_in(b.group), n) * sizes_.element);
      }
      if ((b.embedding || b.tied_copy) && has_tie_partner()) {
        const std::int64_t owned = sharded ? div_exact(b.num_elements, n) : b.num_elements;
        const bool first_stage =
            layout_.stage_rank.front() == layout_.dense.coordinate(rank_, layout::Axis::pp);
        const bool lower = (layout_.stage_rank.front() < layout_.stage_rank.back()) == first_stage;
        add_step(ties, "tied sum of " + bucket, Axis::tie, Call::all_reduce,
                 ring_all_reduce_elements(owned, lower ? 0 : 1, 2) * sizes_.element);
      }
    }
    out.insert(out.end(), ties.begin(), ties.end());
  }

  // Loss terms and gradient norm (4, with MTP 5) and the router entropy of each layer; then counts of
  // choices, drops and tokens.
  void add_scalars(OpList& out) const {
    const std::int64_t others = layout_.world_size() - 1;
    if (others == 0) return;
    constexpr std::int64_t kBytes = 8;
    const std::int64_t layers = std::ssize(spec::moe_layers(job_.model));
    const std::int64_t terms = job_.model.num_nextn_predict_layers > 0 ? 5 : 4;
    add_step(out, "loss and norm", Axis::world, Call::all_reduce_direct, others * (terms + layers) * kBytes);
    if (layers == 0) return;
    add_step(out, "routing statistics", Axis::world, Call::all_reduce_direct,
             others * layers * (2 * job_.model.moe->num_experts + 1) * kBytes);
  }

  // Once after the update, or with ZeRO-3 before each use: F, and but for the embedding I or B, of every
  // micro-batch.
  void add_gathers(OpList& out) const {
    const std::int32_t zero = job_.train.zero_stage;
    if (zero == 0) return;
    const BucketOptions options = bucket_options(job_);
    const std::vector<layout::ParamSpec> params = layout::parameters(job_.model, layout_, rank_);
    const auto stages = layout_.stages_of(rank_);
    const bool embedding_here = stages.front().value == 0;
    std::int32_t index = 0;
    for (const GradBucket& b : gradient_buckets(params, options)) {
      const std::int32_t n = group_size(options, b.group);
      const std::string bucket = fmt::format("gather bucket {} of stage {}", index++, b.stage.value);
      // A tied copy beside the embedding shares its values: each use of ZeRO-3 brings them.
      if (n == 1 || (zero < 3 && b.tied_copy && embedding_here)) continue;
      const std::int64_t uses = zero < 3 ? 1 : (b.input ? 1 : 2) * sizes_.num_microbatches;
      add_step(out, bucket, axis_of(b.group), Call::all_gather,
               (n - 1) * div_exact(b.num_elements * sizes_.element, n), uses);
    }
  }
  const spec::Job& job_;
  const layout::Layout& layout_;
  Rank rank_;
  const Sizes& sizes_;
};

}  // namespace

OpList step_ops(const spec::Job& job, const layout::Layout& layout, Rank rank, const Sizes& sizes) {
  return StepOps(job, layout, rank, sizes).run();
}

}  // namespace tessera::graph
