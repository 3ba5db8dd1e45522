#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "cost/candidate.h"

namespace tessera::cost {

namespace {

// Head, loss and MTP layers in units of a transformer layer.
double last_weight(const spec::ModelSpec& m) {
  const auto table = static_cast<double>(m.vocab_size * m.hidden_size);
  const double layers =
      static_cast<double>(spec::num_active_parameters(m)) - (m.tie_word_embeddings ? 1.0 : 2.0) * table;
  const double head = table / std::max(1.0, layers / m.num_hidden_layers);
  return head + m.num_nextn_predict_layers * (1.0 + head);
}

}  // namespace

StageSplit::StageSplit(const spec::ModelSpec& model, std::int32_t num_stages, bool balance)
    : num_layers_(model.num_hidden_layers), num_stages_(num_stages), base_(num_layers_ / num_stages) {
  TESSERA_CHECK(num_stages >= 1 && num_layers_ + 2 >= num_stages,
                "only the first and the last stage may be without layers");
  if (num_stages == 1 || (num_layers_ % num_stages == 0 && !balance)) return;
  if (num_layers_ % num_stages == num_stages - 2 && model.num_nextn_predict_layers == 0 && !balance) {
    extra_begin_ = 1;  // k p - 2 layers: one less on the first and the last stage
    extra_end_ = num_stages - 1;
    return;
  }
  const double last = last_weight(model);
  if (balance && num_layers_ >= num_stages - 1) {
    share_ = (num_layers_ + last) / num_stages;
    return;
  }
  const double even = (num_layers_ + 1.0 + last) / num_stages;
  const auto of_last = std::clamp(static_cast<std::int32_t>(std::lround(even - last)), 0, num_layers_);
  const std::int32_t others = num_stages - 1;
  base_ = (num_layers_ - of_last) / others;
  const std::int32_t rest = (num_layers_ - of_last) % others;
  extra_begin_ = 1;
  extra_end_ = 1 + rest;
}

StageSplit::StageSplit(std::span<const std::int32_t> layers)
    : num_layers_(std::accumulate(layers.begin(), layers.end(), 0)),
      num_stages_(static_cast<std::int32_t>(layers.size())),
      base_(0) {
  TESSERA_CHECK(!layers.empty(), "a pipeline has a stage");
  std::int32_t first = 0;
  for (const std::int32_t n : layers) {
    firsts_.push_back(first);
    first += n;
  }
}

std::int32_t StageSplit::first(std::int32_t stage) const {
  if (stage == num_stages_) return num_layers_;
  if (!firsts_.empty()) return firsts_[static_cast<std::size_t>(stage)];
  if (share_ > 0.0) {
    constexpr double kRounding = 1e-9;
    const auto reached = static_cast<std::int32_t>(std::ceil(stage * share_ - kRounding));
    return std::clamp(reached, stage, num_layers_ - (num_stages_ - 1 - stage));
  }
  const std::int32_t extra = std::clamp(stage - extra_begin_, 0, extra_end_ - extra_begin_);
  return base_ * stage + extra;
}

}  // namespace tessera::cost
