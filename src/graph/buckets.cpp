#include "graph/buckets.h"

#include <functional>
#include <limits>
#include <map>

#include "base/math.h"

namespace tessera::graph {

using layout::GradGroup;
using layout::ParamKind;
using layout::ParamSpec;

namespace {

constexpr std::int64_t kAlignment = 64;

std::int32_t position(const ParamSpec& p) {
  if (p.layer >= 0) return p.layer;
  return layout::is_input(p.kind) ? -1 : std::numeric_limits<std::int32_t>::max();
}

GradBucket make_bucket(std::span<const ParamSpec* const> members, const BucketOptions& options) {
  const std::int64_t line = kAlignment / options.element_bytes;
  const ParamSpec& first = *members.front();
  GradBucket bucket{.stage = first.stage,
                    .group = first.group,
                    .num_elements = 0,
                    .embedding = options.tied && first.kind == ParamKind::embedding,
                    .tied_copy = first.tied_copy};
  std::int64_t n = 0;
  for (const ParamSpec* p : members) {
    if (!p->follows) n = round_up(n, line);
    n += p->num_elements();
  }
  bucket.num_elements = round_up(n, group_size(options, first.group) * line);
  return bucket;
}

}  // namespace

std::int32_t group_size(const BucketOptions& options, GradGroup group) {
  switch (group) {
    case GradGroup::dp:
      return options.dp;
    case GradGroup::tp_dp:
      return options.tp_dp;
    case GradGroup::edp:
      return options.edp;
  }
  return 1;
}

std::vector<GradBucket> gradient_buckets(std::span<const ParamSpec> params, const BucketOptions& options) {
  using Members = std::vector<const ParamSpec*>;
  std::vector<GradBucket> buckets;
  Members open;
  const auto close = [&] {
    if (!open.empty()) buckets.push_back(make_bucket(open, options));
    open.clear();
  };
  const auto alone = [&](const ParamSpec& p) {
    return options.tied && (p.tied_copy || p.kind == ParamKind::embedding);
  };
  // Stages in order of their first parameter, groups in the order of the enum, positions downwards.
  std::map<std::pair<std::int32_t, GradGroup>, std::map<std::int32_t, Members, std::greater<>>> sorted;
  for (const ParamSpec& p : params)
    if (!p.buffer) sorted[{p.stage.value, p.group}][position(p)].push_back(&p);
  for (const auto& [key, by_position] : sorted) {
    std::int64_t open_bytes = 0;
    for (const auto& [at, members] : by_position) {
      for (const ParamSpec* p : members) {
        if (alone(*p)) {
          close();
          open_bytes = 0;
          open.push_back(p);
          close();
          continue;
        }
        open.push_back(p);
        open_bytes += p->num_elements() * options.element_bytes;
      }
      if (open_bytes >= options.bucket_bytes) {
        close();
        open_bytes = 0;
      }
    }
    close();
  }
  return buckets;
}

}  // namespace tessera::graph
