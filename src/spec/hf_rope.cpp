// Rotary embedding in config.json: rope_theta with rope_scaling, or both as rope_parameters.
#include <fmt/format.h>

#include "spec/hf_reader.h"

namespace tessera::spec {

namespace {

// rope_type, in older files type.
std::string read_rope_type(MapReader& r) {
  std::string type;
  std::string old_type;
  r.optional("rope_type", type);
  r.optional("type", old_type);
  if (!type.empty() && !old_type.empty() && type != old_type) {
    r.problem("type", fmt::format("rope_type={} and type={} differ", type, old_type), "keep rope_type only");
  }
  if (type.empty()) type = old_type;
  return type.empty() ? "default" : type;
}

// What a key of attention says of the context before scaling; absent: the model's positions.
void read_original_positions(MapReader& r, const ModelSpec& m, RopeScaling& rope) {
  rope.original_max_position_embeddings = m.max_position_embeddings;
  r.optional("original_max_position_embeddings", rope.original_max_position_embeddings);
}

void read_yarn(MapReader& r, const ModelSpec& m, RopeScaling& rope) {
  rope.kind = RopeKind::yarn;
  r.required("factor", rope.factor);
  read_original_positions(r, m, rope);
  r.optional("beta_fast", rope.beta_fast);
  r.optional("beta_slow", rope.beta_slow);
  r.optional("mscale", rope.mscale);
  r.optional("mscale_all_dim", rope.mscale_all_dim);
  r.optional("truncate", rope.truncate);
  const Value* factor = r.take("attention_factor");
  if (factor == nullptr || factor->kind == Value::Kind::null) return;
  r.convert("attention_factor", *factor, rope.attention_factor);
  if (!(rope.attention_factor > 0.0)) {
    r.problem("attention_factor", fmt::format("attention_factor={} is not above 0", rope.attention_factor),
              "remove it: it follows from factor then");
  }
}

// The base grows with the sequence beyond the model's own positions.
void read_dynamic(MapReader& r, const ModelSpec& m, RopeScaling& rope) {
  rope.kind = RopeKind::dynamic;
  r.required("factor", rope.factor);
  RopeScaling positions;
  read_original_positions(r, m, positions);
  if (positions.original_max_position_embeddings != m.max_position_embeddings) {
    r.problem("original_max_position_embeddings",
              fmt::format("original_max_position_embeddings={} differs from max_position_embeddings={}: "
                          "versions of Hugging Face scale from the one or the other",
                          positions.original_max_position_embeddings, m.max_position_embeddings),
              "keep max_position_embeddings only");
  }
}

RopeScaling read_rope_map(MapReader& r, ModelSpec& m) {
  RopeScaling rope;
  const std::string type = read_rope_type(r);
  double partial = m.partial_rotary_factor;
  r.optional("partial_rotary_factor", partial);
  if (partial != m.partial_rotary_factor && m.family != Family::gpt_neox) {
    r.problem("partial_rotary_factor",
              fmt::format("partial_rotary_factor={} is not known for {}", partial, name(m.family)),
              "use a model that rotates whole heads");
  } else {
    m.partial_rotary_factor = partial;
  }
  if (type == "default") return rope;
  if (type == "linear") {
    rope.kind = RopeKind::linear;
    r.required("factor", rope.factor);
    RopeScaling ignored;  // of newer files; the kind does not use it
    read_original_positions(r, m, ignored);
  } else if (type == "llama3") {
    rope.kind = RopeKind::llama3;
    r.required("factor", rope.factor);
    r.required("low_freq_factor", rope.low_freq_factor);
    r.required("high_freq_factor", rope.high_freq_factor);
    r.required("original_max_position_embeddings", rope.original_max_position_embeddings);
  } else if (type == "dynamic") {
    read_dynamic(r, m, rope);
  } else if (type == "yarn") {
    read_yarn(r, m, rope);
  } else {
    r.problem("rope_type", fmt::format("rope_type={} is not known to Tessera", type),
              "known: default, linear, dynamic, llama3, yarn");
  }
  return rope;
}

}  // namespace

void read_rope(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  const Value* theta = r.take("rope_theta");
  r.optional("rope_theta", m.rope_theta);
  const Value* scaling = r.take("rope_scaling");
  const Value* parameters = r.take("rope_parameters");
  const bool absent = scaling == nullptr && parameters == nullptr;
  if (scaling != nullptr && scaling->kind == Value::Kind::null) scaling = nullptr;
  if (parameters != nullptr && parameters->kind == Value::Kind::null) parameters = nullptr;
  if (scaling != nullptr && parameters != nullptr) {
    r.problem("rope_parameters", "rope_scaling and rope_parameters are both given", "keep one of them");
    return;
  }
  // Hugging Face puts a YaRN of its own in the place of an absent key; null is none.
  if (m.family == Family::gpt_oss && absent) {
    r.problem("rope_scaling", "rope_scaling is missing (Hugging Face would read yarn with factor 32)",
              "add the rope_scaling of the model, or null for none");
    return;
  }
  const std::string key = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const Value* map = parameters != nullptr ? parameters : scaling;
  if (map == nullptr) return;
  if (map->kind != Value::Kind::map) {
    r.problem(key, fmt::format("{} is not a map", key), "write a map, or null");
    return;
  }
  Problems inner;
  MapReader rope(*map, {.file = r.place().file, .path = r.place().child(key)}, inner);
  if (parameters != nullptr) {
    double inner_theta = m.rope_theta;
    rope.optional("rope_theta", inner_theta);
    if (theta != nullptr && inner_theta != m.rope_theta) {
      rope.problem("rope_theta", fmt::format("rope_theta={} here and {} outside", inner_theta, m.rope_theta),
                   "keep one of them");
    }
    m.rope_theta = inner_theta;
  }
  m.rope_scaling = read_rope_map(rope, m);
  // After an unknown type its own keys are not news.
  if (!rope.faulty().contains(rope.place().child("rope_type"))) rope.refuse_unknown();
  in.problems.append(inner);
  if (!inner.empty()) r.mark_faulty("rope_scaling");
}

}  // namespace tessera::spec
