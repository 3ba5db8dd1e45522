#include <algorithm>

#include "base/error.h"
#include "cost/candidate.h"

namespace tessera::cost {

StageSplit::StageSplit(std::int32_t num_layers, std::int32_t num_stages)
    : num_layers_(num_layers), num_stages_(num_stages), base_(num_layers / num_stages) {
  TESSERA_CHECK(num_stages >= 1 && num_layers + 2 >= num_stages,
                "only the first and the last stage may be without layers");
  const std::int32_t rest = num_layers % num_stages;
  if (rest == 0) return;
  if (rest == num_stages - 2) {  // the first and the last one less
    extra_begin_ = 1;
    extra_end_ = num_stages - 1;
  } else if (rest == num_stages - 1) {  // the last one less
    extra_end_ = num_stages - 1;
  } else {
    extra_begin_ = 1;
    extra_end_ = rest + 1;
  }
}

std::int32_t StageSplit::first(std::int32_t stage) const {
  const std::int32_t extra = std::clamp(stage - extra_begin_, 0, extra_end_ - extra_begin_);
  return base_ * stage + extra;
}

}  // namespace tessera::cost
