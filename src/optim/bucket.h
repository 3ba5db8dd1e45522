// Bucket: a flat run of parameters whose gradients are summed over one group and updated together.
//
// One step of a bucket: reduce (as soon as its last weight gradient is done), then over all buckets the
// gradient norm, then apply (AdamW) and, with ZeRO-1, gather. Without ZeRO every rank of the group updates
// the whole bucket; with ZeRO-1 rank r of N owns elements [r n / N, (r + 1) n / N): reduce-scatter, update of
// the own shard, all-gather. Both sum in the same ring order over the same chunks, so the bits agree. Bytes
// per rank, S = bytes of the bucket: 2 (N-1)/N S in both.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/kernels.h"
#include "tensor/tensor.h"

namespace tessera::optim {

using tensor::Tensor;

struct Segment {  // one parameter inside the bucket
  std::int64_t begin = 0;
  std::int64_t size = 0;
  bool weight_decay = true;
  bool counted = true;  // false: the ranks of another group hold it too and count it in norms
};

struct Bucket {
  Tensor value, grad;  // flat [n]; n is a multiple of the group size; padding is zero
  Tensor m, v;         // AdamW state of the owned range
  comm::Communicator* group = nullptr;
  bool sharded = false;  // ZeRO-1
  bool counted = true;   // false: a tied copy, whose elements are counted elsewhere
  bool updated = true;   // false: `value` belongs to another bucket; m and v are empty
  std::vector<Segment> segments;

  [[nodiscard]] std::int64_t owned_begin() const;
  [[nodiscard]] std::int64_t owned_size() const;
  [[nodiscard]] Tensor owned_grad() const { return grad.narrow_rows(owned_begin(), owned_size()); }
  [[nodiscard]] Tensor owned_value() const { return value.narrow_rows(owned_begin(), owned_size()); }
};

// Sums the gradient over the group: afterwards owned_grad() is complete.
void reduce(Bucket& bucket);
// Sum of squares of what this rank must contribute so that the sum over the world counts each element once.
[[nodiscard]] double sum_squares(const Bucket& bucket, kernels::Kernels& kernels);
// AdamW on the owned range. options.weight_decay applies to segments that decay.
void apply(Bucket& bucket, kernels::Kernels& kernels, const kernels::AdamWOptions& options);
// ZeRO-1: every rank gets the updated shards of the others. A no-op otherwise.
void gather(Bucket& bucket);

// min(1, max_norm / (norm + 1e-6)), 1 when max_norm is 0 (Megatron-LM, PyTorch clip_grad_norm_); NaN stays
// NaN.
[[nodiscard]] double clip_coefficient(double norm, double max_norm);

}  // namespace tessera::optim
