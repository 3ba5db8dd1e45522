// The engine's batches out of a token source: sequence i of the run is global sample i of its order.
#pragma once
#include <memory>

#include "data/sampler.h"
#include "data/token_source.h"
#include "exec/batch_source.h"

namespace tessera::exec {

class TokenBatches : public BatchSource {
 public:
  // Throws Error{config} when the source is too short for one sequence.
  TokenBatches(std::shared_ptr<const data::TokenSource> source, std::int64_t seq_len, std::uint64_t seed);
  void fill(std::int64_t index, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const override;
  [[nodiscard]] std::int64_t num_targets(std::int64_t first, std::int64_t count) const override;
  [[nodiscard]] std::int64_t num_sequences() const { return order_.num_sequences(); }

 private:
  std::shared_ptr<const data::TokenSource> source_;  // shared with whoever split the file
  std::int64_t seq_len_;
  data::SampleOrder order_;
};

}  // namespace tessera::exec
