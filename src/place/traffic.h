// Experts on nodes so that tokens reach few of them. A token is a hyperedge over its experts; the number of
// distinct nodes that it touches (connectivity) is what crosses the network when copies to one node are
// shared. Pairs do not say it: a token with 3 + 3 experts on two nodes is 9 cut pairs, but one more node.
//
//   minimise   mean over tokens of |nodes that hold one of its experts|
//   such that  every node holds its number of experts, and no more than (1 + cap) of the mean load
//
// Simulated annealing over swaps of two experts of different nodes. Tables say what a swap changes: for each
// expert the tokens that leave a node with it, and for each expert and node the tokens that would reach that
// node only with it. Up to 16 experts the optimum is found exactly, over all subsets.
//
// Deterministic: work is counted, not timed. Pure, thread safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace tessera::place {

struct CutProblem {
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int32_t num_nodes = 1;
  std::span<const std::int16_t> tokens;      // [T, K], -1: no choice
  std::vector<std::vector<double>> windows;  // loads [E] that must fit under the cap, each; at least one
  double cap = 0.03;                         // < 0: none
};

struct CutOptions {
  std::int64_t visits = 16'000'000;   // of tokens, by accepted swaps: about 5 ns each
  std::int64_t most_tokens = 32'768;  // of which the search learns, evenly picked
  double hot = 0.1,
         cold = 5e-4;  // temperatures, as a share of K / E nodes per token: what one expert may add
  std::uint64_t seed = 1;
};

inline constexpr std::int32_t kExactExperts = 16;

// [E] node of each expert; E / N experts each, the first E mod N nodes one more. Where the cap cannot be
// met, the least overload that was found.
[[nodiscard]] std::vector<std::int32_t> fewest_nodes(const CutProblem& problem, const CutOptions& options);
// The optimum. REQUIRES at most kExactExperts experts that the nodes divide. Where nothing fits under the
// cap, as without one.
[[nodiscard]] std::vector<std::int32_t> fewest_nodes_exact(const CutProblem& problem);

// Mean distinct nodes per token.
[[nodiscard]] double mean_nodes(std::span<const std::int32_t> node_of, const CutProblem& problem);

// No partition into N parts of at most `most` experts reaches fewer nodes per token: pairs inside of parts
// are bounded by what each expert shares with its most - 1 best partners and by the largest eigenvalues of
// the matrix of pairs (Donath and Hoffman 1973); so many pairs at most leave so many nodes at least, by
// convexity.
[[nodiscard]] double nodes_bound(const CutProblem& problem, std::int32_t most);

}  // namespace tessera::place
