#include "place/token_sets.h"

#include <algorithm>

namespace tessera::place {

TokenSets::TokenSets(std::span<const std::int16_t> tokens, std::int32_t num_experts, std::int32_t top_k,
                     std::int64_t most)
    : num_experts_(num_experts) {
  const std::int64_t all = top_k > 0 ? std::ssize(tokens) / top_k : 0, used = std::min(all, most);
  std::vector<std::vector<std::int16_t>> sets;
  for (std::int64_t i = 0; i < used; ++i) {
    const std::int64_t t = i * all / used;
    std::vector<std::int16_t> set;
    for (std::int64_t c = t * top_k; c < (t + 1) * top_k; ++c) {
      if (at(tokens, c) >= 0) set.push_back(at(tokens, c));
    }
    std::sort(set.begin(), set.end());
    if (!set.empty()) sets.push_back(std::move(set));
  }
  std::sort(sets.begin(), sets.end());
  first_.push_back(0);
  for (std::size_t i = 0; i < sets.size(); ++i) {
    if (i > 0 && sets[i] == sets[i - 1]) {
      weight.back() += 1.0;
      continue;
    }
    weight.push_back(1.0);
    experts_.insert(experts_.end(), sets[i].begin(), sets[i].end());
    first_.push_back(std::ssize(experts_));
  }
  index_experts();
  index_pairs();
}

void TokenSets::index_experts() {
  first_token_.assign(size_of(num_experts_) + 1, 0);
  for (const std::int16_t e : experts_) ++at(first_token_, e + 1);
  for (std::int32_t e = 0; e < num_experts_; ++e) at(first_token_, e + 1) += at(first_token_, e);
  std::vector<std::int64_t> next = first_token_;
  tokens_.resize(experts_.size());
  for (std::int32_t t = 0; t < size(); ++t) {
    for (const std::int16_t e : experts(t)) at(tokens_, at(next, e)++) = t;
  }
}

void TokenSets::index_pairs() {
  const std::int64_t cells = static_cast<std::int64_t>(num_experts_) * num_experts_;
  first_pair_.assign(size_of(cells) + 1, 0);
  const auto each_pair = [&](auto&& visit) {
    for (std::int32_t t = 0; t < size(); ++t) {
      const auto set = experts(t);
      for (std::size_t i = 0; i < set.size(); ++i) {
        for (std::size_t j = i + 1; j < set.size(); ++j) {
          visit(static_cast<std::int64_t>(set[i]) * num_experts_ + set[j], t);
        }
      }
    }
  };
  each_pair([&](std::int64_t cell, std::int32_t) { ++at(first_pair_, cell + 1); });
  for (std::int64_t c = 0; c < cells; ++c) at(first_pair_, c + 1) += at(first_pair_, c);
  pairs_.resize(size_of(first_pair_.back()));
  std::vector<std::int64_t> next = first_pair_;
  each_pair([&](std::int64_t cell, std::int32_t t) { at(pairs_, at(next, cell)++) = t; });
}

}  // namespace tessera::place
