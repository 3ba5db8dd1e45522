#include "explain/serving.h"

#include <algorithm>
#include <cmath>

namespace tessera::explain {

namespace {

constexpr double kBytes = 2.0;  // of bf16

// Of keys and values, one layer and token.
double cache_of_layer(const spec::ModelSpec& m) {
  if (m.mla) return kBytes * static_cast<double>(m.mla->kv_lora_rank + m.mla->qk_rope_head_dim);
  return kBytes * 2.0 * static_cast<double>(m.kv_dim());
}

// Tokens whose keys a layer keeps.
std::int64_t kept(const spec::ModelSpec& m, std::int32_t layer, std::int64_t context) {
  switch (spec::layer_class(m, layer).span) {
    case spec::AttentionSpan::full:
      return context;
    case spec::AttentionSpan::sliding:
      return std::min(context, m.sliding_window);
    case spec::AttentionSpan::chunked:
      return std::min(context, m.attention_chunk);
  }
  return context;
}

double cache_of_sequence(const spec::ModelSpec& m, std::int64_t context) {
  double tokens = 0.0;
  for (std::int32_t l = 0; l < m.num_hidden_layers; ++l) tokens += static_cast<double>(kept(m, l, context));
  return tokens * cache_of_layer(m);
}

// Parameters of all experts that one token does not use, and how many experts a layer has.
double idle_parameters(const spec::ModelSpec& m) {
  return static_cast<double>(spec::num_parameters(m) - spec::num_active_parameters(m));
}

double touched(const spec::MoeSpec& moe, std::int64_t batch) {
  const double experts = moe.num_experts;
  const double miss = 1.0 - moe.num_experts_per_tok / experts;
  return experts * (1.0 - std::pow(miss, static_cast<double>(batch)));
}

}  // namespace

Serving serving(const spec::ModelSpec& m, const cost::Calibration& c, double usable_bytes,
                const ServingOptions& options) {
  Serving s;
  s.weight_bytes = kBytes * static_cast<double>(spec::num_parameters(m));
  s.cache_of_token = m.num_hidden_layers * cache_of_layer(m);
  const double cache = cache_of_sequence(m, options.context);
  s.cache_bytes = cache * static_cast<double>(options.batch);
  while (s.devices * usable_bytes < s.weight_bytes + s.cache_bytes && s.devices < (1 << 20)) s.devices *= 2;
  const double table = m.tie_word_embeddings
                           ? 0.0
                           : kBytes * static_cast<double>(m.vocab_size) * static_cast<double>(m.hidden_size);
  const double active = kBytes * static_cast<double>(spec::num_active_parameters(m)) - table;
  s.read_alone = active + cache;
  s.read_batch = active + s.cache_bytes;
  if (m.moe) {
    const std::int32_t k = m.moe->num_experts_per_tok, experts = m.moe->num_experts;
    s.experts_touched = touched(*m.moe, options.batch);
    if (experts > k) s.read_batch += kBytes * idle_parameters(m) * (s.experts_touched - k) / (experts - k);
  }
  const double bandwidth = c.memory_bandwidth * s.devices;
  s.seconds_alone = s.read_alone / bandwidth;
  s.seconds_batch = s.read_batch / bandwidth;
  return s;
}

}  // namespace tessera::explain
