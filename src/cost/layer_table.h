// LayerTable: the block costs of one model under one cut, and what they add up to for a run of layers. Inside
// of this room.
#pragma once
#include <cstdint>
#include <vector>

#include "cost/block_cost.h"

namespace tessera::cost {

// Distinct classes of layers, and how many of each a run of layers holds.
class LayerClasses {
 public:
  explicit LayerClasses(const spec::ModelSpec& model);
  [[nodiscard]] std::int32_t size() const { return static_cast<std::int32_t>(classes_.size()); }
  [[nodiscard]] const spec::LayerClass& operator[](std::int32_t i) const {
    return classes_[static_cast<std::size_t>(i)];
  }
  // Layers of class i in [first, end).
  [[nodiscard]] std::int32_t count(std::int32_t i, std::int32_t first, std::int32_t end) const;
  [[nodiscard]] std::int32_t class_of(std::int32_t layer) const;

 private:
  std::vector<spec::LayerClass> classes_;
  std::vector<std::int32_t> class_of_;
  std::vector<std::vector<std::int32_t>> before_;  // [class][layer]
};

// All costs under one cut (and placement of its groups).
struct LayerTable {
  std::vector<BlockCost> layers;  // [class]
  BlockCost embedding, head, mtp;
  graph::BlockParams shared_head;  // of the head beside the embedding of a tied model
};

[[nodiscard]] BlockGroups block_groups(const Setup& setup, const Candidate& c);
// load: of c.ep.
[[nodiscard]] LayerTable layer_table(const Setup& setup, const LayerClasses& classes, const Candidate& c,
                                     const LoadFigures& load);
// Without the operators: parameters and memory alone, all seconds 0. Many times quicker.
[[nodiscard]] LayerTable size_table(const Setup& setup, const LayerClasses& classes, const Candidate& c,
                                    const LoadFigures& load);

}  // namespace tessera::cost
