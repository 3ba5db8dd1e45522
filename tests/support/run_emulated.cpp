#include "support/run_emulated.h"

namespace tessera::test {

void EmulatedThread::block_barrier() const {
  __syncthreads();
}

int EmulatedThread::shuffle_xor(int value, int mask) const {
  return __shfl_xor_sync(0xffffffffU, value, mask);
}

void run_emulated(const EmulatedGrid& grid, const std::function<void(const EmulatedThread&)>& kernel) {
  emulation::run({grid.blocks_x, grid.blocks_y}, {grid.threads}, 0, [&] {
    kernel({static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(threadIdx.x)});
  });
}

}  // namespace tessera::test
