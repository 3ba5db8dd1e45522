// Rows of the experts under a routing: what one rank sends and receives of a MoE layer. Inside of this room.
#pragma once
#include <cstdint>
#include <vector>

#include "graph/layers.h"

namespace tessera::graph {

// All must outlive it.
class RoutingRows {
 public:
  // Error{config} for counts of the wrong shape.
  RoutingRows(const spec::Job& job, const layout::Layout& layout, Rank rank, const RoutingCounts& routing,
              const Sizes& sizes);
  [[nodiscard]] MoeSizes of_layer(std::int32_t layer) const;

 private:
  [[nodiscard]] std::vector<Rank> expert_group() const;  // etp fastest
  void check_routing() const;
  [[nodiscard]] std::vector<std::int64_t> kept(std::int32_t layer, Rank r) const;
  [[nodiscard]] std::vector<std::int64_t> node_rows(std::int32_t layer, Rank r) const;
  void count_rows(MoeSizes& m, std::int32_t layer) const;
  void count_node_rows(MoeSizes& m, std::int32_t layer, std::int32_t ep, Rank r) const;
  [[nodiscard]] std::int64_t replicas_in_group() const;

  const spec::Job& job_;
  const layout::Layout& layout_;
  Rank rank_;
  const RoutingCounts& routing_;
  const Sizes& sizes_;
};

}  // namespace tessera::graph
