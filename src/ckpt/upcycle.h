// A mixture of experts out of a dense model (Komatsuzaki et al. 2022, arXiv 2212.05055): every layer's
// MLP becomes the start of each of its experts, a new router chooses among them. Weights are renormalised
// over the chosen experts and so sum to one: as long as the experts are equal, the new model computes
// what the dense one does, to rounding.
//
//   const spec::ModelSpec moe = upcycled_model(dense, {.num_experts = 8, .top_k = 2}, "hf/llama");
//   const auto source = upcycle(dense, *weights, moe, options);
//   write_hf_folder(out, moe, *source);
//
// llama and mistral become mixtral, qwen3 becomes qwen3_moe, qwen2 becomes qwen2_moe; its shared expert,
// which the family always has, is as wide as an expert and starts with down = 0: it adds nothing at
// first.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>

#include "ckpt/checkpoint.h"
#include "spec/model.h"

namespace tessera::ckpt {

struct UpcycleOptions {
  std::int32_t num_experts = 8;
  std::int32_t top_k = 2;
  // Normal noise on every expert's matrices, in root mean squares of the dense matrix; 0: equal experts.
  double noise = 0.0;
  std::uint64_t seed = 1;  // of router and noise
};

// The model that comes out. Error{config} with all problems: another family, parts that the new family does
// not have (biases of llama), top_k above the number of experts; `where` names the dense model.
[[nodiscard]] spec::ModelSpec upcycled_model(const spec::ModelSpec& dense, const UpcycleOptions& options,
                                             std::string_view where);

// Weights of `moe` out of those of the dense model, which outlive the result. The router is normal with the
// model's initializer_range. Every value is a function of the seed, its name and its place. Thread safe.
[[nodiscard]] std::unique_ptr<WeightSource> upcycle(const spec::ModelSpec& dense, const WeightSource& weights,
                                                    const spec::ModelSpec& moe,
                                                    const UpcycleOptions& options);

}  // namespace tessera::ckpt
