// KvCache: keys and values of the tokens that sequences have seen, so that a new token costs one row of every
// layer. For running a model forward only; a layer finds it in Microbatch::cache.
//
// Per layer: keys_SGCK and values_SGCV with S slots (one sequence each), G key/value heads of this rank, C
// rows, K and V the widths of a head. Position p of a sequence is row p % C. Where a window limits what a
// query sees, C is only the window and the rows of one call, so old rows are written over. Latent attention
// keeps [latent | rope key] of a token once for all heads (arXiv 2405.04434): G = 1 and the values are the
// first columns of the keys.
//
// Nothing is forgotten by itself: whoever uses a slot for a new sequence begins again at position 0, and rows
// behind the position of a query are not read. Used by one thread at a time; nothing allocates after set-up.
//
// Example:
//   KvCache cache({.dtype = DType::f32, .slots = 8, .context = 4096, .rows_per_call = 256, .layers = layers},
//   arena); k.cache_append(cache.layer(l).keys_SGCK, qkv, first_key_column, mb.slots_T, mb.positions_T);
#pragma once
#include <cstdint>
#include <vector>

#include "tensor/arena.h"

namespace tessera::nn {

class KvCache {
 public:
  struct LayerOptions {
    std::int64_t heads = 1;
    std::int64_t key_width = 0;
    std::int64_t value_width = 0;  // 0: the values are columns of the keys
    std::int64_t window = 0;       // keys a query sees, itself included; 0: all
  };
  struct Options {
    tensor::DType dtype = tensor::DType::f32;
    std::int64_t slots = 1;
    std::int64_t context = 0;        // most tokens of a sequence
    std::int64_t rows_per_call = 1;  // most rows that are appended before queries read
    std::vector<LayerOptions> layers;
  };
  struct Layer {
    tensor::Tensor keys_SGCK, values_SGCV;
  };
  KvCache(const Options& options, tensor::Arena& arena);

  // Error{internal} when the cache has no such layer.
  [[nodiscard]] const Layer& layer(std::int32_t index) const;
  // Read for one query at `position`, over all layers.
  [[nodiscard]] Bytes bytes_read(std::int64_t position) const;

 private:
  Options options_;
  std::vector<Layer> layers_;
};

}  // namespace tessera::nn
