// Reference moves of columns.
#pragma once
#include <algorithm>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void move_columns(Tensor dst_TC, Tensor src_TD, const ColumnMove& m) {
  const bool sums = m.to.stride == 0;
  for (std::int64_t t = 0; t < dst_TC.rows(); ++t) {
    S* const to = dst_TC.as<S>() + t * dst_TC.dim(1) + m.to.first;
    const S* const from = src_TD.as<S>() + t * src_TD.dim(1) + m.from.first;
    for (std::int64_t b = 0; b < m.blocks; ++b) {
      S* const out = to + b * m.to.stride;
      const S* const in = from + b * m.from.stride;
      if (sums && b > 0) {
        for (std::int64_t j = 0; j < m.width; ++j) out[j] += in[j];
      } else {
        std::copy_n(in, m.width, out);
      }
    }
  }
}

}  // namespace tessera::kernels::ref
