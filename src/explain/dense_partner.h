// The dense model that a mixture of experts is fairly set against, by a stated rule. Pure, thread safe.
//
//   dense_partner(spec::model_preset("mixtral-8x7b"), Equal::active_compute)   // 12.9 G parameters
//
// active_compute: the same model, attention, depth, width and vocabulary, with every feed-forward layer a
// dense one, as wide as all that a token of the mixture goes through: top-k experts and the shared ones, the
// mean over the layers. So parameters that a token uses, and FLOPs, are equal but for the router.
// total_memory: depth and width of that model grow by one factor (heads keep their size, key-value heads
// their number, the feed-forward part its ratio to the width), until all parameters are as many as those of
// the mixture. Layers come in fours, heads in eights (and multiples of the key-value heads), widths in 256s,
// so that usual degrees divide; the width of the feed-forward part closes what rounding leaves.
#pragma once
#include <cstdint>

#include "spec/model.h"

namespace tessera::explain {

enum class Equal : std::uint8_t { active_compute, total_memory };

// Error{config} for a model without experts.
[[nodiscard]] spec::ModelSpec dense_partner(const spec::ModelSpec& mixture, Equal equal);

}  // namespace tessera::explain
