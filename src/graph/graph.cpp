#include "graph/graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "base/math.h"
#include "base/text.h"
#include "graph/buckets.h"
#include "graph/closed_forms.h"
#include "graph/dispatch_form.h"
#include "graph/layers.h"
#include "graph/op_writer.h"

namespace tessera::graph {

std::string_view name(OpKind kind) {
  switch (kind) {
    case OpKind::gemm:
      return "gemm";
    case OpKind::attention:
      return "attention";
    case OpKind::memory:
      return "memory";
    case OpKind::collective:
      return "collective";
  }
  return "unknown";
}

std::string_view name(Axis axis) {
  switch (axis) {
    case Axis::tp:
      return "tp";
    case Axis::cp:
      return "cp";
    case Axis::pp:
      return "pp";
    case Axis::dp:
      return "dp";
    case Axis::tp_dp:
      return "tp_dp";
    case Axis::edp:
      return "edp";
    case Axis::ep:
      return "ep";
    case Axis::etp:
      return "etp";
    case Axis::tie:
      return "tie";
    case Axis::world:
      return "world";
  }
  return "unknown";
}

std::string_view name(Call call) {
  switch (call) {
    case Call::all_reduce:
      return "all_reduce";
    case Call::all_reduce_direct:
      return "all_reduce_direct";
    case Call::reduce_scatter:
      return "reduce_scatter";
    case Call::all_gather:
      return "all_gather";
    case Call::all_gather_v:
      return "all_gather_v";
    case Call::reduce_scatter_v:
      return "reduce_scatter_v";
    case Call::all_to_all_v:
      return "all_to_all_v";
    case Call::send:
      return "send";
  }
  return "unknown";
}

namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

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

// Rows that an expert takes of one micro-batch.
std::int64_t expert_capacity(const spec::Job& job) {
  const spec::MoeRecipe& r = job.train.moe;
  const std::int64_t tokens = job.train.micro_batch_size * job.train.sequence_length;
  const double factor = r.capacity_factor > 0.0 ? r.capacity_factor : 1.0;
  const std::int64_t rows =
      capacity_rows(factor, tokens, job.model.moe->num_experts_per_tok, job.model.moe->num_experts);
  return r.router == spec::RouterChoice::expert_choice ? std::min(rows, tokens) : rows;
}

class Builder {
 public:
  Builder(const spec::Job& job, const layout::Layout& layout, Rank rank, const RoutingCounts& routing)
      : job_(job), layout_(layout), rank_(rank), routing_(routing), sizes_(make_sizes()) {
    check_routing();
  }

  StepGraph run() {
    StepGraph g{.rank = rank_,
                .num_microbatches = static_cast<std::int32_t>(sizes_.num_microbatches),
                .stages = {},
                .step = {}};
    for (const StageId stage : layout_.stages_of(rank_)) g.stages.push_back(make_stage(stage));
    add_reductions(g.step);
    add_scalars(g.step);
    add_gathers(g.step);
    return g;
  }

 private:
  [[nodiscard]] Sizes make_sizes() const {
    const spec::ModelSpec& m = job_.model;
    bool dense_layers = false;
    for (std::int32_t l = 0; l < m.num_hidden_layers + m.num_nextn_predict_layers; ++l)
      dense_layers = dense_layers || !spec::layer_class(m, l).moe;
    const spec::ParallelSpec& p = job_.parallel;
    const spec::Recipe& r = job_.train;
    return {
        .element = spec::element_bytes(r.precision),
        .batch = r.micro_batch_size,
        .seq = r.sequence_length,
        .hidden = m.hidden_size,
        .tp = p.tp,
        .ep = p.ep,
        .etp = p.etp,
        .heads = div_exact(m.num_attention_heads, p.tp),
        .kv_heads = div_exact(m.num_key_value_heads, p.tp),
        .head_dim = m.head_dim,
        .intermediate = dense_layers ? div_exact(m.intermediate_size, p.tp) : 0,
        .vocab =
            layout::vocab_share(m.vocab_size, layout_.dense.coordinate(rank_, layout::Axis::tp), p.tp).size,
        .layer_norm = m.norm != spec::NormKind::rms,
        .gated_mlp = m.gated_mlp,
        .mlp_bias = m.mlp_bias,
        .learned_positions = m.position == spec::PositionKind::learned,
        .selective = r.recompute == spec::Recompute::selective,
        .num_microbatches = div_exact(r.global_batch_size, r.micro_batch_size * p.dp)};
  }

  [[nodiscard]] std::vector<Rank> expert_group() const {  // etp fastest
    return layout_.expert.group(rank_, {layout::Axis::etp, layout::Axis::ep});
  }

  void check_routing() const {
    if (routing_.kept.empty() || !job_.model.moe) return;
    const auto refuse = [&](std::string what, std::string mend) {
      throw Error(ErrorKind::config, std::move(what), fmt::format("routing counts for rank {}", rank_.value),
                  std::move(mend));
    };
    const std::int32_t num_layers = job_.model.num_hidden_layers + job_.model.num_nextn_predict_layers;
    if (std::ssize(routing_.kept) != num_layers) {
      refuse(fmt::format("{} layers of counts for {} layers", routing_.kept.size(), num_layers),
             "give counts for every layer, or none");
    }
    if (routing_.num_microbatches < 1 || sizes_.num_microbatches % routing_.num_microbatches != 0) {
      refuse(fmt::format("counts over {} micro-batches, a step has {}", routing_.num_microbatches,
                         sizes_.num_microbatches),
             fmt::format("use 1 or {}", sizes_.num_microbatches));
    }
    for (const StageId stage : layout_.stages_of(rank_)) {
      const layout::StageCut& cut = layout_.stages[at(stage.value)];
      const std::int32_t mtp = cut.has_head ? job_.model.num_nextn_predict_layers : 0;  // behind the last
      for (std::int32_t l = cut.first_layer; l < cut.first_layer + cut.num_layers + mtp; ++l) {
        if (!spec::layer_class(job_.model, l).moe) continue;
        for (const Rank r : expert_group()) {
          const auto& ranks = routing_.kept[at(l)];
          if (std::ssize(ranks) > r.value && std::ssize(ranks[at(r.value)]) == job_.model.moe->num_experts)
            continue;
          refuse(fmt::format("no counts of {} experts for layer {}, rank {}", job_.model.moe->num_experts, l,
                             r.value),
                 "give one count an expert for every rank of the expert group");
        }
      }
    }
  }

  [[nodiscard]] std::vector<std::int64_t> kept(std::int32_t layer, Rank r) const {
    if (routing_.kept.empty()) return balanced_routing(job_, layout_, r);
    return routing_.kept[at(layer)][at(r.value)];
  }

  void count_rows(MoeSizes& m, std::int32_t layer) const {
    const std::vector<Rank> group = expert_group();
    const std::int64_t local = div_exact(m.num_experts, sizes_.ep);
    const std::int32_t my_ep = layout_.expert.coordinate(rank_, layout::Axis::ep);
    const std::int32_t my_etp = layout_.expert.coordinate(rank_, layout::Axis::etp);
    for (std::size_t g = 0; g < group.size(); ++g) {
      const std::vector<std::int64_t> rows = kept(layer, group[g]);
      const auto etp = static_cast<std::int32_t>(g) % sizes_.etp;
      const auto ep = static_cast<std::int32_t>(g) / sizes_.etp;
      for (std::int64_t e = 0; e < m.num_experts; ++e) {
        const bool here = e / local == my_ep;
        const std::int64_t n = rows[at(e)];
        if (group[g] == rank_) m.sent += n;
        if (group[g] == rank_ && !here) m.sent_to_others += n;
        if (!here) continue;
        m.received += n;
        if (etp == my_etp) m.part += n;
        if (etp == my_etp && ep != my_ep) m.part_from_others += n;
      }
    }
  }

  // Replicas whose micro-batches meet in this rank's expert group.
  [[nodiscard]] std::int64_t replicas_in_group() const {
    std::set<std::pair<std::int32_t, std::int32_t>> replicas;
    for (const Rank r : expert_group()) {
      replicas.insert(
          {layout_.dense.coordinate(r, layout::Axis::dp), layout_.dense.coordinate(r, layout::Axis::cp)});
    }
    return std::ssize(replicas);
  }

  [[nodiscard]] MoeSizes moe_sizes(std::int32_t layer) const {
    const spec::MoeRecipe& r = job_.train.moe;
    MoeSizes m;
    m.num_experts = job_.model.moe->num_experts;
    m.top_k = job_.model.moe->num_experts_per_tok;
    m.intermediate = div_exact(spec::expert_intermediate_size(job_.model), sizes_.etp);
    m.shared_intermediate = div_exact(job_.model.moe->shared_intermediate_size, sizes_.tp);
    m.shared_gate = job_.model.moe->shared_expert_gate;
    m.keeps_logits = job_.model.moe->score == spec::RouterScore::sigmoid && r.z_loss_coef != 0.0;
    m.experts_choose = r.router == spec::RouterChoice::expert_choice;
    m.choices = m.experts_choose ? m.num_experts : m.top_k;
    m.num_units = r.aux_loss_unit == spec::BalanceUnit::sequence ? sizes_.batch : 1;
    const bool in_unit = r.aux_loss_unit != spec::BalanceUnit::global_batch;
    const bool joined = in_unit && r.aux_loss_normalisation == spec::AuxNormalisation::huggingface;
    m.balanced = r.aux_loss_coef != 0.0 && !joined;
    m.counts_units = r.aux_loss_coef != 0.0 && in_unit;
    m.drops = r.capacity_factor > 0.0 || m.experts_choose;
    m.drops_by_weight = r.drop_policy == spec::DropPolicy::probs || m.experts_choose;
    m.row_microbatches = routing_.kept.empty() ? 1 : routing_.num_microbatches;
    m.gathers = sizes_.ep > 1 && dispatch_form(job_) == spec::DispatchForm::all_gather;
    const std::int64_t local = div_exact(m.num_experts, sizes_.ep);
    m.max_rows = std::int64_t{sizes_.ep} * sizes_.etp * sizes_.local_tokens() * std::min(m.choices, local);
    m.max_sent = sizes_.local_tokens() * m.choices;
    if (m.drops) {
      const std::int64_t capacity = expert_capacity(job_);
      const std::int64_t meeting = local * capacity * replicas_in_group();
      m.max_rows = std::min(m.max_rows, meeting);
      m.max_sent = std::min(m.max_sent, m.num_experts * capacity);
      if (r.pad_to_capacity) m.padded = meeting;
    }
    count_rows(m, layer);
    return m;
  }

  [[nodiscard]] LayerOps kept_layer(std::int32_t layer) const {
    const std::string prefix = fmt::format("layers.{}.", layer);
    Sizes sizes = sizes_;
    sizes.attention = attention_sizes(job_.model, spec::layer_class(job_.model, layer));
    LayerOps ops = job_.model.mla ? latent_attention_ops(sizes, prefix + "attention.")
                                  : attention_ops(sizes, prefix + "attention.");
    ops.append({.forward = {stream(prefix + "stream")}, .backward_input = {}, .backward_weight = {}});
    LayerOps second = spec::layer_class(job_.model, layer).moe
                          ? moe_ops(sizes_, moe_sizes(layer), prefix + "moe.")
                          : mlp_ops(sizes_, prefix + "mlp.");
    // Backward runs the second layer first.
    std::swap(ops.backward_input, second.backward_input);
    std::swap(ops.backward_weight, second.backward_weight);
    ops.append(std::move(second));
    return ops;
  }

  // With full recomputation forward keeps nothing and is run again.
  [[nodiscard]] LayerOps transformer_layer(std::int32_t layer) const {
    LayerOps ops = kept_layer(layer);
    if (job_.train.recompute != spec::Recompute::full) return ops;
    OpList again = ops.forward;
    for (Op& op : again) {
      op.name += " (recomputed)";
      op.recomputed = true;
    }
    for (Op& op : ops.forward) op.bytes_kept = Bytes(0);
    again.insert(again.end(), ops.backward_input.begin(), ops.backward_input.end());
    ops.backward_input = std::move(again);
    return ops;
  }

  // Full recomputation leaves MTP layers alone.
  [[nodiscard]] LayerOps head_with_mtp() const {
    std::vector<MtpOps> depths;
    for (std::int32_t k = 0; k < job_.model.num_nextn_predict_layers; ++k) {
      const std::int32_t layer = job_.model.num_hidden_layers + k;
      const std::string prefix = fmt::format("layers.{}.", layer);
      MtpOps d{mtp_join_ops(sizes_, prefix), kept_layer(layer), head_ops(sizes_, prefix + "head.")};
      d.layer.forward.push_back(stream(prefix + "output"));
      depths.push_back(std::move(d));
    }
    return head_with_mtp_ops(head_ops(sizes_, "head."), std::move(depths));
  }

  // The residual stream behind a layer, kept in the slot.
  [[nodiscard]] Op stream(std::string op_name) const {
    OpList one;
    OpWriter w(one, sizes_, std::move(op_name));
    w.memory("", 0);
    w.keep(sizes_.local_tokens() * sizes_.hidden);
    return one.front();
  }

  [[nodiscard]] Op message(std::string op_name) const {
    OpList one;
    OpWriter w(one, sizes_, std::move(op_name));
    w.collective("", Axis::pp, Call::send, sizes_.stream_bytes());
    return one.front();
  }

  [[nodiscard]] bool elsewhere(std::int32_t stage, std::int32_t neighbour) const {
    return layout_.stage_rank[at(stage)] != layout_.stage_rank[at(neighbour)];
  }

  StageGraph make_stage(StageId stage) const {
    const layout::StageCut& cut = layout_.stages[at(stage.value)];
    const std::int32_t last = static_cast<std::int32_t>(layout_.stages.size()) - 1;
    struct Unit {
      std::int32_t index;
      LayerOps ops;
    };
    std::vector<Unit> units;
    LayerOps input;
    if (cut.has_embedding) input = embedding_ops(sizes_, "embedding.");
    input.forward.push_back(stream("input"));
    units.push_back({-1, std::move(input)});
    for (std::int32_t l = 0; l < cut.num_layers; ++l) {
      LayerOps ops = transformer_layer(cut.first_layer + l);
      ops.forward.push_back(stream(fmt::format("layers.{}.output", cut.first_layer + l)));
      units.push_back({l, std::move(ops)});
    }
    if (cut.has_head) units.push_back({cut.num_layers, head_with_mtp()});

    StageGraph g;
    g.stage = stage;
    const auto move_into = [](OpList& to, OpList& from, std::int32_t unit) {
      for (Op& op : from) {
        op.unit = unit;
        to.push_back(std::move(op));
      }
    };
    for (Unit& u : units) move_into(g.forward, u.ops.forward, u.index);
    if (stage.value < last && elsewhere(stage.value, stage.value + 1))
      g.forward.push_back(message("send output"));
    for (auto u = units.rbegin(); u != units.rend(); ++u) {
      move_into(g.backward_input, u->ops.backward_input, u->index);
      move_into(g.backward_weight, u->ops.backward_weight, u->index);
    }
    if (stage.value > 0 && elsewhere(stage.value, stage.value - 1)) {
      g.backward_input.push_back(message("send gradient"));
    }
    return g;
  }

  // --- once a step

  void add_step(OpList& out, std::string op_name, Axis axis, Call call, std::int64_t bytes) const {
    Op op;
    op.name = std::move(op_name);
    op.kind = OpKind::collective;
    op.axis = axis;
    op.call = call;
    op.bytes_sent = Bytes(bytes);
    op.calls = 1;
    out.push_back(std::move(op));
  }

  [[nodiscard]] BucketOptions bucket_options() const {
    const spec::ParallelSpec& p = job_.parallel;
    return {.element_bytes = sizes_.element,
            .bucket_bytes = job_.train.bucket_bytes,
            .tied = layout::shares_embedding(job_.model),
            .dp = p.cp * p.dp,
            .tp_dp = p.tp * p.cp * p.dp,
            .edp = p.edp()};
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
    const BucketOptions options = bucket_options();
    const bool sharded = job_.train.zero_stage == 1;
    const std::vector<layout::ParamSpec> params = layout::parameters(job_.model, layout_, rank_);
    OpList ties;
    std::int32_t index = 0;
    for (const GradBucket& b : gradient_buckets(params, options)) {
      const std::int32_t n = group_size(options, b.group);
      const std::string bucket = fmt::format("bucket {} of stage {}", index++, b.stage.value);
      const std::int64_t bytes = b.num_elements * sizes_.element;
      if (n > 1 && sharded) {
        add_step(out, "reduce " + bucket, axis_of(b.group), Call::reduce_scatter,
                 (n - 1) * div_exact(bytes, n));
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

  void add_gathers(OpList& out) const {
    if (job_.train.zero_stage != 1) return;
    const BucketOptions options = bucket_options();
    const std::vector<layout::ParamSpec> params = layout::parameters(job_.model, layout_, rank_);
    const auto stages = layout_.stages_of(rank_);
    const bool embedding_here = stages.front().value == 0;
    std::int32_t index = 0;
    for (const GradBucket& b : gradient_buckets(params, options)) {
      const std::int32_t n = group_size(options, b.group);
      const std::string bucket = fmt::format("gather bucket {} of stage {}", index++, b.stage.value);
      // A tied copy beside the embedding shares its values.
      if (n == 1 || (b.tied_copy && embedding_here)) continue;
      add_step(out, bucket, axis_of(b.group), Call::all_gather,
               (n - 1) * div_exact(b.num_elements * sizes_.element, n));
    }
  }

  const spec::Job& job_;
  const layout::Layout& layout_;
  Rank rank_;
  const RoutingCounts& routing_;
  Sizes sizes_;
};

}  // namespace

StepGraph build(const spec::Job& job, const layout::Layout& layout, Rank rank, const RoutingCounts& routing) {
  return Builder(job, layout, rank, routing).run();
}

std::vector<std::int64_t> balanced_routing(const spec::Job& job, const layout::Layout& layout, Rank rank) {
  const std::int64_t num_experts = job.model.moe->num_experts;
  const std::int64_t top_k = job.model.moe->num_experts_per_tok;
  const std::int64_t tokens = job.train.micro_batch_size * job.train.sequence_length;
  const std::int64_t choices = div_exact(tokens, job.parallel.tp) * top_k;
  const std::int64_t first = layout.dense.coordinate(rank, layout::Axis::tp) * choices;
  if (job.train.moe.router == spec::RouterChoice::expert_choice) {
    // An expert's rows spread evenly over the tokens.
    const auto before = [&](std::int64_t x) { return div_floor(expert_capacity(job) * x, tokens * top_k); };
    return std::vector<std::int64_t>(static_cast<std::size_t>(num_experts),
                                     before(first + choices) - before(first));
  }
  const std::int64_t capacity = job.train.moe.capacity_factor > 0.0 ? expert_capacity(job) : tokens * top_k;
  // Choices below x that go to expert e, as far as there is room.
  const auto below = [&](std::int64_t x, std::int64_t e) {
    return std::min(capacity, x > e ? div_floor(x - e - 1, num_experts) + 1 : 0);
  };
  std::vector<std::int64_t> kept;
  for (std::int64_t e = 0; e < num_experts; ++e) kept.push_back(below(first + choices, e) - below(first, e));
  return kept;
}

// --- totals

namespace {

Bytes kept_of(const OpList& ops) {
  Bytes sum;
  for (const Op& op : ops) sum += op.bytes_kept;
  return sum;
}

template <class F>
void for_each_op(const StepGraph& g, F&& f) {
  for (const StageGraph& s : g.stages) {
    for (const OpList* list : {&s.forward, &s.backward_input, &s.backward_weight})
      for (const Op& op : *list) f(op);
  }
  for (const Op& op : g.step) f(op);
}

bool is_call(const Op& op, Axis axis) {
  return op.kind == OpKind::collective && op.axis == axis;
}

}  // namespace

Bytes StageGraph::saved_bytes() const {
  return kept_of(forward);
}

Bytes StageGraph::deferred_bytes(Backward backward) const {
  std::map<std::int32_t, Bytes> by_unit;
  for (const Op& op : backward_input) by_unit[op.unit] += op.bytes_kept;
  Bytes sum;
  Bytes most;
  for (const auto& [unit, bytes] : by_unit) {
    sum += bytes;
    most = std::max(most, bytes);
  }
  switch (backward) {
    case Backward::fused:
      return most;
    case Backward::split:
      return sum;
  }
  return sum;
}

Bytes StageGraph::discarded_bytes() const {
  std::map<std::int32_t, Bytes> by_unit;
  for (const Op& op : backward_input)
    if (op.recomputed) by_unit[op.unit] += op.bytes_kept;
  Bytes most;
  for (const auto& [unit, bytes] : by_unit) most = std::max(most, bytes);
  return most;
}

Flops StepGraph::flops() const {
  Flops sum;
  for_each_op(*this, [&](const Op& op) { sum += op.flops * op.count; });
  return sum;
}
Flops StepGraph::model_flops() const {
  Flops sum;
  for_each_op(*this, [&](const Op& op) { sum += op.recomputed ? Flops(0) : op.flops * op.count; });
  return sum;
}
Bytes StepGraph::bytes_sent(Axis axis) const {
  Bytes sum;
  for_each_op(*this, [&](const Op& op) { sum += is_call(op, axis) ? op.bytes_sent * op.count : Bytes(0); });
  return sum;
}
Bytes StepGraph::bytes_sent(Axis axis, Call call) const {
  Bytes sum;
  for_each_op(*this, [&](const Op& op) {
    if (is_call(op, axis) && op.call == call) sum += op.bytes_sent * op.count;
  });
  return sum;
}
std::int64_t StepGraph::calls(Axis axis, Call call) const {
  std::int64_t sum = 0;
  for_each_op(*this, [&](const Op& op) { sum += is_call(op, axis) && op.call == call ? op.calls : 0; });
  return sum;
}
Bytes StepGraph::bytes_moved() const {
  Bytes sum;
  for_each_op(*this, [&](const Op& op) { sum += op.bytes_moved * op.count; });
  return sum;
}

}  // namespace tessera::graph
