#include "graph/buckets.h"

#include <algorithm>
#include <array>
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

std::int32_t position(const ParamSpec& p, const BucketOptions& options) {
  constexpr std::int32_t kHead = std::numeric_limits<std::int32_t>::max();
  if (p.layer >= options.num_layers && options.zero_stage >= 2) return kHead;
  if (p.layer >= 0) return p.layer;
  return layout::is_input(p.kind) ? -1 : kHead;
}

GradBucket make_bucket(std::span<const ParamSpec* const> members, const BucketOptions& options) {
  const std::int64_t line = kAlignment / options.element_bytes;
  const ParamSpec& first = *members.front();
  GradBucket bucket{.stage = first.stage,
                    .group = first.group,
                    .num_elements = 0,
                    .embedding = options.tied && first.kind == ParamKind::embedding,
                    .tied_copy = first.tied_copy,
                    .input = layout::is_input(members.back()->kind)};
  std::int64_t n = 0;
  for (const ParamSpec* p : members) {
    if (!p->follows) n = round_up(n, line);
    n += p->num_elements();
  }
  bucket.num_elements = round_up(n, group_size(options, first.group) * line);
  return bucket;
}

}  // namespace

BucketOptions bucket_options(const spec::Job& job) {
  const spec::ParallelSpec& p = job.parallel;
  return {.element_bytes = job.train.precision == spec::Precision::f64 ? 8 : 4,
          .bucket_bytes = job.train.bucket_bytes,
          .tied = layout::shares_embedding(job.model),
          .zero_stage = job.train.zero_stage,
          .num_layers = job.model.num_hidden_layers,
          .dp = p.cp * p.dp,
          .tp_dp = p.tp * p.cp * p.dp,
          .edp = p.edp()};
}

TransientElements transient_elements(std::span<const GradBucket> buckets, const BucketOptions& options) {
  struct Pair {
    std::array<std::int64_t, 2> longest{};
    std::size_t turn = 0;
    void add(std::int64_t n) {
      longest[turn] = std::max(longest[turn], n);
      turn = 1 - turn;
    }
  };
  std::map<GradGroup, Pair> pairs;
  const bool embedding_here = std::ranges::any_of(buckets, [](const GradBucket& b) { return b.embedding; });
  TransientElements t;
  for (const GradBucket& b : buckets) {
    if (group_size(options, b.group) == 1) continue;
    if (b.embedding || b.tied_copy) {
      t.gradients += b.num_elements;
      if (!(b.tied_copy && embedding_here)) t.values += b.num_elements;
    } else {
      pairs[b.group].add(b.num_elements);
    }
  }
  for (const auto& [group, pair] : pairs) {
    const std::int64_t both = pair.longest[0] + pair.longest[1];
    t.gradients += both;
    t.values += both;
  }
  return {.gradients = options.zero_stage >= 2 ? t.gradients : 0,
          .values = options.zero_stage == 3 ? t.values : 0};
}

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
    if (!p.buffer) sorted[{p.stage.value, p.group}][position(p, options)].push_back(&p);
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
      if (open_bytes >= options.bucket_bytes || options.zero_stage == 3) {
        close();
        open_bytes = 0;
      }
    }
    close();
  }
  return buckets;
}

}  // namespace tessera::graph
