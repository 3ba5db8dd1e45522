#include "nn/tp_overlap.h"

namespace tessera::nn {

Tensor scatter_scratch(Arena& arena, const Dims& dims) {
  if (dims.tp == 1 || !dims.tp_comm_overlap) return {};
  return arena.take(dims.dtype, {dims.tokens() - dims.local_tokens(), dims.hidden});
}

namespace detail {

bool by_parts(const Context& ctx, const Dims& dims) {
  return dims.tp_comm_overlap && ctx.tp.size() > 1;
}

void copy_own(Context& ctx, Tensor full_TH, Tensor part_tH) {
  ctx.kernels.memory()->copy(local_rows(ctx, full_TH), part_tH);
}

std::int32_t place(const Context& ctx, std::int32_t i) {
  return (ctx.tp.rank() + i) % ctx.tp.size();
}

Tensor part_of(const Context& ctx, Tensor full_TH, std::int32_t place) {
  const std::int64_t t = full_TH.rows() / ctx.tp.size();
  return full_TH.narrow_rows(place * t, t);
}

void send_part(Context& ctx, Tensor part_tH, std::int32_t to, std::int64_t tag) {
  ctx.tp.send(part_tH, to, tag);
}

void wait_parts(Context& ctx, std::int64_t tag) {
  for (std::int32_t i = 1; i < ctx.tp.size(); ++i) ctx.tp.wait_send(place(ctx, i), tag);
}

// The ring's order: the rank after this one first, this one last.
void sum_parts(Context& ctx, Tensor part_tH, Tensor own_tH, Tensor received) {
  const std::int32_t n = ctx.tp.size();
  const std::int64_t t = own_tH.rows();
  const auto slot = [&](std::int32_t i) { return received.narrow_rows((i - 1) * t, t); };
  for (std::int32_t i = 1; i < n; ++i) ctx.tp.recv(slot(i), place(ctx, i), kScatterTag);
  Tensor sum = slot(1);
  for (std::int32_t i = 2; i < n; ++i) ctx.kernels.add(sum, sum, slot(i));
  ctx.kernels.add(part_tH, sum, own_tH);
}

}  // namespace detail

}  // namespace tessera::nn
