// T tokens of the micro-batch, t of this rank, H hidden, V vocabulary rows of this rank.
#include "nn/layers.h"

namespace tessera::nn {

namespace {

// With one rank the rows are written in place: no scratch.
Tensor forward_scratch(Arena& arena, const Dims& d) {
  return d.tp > 1 ? arena.take(d.dtype, {d.tokens(), d.hidden}) : Tensor();
}

}  // namespace

Embedding::Embedding(Dims dims, Param table_VH, std::int64_t vocab_begin)
    : dims_(dims), table_(table_VH), vocab_begin_(vocab_begin) {}

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
  ctx.kernels.embedding(partial_TH, mb.ids_T, table_.weight.value_NK, vocab_begin_);
  scatter_sum(ctx, y_tH, partial_TH);  // each row is whole on one rank and zero on the others: exact
}

void Embedding::backward_input(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor g_tH) {
  gather_rows(ctx, slot_at(deferred_, slots.deferred), g_tH);
}

void Embedding::backward_weight(Context& ctx, Slots slots, const Microbatch& mb) {
  ctx.kernels.embedding_wgrad(table_.grad, slot_at(deferred_, slots.deferred), mb.ids_T, vocab_begin_);
}

}  // namespace tessera::nn
