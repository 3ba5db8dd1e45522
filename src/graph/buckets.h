// Gradient buckets: the flat runs in which one rank's gradients are reduced. Parameters of one stage and
// gradient group, last layer first (head, layers downwards, embedding), a bucket closed at the end of the
// layer in which it reaches bucket_bytes; tied uses of the embedding have buckets of their own. Starts are
// aligned to 64 bytes but inside a fused weight (q k v, gate up); the length is rounded up to the group size
// times 64 bytes. With ZeRO-2 and -3 the MTP layers share buckets with the head, whose unit they belong to;
// with ZeRO-3 every unit closes its buckets.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layout/layout.h"
#include "spec/job.h"

namespace tessera::graph {

struct GradBucket {
  StageId stage;
  layout::GradGroup group = layout::GradGroup::dp;
  std::int64_t num_elements = 0;  // padding included
  bool embedding = false;         // of a tied model: the table alone
  bool tied_copy = false;         // of a tied model: the head's use alone
  bool input = false;             // its last parameter belongs to the embedding
  friend bool operator==(const GradBucket&, const GradBucket&) = default;
};

struct BucketOptions {
  std::int64_t element_bytes = 4;
  std::int64_t bucket_bytes = 0;
  bool tied = false;
  std::int32_t zero_stage = 0;
  std::int32_t num_layers = 0;              // of the main model
  std::int32_t dp = 1, tp_dp = 1, edp = 1;  // group sizes
};
[[nodiscard]] std::vector<GradBucket> gradient_buckets(std::span<const layout::ParamSpec> params,
                                                       const BucketOptions& options);
[[nodiscard]] BucketOptions bucket_options(const spec::Job& job);
[[nodiscard]] std::int32_t group_size(const BucketOptions& options, layout::GradGroup group);

// Elements that whole gradients (ZeRO-2, -3) and values (ZeRO-3) take while they come and go: two buffers for
// each gradient group, used in turn, and one for each tied use of the embedding (values: one for both where
// they lie on one rank).
struct TransientElements {
  std::int64_t gradients = 0, values = 0;
};
[[nodiscard]] TransientElements transient_elements(std::span<const GradBucket> buckets,
                                                   const BucketOptions& options);

}  // namespace tessera::graph
