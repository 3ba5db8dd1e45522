// What routing draws at random, from counters alone (base/random.h): the same on every layout, in every
// order of micro-batches and again in a recomputation. Pure functions: thread safe, no allocation.
#pragma once
#include <cstdint>

#include "tensor/tensor.h"

namespace tessera::moe {

struct DrawKey {
  std::uint64_t seed = 0;
  std::int32_t layer = 0;
};

// Hash routing (Roller et al. 2021, arXiv 2106.04426, "random hash"): the K experts of a token are a fixed
// draw of K different ones for its id, in the order of the draw. index_tK, ids_t: i32.
void hash_choices(tensor::Tensor index_tK, tensor::Tensor ids_t, std::int32_t num_experts,
                  const DrawKey& key);

// out_tH = x_tH * u, u uniform in [1 - eps, 1 + eps) for each (token of the run, column); row i is token
// first_token + i. out may be x. f32 and f64 see the same u, rounded.
void multiply_jitter(tensor::Tensor out_tH, tensor::Tensor x_tH, double eps, std::int64_t first_token,
                     const DrawKey& key);

}  // namespace tessera::moe
