// The operators of a step, stage by stage.
#include <fmt/format.h>

#include <utility>

#include "base/math.h"
#include "graph/op_writer.h"
#include "graph/routing_rows.h"
#include "graph/step_ops.h"

namespace tessera::graph {

namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

class Builder {
 public:
  Builder(const spec::Job& job, const layout::Layout& layout, Rank rank, const RoutingCounts& routing)
      : job_(job),
        layout_(layout),
        rank_(rank),
        sizes_(make_sizes()),
        rows_(job, layout, rank, routing, sizes_) {}

  StepGraph run() {
    StepGraph g{.rank = rank_,
                .num_microbatches = static_cast<std::int32_t>(sizes_.num_microbatches),
                .stages = {},
                .step = step_ops(job_, layout_, rank_, sizes_)};
    for (const StageId stage : layout_.stages_of(rank_)) g.stages.push_back(make_stage(stage));
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
        .seq = div_exact(r.sequence_length, p.cp),
        .hidden = m.hidden_size,
        .tp = p.tp,
        .ep = p.ep,
        .etp = p.etp,
        .cp = p.cp,
        .cp_rank = layout_.dense.coordinate(rank_, layout::Axis::cp),
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
        .tp_comm_overlap = p.tp_comm_overlap,
        .num_microbatches = div_exact(r.global_batch_size, r.micro_batch_size * p.dp)};
  }
  [[nodiscard]] LayerOps kept_layer(std::int32_t layer) const {
    const std::string prefix = fmt::format("layers.{}.", layer);
    Sizes sizes = sizes_;
    sizes.attention = attention_sizes(job_.model, spec::layer_class(job_.model, layer));
    LayerOps ops = job_.model.mla ? latent_attention_ops(sizes, prefix + "attention.")
                                  : attention_ops(sizes, prefix + "attention.");
    ops.append({.forward = {stream(prefix + "stream")}, .backward_input = {}, .backward_weight = {}});
    LayerOps second = spec::layer_class(job_.model, layer).moe
                          ? moe_ops(sizes_, rows_.of_layer(layer), prefix + "moe.")
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
  const spec::Job& job_;
  const layout::Layout& layout_;
  Rank rank_;
  Sizes sizes_;
  RoutingRows rows_;
};

}  // namespace

StepGraph build(const spec::Job& job, const layout::Layout& layout, Rank rank, const RoutingCounts& routing) {
  return Builder(job, layout, rank, routing).run();
}

}  // namespace tessera::graph
