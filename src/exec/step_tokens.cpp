#include "exec/step_tokens.h"

#include <algorithm>

namespace tessera::exec {

using tensor::Arena;
using tensor::DType;
using tensor::Tensor;

Tensor StepTokens::Table::loaded(std::int64_t index) const {
  return (all.empty() ? mine : all).narrow_rows(index, 1).flat();
}

StepTokens::Table StepTokens::take(Arena& arena, std::int64_t num_microbatches) const {
  Table t;
  t.mine = arena.take(DType::i32, {num_microbatches, batch_ * cut_.rows()});
  if (cut_.cp > 1) t.all = arena.take(DType::i32, {num_microbatches, batch_ * cut_.length});
  return t;
}

StepTokens::StepTokens(Arena& arena, std::int64_t num_microbatches, std::int64_t batch,
                       const SequenceCut& cut)
    : batch_(batch),
      cut_(cut),
      ids_(take(arena, num_microbatches)),
      targets_(take(arena, num_microbatches)) {}

void StepTokens::cut_rows(const Table& table, std::int64_t index) const {
  if (cut_.cp == 1) return;
  const auto mine = table.mine.narrow_rows(index, 1).flat().span<std::int32_t>();
  const auto all = table.loaded(index).span<std::int32_t>();
  for (std::int64_t t = 0; t < std::ssize(mine); ++t)
    mine[static_cast<std::size_t>(t)] = all[static_cast<std::size_t>(cut_.token(t))];
}

void StepTokens::load(const BatchSource& data, std::int64_t index, std::int64_t first) {
  for (std::int64_t b = 0; b < batch_; ++b) {
    const auto row = [&](const Table& t) {
      return t.loaded(index).narrow_rows(b * cut_.length, cut_.length).span<std::int32_t>();
    };
    data.fill(first + b, row(ids_), row(targets_));
  }
  cut_rows(ids_, index);
  cut_rows(targets_, index);
}

nn::Microbatch StepTokens::microbatch(std::int32_t index) const {
  const auto row = [&](const Tensor& t) { return t.narrow_rows(index, 1).flat(); };
  return {.ids_T = row(ids_.mine),
          .targets_T = row(targets_.mine),
          .index = index,
          .all_ids = ids_.loaded(index),
          .all_targets = targets_.loaded(index)};
}

}  // namespace tessera::exec
