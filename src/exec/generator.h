// Text out of a checkpoint: one rank, the whole model, the full context forward for every new token (no
// key-value cache). Good for samples of small models; MoE runs dropless.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ckpt/checkpoint.h"
#include "spec/model.h"

namespace tessera::exec {

struct SampleOptions {
  std::int64_t max_new_tokens = 100;
  double temperature = 0.8;  // 0: the most likely token
  std::int32_t top_k = 40;   // candidates; 0: all
  std::uint64_t seed = 1;
};

class Generator {
 public:
  // Error{config} for a model that the engine does not run. context: the most tokens one forward pass sees;
  // older ones are forgotten.
  Generator(const spec::ModelSpec& model, const ckpt::WeightSource& source, std::int64_t context);
  ~Generator();
  // prompt must not be empty. Ends early at `stop` (negative: never). The new tokens only.
  [[nodiscard]] std::vector<std::int32_t> generate(std::span<const std::int32_t> prompt,
                                                   const SampleOptions& options, std::int32_t stop = -1);
  // Logits of the token after `tokens` [vocab].
  [[nodiscard]] std::vector<float> next_logits(std::span<const std::int32_t> tokens);

 private:
  struct Model;
  std::unique_ptr<Model> model_;
};

}  // namespace tessera::exec
