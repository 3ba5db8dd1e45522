// What the engine cannot run: its own list, apart from what a plan may hold.
#include <fmt/format.h>

#include <algorithm>

#include "spec/internal.h"

namespace tessera::spec {

namespace {

bool trained(Family family) {
  switch (family) {
    case Family::llama:
    case Family::mixtral:
    case Family::mistral:
    case Family::qwen2:
    case Family::qwen3:
    case Family::qwen2_moe:
    case Family::qwen3_moe:
    case Family::deepseek_v2:
    case Family::deepseek_v3:
    case Family::olmoe:
    case Family::gpt_oss:
    case Family::gpt2:
      return true;
    case Family::llama4:
    case Family::gpt_neox:
    case Family::mpt:
    case Family::bloom:
    case Family::falcon:
      return false;
  }
  return false;
}

// Why not, of a family that can only be planned.
std::string_view obstacle(const ModelSpec& m) {
  if (m.attention_chunk > 0 || m.family == Family::llama4) return "chunked attention";
  if (m.position == PositionKind::alibi) return "ALiBi";
  if (m.partial_rotary_factor != 1.0) return "rotary embedding of a part of each head";
  if (m.parallel_residual) return "attention and MLP side by side";
  return "its layers";
}

}  // namespace

void check_model_trains(const ModelSpec& m, Checker& c, std::string_view at) {
  if (!trained(m.family)) {
    c.check(false, {at},
            fmt::format("the engine does not train model_type={} ({}): it can be planned and simulated only",
                        name(m.family), obstacle(m)),
            "train one of llama, mistral, qwen2, qwen3, gpt2, mixtral, qwen2_moe, qwen3_moe, olmoe, "
            "deepseek_v2, deepseek_v3, gpt_oss");
    return;
  }
  c.check(m.hidden_act != Activation::relu, {at}, "the engine does not train activation_function=relu",
          "use a model with activation_function: gelu_new or gelu");
  c.check(!m.mla || m.rope_interleaved, {at}, "the engine does not train rope_interleave=false",
          "use a model with rope_interleave: true");
  c.check(m.rope_scaling.kind != RopeKind::dynamic || !m.mla || m.mla->qk_rope_head_dim > 2, {at},
          "rope_type=dynamic has no base for a rotary part of 2", "use another rope_type");
  c.check(m.rope_scaling.kind != RopeKind::dynamic || m.mla || m.head_dim > 2, {at},
          "rope_type=dynamic has no base for a head_dim of 2", "use another rope_type");
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
