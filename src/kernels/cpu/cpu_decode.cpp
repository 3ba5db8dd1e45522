// Attention over cached keys and values.
#include <fmt/format.h>

#include "kernels/cpu/backend.h"

namespace tessera::kernels::cpu {

static_assert(kCacheRows == kCacheBlock);

void CpuKernels::do_cache_append(Tensor cache, Tensor x, std::int64_t first, Tensor slots, Tensor positions) {
  small_->cache_append(cache, x, first, slots, positions);  // copies of rows
}

void CpuKernels::do_decode_attention(Tensor out, Tensor q, Tensor keys, Tensor values, Tensor sinks,
                                     Tensor slots, Tensor positions, const AttentionShape& s) {
  if (s.v_dim() > kMaxValueDim) {
    throw Error(ErrorKind::unsupported,
                fmt::format("values of {} columns, above {}", s.v_dim(), kMaxValueDim),
                "attention over a cache on the CPU", "use more, smaller heads");
  }
  with_scalar(out, [&]<class T>(T) {
    loops<T>().decode_attention({.rows = out.dim(0),
                                 .heads = s.heads,
                                 .kv_heads = s.kv_heads,
                                 .head_dim = s.head_dim,
                                 .v_head_dim = s.v_dim(),
                                 .window = s.window,
                                 .scale = s.scale,
                                 .q = q.as<T>(),
                                 .q_stride = q.dim(1),
                                 .out = out.as<T>(),
                                 .keys = keys.as<T>(),
                                 .key_width = keys.dim(3),
                                 .values = values.as<T>(),
                                 .value_width = values.dim(3),
                                 .capacity = keys.dim(2),
                                 .sinks = sinks.empty() ? nullptr : sinks.as<T>(),
                                 .slots = slots.as<std::int32_t>(),
                                 .positions = positions.as<std::int32_t>(),
                                 .workspace = workspace<T>()});
  });
}

}  // namespace tessera::kernels::cpu
