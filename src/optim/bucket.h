// Bucket: a flat run of parameters whose gradients are summed over one group and updated together.
//
// One step of a bucket: reduce (as soon as its last weight gradient is done), then over all buckets the
// gradient norm, then apply (AdamW) and gather. Without ZeRO every rank of the group updates the whole
// bucket. With ZeRO-1 (arXiv 1910.02054) rank r of N owns elements [r n / N, (r + 1) n / N): reduce-scatter,
// update of the own range, all-gather; both sum in the same ring order over the same chunks, so the bits
// agree. With ZeRO-2 only the owned range of the gradient stays: `grad` is a buffer that holds the gradient
// of one micro-batch, and reduce adds the sum over the group to `grad_shard`, micro-batches in their order.
// With
// ZeRO-3 the same holds for the values: `value` is a buffer, filled by gather before each use.
// Bytes per rank, S = bytes of the bucket, m micro-batches, u uses of the values in a step:
//   none, ZeRO-1: 2 (N-1)/N S;   ZeRO-2: (m + 1) (N-1)/N S;   ZeRO-3: (m + u) (N-1)/N S.
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
  bool sharded = false;                        // m and v are of the owned range: ZeRO-1 and up
  Tensor grad_shard;                           // [n / N] ZeRO-2 and up: the gradient so far; else empty
  Tensor value_shard;                          // [n / N] ZeRO-3: the values; else empty
  bool keeps_grad = true, keeps_value = true;  // false: they are in the shards
  bool counted = true;                         // false: a tied copy, whose elements are counted elsewhere
  bool updated = true;                         // false: `value` belongs to another bucket; m and v are empty
  std::vector<Segment> segments;

  [[nodiscard]] std::int64_t owned_begin() const;
  [[nodiscard]] std::int64_t owned_size() const;
  // The range inside of whole tensors of the bucket.
  [[nodiscard]] Tensor owned_part(const Tensor& whole) const {
    return whole.narrow_rows(owned_begin(), owned_size());
  }
  [[nodiscard]] Tensor owned_grad() const { return keeps_grad ? owned_part(grad) : grad_shard; }
  [[nodiscard]] Tensor owned_value() const { return keeps_value ? owned_part(value) : value_shard; }
};

// Sums the gradient over the group: afterwards owned_grad() is complete, with ZeRO-2 for one micro-batch
// more.
// May run on another thread than the kernels do: of them it uses accumulate alone.
void reduce(Bucket& bucket, kernels::Kernels& kernels);
// Sum of squares of what this rank must contribute so that the sum over the world counts each element once.
void add_sum_squares(Tensor sum_1, const Bucket& bucket, kernels::Kernels& kernels);
// AdamW on the owned range. options.weight_decay applies to segments that decay.
void apply(Bucket& bucket, kernels::Kernels& kernels, const kernels::AdamWOptions& options);
// Every rank gets the owned ranges of the others: after the update (ZeRO-1, ZeRO-2), before a use (ZeRO-3). A
// no-op without ZeRO.
void gather(Bucket& bucket);

// min(1, max_norm / (norm + 1e-6)), 1 when max_norm is 0 (Megatron-LM, PyTorch clip_grad_norm_); NaN stays
// NaN.
[[nodiscard]] double clip_coefficient(double norm, double max_norm);

}  // namespace tessera::optim
