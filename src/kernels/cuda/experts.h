// Where the rows of experts lie, as kernels of many experts see them.
#pragma once
#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {

// Experts that one launch takes: their pointers are an argument of the kernel.
constexpr int kTable = 256;
template <class T>
struct Table {
  T* at[kTable];
};

// Tiles of `height` rows, each within one expert. Expert e has the slots from (begin[e] - begin[0]) / height
// + e: at least as many as it needs, so a block finds its expert by a search, and rows / height + experts
// slots are enough for all.
struct ExpertTile {
  int expert;
  std::int64_t row, end;  // its first row, and the end of the expert: behind it where the slot is idle
};
__device__ inline ExpertTile expert_tile(const std::int32_t* begin, int experts, std::int64_t slot,
                                         int height) {
  int low = 0, high = experts;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if ((begin[middle] - begin[0]) / height + middle <= slot) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const std::int64_t tile = slot - ((begin[low] - begin[0]) / height + low);
  return {low, begin[low] + tile * height, begin[low + 1]};
}
inline unsigned expert_slots(std::int64_t rows, int experts, int height) {
  return static_cast<unsigned>(rows / height + experts);
}

// launch_some(first expert, how many) for all of them.
template <class F>
void for_tables(std::size_t experts, F launch_some) {
  for (std::size_t first = 0; first < experts; first += kTable) {
    const std::size_t left = experts - first;
    launch_some(first, static_cast<int>(left < kTable ? left : kTable));
  }
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
