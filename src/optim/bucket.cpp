#include "optim/bucket.h"

#include <algorithm>

#include "base/math.h"

namespace tessera::optim {

std::int64_t Bucket::owned_begin() const {
  return sharded ? owned_size() * group->rank() : 0;
}

std::int64_t Bucket::owned_size() const {
  return sharded ? div_exact(grad.num_elements(), group->size()) : grad.num_elements();
}

void reduce(Bucket& bucket, kernels::Kernels& kernels) {
  if (!bucket.sharded) return bucket.group->all_reduce(bucket.grad);
  const Tensor part = bucket.owned_part(bucket.grad);
  bucket.group->reduce_scatter(part, bucket.grad);
  if (!bucket.keeps_grad) kernels.accumulate(bucket.grad_shard, part);
}

void add_sum_squares(Tensor sum_1, const Bucket& bucket, kernels::Kernels& kernels) {
  using kernels::Write;
  if (!bucket.counted) return;
  if (!bucket.sharded && bucket.group->rank() != 0) return;
  if (std::ranges::all_of(bucket.segments, &Segment::counted))
    return kernels.sum_squares_to(sum_1, bucket.owned_grad(), Write::accumulate);
  const std::int64_t begin = bucket.owned_begin();
  const std::int64_t end = begin + bucket.owned_size();
  for (const Segment& s : bucket.segments) {
    const std::int64_t from = std::max(begin, s.begin);
    const std::int64_t to = std::min(end, s.begin + s.size);
    if (s.counted && from < to)
      kernels.sum_squares_to(sum_1, bucket.owned_grad().narrow_rows(from - begin, to - from),
                             Write::accumulate);
  }
}

void apply(Bucket& bucket, kernels::Kernels& kernels, const kernels::AdamWOptions& options) {
  if (!bucket.updated) return;
  const std::int64_t begin = bucket.owned_begin();
  const std::int64_t end = begin + bucket.owned_size();
  for (const Segment& s : bucket.segments) {
    const std::int64_t from = std::max(begin, s.begin);
    const std::int64_t to = std::min(end, s.begin + s.size);
    if (from >= to) continue;
    kernels::AdamWOptions segment_options = options;
    if (!s.weight_decay) segment_options.weight_decay = 0.0;
    kernels.adamw(bucket.owned_value().narrow_rows(from - begin, to - from),
                  bucket.owned_grad().narrow_rows(from - begin, to - from),
                  bucket.m.narrow_rows(from - begin, to - from),
                  bucket.v.narrow_rows(from - begin, to - from), segment_options);
  }
}

void gather(Bucket& bucket) {
  if (bucket.sharded && bucket.updated) bucket.group->all_gather(bucket.value, bucket.owned_value());
}

double clip_coefficient(double norm, double max_norm) {
  if (max_norm <= 0.0) return 1.0;
  // A norm that is not a number gives a coefficient that is none: the step shows it instead of hiding it.
  return norm + 1e-6 <= max_norm ? 1.0 : max_norm / (norm + 1e-6);
}

}  // namespace tessera::optim
