// The tokens of a step on one rank: ids and targets of its replica's micro-batches, cut over the cp ranks
// that share the sequences (base/sequence_cut.h). With cp, what was loaded stays beside the cut: MTP layers
// look behind the end of a chunk. Memory from the caller's arena; load allocates nothing.
#pragma once
#include <cstdint>

#include "base/sequence_cut.h"
#include "exec/batch_source.h"
#include "nn/layer.h"

namespace tessera::exec {

class StepTokens {
 public:
  StepTokens() = default;
  StepTokens(tensor::Arena& arena, std::int64_t num_microbatches, std::int64_t batch, const SequenceCut& cut);
  // Sequences [first, first + batch) of `data` become micro-batch `index`.
  void load(const BatchSource& data, std::int64_t index, std::int64_t first);
  // index and tokens only.
  [[nodiscard]] nn::Microbatch microbatch(std::int32_t index) const;

 private:
  struct Table {
    tensor::Tensor mine, all;  // i32 [micro-batches, tokens]: of this cp rank, of all (empty with one)
    // Of a micro-batch: where its sequences are loaded to.
    [[nodiscard]] tensor::Tensor loaded(std::int64_t index) const;
  };
  [[nodiscard]] Table take(tensor::Arena& arena, std::int64_t num_microbatches) const;
  void cut_rows(const Table& table, std::int64_t index) const;

  std::int64_t batch_ = 0;
  SequenceCut cut_;
  Table ids_, targets_;
};

}  // namespace tessera::exec
