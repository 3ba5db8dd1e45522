#include "data/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/error.h"
#include "base/math.h"
#include "base/random.h"

namespace tessera::data {

namespace {
constexpr std::uint64_t kStream = stream_of("tessera.data.sample_order");
constexpr std::uint64_t kRounds = 8;

constexpr std::uint64_t mask(std::int32_t bits) {
  return (std::uint64_t{1} << bits) - 1;
}
}  // namespace

std::int64_t num_sequences(const TokenSource& source, std::int64_t seq_len) {
  TESSERA_CHECK(seq_len > 0, "a sequence has at least one token");
  const std::int64_t sequences = source.num_tokens() > 0 ? div_floor(source.num_tokens() - 1, seq_len) : 0;
  if (sequences < 1) {
    throw Error(ErrorKind::config,
                fmt::format("{} tokens are too few for one sequence of {} inputs and its last target",
                            source.num_tokens(), seq_len),
                source.name(),
                fmt::format("use a sequence length of at most {}, more text, or another validation fraction",
                            std::max<std::int64_t>(source.num_tokens() - 1, 1)));
  }
  return sequences;
}

SampleOrder::SampleOrder(std::int64_t num_sequences, std::uint64_t seed)
    : num_sequences_(num_sequences), seed_(seed) {
  TESSERA_CHECK(num_sequences >= 1, "an order needs at least one sequence");
  const auto bits = static_cast<std::int32_t>(std::bit_width(static_cast<std::uint64_t>(num_sequences - 1)));
  high_bits_ = bits / 2;
  low_bits_ = bits - high_bits_;
}

std::int64_t SampleOrder::epoch_of(std::int64_t global_sample_index) const {
  return div_floor(global_sample_index, num_sequences_);
}

std::uint64_t SampleOrder::permute(std::uint64_t value, std::uint64_t epoch) const {
  std::uint64_t low = value & mask(low_bits_);
  std::uint64_t high = value >> low_bits_;
  for (std::uint64_t round = 0; round < kRounds; round += 2) {
    const std::uint64_t stream = kStream + epoch * kRounds + round;
    high ^= philox(seed_, stream, low)[0] & mask(high_bits_);
    low ^= philox(seed_, stream + 1, high)[0] & mask(low_bits_);
  }
  return (high << low_bits_) | low;
}

std::int64_t SampleOrder::sequence_at(std::int64_t global_sample_index) const {
  const auto epoch = static_cast<std::uint64_t>(epoch_of(global_sample_index));
  const auto count = static_cast<std::uint64_t>(num_sequences_);
  std::uint64_t value = static_cast<std::uint64_t>(global_sample_index) % count;
  do {
    value = permute(value, epoch);
  } while (value >= count);
  return static_cast<std::int64_t>(value);
}

void fill_sequence(const TokenSource& source, std::int64_t sequence, std::int64_t seq_len,
                   std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
  TESSERA_CHECK_EQ(inputs.size(), seq_len, "inputs hold one sequence");
  TESSERA_CHECK_EQ(targets.size(), seq_len, "targets hold one sequence");
  source.copy(sequence * seq_len, inputs);
  std::copy(inputs.begin() + 1, inputs.end(), targets.begin());
  source.copy((sequence + 1) * seq_len, targets.last(1));
}

void fill_inputs_targets(const TokenSource& source, const SampleOrder& order,
                         std::int64_t global_sample_index, std::int64_t seq_len,
                         std::span<std::int32_t> inputs, std::span<std::int32_t> targets) {
  fill_sequence(source, order.sequence_at(global_sample_index), seq_len, inputs, targets);
}

}  // namespace tessera::data
