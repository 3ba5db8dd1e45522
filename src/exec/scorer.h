// How well a model predicts a text: the sum of -ln p(token | tokens before it), forward only, on thread
// ranks.
//
// The text runs in windows of `context` tokens that begin `stride` apart; every token but the first is scored
// once, in the first window that reaches it. stride = context: windows do not overlap, the first tokens of
// each know no past. Smaller: each token of a later window has at least context - stride tokens before it,
// for context / stride times the work.
#pragma once
#include <cstdint>
#include <functional>
#include <span>

#include "base/quantity.h"
#include "exec/forward_model.h"

namespace tessera::exec {

struct ScoreOptions {
  spec::ParallelSpec parallel;  // tp, dp, ep, etp
  tensor::DType dtype = tensor::DType::f32;
  std::int64_t context = 0;
  std::int64_t stride = 0;  // 0: context
  std::int64_t batch = 1;   // windows of one replica at once, rounded up to a multiple of tp
  std::int32_t cores = 0;   // that the ranks share; 0: those this process may use
  Compute compute = {};
};

struct Score {
  double nats = 0.0;        // sum over the scored tokens
  std::int64_t scored = 0;  // tokens
  std::int64_t run = 0;     // tokens that went through the model
  Seconds seconds;          // of running, without loading
};

// Told on rank 0's thread after each call of the model.
using OnScored = std::function<void(std::int64_t windows_done, std::int64_t windows)>;

// Error{config} for options that cannot run, and for fewer than two tokens.
[[nodiscard]] Score score_tokens(const spec::ModelSpec& model, const ckpt::WeightSource& source,
                                 std::span<const std::int32_t> tokens, const ScoreOptions& options,
                                 const OnScored& on_scored = nullptr);

}  // namespace tessera::exec
