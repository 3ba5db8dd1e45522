// T tokens of the micro-batch, t of this rank, H hidden, V vocabulary rows of this rank.
#include <algorithm>

#include "nn/layers.h"

namespace tessera::nn {

namespace {

// With one rank the rows are written in place: no scratch.
Tensor forward_scratch(Arena& arena, const Dims& d) {
  return d.tp > 1 ? arena.take(d.dtype, {d.tokens(), d.hidden}) : Tensor();
}

}  // namespace

Embedding::Embedding(Dims dims, Params params, std::int64_t vocab_begin)
    : dims_(dims), p_(params), vocab_begin_(vocab_begin) {}

// Runs of this rank's rows whose positions follow each other.
template <class Body>
void Embedding::for_each_run(const Context& ctx, Body&& body) const {
  const std::int64_t first = ctx.tp.rank() * dims_.local_tokens();
  const SequenceCut cut = sequence_cut(ctx, dims_);
  for (std::int64_t i = 0; i < dims_.local_tokens();) {
    const std::int64_t row = (first + i) % dims_.seq;
    const std::int64_t rows = std::min(cut.run(row), dims_.local_tokens() - i);
    body(i, cut.position(row), rows);
    i += rows;
  }
}

// Nothing is kept: the ids are the executor's.
void Embedding::reserve_saved(Arena& /*arena*/) {}

void Embedding::reserve_deferred(Arena& arena) {
  deferred_.push_back(arena.take(dims_.dtype, {dims_.tokens(), dims_.hidden}));
}

void Embedding::measure_scratch(Arena& counting) const {
  const Frame frame(counting);
  (void)forward_scratch(counting, dims_);
}

void Embedding::forward(Context& ctx, Slots /*slots*/, const Microbatch& mb, Tensor /*x_tH*/, Tensor y_tH,
                        Pass /*pass*/) {
  TESSERA_CHECK_EQ(ctx.tp.size(), dims_.tp, "the embedding was built for another tp group");
  const Frame frame(ctx.scratch);
  const Tensor scratch = forward_scratch(ctx.scratch, dims_);
  const Tensor partial_TH = dims_.tp > 1 ? scratch : y_tH;
  ctx.kernels.embedding(partial_TH, mb.ids_T, p_.table_VH.weight.value_NK, vocab_begin_);
  scatter_sum(ctx, y_tH, partial_TH);  // each row is whole on one rank and zero on the others: exact
  if (!p_.position_PH) return;
  const Tensor table_PH = p_.position_PH->weight.value_NK;
  if (!mb.positions_T.empty()) {
    const std::int64_t first = ctx.tp.rank() * dims_.local_tokens();
    for (std::int64_t row = 0; row < dims_.local_tokens(); ++row) {
      const std::int32_t position = mb.positions_T.as<std::int32_t>()[first + row];
      ctx.kernels.accumulate(y_tH.narrow_rows(row, 1), table_PH.narrow_rows(position, 1));
    }
    return;
  }
  for_each_run(ctx, [&](std::int64_t row, std::int64_t position, std::int64_t rows) {
    ctx.kernels.accumulate(y_tH.narrow_rows(row, rows), table_PH.narrow_rows(position, rows));
  });
}

void Embedding::backward_input(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor g_tH) {
  gather_rows(ctx, slot_at(deferred_, slots.deferred), g_tH);
}

void Embedding::backward_weight(Context& ctx, Slots slots, const Microbatch& mb) {
  const Tensor dy_TH = slot_at(deferred_, slots.deferred);
  ctx.kernels.embedding_wgrad(p_.table_VH.grad, dy_TH, mb.ids_T, vocab_begin_);
  if (!p_.position_PH) return;
  const Tensor mine_tH = local_rows(ctx, dy_TH);
  for_each_run(ctx, [&](std::int64_t row, std::int64_t position, std::int64_t rows) {
    ctx.kernels.accumulate(p_.position_PH->grad.narrow_rows(position, rows), mine_tH.narrow_rows(row, rows));
  });
}

}  // namespace tessera::nn
