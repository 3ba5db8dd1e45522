// parameters() of layout.h: the list of every family, in the order, cuts and groups that the header states.
#include <fmt/format.h>

#include <array>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/math.h"
#include "layout/layout.h"

namespace tessera::layout {

namespace {

// Over tp, or over etp for an expert's.
enum class Split : std::uint8_t { whole, rows, columns };

using Shape = std::array<std::int64_t, 2>;
constexpr const char* kEmbedding = "model.embed_tokens.weight";

// How a family calls the parts of its MoE layers.
struct MoeNames {
  std::string_view block = "mlp";
  std::string_view router = "gate";
  std::string_view shared = "shared_experts";
  std::string_view gate = "gate_proj";
  std::string_view up = "up_proj";
  std::string_view down = "down_proj";
};

MoeNames moe_names(spec::Family family) {
  if (family == spec::Family::mixtral)
    return {.block = "block_sparse_moe", .gate = "w1", .up = "w3", .down = "w2"};
  if (family == spec::Family::gpt_oss) return {.router = "router"};
  if (family == spec::Family::qwen2_moe) return {.shared = "shared_expert"};
  return {};
}

bool follows(ParamKind kind, bool gated) {
  switch (kind) {
    case ParamKind::k:
    case ParamKind::v:
    case ParamKind::k_bias:
    case ParamKind::v_bias:
    case ParamKind::shared_up:
    case ParamKind::expert_up:
    case ParamKind::expert_up_bias:
      return true;
    case ParamKind::up:
    case ParamKind::up_bias:
      return gated;
    case ParamKind::embedding:
    case ParamKind::position:
    case ParamKind::norm:
    case ParamKind::norm_bias:
    case ParamKind::q:
    case ParamKind::q_bias:
    case ParamKind::q_norm:
    case ParamKind::k_norm:
    case ParamKind::sinks:
    case ParamKind::o:
    case ParamKind::o_bias:
    case ParamKind::q_a:
    case ParamKind::q_a_bias:
    case ParamKind::q_a_norm:
    case ParamKind::q_b:
    case ParamKind::kv_a:
    case ParamKind::kv_a_bias:
    case ParamKind::kv_a_norm:
    case ParamKind::kv_b:
    case ParamKind::gate:
    case ParamKind::down:
    case ParamKind::gate_bias:
    case ParamKind::down_bias:
    case ParamKind::router:
    case ParamKind::router_bias:
    case ParamKind::router_correction:
    case ParamKind::shared_gate:
    case ParamKind::shared_down:
    case ParamKind::shared_expert_gate:
    case ParamKind::expert_gate:
    case ParamKind::expert_down:
    case ParamKind::expert_gate_bias:
    case ParamKind::expert_down_bias:
    case ParamKind::head:
    case ParamKind::mtp_embedding:
    case ParamKind::mtp_proj:
      return false;
  }
  return false;
}

// Where one rank stands, and its list while it grows.
class ParameterList {
 public:
  ParameterList(const spec::ModelSpec& model, const Layout& layout, Rank rank)
      : model_(model),
        layout_(layout),
        tp_(layout.dense.coordinate(rank, Axis::tp)),
        ep_(layout.expert.coordinate(rank, Axis::ep)),
        etp_(layout.expert.coordinate(rank, Axis::etp)),
        first_replica_(layout.dense.coordinate(rank, Axis::dp) == 0 &&
                       layout.dense.coordinate(rank, Axis::cp) == 0),
        first_expert_replica_(layout.expert.coordinate(rank, Axis::edp) == 0) {}

  void add_stage(StageId stage) {
    const StageCut& cut = layout_.stages[static_cast<std::size_t>(stage.value)];
    const Shape table{model_.vocab_size, model_.hidden_size};
    stage_ = stage;
    layer_ = -1;
    if (cut.has_embedding) {
      matrix(kEmbedding, ParamKind::embedding, table, Split::rows);
      if (model_.position == spec::PositionKind::learned) {
        matrix("model.embed_positions.weight", ParamKind::position,
               {model_.max_position_embeddings, model_.hidden_size}, Split::whole);
      }
    }
    for (std::int32_t i = 0; i < cut.num_layers; ++i) add_layer(cut.first_layer + i);
    layer_ = -1;
    if (!cut.has_head) return;
    norm("model.norm");
    if (model_.tie_word_embeddings) {
      add_copy(ParamKind::head);
    } else {
      matrix("lm_head.weight", ParamKind::head, table, Split::rows);
    }
    if (model_.num_nextn_predict_layers == 0) return;
    if (!model_.tie_word_embeddings) add_copy(ParamKind::mtp_embedding);
    for (std::int32_t k = 0; k < model_.num_nextn_predict_layers; ++k)
      add_mtp_layer(model_.num_hidden_layers + k);
  }

  [[nodiscard]] std::vector<ParamSpec> take() { return std::move(params_); }

 private:
  void add_copy(ParamKind kind) {
    ParamSpec& copy = matrix(kEmbedding, kind, {model_.vocab_size, model_.hidden_size}, Split::rows);
    copy.tied_copy = true;
    copy.owner = false;
  }

  // The names of DeepSeek-V3's files.
  void add_mtp_layer(std::int32_t layer) {
    layer_ = layer;
    const std::int64_t hidden = model_.hidden_size;
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    norm(prefix + "enorm");
    norm(prefix + "hnorm");
    matrix(prefix + "eh_proj.weight", ParamKind::mtp_proj, {hidden, 2 * hidden}, Split::whole);
    add_layer(layer);
    norm(prefix + "shared_head.norm");
  }

  void add_layer(std::int32_t layer) {
    layer_ = layer;
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    norm(prefix + "input_layernorm");
    if (model_.mla) {
      add_latent_attention(prefix + "self_attn.", *model_.mla);
    } else {
      add_attention(prefix + "self_attn.");
    }
    norm(prefix + "post_attention_layernorm");
    if (spec::layer_class(model_, layer).moe) {
      add_moe(prefix, *model_.moe);
    } else {
      add_mlp(prefix + "mlp.");
    }
  }

  void add_attention(const std::string& prefix) {
    const std::int64_t hidden = model_.hidden_size;
    const std::int64_t q = model_.q_dim();
    const std::int64_t kv = model_.kv_dim();
    matrix(prefix + "q_proj.weight", ParamKind::q, {q, hidden}, Split::rows);
    matrix(prefix + "k_proj.weight", ParamKind::k, {kv, hidden}, Split::rows);
    matrix(prefix + "v_proj.weight", ParamKind::v, {kv, hidden}, Split::rows);
    if (model_.attention_qkv_bias) {
      bias(prefix + "q_proj.bias", ParamKind::q_bias, q, Split::rows);
      bias(prefix + "k_proj.bias", ParamKind::k_bias, kv, Split::rows);
      bias(prefix + "v_proj.bias", ParamKind::v_bias, kv, Split::rows);
    }
    if (model_.qk_norm) {
      const bool whole = model_.qk_norm_whole;
      const Split split = whole ? Split::rows : Split::whole;
      vector(prefix + "q_norm.weight", ParamKind::q_norm, whole ? q : model_.head_dim, split, Init::ones);
      vector(prefix + "k_norm.weight", ParamKind::k_norm, whole ? kv : model_.head_dim, split, Init::ones);
    }
    if (model_.attention_sinks)
      vector(prefix + "sinks", ParamKind::sinks, model_.num_attention_heads, Split::rows, Init::normal);
    add_attention_output(prefix, q);
  }

  void add_latent_attention(const std::string& prefix, const spec::MlaSpec& a) {
    const std::int64_t hidden = model_.hidden_size;
    const std::int64_t heads = model_.num_attention_heads;
    const std::int64_t q = heads * (a.qk_nope_head_dim + a.qk_rope_head_dim);
    const std::int64_t latent = a.kv_lora_rank + a.qk_rope_head_dim;
    const bool biased = model_.attention_qkv_bias;
    if (a.q_lora_rank > 0) {
      matrix(prefix + "q_a_proj.weight", ParamKind::q_a, {a.q_lora_rank, hidden}, Split::whole);
      if (biased) bias(prefix + "q_a_proj.bias", ParamKind::q_a_bias, a.q_lora_rank, Split::whole);
      vector(prefix + "q_a_layernorm.weight", ParamKind::q_a_norm, a.q_lora_rank, Split::whole, Init::ones);
      matrix(prefix + "q_b_proj.weight", ParamKind::q_b, {q, a.q_lora_rank}, Split::rows);
    } else {
      matrix(prefix + "q_proj.weight", ParamKind::q, {q, hidden}, Split::rows);
    }
    matrix(prefix + "kv_a_proj_with_mqa.weight", ParamKind::kv_a, {latent, hidden}, Split::whole);
    if (biased) bias(prefix + "kv_a_proj_with_mqa.bias", ParamKind::kv_a_bias, latent, Split::whole);
    vector(prefix + "kv_a_layernorm.weight", ParamKind::kv_a_norm, a.kv_lora_rank, Split::whole, Init::ones);
    matrix(prefix + "kv_b_proj.weight", ParamKind::kv_b,
           {heads * (a.qk_nope_head_dim + a.v_head_dim), a.kv_lora_rank}, Split::rows);
    add_attention_output(prefix, heads * a.v_head_dim);
  }

  void add_attention_output(const std::string& prefix, std::int64_t width) {
    matrix(prefix + "o_proj.weight", ParamKind::o, {model_.hidden_size, width}, Split::columns);
    if (model_.attention_out_bias)
      bias(prefix + "o_proj.bias", ParamKind::o_bias, model_.hidden_size, Split::whole);
  }

  void add_mlp(const std::string& prefix) {
    const std::int64_t hidden = model_.hidden_size;
    const std::int64_t width = model_.intermediate_size;
    if (model_.gated_mlp) matrix(prefix + "gate_proj.weight", ParamKind::gate, {width, hidden}, Split::rows);
    matrix(prefix + "up_proj.weight", ParamKind::up, {width, hidden}, Split::rows);
    matrix(prefix + "down_proj.weight", ParamKind::down, {hidden, width}, Split::columns);
    if (!model_.mlp_bias) return;
    if (model_.gated_mlp) bias(prefix + "gate_proj.bias", ParamKind::gate_bias, width, Split::rows);
    bias(prefix + "up_proj.bias", ParamKind::up_bias, width, Split::rows);
    bias(prefix + "down_proj.bias", ParamKind::down_bias, hidden, Split::whole);
  }

  void add_moe(const std::string& layer, const spec::MoeSpec& e) {
    const MoeNames names = moe_names(model_.family);
    const std::string prefix = fmt::format("{}{}.", layer, names.block);
    const std::int64_t hidden = model_.hidden_size;
    const std::string router = fmt::format("{}{}.", prefix, names.router);
    matrix(router + "weight", ParamKind::router, {e.num_experts, hidden}, Split::whole);
    if (e.router_bias) bias(router + "bias", ParamKind::router_bias, e.num_experts, Split::whole);
    if (e.score_correction_bias) {
      bias(router + "e_score_correction_bias", ParamKind::router_correction, e.num_experts, Split::whole)
          .buffer = true;
    }
    if (const std::int64_t shared = e.shared_intermediate_size; shared > 0) {
      const std::string at = fmt::format("{}{}.", prefix, names.shared);
      matrix(at + "gate_proj.weight", ParamKind::shared_gate, {shared, hidden}, Split::rows);
      matrix(at + "up_proj.weight", ParamKind::shared_up, {shared, hidden}, Split::rows);
      matrix(at + "down_proj.weight", ParamKind::shared_down, {hidden, shared}, Split::columns);
      if (e.shared_expert_gate)
        matrix(prefix + "shared_expert_gate.weight", ParamKind::shared_expert_gate, {1, hidden},
               Split::whole);
    }
    const std::int32_t slots = layout_.slots_of(layer_, e.num_experts);
    const auto local = static_cast<std::int32_t>(div_exact(slots, layout_.expert.size(Axis::ep)));
    for (std::int32_t slot = ep_ * local; slot < (ep_ + 1) * local; ++slot) {
      const std::int32_t i = layout_.expert_at(layer_, slot);
      add_expert(fmt::format("{}experts.{}.", prefix, i), names, i);
    }
  }

  void add_expert(const std::string& prefix, const MoeNames& names, std::int32_t index) {
    const std::int64_t hidden = model_.hidden_size;
    const std::int64_t width = spec::expert_intermediate_size(model_);
    const std::string gate = fmt::format("{}{}.", prefix, names.gate);
    const std::string up = fmt::format("{}{}.", prefix, names.up);
    const std::string down = fmt::format("{}{}.", prefix, names.down);
    const bool biased = model_.moe->expert_bias;
    expert(push(gate + "weight", ParamKind::expert_gate, {width, hidden}), Split::rows, index);
    expert(push(up + "weight", ParamKind::expert_up, {width, hidden}), Split::rows, index);
    if (biased) {
      expert(push_bias(gate + "bias", ParamKind::expert_gate_bias, width), Split::rows, index);
      expert(push_bias(up + "bias", ParamKind::expert_up_bias, width), Split::rows, index);
    }
    expert(push(down + "weight", ParamKind::expert_down, {hidden, width}), Split::columns, index);
    if (biased) {
      ParamSpec& p = push_bias(down + "bias", ParamKind::expert_down_bias, hidden);
      expert(p, Split::whole, index);
      p.duplicate = etp_ != 0;
    }
  }

  void norm(const std::string& prefix) {
    vector(prefix + ".weight", ParamKind::norm, model_.hidden_size, Split::whole, Init::ones);
    if (model_.norm == spec::NormKind::layer)
      bias(prefix + ".bias", ParamKind::norm_bias, model_.hidden_size, Split::whole);
  }

  ParamSpec& matrix(std::string name, ParamKind kind, Shape global, Split split) {
    return dense(push(std::move(name), kind, global), split);
  }
  ParamSpec& bias(std::string name, ParamKind kind, std::int64_t size, Split split) {
    return dense(push_bias(std::move(name), kind, size), split);
  }
  ParamSpec& vector(std::string name, ParamKind kind, std::int64_t size, Split split, Init init) {
    ParamSpec& p = bias(std::move(name), kind, size, split);
    p.init = init;
    return p;
  }

  ParamSpec& dense(ParamSpec& p, Split split) const {
    const std::int32_t tp = layout_.dense.size(Axis::tp);
    cut(p, split, tp_, tp);
    // A parameter that is whole on every tp rank sees only that rank's share of the tokens.
    p.group = split == Split::whole && tp > 1 ? GradGroup::tp_dp : GradGroup::dp;
    p.owner = first_replica_ && (split != Split::whole || tp_ == 0);
    return p;
  }
  void expert(ParamSpec& p, Split split, std::int32_t index) const {
    cut(p, split, etp_, layout_.expert.size(Axis::etp));
    p.expert = index;
    p.group = GradGroup::edp;
    p.owner = first_expert_replica_ && (split != Split::whole || etp_ == 0);
  }

  ParamSpec& push_bias(std::string name, ParamKind kind, std::int64_t size) {
    ParamSpec& p = push(std::move(name), kind, {size, 1});
    p.num_dims = 1;
    p.weight_decay = false;
    p.init = Init::zeros;
    return p;
  }
  ParamSpec& push(std::string name, ParamKind kind, Shape global) {
    ParamSpec p;
    p.name = std::move(name);
    p.kind = kind;
    p.global = global;
    p.slice = {.begin = {0, 0}, .size = global};
    p.stage = stage_;
    p.layer = layer_;
    p.follows = follows(kind, model_.gated_mlp);
    params_.push_back(std::move(p));
    return params_.back();
  }

  static void cut(ParamSpec& p, Split split, std::int32_t part, std::int32_t parts) {
    if (split == Split::whole) return;
    if (p.kind == ParamKind::embedding || p.kind == ParamKind::head || p.kind == ParamKind::mtp_embedding) {
      const VocabShare share = vocab_share(p.global[0], part, parts);
      p.slice.begin[0] = share.begin;
      p.slice.size[0] = share.size;
      return;
    }
    const std::size_t dim = split == Split::rows ? 0 : 1;
    p.slice.size[dim] = div_exact(p.global[dim], parts);
    p.slice.begin[dim] = part * p.slice.size[dim];
  }

  const spec::ModelSpec& model_;
  const Layout& layout_;
  std::int32_t tp_, ep_, etp_;
  bool first_replica_, first_expert_replica_;
  StageId stage_;
  std::int32_t layer_ = -1;
  std::vector<ParamSpec> params_;
};

}  // namespace

bool shares_embedding(const spec::ModelSpec& model) {
  return model.tie_word_embeddings || model.num_nextn_predict_layers > 0;
}

std::vector<ParamSpec> parameters(const spec::ModelSpec& model, const Layout& layout, Rank rank) {
  ParameterList list(model, layout, rank);
  for (const StageId stage : layout.stages_of(rank)) list.add_stage(stage);
  return list.take();
}

}  // namespace tessera::layout
