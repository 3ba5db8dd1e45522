// The exact optimum of small cut problems, and the bound of large ones.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "place/eigen.h"
#include "place/index.h"
#include "place/token_sets.h"
#include "place/traffic.h"

namespace tessera::place {
namespace {

constexpr std::int32_t kMostEigen = 512;

// reached[S] = weight of the tokens that chose an expert of S.
std::vector<double> reach_of(const CutProblem& problem) {
  const TokenSets sets(problem.tokens, problem.num_experts, problem.top_k,
                       std::numeric_limits<std::int64_t>::max());
  const std::uint32_t all = (1U << static_cast<std::uint32_t>(problem.num_experts)) - 1U;
  std::vector<double> inside(all + 1U, 0.0);
  double total = 0.0;
  for (std::int32_t t = 0; t < sets.size(); ++t) {
    std::uint32_t mask = 0;
    for (const std::int16_t e : sets.experts(t)) mask |= 1U << static_cast<std::uint32_t>(e);
    inside[mask] += at(sets.weight, t);
    total += at(sets.weight, t);
  }
  for (std::uint32_t bit = 1; bit <= all; bit <<= 1U) {  // sums over subsets
    for (std::uint32_t set = 0; set <= all; ++set) {
      if ((set & bit) != 0U) inside[set] += inside[set ^ bit];
    }
  }
  std::vector<double> reached(all + 1U);
  for (std::uint32_t set = 0; set <= all; ++set) reached[set] = total - inside[all ^ set];
  return reached;
}

std::vector<bool> fitting_nodes(const CutProblem& problem, std::int32_t each) {
  const std::uint32_t all = (1U << static_cast<std::uint32_t>(problem.num_experts)) - 1U;
  std::vector<bool> fits(all + 1U, false);
  for (std::uint32_t set = 0; set <= all; ++set) {
    if (std::popcount(set) != each) continue;
    bool good = true;
    for (const std::vector<double>& window : problem.windows) {
      const double sum = std::accumulate(window.begin(), window.end(), 0.0);
      double load = 0.0;
      for (std::uint32_t rest = set; rest != 0U; rest &= rest - 1U)
        load += at(window, std::countr_zero(rest));
      const double limit = (1.0 + problem.cap) * sum / problem.num_nodes;
      good = good && (problem.cap < 0.0 || load <= limit + 1e-9 * sum);
    }
    fits[set] = good;
  }
  return fits;
}

// Weight of tokens that chose both, per token; 0 on the diagonal.
std::vector<double> pairs_of(const TokenSets& sets, std::int32_t experts, double total) {
  std::vector<double> pairs(size_of(experts * experts), 0.0);
  for (std::int32_t a = 0; a < experts; ++a) {
    for (std::int32_t b = a + 1; b < experts; ++b) {
      double sum = 0.0;
      for (const std::int32_t t : sets.pair(a, b)) sum += at(sets.weight, t) / total;
      at(pairs, a * experts + b) = at(pairs, b * experts + a) = sum;
    }
  }
  return pairs;
}

// Most pairs inside of parts, per token: every expert beside its best partners.
double partner_bound(const std::vector<double>& pairs, std::int32_t experts, std::int32_t most) {
  double sum = 0.0;
  for (std::int32_t e = 0; e < experts; ++e) {
    std::vector<double> row(pairs.begin() + e * experts, pairs.begin() + (e + 1) * experts);
    const auto partners = std::min(most - 1, experts - 1);
    std::partial_sort(row.begin(), row.begin() + partners, row.end(), std::greater<>());
    sum += std::accumulate(row.begin(), row.begin() + partners, 0.0) / 2.0;
  }
  return sum;
}

// Takes the part along (1, ..., 1) out of a symmetric matrix, from both sides.
void project(std::vector<double>& matrix, std::int32_t n) {
  std::vector<double> row(size_of(n), 0.0);
  for (std::int32_t e = 0; e < n; ++e) {
    for (std::int32_t f = 0; f < n; ++f) at(row, e) += at(matrix, e * n + f) / n;
  }
  const double mean = std::accumulate(row.begin(), row.end(), 0.0) / n;
  for (std::int32_t e = 0; e < n; ++e) {
    for (std::int32_t f = 0; f < n; ++f) at(matrix, e * n + f) += mean - at(row, e) - at(row, f);
  }
}

// most / 2 times the sum of the N largest eigenvalues. Where all parts are equal, they span (1, ..., 1), so
// one of the N directions is known and the others stand across it (Rendl and Wolkowicz 1995); and any
// diagonal of trace 0 may be added first: multiples of the deviation of the row sums are tried.
double eigen_bound(const std::vector<double>& pairs, std::int32_t experts, std::int32_t nodes,
                   std::int32_t most) {
  std::vector<double> row(size_of(experts), 0.0);
  for (std::int32_t e = 0; e < experts; ++e) {
    for (std::int32_t f = 0; f < experts; ++f) at(row, e) += at(pairs, e * experts + f);
  }
  const double mean = std::accumulate(row.begin(), row.end(), 0.0) / experts;
  double best = std::numeric_limits<double>::infinity();
  const bool equal = most * nodes == experts;
  for (const double scale : {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}) {
    if (scale > 0.0 && !equal) break;
    std::vector<double> matrix = pairs;
    for (std::int32_t e = 0; e < experts; ++e) at(matrix, e * experts + e) = -scale * (at(row, e) - mean);
    if (equal) project(matrix, experts);
    const std::vector<double> values = eigenvalues(std::move(matrix), experts);
    double sum = equal ? mean : 0.0;
    for (std::int32_t i = 0; i < std::min(equal ? nodes - 1 : nodes, experts); ++i) sum += at(values, i);
    best = std::min(best, most / 2.0 * sum * (1.0 + 1e-9));
  }
  return best;
}

// Least distinct nodes of tokens of k experts with `pairs` of them inside of nodes on average: a token on D
// nodes has at least as many as k spread evenly over D; between those points by convexity.
double nodes_of_pairs(double pairs, std::int32_t k, std::int32_t nodes) {
  const auto least = [&](std::int32_t d) {
    const double q = k / d, r = k % d;  // r nodes hold q + 1
    return r * (q + 1.0) * q / 2.0 + (d - r) * q * (q - 1.0) / 2.0;
  };
  for (std::int32_t d = std::min(k, nodes); d > 1; --d) {
    if (pairs <= least(d)) return d;
    if (pairs < least(d - 1)) return d - (pairs - least(d)) / (least(d - 1) - least(d));
  }
  return 1.0;
}

}  // namespace

std::vector<std::int32_t> fewest_nodes_exact(const CutProblem& problem) {
  const std::int32_t experts = problem.num_experts, each = experts / problem.num_nodes;
  TESSERA_CHECK(experts <= kExactExperts && each * problem.num_nodes == experts,
                "the exact search is for few experts that the nodes divide");
  const std::vector<double> reached = reach_of(problem);
  const std::vector<bool> fits = fitting_nodes(problem, each);
  const std::uint32_t all = (1U << static_cast<std::uint32_t>(experts)) - 1U;
  constexpr double kNever = std::numeric_limits<double>::infinity();
  std::vector<double> best(all + 1U, kNever);
  std::vector<std::uint32_t> node(all + 1U, 0);
  best[0] = 0.0;
  for (std::uint32_t set = 1; set <= all; ++set) {
    if (std::popcount(set) % each != 0) continue;
    const std::uint32_t first = set & (~set + 1U), rest = set ^ first;
    for (std::uint32_t part = rest;; part = (part - 1U) & rest) {
      const std::uint32_t with = part | first;
      if (fits[with] && reached[with] + best[set ^ with] < best[set]) {
        best[set] = reached[with] + best[set ^ with];
        node[set] = with;
      }
      if (part == 0U) break;
    }
  }
  if (best[all] == kNever) {
    CutProblem free = problem;
    free.cap = -1.0;
    return fewest_nodes_exact(free);
  }
  std::vector<std::int32_t> node_of(size_of(experts), 0);
  std::int32_t n = 0;
  for (std::uint32_t set = all; set != 0U; set ^= node[set], ++n) {
    for (std::uint32_t rest = node[set]; rest != 0U; rest &= rest - 1U)
      at(node_of, std::countr_zero(rest)) = n;
  }
  return node_of;
}

double nodes_bound(const CutProblem& problem, std::int32_t most) {
  const TokenSets sets(problem.tokens, problem.num_experts, problem.top_k,
                       std::numeric_limits<std::int64_t>::max());
  const std::int64_t tokens = std::ssize(problem.tokens) / std::max(problem.top_k, 1);
  if (tokens == 0) return 0.0;
  const double total = std::accumulate(sets.weight.begin(), sets.weight.end(), 0.0);
  for (std::int32_t t = 0; t < sets.size();
       ++t) {  // with choices missing: a node for each token that has one
    if (std::ssize(sets.experts(t)) < problem.top_k) return total / static_cast<double>(tokens);
  }
  const std::vector<double> pairs = pairs_of(sets, problem.num_experts, total);
  double inside = partner_bound(pairs, problem.num_experts, most);
  if (problem.num_experts <= kMostEigen) {
    inside = std::min(inside, eigen_bound(pairs, problem.num_experts, problem.num_nodes, most));
  }
  return std::max(nodes_of_pairs(inside, problem.top_k, problem.num_nodes),
                  std::ceil(static_cast<double>(problem.top_k) / most));
}

}  // namespace tessera::place
