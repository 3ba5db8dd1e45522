#include "exec/token_batches.h"

#include <utility>

namespace tessera::exec {

TokenBatches::TokenBatches(std::shared_ptr<const data::TokenSource> source, std::int64_t seq_len,
                           std::uint64_t seed)
    : source_(std::move(source)), seq_len_(seq_len), order_(data::num_sequences(*source_, seq_len), seed) {}

void TokenBatches::fill(std::int64_t index, std::span<std::int32_t> ids,
                        std::span<std::int32_t> targets) const {
  data::fill_inputs_targets(*source_, order_, index, seq_len_, ids, targets);
}

std::int64_t TokenBatches::num_targets(std::int64_t, std::int64_t count) const {
  return count * seq_len_;
}

}  // namespace tessera::exec
