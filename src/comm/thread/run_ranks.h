// Runs the ranks of this process, a thread each.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/ids.h"

namespace tessera::comm::thread {

class World;

[[nodiscard]] std::vector<std::int32_t> usable_cores();  // by this process

// body(rank) of each rank on a thread of its own; an error stops the world. Throws at once when the world is
// stopped already. Returns when all threads have ended.
void run_ranks(World& world, std::span<const Rank> ranks, std::span<const std::int32_t> cores,
               const std::function<void(Rank)>& body);

}  // namespace tessera::comm::thread
