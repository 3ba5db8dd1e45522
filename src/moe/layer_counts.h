// Choices by micro-batch, balancing unit and expert, summed over the MoE layers of a model: what a balancing
// loss over all layers together needs. All the layers are on one rank. Every layer adds its counts once in a
// forward pass of a micro-batch; after the last one the totals are whole until the micro-batch comes again.
// Memory grows to the micro-batches of a step in the first one. Used by one thread.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"

namespace tessera::moe {

class LayerCounts {
 public:
  // width: units of a micro-batch times experts.
  LayerCounts(std::int32_t num_layers, std::int64_t width)
      : num_layers_(num_layers), width_(static_cast<std::size_t>(width)) {}

  [[nodiscard]] std::int32_t num_layers() const { return num_layers_; }

  void add(std::int32_t microbatch, std::span<const std::int32_t> counts) {
    TESSERA_CHECK_EQ(counts.size(), width_, "counts of all units and experts");
    const auto m = static_cast<std::size_t>(microbatch);
    if (m >= added_.size()) {
      added_.resize(m + 1, 0);
      totals_.resize((m + 1) * width_, 0);
    }
    std::int32_t& added = added_[m];
    const bool first = added == 0 || added == num_layers_;
    added = first ? 1 : added + 1;
    for (std::size_t i = 0; i < width_; ++i) {
      std::int64_t& total = totals_[m * width_ + i];
      total = (first ? 0 : total) + counts[i];
    }
  }
  [[nodiscard]] std::span<const std::int64_t> totals(std::int32_t microbatch) const {
    const auto m = static_cast<std::size_t>(microbatch);
    TESSERA_CHECK_EQ(added_.at(m), num_layers_, "layers that have counted this micro-batch");
    return std::span(totals_).subspan(m * width_, width_);
  }

 private:
  std::int32_t num_layers_;
  std::size_t width_;
  std::vector<std::int32_t> added_;   // layers since the micro-batch began
  std::vector<std::int64_t> totals_;  // [m, U E]
};

}  // namespace tessera::moe
