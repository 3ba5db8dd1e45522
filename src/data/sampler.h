// Which tokens a training step sees. The stream is cut into N = floor((tokens - 1) / seq_len) sequences of
// seq_len + 1 tokens, the next beginning at the last token of the one before. Global sample i (0 based, over
// the whole run) is a pure function of (number of sequences, seed, i): each sequence comes once an epoch, in
// an order of its own for every epoch. So a resumed run goes on at the exact sample, and every layout sees
// the same samples in the same places.
//
//   const SampleOrder order(num_sequences(*source, seq_len), seed);
//   // sample b of the global batch of a step:
//   fill_inputs_targets(*source, order, step * global_batch + b, seq_len, inputs, targets);
#pragma once
#include <cstdint>
#include <span>

#include "data/token_source.h"

namespace tessera::data {

// Throws Error{config} when the source is too short for one sequence.
[[nodiscard]] std::int64_t num_sequences(const TokenSource& source, std::int64_t seq_len);

// The order of all samples of a run. A permutation of the N sequences per epoch: an unbalanced Feistel
// network on ceil(log2 N) bits with Philox as round function, walked until the value is below N (fewer than 2
// walks on average). No tables, no state; thread safe; bit-equal on every machine.
class SampleOrder {
 public:
  SampleOrder(std::int64_t num_sequences, std::uint64_t seed);
  [[nodiscard]] std::int64_t num_sequences() const { return num_sequences_; }
  [[nodiscard]] std::int64_t epoch_of(std::int64_t global_sample_index) const;
  // The sequence (0 .. N - 1) of a global sample.
  [[nodiscard]] std::int64_t sequence_at(std::int64_t global_sample_index) const;

 private:
  [[nodiscard]] std::uint64_t permute(std::uint64_t value, std::uint64_t epoch) const;
  std::int64_t num_sequences_;
  std::uint64_t seed_;
  std::int32_t low_bits_;  // bits of the low half, >= those of the high half by at most 1
  std::int32_t high_bits_;
};

// Sequence s: inputs are tokens s * seq_len .. + seq_len - 1, targets the same moved on by one. Both spans
// have seq_len elements. No allocation. For evaluation, where the order does not matter.
void fill_sequence(const TokenSource& source, std::int64_t sequence, std::int64_t seq_len,
                   std::span<std::int32_t> inputs, std::span<std::int32_t> targets);

// The same for a global sample.
void fill_inputs_targets(const TokenSource& source, const SampleOrder& order,
                         std::int64_t global_sample_index, std::int64_t seq_len,
                         std::span<std::int32_t> inputs, std::span<std::int32_t> targets);

}  // namespace tessera::data
