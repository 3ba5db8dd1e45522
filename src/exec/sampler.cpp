#include "exec/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace tessera::exec {

namespace {

constexpr std::int64_t kFirstSorted = 64;  // candidates that are put in order at once; then four times more

// Candidates in descending order of their logits, put in order as far as somebody asks.
class Ranking {
 public:
  Ranking(std::span<const double> logits, std::vector<std::int32_t>& order, std::int64_t kept)
      : logits_(logits), order_(order), kept_(kept) {
    order_.resize(logits.size());
    std::iota(order_.begin(), order_.end(), 0);
  }
  [[nodiscard]] std::int64_t size() const { return kept_; }
  [[nodiscard]] std::int32_t operator[](std::int64_t i) {
    while (i >= sorted_) grow();
    return order_[static_cast<std::size_t>(i)];
  }

 private:
  void grow() {
    const std::int64_t next = std::min(kept_, sorted_ == 0 ? kFirstSorted : 4 * sorted_);
    const auto better = [&](std::int32_t a, std::int32_t b) {
      const double za = logits_[static_cast<std::size_t>(a)], zb = logits_[static_cast<std::size_t>(b)];
      return za != zb ? za > zb : a < b;
    };
    const auto from = order_.begin() + sorted_, to = order_.begin() + next;
    if (to != order_.end()) std::nth_element(from, to, order_.end(), better);
    std::sort(from, to, better);
    sorted_ = next;
  }
  std::span<const double> logits_;
  std::vector<std::int32_t>& order_;
  std::int64_t kept_;
  std::int64_t sorted_ = 0;
};

std::size_t largest(std::span<const double> logits) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == HUGE_VAL) {
      throw Error(ErrorKind::io, fmt::format("the model gives {} as the logit of token {}", logits[i], i),
                  "sampling",
                  "the weights are damaged, or of a run that diverged: take an earlier checkpoint");
    }
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

}  // namespace

std::int32_t Sampler::sample(std::span<const double> logits, const SampleOptions& o, double u) {
  TESSERA_CHECK(!logits.empty(), "there is a vocabulary to sample from");
  const std::size_t best = largest(logits);
  if (o.temperature <= 0.0) return static_cast<std::int32_t>(best);
  const auto weight = [&](std::int32_t i) {
    return std::exp((logits[static_cast<std::size_t>(i)] - logits[best]) / o.temperature);
  };
  const std::int64_t all = std::ssize(logits);
  Ranking ranking(logits, order_, o.top_k > 0 ? std::min<std::int64_t>(o.top_k, all) : all);
  double total = 0.0;
  if (ranking.size() < all) {
    for (std::int64_t i = 0; i < ranking.size(); ++i) total += weight(ranking[i]);
  } else {
    for (std::int32_t i = 0; i < all; ++i) total += weight(i);
  }
  weights_.clear();
  double sum = 0.0;
  const auto next = [&] {
    weights_.push_back(weight(ranking[std::ssize(weights_)]));
    sum += weights_.back();
  };
  if (o.top_p < 1.0) {
    do {
      next();
    } while (sum < o.top_p * total && std::ssize(weights_) < ranking.size());
    total = sum;
  }
  const std::int64_t kept = o.top_p < 1.0 ? std::ssize(weights_) : ranking.size();
  double passed = 0.0;
  for (std::int64_t i = 0; i < kept; ++i) {
    if (i == std::ssize(weights_)) next();
    passed += weights_[static_cast<std::size_t>(i)];
    if (passed > u * total) return ranking[i];
  }
  return ranking[kept - 1];
}

std::uint64_t sample_stream(std::span<const std::int32_t> prompt, std::int64_t repeats) {
  constexpr std::uint64_t kPrime = 1099511628211ULL;  // of FNV-1a, as stream_of
  std::uint64_t h = stream_of("sample");
  for (const std::int32_t id : prompt) h = (h ^ static_cast<std::uint64_t>(id)) * kPrime;
  return (h ^ static_cast<std::uint64_t>(repeats)) * kPrime;
}

double draw_of(std::uint64_t seed, std::uint64_t stream, std::int64_t n) {
  return uniform(seed, stream, static_cast<std::uint64_t>(n));
}

}  // namespace tessera::exec
