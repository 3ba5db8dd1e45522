// The tokens of one layer as weighted sets of experts: equal sets are one with the sum of their weights. With
// the tokens of each expert and of each pair. Inside of this room.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "place/index.h"

namespace tessera::place {

class TokenSets {
 public:
  // tokens [T, K], -1: no choice. Beyond `most` tokens, that many are picked evenly.
  TokenSets(std::span<const std::int16_t> tokens, std::int32_t num_experts, std::int32_t top_k,
            std::int64_t most);

  std::vector<double> weight;  // [size()]
  [[nodiscard]] std::int32_t size() const { return count(weight); }
  [[nodiscard]] double mean_size() const {  // experts of a set
    return size() > 0 ? static_cast<double>(experts_.size()) / size() : 0.0;
  }
  [[nodiscard]] std::span<const std::int16_t> experts(std::int32_t t) const {
    return slice<const std::int16_t>(experts_, first_, t);
  }
  [[nodiscard]] std::span<const std::int32_t> tokens(std::int32_t e) const {
    return slice<const std::int32_t>(tokens_, first_token_, e);
  }
  // Tokens that chose both.
  [[nodiscard]] std::span<const std::int32_t> pair(std::int32_t a, std::int32_t b) const {
    if (a > b) return pair(b, a);
    return slice<const std::int32_t>(pairs_, first_pair_, static_cast<std::int64_t>(a) * num_experts_ + b);
  }

 private:
  template <class T, class V>
  [[nodiscard]] static std::span<T> slice(const V& values, const std::vector<std::int64_t>& first,
                                          std::int64_t i) {
    return {values.data() + at(first, i), size_of(at(first, i + 1) - at(first, i))};
  }
  void index_experts();
  void index_pairs();

  std::int32_t num_experts_;
  std::vector<std::int16_t> experts_;
  std::vector<std::int32_t> tokens_, pairs_;
  std::vector<std::int64_t> first_, first_token_, first_pair_;
};

}  // namespace tessera::place
