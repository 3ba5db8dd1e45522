// Runs a function as a kernel of the emulation, for tests of the emulation itself: its header gives CUDA's
// names to the host and so stays out of tests.
#pragma once
#include <functional>

namespace tessera::test {

struct EmulatedGrid {
  unsigned blocks_x = 1, blocks_y = 1, threads = 32;
};
struct EmulatedThread {
  int block_x, block_y, thread;
  void block_barrier() const;
  [[nodiscard]] int shuffle_xor(int value, int mask) const;
};
void run_emulated(const EmulatedGrid& grid, const std::function<void(const EmulatedThread&)>& kernel);

}  // namespace tessera::test
