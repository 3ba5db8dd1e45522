// Gathers and scatters of sequence parallelism with the GEMM beside them, part by part (Megatron's
// tp_comm_overlap): the rows of one tp rank are one part.
//
//   gather:   own rows go to all; the GEMM runs on the own rows, then on each part as it comes.
//   scatter:  the GEMM makes the rows of another rank, which go there, while it makes those of the next; its
//   own
//             rows come last, and to them the parts of the others.
//
// The same bytes as the ring ((N-1)/N of the rows) in N - 1 messages, and the same bits: a part is the same
// product, and the sum has the ring's order. Without dims.tp_comm_overlap, and in a group of one, all_gather
// and reduce_scatter with one GEMM.
#pragma once
#include "nn/layer.h"

namespace tessera::nn {

namespace detail {
[[nodiscard]] bool by_parts(const Context& ctx, const Dims& dims);
void copy_own(Context& ctx, Tensor full_TH, Tensor part_tH);
// The place that goes (gather: comes) i-th after this rank's.
[[nodiscard]] std::int32_t place(const Context& ctx, std::int32_t i);
[[nodiscard]] Tensor part_of(const Context& ctx, Tensor full_TH, std::int32_t place);
void send_part(Context& ctx, Tensor part_tH, std::int32_t to, std::int64_t tag);
void wait_parts(Context& ctx, std::int64_t tag);
void sum_parts(Context& ctx, Tensor part_tH, Tensor own_tH, Tensor received);
inline constexpr std::int64_t kGatherTag = 1, kScatterTag = 2;
}  // namespace detail

// What then_scatter_sum needs: the parts of the others. Empty where it needs none.
[[nodiscard]] Tensor scatter_scratch(Arena& arena, const Dims& dims);

// gather_rows(full, part); compute(begin, rows) is called for all rows of full_TH in parts that are there.
template <class Compute>
void gather_then(Context& ctx, const Dims& dims, Tensor full_TH, Tensor part_tH, const Compute& compute) {
  if (!detail::by_parts(ctx, dims)) {
    gather_rows(ctx, full_TH, part_tH);
    return compute(0, full_TH.rows());
  }
  const std::int64_t t = dims.local_tokens();
  detail::copy_own(ctx, full_TH, part_tH);
  for (std::int32_t i = 1; i < dims.tp; ++i) {
    detail::send_part(ctx, local_rows(ctx, full_TH), detail::place(ctx, dims.tp - i), detail::kGatherTag);
  }
  compute(ctx.tp.rank() * t, t);
  for (std::int32_t i = 1; i < dims.tp; ++i) {
    const std::int32_t from = detail::place(ctx, i);
    ctx.tp.recv(detail::part_of(ctx, full_TH, from), from, detail::kGatherTag);
    compute(from * t, t);
  }
  detail::wait_parts(ctx, detail::kGatherTag);
}

// scatter_sum(part, partial) of what compute(begin, rows) writes into partial_TH. part_tH may be this rank's
// rows of it.
template <class Compute>
void then_scatter_sum(Context& ctx, const Dims& dims, Tensor part_tH, Tensor partial_TH, Tensor received,
                      const Compute& compute) {
  if (!detail::by_parts(ctx, dims)) {
    compute(0, partial_TH.rows());
    return scatter_sum(ctx, part_tH, partial_TH);
  }
  const std::int64_t t = dims.local_tokens();
  for (std::int32_t i = 1; i < dims.tp; ++i) {
    const std::int32_t to = detail::place(ctx, i);
    compute(to * t, t);
    detail::send_part(ctx, detail::part_of(ctx, partial_TH, to), to, detail::kScatterTag);
  }
  compute(ctx.tp.rank() * t, t);
  detail::sum_parts(ctx, part_tH, local_rows(ctx, partial_TH), received);
  detail::wait_parts(ctx, detail::kScatterTag);
}

}  // namespace tessera::nn
