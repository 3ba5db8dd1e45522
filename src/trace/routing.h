// RoutingStats: which experts the tokens of a run chose, as data: counts by layer and expert, pairs of
// experts that the same token chose, inside a layer and from one MoE layer to the next, and every token's
// choices where they were kept. The engine writes it, the report shows it, planner and placement read it;
// inference engines' dumps are read into the same value (routing_file.h). Pure, thread safe.
//
//   RoutingStats stats = read_routing("routing.safetensors");
//   const LoadSpread spread = spread_of(stats.chosen_of(0));
//   spread.effective_experts;   // as many experts would give this entropy if all were used alike
//
// Shapes: L MoE layers, E experts, K choices of a token, T tokens of `choices`; row-major.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera::trace {

inline constexpr std::int32_t kMaxRoutingExperts = 16384;
inline constexpr std::int32_t kMaxRoutingLayers = 4096;
inline constexpr std::int32_t kMaxRoutingTopK = 1024;
// Counts of pairs are kept up to this many numbers (256 MiB), beyond it `within` and `across` stay empty.
inline constexpr std::int64_t kMaxRoutingPairs = std::int64_t{1} << 25;

// Counts of a part of the whole: some steps of a run, a domain of text.
struct RoutingWindow {
  std::string name;  // may be empty
  std::int64_t first_step = 0;
  std::int64_t num_steps = 0;        // 0: not a part of the time
  std::vector<std::int64_t> chosen;  // [L, E]
  friend bool operator==(const RoutingWindow&, const RoutingWindow&) = default;
};

struct RoutingStats {
  std::string model;   // for people; may be empty
  std::string source;  // who counted: "tessera train", "sglang per_token"
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;              // 0: not known
  std::int64_t num_tokens = 0;         // that were counted; 0: not known
  std::vector<std::int32_t> layers;    // [L] index in the model, ascending
  std::vector<std::int64_t> chosen;    // [L, E] choices before drops
  std::vector<std::int64_t> dropped;   // [L, E], or empty: not known
  std::vector<RoutingWindow> windows;  // may be empty; need not cover the whole
  std::vector<std::int64_t> within;    // [L, E, E] tokens that chose both; diagonal = chosen; or empty
  std::vector<std::int64_t> across;    // [L-1, E, E] tokens that chose row's expert in layer l and
                                       // column's in l + 1; or empty
  std::vector<std::int16_t> choices;   // [L, T, K], -1: no choice; or empty
  std::vector<std::int64_t> sequence_lengths;  // of the tokens of `choices`, sums to T; or empty

  [[nodiscard]] std::int32_t num_layers() const { return static_cast<std::int32_t>(layers.size()); }
  [[nodiscard]] std::int64_t choice_tokens() const;                              // T
  [[nodiscard]] std::span<const std::int64_t> chosen_of(std::int32_t l) const;   // [E]
  [[nodiscard]] std::span<const std::int64_t> dropped_of(std::int32_t l) const;  // [E]; REQUIRES dropped
  [[nodiscard]] std::span<const std::int64_t> within_of(std::int32_t l) const;   // [E, E]; REQUIRES within
  [[nodiscard]] std::span<const std::int64_t> across_of(std::int32_t l) const;   // [E, E]; REQUIRES across
  [[nodiscard]] std::span<const std::int16_t> choices_of(std::int32_t l) const;  // [T, K]; REQUIRES choices
  friend bool operator==(const RoutingStats&, const RoutingStats&) = default;
};

// Every fault of the value: sizes, ranges, a diagonal of `within` that is not `chosen`, ids out of range or
// twice in a token, windows above the whole. where: file or place for the messages.
void check_routing(const RoutingStats& stats, std::string_view where, Problems& problems);

// How unevenly a layer's choices are spread.
struct LoadSpread {
  std::int64_t total = 0;
  double max_over_mean = 0.0;
  double cv = 0.0;                 // standard deviation over mean
  double entropy = 0.0;            // -sum p ln p of the shares, nats; at most ln E
  double effective_experts = 0.0;  // exp(entropy): E when all are used alike, 1 when one takes all
  std::int32_t dead = 0;           // experts without a choice
  friend bool operator==(const LoadSpread&, const LoadSpread&) = default;
};
[[nodiscard]] LoadSpread spread_of(std::span<const std::int64_t> chosen);  // no choices: zeros

// Adds the tokens of choices_TK (K = top_k; below 0: no choice). Allocates nothing.
void count_chosen(std::span<std::int64_t> chosen_E, std::span<const std::int16_t> choices_TK);
void count_within(std::span<std::int64_t> within_EE, std::span<const std::int16_t> choices_TK,
                  std::int32_t num_experts, std::int32_t top_k);
void count_across(std::span<std::int64_t> across_EE, std::span<const std::int16_t> from_TK,
                  std::span<const std::int16_t> to_TK, std::int32_t num_experts, std::int32_t top_k);

// chosen, num_tokens and, within kMaxRoutingPairs, within and across: from choices, layers, num_experts and
// top_k, which must be there and checked.
void count_choices(RoutingStats& stats);

struct ExpertPair {
  std::int32_t a = 0, b = 0;
  std::int64_t count = 0;
  double lift = 0.0;  // against independent choices: count tokens / (chosen_a chosen_b)
  friend bool operator==(const ExpertPair&, const ExpertPair&) = default;
};
// The pairs of layer l that tokens chose together most often, a < b, at most `most`; by count, then a, then
// b. REQUIRES within. lift is 0 when num_tokens is not known.
[[nodiscard]] std::vector<ExpertPair> top_pairs(const RoutingStats& stats, std::int32_t l, std::int32_t most);
// Likewise from layer l (a) to the next (b). REQUIRES across.
[[nodiscard]] std::vector<ExpertPair> top_followers(const RoutingStats& stats, std::int32_t l,
                                                    std::int32_t most);

}  // namespace tessera::trace
