#include "explain/dense_partner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"

namespace tessera::explain {

namespace {

using spec::ModelSpec;

constexpr std::int64_t kWidthStep = 256, kLayerStep = 4, kHeadStep = 8;

std::int64_t rounded(double value, std::int64_t step) {
  return std::max<std::int64_t>(1, std::llround(value / static_cast<double>(step))) * step;
}

// What a token goes through, mean over the layers.
double active_width(const ModelSpec& m) {
  double sum = 0.0;
  for (std::int32_t l = 0; l < m.num_hidden_layers; ++l) {
    const std::int64_t experts = m.moe->num_experts_per_tok * spec::expert_intermediate_size(m);
    sum += static_cast<double>(spec::layer_class(m, l).moe ? experts + m.moe->shared_intermediate_size
                                                           : m.intermediate_size);
  }
  return sum / m.num_hidden_layers;
}

spec::Family dense_family(const ModelSpec& m) {
  using spec::Family;
  if (m.family == Family::qwen2_moe) return Family::qwen2;
  if (m.family == Family::qwen3_moe) return Family::qwen3;
  return m.family == Family::mixtral ? Family::mistral : m.family;
}

ModelSpec without_experts(const ModelSpec& m) {
  ModelSpec out = m;
  out.family = dense_family(m);
  out.intermediate_size = rounded(active_width(m), kWidthStep);
  out.moe.reset();
  return out;
}

// `base` with depth and width grown by `factor`.
ModelSpec grown(const ModelSpec& base, double factor) {
  ModelSpec m = base;
  const std::int64_t heads = std::lcm(kHeadStep, std::int64_t{base.num_key_value_heads});
  m.num_attention_heads =
      static_cast<std::int32_t>(rounded(base.num_attention_heads * factor, base.mla ? kHeadStep : heads));
  if (base.num_key_value_heads == base.num_attention_heads) m.num_key_value_heads = m.num_attention_heads;
  m.hidden_size = rounded(static_cast<double>(base.hidden_size) * factor, kWidthStep);
  m.num_hidden_layers = static_cast<std::int32_t>(rounded(base.num_hidden_layers * factor, kLayerStep));
  const double ratio = static_cast<double>(base.intermediate_size) / static_cast<double>(base.hidden_size);
  m.intermediate_size = rounded(ratio * static_cast<double>(m.hidden_size), kWidthStep);
  if (!base.layer_spans.empty()) {  // the pattern goes on
    m.layer_spans.clear();
    for (std::int32_t l = 0; l < m.num_hidden_layers; ++l)
      m.layer_spans.push_back(base.layer_spans[static_cast<std::size_t>(l % base.num_hidden_layers)]);
  }
  return m;
}

ModelSpec of_total(const ModelSpec& base, double total) {
  double low = 0.25, high = 16.0;
  for (std::int32_t i = 0; i < 40; ++i) {
    const double middle = std::sqrt(low * high);
    (static_cast<double>(spec::num_parameters(grown(base, middle))) < total ? low : high) = middle;
  }
  ModelSpec m = grown(base, low);
  // A step of the feed-forward width in parameters.
  ModelSpec wider = m;
  wider.intermediate_size += kWidthStep;
  const auto now = static_cast<double>(spec::num_parameters(m));
  const double step = static_cast<double>(spec::num_parameters(wider)) - now;
  m.intermediate_size = std::max(
      kWidthStep, m.intermediate_size + kWidthStep * std::int64_t{std::llround((total - now) / step)});
  return m;
}

}  // namespace

ModelSpec dense_partner(const ModelSpec& mixture, Equal equal) {
  if (!mixture.moe) {
    throw Error(ErrorKind::config, "a dense partner is made for a mixture of experts, this model has none",
                "--equal", "name a model with experts, or two models");
  }
  const ModelSpec same = without_experts(mixture);
  if (equal == Equal::active_compute) return same;
  return of_total(same, static_cast<double>(spec::num_parameters(mixture)));
}

}  // namespace tessera::explain
