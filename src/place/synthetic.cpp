#include "place/synthetic.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.h"
#include "place/index.h"

namespace tessera::place {
namespace {

// 0 .. n - 1 in a random order.
std::vector<std::int32_t> order_of(std::int32_t n, std::uint64_t seed, std::uint64_t stream) {
  std::vector<std::int32_t> order(size_of(n));
  std::iota(order.begin(), order.end(), 0);
  for (std::int32_t i = n - 1; i > 0; --i) {
    const auto bound = static_cast<std::uint64_t>(i) + 1;
    const std::uint64_t j = uniform_below(bound, seed, stream, static_cast<std::uint64_t>(i));
    std::swap(at(order, i), order[j]);
  }
  return order;
}

}  // namespace

std::vector<double> synthetic_load(const SyntheticLoad& what, std::int32_t layer, std::int32_t window) {
  const auto l = static_cast<std::uint64_t>(layer) << 32;
  const auto w = static_cast<std::uint64_t>(window) << 16;
  const std::uint64_t ranks = stream_of("place.synthetic.rank") + l;
  const std::uint64_t own = stream_of("place.synthetic.own") + l;
  const std::uint64_t group = stream_of("place.synthetic.group") + l;
  const std::uint64_t drift = stream_of("place.synthetic.drift") + l + w;
  const std::vector<std::int32_t> rank = order_of(what.num_experts, what.seed, ranks);
  std::vector<double> load(size_of(what.num_experts));
  const std::int32_t group_size = what.num_experts / what.num_groups;
  const auto peak = static_cast<std::int32_t>(
      uniform_below(static_cast<std::uint64_t>(what.num_groups), what.seed, group, std::uint64_t{1} << 32));
  for (std::int32_t e = 0; e < what.num_experts; ++e) {
    const auto id = static_cast<std::uint64_t>(e);
    double log_load = -what.zipf * std::log(1.0 + at(rank, e));
    log_load += what.spread * normal(what.seed, own, id);
    log_load += what.group_spread * normal(what.seed, group, static_cast<std::uint64_t>(e / group_size));
    if (e / group_size == peak) log_load += what.group_peak;
    if (what.drift_causes == 0) log_load += what.drift * normal(what.seed, drift, id);
    for (std::int32_t c = 0; c < what.drift_causes; ++c) {
      const auto cause = static_cast<std::uint64_t>(c) + 1;
      const double strength = normal(what.seed, drift, cause << 32),
                   own_way = normal(what.seed, own, id | cause << 40);
      log_load += what.drift * strength * own_way / std::sqrt(what.drift_causes);
    }
    at(load, e) = std::exp(log_load);
  }
  const double sum = std::accumulate(load.begin(), load.end(), 0.0);
  for (double& x : load) x = std::round(1e6 * x / sum);
  return load;
}

std::vector<std::int16_t> synthetic_tokens(const SyntheticTokens& what, std::int32_t layer) {
  const auto l = static_cast<std::uint64_t>(layer) << 32;
  const std::vector<std::int32_t> order =
      order_of(what.num_experts, what.seed, stream_of("place.tokens.order") + l);
  const std::uint64_t stream = stream_of("place.tokens.choice") + l;
  const std::int32_t per_cluster = what.num_experts / what.num_clusters;
  std::vector<std::int16_t> tokens;
  std::uint64_t counter = 0;
  const auto draw = [&](std::int32_t n) {
    return static_cast<std::int32_t>(
        uniform_below(static_cast<std::uint64_t>(n), what.seed, stream, counter++));
  };
  for (std::int32_t t = 0; t < what.num_tokens; ++t) {
    const std::int32_t cluster = draw(what.num_clusters);
    const std::ptrdiff_t first = std::ssize(tokens);
    std::int32_t own = 0;
    while (std::ssize(tokens) < first + what.top_k) {
      const bool stay = own < per_cluster && uniform(what.seed, stream, counter++) < what.cluster_share;
      const std::int32_t place =
          stay ? draw(per_cluster) * what.num_clusters + cluster : draw(what.num_experts);
      const auto expert = static_cast<std::int16_t>(at(order, place));
      if (std::find(tokens.begin() + first, tokens.end(), expert) != tokens.end()) continue;
      own += place % what.num_clusters == cluster ? 1 : 0;
      tokens.push_back(expert);
    }
  }
  return tokens;
}

}  // namespace tessera::place
