#include "graph/closed_forms.h"

#include <algorithm>

#include "base/math.h"

namespace tessera::graph {

Bytes ring_all_reduce_bytes(Bytes s, std::int32_t n) {
  return 2 * all_gather_bytes(s, n);
}

std::int64_t ring_all_reduce_elements(std::int64_t elements, std::int32_t rank, std::int32_t n) {
  if (n == 1) return 0;
  const std::int64_t length = div_ceil(elements, n);
  const auto chunk = [&](std::int32_t c) {
    return std::min((c + 1) * length, elements) - std::min(c * length, elements);
  };
  return 2 * elements - chunk(rank) - chunk((rank + 1) % n);
}

Bytes all_gather_bytes(Bytes s, std::int32_t n) {
  return Bytes((n - 1) * div_exact(s.value, n));
}

Bytes tp_bytes(TpBlock block, const TpShape& x, TpRecompute recompute) {
  const Bytes stream = all_gather_bytes(Bytes(x.tokens * x.hidden * x.element_bytes), x.tp);
  switch (block) {
    case TpBlock::attention_or_mlp:
      switch (recompute) {
        case TpRecompute::none:
          return 4 * stream;
        case TpRecompute::selective:
          return 5 * stream;
        case TpRecompute::full:
          return 6 * stream;
      }
      break;
    case TpBlock::embedding:
      return 2 * stream;
    case TpBlock::head:
      return 2 * stream + Bytes((x.tp - 1) * 3 * x.tokens * x.element_bytes);
  }
  return {};
}

Bytes pp_bytes(const TpShape& x, std::int32_t num_messages) {
  return Bytes(num_messages * div_exact(x.tokens, x.tp) * x.hidden * x.element_bytes);
}

Bytes ep_row_bytes(const TpShape& x, std::int32_t top_k, std::int32_t ep, TpRecompute recompute) {
  const std::int64_t rows = div_exact(x.tokens, x.tp) * top_k;
  const Bytes once((ep - 1) * div_exact(rows, ep) * x.hidden * x.element_bytes);
  return (recompute == TpRecompute::full ? 6 : 4) * once;
}

}  // namespace tessera::graph
