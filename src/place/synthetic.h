// Seeded loads and tokens for benchmarks, tests and the tables of docs/placement.md: no routing data of
// anybody is needed to repeat those. Pure, thread safe.
//
//   const std::vector<double> load = synthetic_load({.num_experts = 256, .zipf = 0.5}, layer);
#pragma once
#include <cstdint>
#include <vector>

namespace tessera::place {

struct SyntheticLoad {
  std::int32_t num_experts = 256;
  std::int32_t num_groups = 1;
  double zipf = 0.0;          // load of the r-th hottest expert ~ r^-zipf, experts in random order
  double spread = 0.0;        // and times exp(spread * normal): a log-normal load
  double group_spread = 0.0;  // and times exp(group_spread * normal) of its group
  double group_peak = 0.0;    // and of one group, drawn, times exp(group_peak)
  double drift = 0.0;         // and times exp(drift * normal) of its own in each window
  // > 0: drift has so many causes, each moves every expert its own way and is as strong as the window has it.
  std::int32_t drift_causes = 0;
  std::uint64_t seed = 1;
};
// Sums to 1e6, whole numbers.
[[nodiscard]] std::vector<double> synthetic_load(const SyntheticLoad& what, std::int32_t layer,
                                                 std::int32_t window = 0);

struct SyntheticTokens {
  std::int32_t num_experts = 64;
  std::int32_t top_k = 6;
  std::int32_t num_clusters = 16;  // experts that are chosen together
  std::int32_t num_tokens = 8192;
  double cluster_share = 0.5;  // of the choices that stay within the token's own cluster
  std::uint64_t seed = 1;
};
// [T, K] distinct experts. Cluster c is the experts e of a random order with e mod num_clusters = c.
[[nodiscard]] std::vector<std::int16_t> synthetic_tokens(const SyntheticTokens& what, std::int32_t layer);

}  // namespace tessera::place
