#include "data/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace tessera::data {

std::vector<std::int64_t> count_tokens(const TokenSource& source, std::int64_t vocab_size) {
  TESSERA_CHECK(vocab_size > 0, "a vocabulary has at least one id");
  constexpr std::int64_t kBlock = 65'536;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(vocab_size), 0);
  std::vector<std::int32_t> block(static_cast<std::size_t>(std::min(kBlock, source.num_tokens())));
  for (std::int64_t begin = 0; begin < source.num_tokens(); begin += kBlock) {
    const auto size = static_cast<std::size_t>(std::min(kBlock, source.num_tokens() - begin));
    const auto tokens = std::span(block).first(size);
    source.copy(begin, tokens);
    for (std::size_t i = 0; i < size; ++i) {
      if (tokens[i] < 0 || tokens[i] >= vocab_size) {
        throw Error(ErrorKind::config,
                    fmt::format("token {} is {}, outside the vocabulary of {}",
                                begin + static_cast<std::int64_t>(i), tokens[i], vocab_size),
                    source.name(),
                    "use the tokenizer that made the file, or a model with a larger vocabulary");
      }
      ++counts[static_cast<std::size_t>(tokens[i])];
    }
  }
  return counts;
}

double unigram_entropy(std::span<const std::int64_t> counts) {
  double total = 0.0;
  for (const std::int64_t n : counts) total += static_cast<double>(n);
  double entropy = 0.0;
  for (const std::int64_t n : counts) {
    if (n == 0) continue;
    const double p = static_cast<double>(n) / total;
    entropy -= p * std::log(p);
  }
  return entropy;
}

double unigram_entropy(const TokenSource& source, std::int64_t vocab_size) {
  return unigram_entropy(count_tokens(source, vocab_size));
}

double TextStatistics::bytes_per_token() const {
  return num_tokens == 0 ? 0.0 : static_cast<double>(num_bytes) / static_cast<double>(num_tokens);
}

}  // namespace tessera::data
