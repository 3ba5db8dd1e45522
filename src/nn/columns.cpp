#include "nn/columns.h"

#include <algorithm>

namespace tessera::nn {

using tensor::DType;
using tensor::Tensor;

namespace {

std::int64_t end_of(const ColumnPlace& place, const ColumnMove& m) {
  return place.first + (m.blocks - 1) * place.stride + m.width;
}

template <class T>
void move_rows(Tensor dst_TC, Tensor src_TD, const ColumnMove& m) {
  const std::int64_t to_row = dst_TC.row_elements();
  const std::int64_t from_row = src_TD.row_elements();
  const bool sums = m.to.stride == 0;
  for (std::int64_t t = 0; t < dst_TC.rows(); ++t) {
    T* const to = dst_TC.as<T>() + t * to_row + m.to.first;
    const T* const from = src_TD.as<T>() + t * from_row + m.from.first;
    for (std::int64_t b = 0; b < m.blocks; ++b) {
      T* const out = to + b * m.to.stride;
      const T* const in = from + b * m.from.stride;
      if (sums && b > 0) {
        for (std::int64_t j = 0; j < m.width; ++j) out[j] += in[j];
      } else {
        std::copy_n(in, m.width, out);
      }
    }
  }
}

}  // namespace

void move_columns(Tensor dst_TC, Tensor src_TD, const ColumnMove& m) {
  TESSERA_CHECK_EQ(dst_TC.rows(), src_TD.rows(), "columns move between matrices with the same rows");
  TESSERA_CHECK(dst_TC.dtype() == src_TD.dtype(), "columns move between matrices of one dtype");
  TESSERA_CHECK(m.to.first >= 0 && end_of(m.to, m) <= dst_TC.row_elements(), "columns beyond the target");
  TESSERA_CHECK(m.from.first >= 0 && end_of(m.from, m) <= src_TD.row_elements(), "columns beyond the source");
  if (dst_TC.dtype() == DType::f64) {
    move_rows<double>(dst_TC, src_TD, m);
  } else {
    move_rows<float>(dst_TC, src_TD, m);
  }
}

}  // namespace tessera::nn
