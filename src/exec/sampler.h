// Picks the next token from logits: temperature, then top-k, then top-p (nucleus sampling, Holtzman et al.,
// "The curious case of neural text degeneration", 2019), then one draw.
//
//   weights  w_i = exp((z_i - max z) / temperature)
//   top-k    the k largest, ties to the lower id
//   top-p    of those, in descending order, the fewest whose weights reach top_p of their sum
//   draw     the first of the rest at which the running sum of weights passes u times their sum
//
// The random number u comes from outside (draw_of), so the same seed gives the same text whatever the batch
// and on any number of ranks, as far as rounding leaves the logits equal.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace tessera::exec {

struct SampleOptions {
  std::int64_t max_new_tokens = 100;
  double temperature = 0.8;  // 0: the most likely token, ties to the lower id
  std::int32_t top_k = 40;   // candidates; 0: all
  double top_p = 1.0;        // in (0, 1]
  std::uint64_t seed = 1;
};

// Keeps its work space between calls. Not thread safe.
class Sampler {
 public:
  // u in [0, 1). Error{io} when a logit is not a number: such a model cannot be sampled from.
  [[nodiscard]] std::int32_t sample(std::span<const double> logits, const SampleOptions& options, double u);

 private:
  std::vector<std::int32_t> order_;
  std::vector<double> weights_;
};

// The stream of random numbers of a prompt: a function of its tokens, and of how many equal prompts came
// before it.
[[nodiscard]] std::uint64_t sample_stream(std::span<const std::int32_t> prompt, std::int64_t repeats);
// Random number of the n-th new token.
[[nodiscard]] double draw_of(std::uint64_t seed, std::uint64_t stream, std::int64_t n);

}  // namespace tessera::exec
