// Identifiers that cannot be mixed up: passing a StageId where a Rank is meant does not compile.
#pragma once
#include <compare>
#include <cstdint>

namespace tessera {

template <class Tag>
struct Id {
  std::int32_t value{};
  constexpr Id() = default;
  constexpr explicit Id(std::int32_t v) : value(v) {}
  friend constexpr auto operator<=>(const Id&, const Id&) = default;
};

using Rank = Id<struct RankTag>;                // rank in the world
using StageId = Id<struct StageTag>;            // pipeline stage, 0 .. pp * vpp - 1
using MicrobatchId = Id<struct MicrobatchTag>;  // pipeline unit of one data-parallel replica, 0 .. m - 1
using LayerId = Id<struct LayerTag>;            // transformer layer of the model
using ExpertId = Id<struct ExpertTag>;          // expert of one MoE layer, over all ranks

}  // namespace tessera
