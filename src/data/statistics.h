// Figures about text and tokens that a run prints beside its loss.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "data/token_source.h"

namespace tessera::data {

// How often each id of 0 .. vocab_size - 1 occurs; reads the whole source. Throws Error{config} with the
// position when an id is outside the vocabulary, so it is also the check that a token file and a model fit
// together.
[[nodiscard]] std::vector<std::int64_t> count_tokens(const TokenSource& source, std::int64_t vocab_size);

// Entropy of the token frequencies in nats: -sum p ln p. The loss of a model that knows the frequencies and
// nothing of the context; what a trained model must fall well below. 0 for an empty source.
[[nodiscard]] double unigram_entropy(std::span<const std::int64_t> counts);
[[nodiscard]] double unigram_entropy(const TokenSource& source, std::int64_t vocab_size);

struct TextStatistics {
  std::int64_t num_bytes = 0;
  std::int64_t num_characters = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_documents = 0;
  [[nodiscard]] double bytes_per_token() const;  // 0 without tokens
  friend bool operator==(const TextStatistics&, const TextStatistics&) = default;
};

}  // namespace tessera::data
