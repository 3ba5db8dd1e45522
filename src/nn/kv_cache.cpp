#include "nn/kv_cache.h"

#include <algorithm>

#include "base/math.h"
#include "kernels/kernels.h"

namespace tessera::nn {

KvCache::KvCache(const Options& options, tensor::Arena& arena) : options_(options) {
  for (const LayerOptions& l : options_.layers) {
    std::int64_t rows = options_.context;
    if (l.window > 0) rows = std::min(rows, l.window + options_.rows_per_call);
    rows = round_up(rows, kernels::kCacheBlock);
    const auto take = [&](std::int64_t width) {
      return arena.take(options_.dtype, {options_.slots, l.heads, rows, width});
    };
    Layer made;
    made.keys_SGCK = take(l.key_width);
    made.values_SGCV = l.value_width > 0 ? take(l.value_width) : made.keys_SGCK;
    layers_.push_back(made);
  }
}

const KvCache::Layer& KvCache::layer(std::int32_t index) const {
  TESSERA_CHECK(index >= 0 && index < static_cast<std::int32_t>(layers_.size()), "the cache has this layer");
  return layers_[static_cast<std::size_t>(index)];
}

Bytes KvCache::bytes_read(std::int64_t position) const {
  std::int64_t elements = 0;
  for (const LayerOptions& l : options_.layers) {
    const std::int64_t keys = l.window > 0 ? std::min(l.window, position + 1) : position + 1;
    elements += keys * l.heads * (l.key_width + l.value_width);
  }
  return Bytes(elements * tensor::size_of(options_.dtype));
}

}  // namespace tessera::nn
