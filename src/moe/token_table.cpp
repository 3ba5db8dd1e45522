// Tables with a row for each token of a micro-batch, gathered from the ranks that share it.
#include <algorithm>
#include <cstring>

#include "moe/moe_scratch.h"

namespace tessera::moe {

namespace {

// rows(first row of this rank, its token, count) for runs of tokens that follow each other.
template <class Rows>
void for_runs(const SequenceCut& cut, std::int64_t first, std::int64_t end, Rows rows) {
  for (std::int64_t t = first; t < end;) {
    const std::int64_t count = std::min(cut.run(t % cut.rows()), end - t);
    rows(t, cut.token(t), count);
    t += count;
  }
}

void copy_rows(Tensor to, std::int64_t to_row, Tensor from, std::int64_t from_row, std::int64_t count) {
  const Tensor target = to.narrow_rows(to_row, count);
  std::memcpy(target.raw(), from.narrow_rows(from_row, count).raw(),
              static_cast<std::size_t>(target.bytes().value));
}

}  // namespace

TokenTable take_table(Arena& arena, nn::DType dtype, const nn::Dims& d, std::int64_t width) {
  TokenTable table;
  if (d.tp > 1) table.part_TK = arena.take_shared(dtype, {d.tokens(), width});
  if (d.cp == 1) return table;
  table.gathered = arena.take_shared(dtype, {d.all_tokens(), width});
  table.all = arena.take_shared(dtype, {d.all_tokens(), width});
  return table;
}

Tensor gather_table(Context& ctx, const nn::Dims& d, const TokenTable& table, Tensor mine_tK) {
  Tensor part_TK = mine_tK;
  if (d.tp > 1) {
    part_TK = table.part_TK;
    ctx.tp.all_gather(part_TK, mine_tK);
  }
  if (d.cp == 1) return part_TK;
  nn::context_group(ctx, d.cp).all_gather(table.gathered, part_TK);
  SequenceCut cut = nn::sequence_cut(ctx, d);
  for (cut.rank = 0; cut.rank < d.cp; ++cut.rank) {
    for_runs(cut, 0, d.tokens(), [&](std::int64_t row, std::int64_t token, std::int64_t count) {
      copy_rows(table.all, token, table.gathered, cut.rank * d.tokens() + row, count);
    });
  }
  return table.all;
}

void pick_own_rows(const Context& ctx, const nn::Dims& d, Tensor mine_tK, Tensor all_TK) {
  const std::int64_t first = ctx.tp.rank() * d.local_tokens();
  for_runs(nn::sequence_cut(ctx, d), first, first + d.local_tokens(),
           [&](std::int64_t row, std::int64_t token, std::int64_t count) {
             copy_rows(mine_tK, row - first, all_TK, token, count);
           });
}

}  // namespace tessera::moe
