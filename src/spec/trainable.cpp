// What the engine cannot run: its own list, apart from what a plan may hold.
#include <fmt/format.h>

#include <algorithm>

#include "spec/internal.h"

namespace tessera::spec {

namespace {

bool narrow(const ModelSpec& m) {
  return std::ranges::any_of(m.layer_spans, [](AttentionSpan s) { return s != AttentionSpan::full; });
}

void check_parts(const ModelSpec& m, Checker& c, std::string_view at) {
  const auto none = [&](bool absent, std::string_view what, std::string_view mend) {
    c.check(absent, {at}, fmt::format("the engine does not train {}", what), std::string(mend));
  };
  none(!m.attention_qkv_bias && !m.attention_out_bias, "a bias in the attention projections (attention_bias)",
       "use a model with attention_bias: false");
  none(!m.mlp_bias, "a bias in the MLP (mlp_bias)", "use a model with mlp_bias: false");
  none(!narrow(m), fmt::format("sliding or chunked attention (sliding_window={})", m.sliding_window),
       "use a model with sliding_window: null");
  none(m.partial_rotary_factor == 1.0, "rope on a part of each head (partial_rotary_factor)",
       "use a model that rotates whole heads");
  none(m.rope_scaling.kind != RopeKind::yarn, "rope_type=yarn", "use default, linear or llama3");
}

void check_experts(const MoeSpec& e, Checker& c, std::string_view at) {
  const bool plain = e.moe_intermediate_size == 0 && e.shared_intermediate_size == 0 &&
                     e.first_k_dense_replace == 0 && e.moe_layer_freq == 1 && e.n_group == 1 &&
                     e.score == RouterScore::softmax && !e.score_correction_bias && !e.expert_bias &&
                     !e.router_bias && e.routed_scaling_factor == 1.0;
  c.check(plain, {at},
          "the engine does not train shared experts, dense layers between MoE layers, groups of experts, "
          "sigmoid scores or biases of experts and router",
          "use a mixtral model: every layer has the same experts, chosen by softmax");
}

}  // namespace

void check_model_trains(const ModelSpec& m, Checker& c, std::string_view at) {
  if (m.family != Family::llama && m.family != Family::mixtral) {
    c.check(false, {at},
            fmt::format("the engine does not train model_type={}: it can be planned and simulated only",
                        name(m.family)),
            "train a llama or mixtral model");
    return;
  }
  check_parts(m, c, at);
  if (m.moe) check_experts(*m.moe, c, at);
}

void check_trainable(const ModelSpec& m, std::string_view where, Problems& problems) {
  Checker checker([&](std::string_view key) { return fmt::format("{}: {}", where, key); }, {}, problems);
  check_model_trains(m, checker, "model_type");
}

const ModelSpec& require_trainable(const ModelSpec& m, std::string_view where) {
  Problems problems;
  check_trainable(m, where, problems);
  problems.throw_if_any();
  return m;
}

}  // namespace tessera::spec
