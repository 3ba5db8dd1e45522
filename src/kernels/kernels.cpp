#include "kernels/kernels.h"

#include <limits>

#include "kernels/checks.h"

namespace tessera::kernels {

namespace {

constexpr std::int32_t kDropped = std::numeric_limits<std::int32_t>::min();  // any negative position

Flops gemm_flops(const Tensor& x_TK, const Tensor& w_NK) {
  return Flops(2 * x_TK.dim(0) * w_NK.dim(0) * w_NK.dim(1));
}

}  // namespace

// --- linear

void Kernels::pack(Weight& w) {
  Call call("pack", takes_bf16());
  call.leads_stats("value", w.value_NK, 2);
  if (w.packed.empty()) return;
  const auto want = [&](DType dtype) { return packed_bytes(dtype, w.value_NK.dim(0), w.value_NK.dim(1)); };
  const bool for_bf16 = takes_bf16() && w.packed.bytes() == want(DType::bf16);
  call.is("packed", w.packed, DType::u8,
          {for_bf16 ? w.packed.bytes().value : want(w.value_NK.dtype()).value});
  do_pack(w);
}

void Kernels::linear(Tensor y, Tensor x, const Weight& w) {
  Call call("linear", takes_bf16());
  call.num_dims("w", w.value_NK, 2);
  call.leads("x", x, 2);
  call.shapes("w", w.value_NK);
  call.is_stats("w", w.value_NK, w.value_NK.shape());
  call.is("x", x, {x.dim(0), w.value_NK.dim(1)});
  call.is_either("y", y, {x.dim(0), w.value_NK.dim(0)});
  flops_ += gemm_flops(x, w.value_NK);
  do_linear(y, x, w);
}

void Kernels::linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) {
  Call call("linear_dgrad", takes_bf16());
  call.num_dims("w", w.value_NK, 2);
  call.leads("dx", dx, 2);
  call.shapes("w", w.value_NK);
  call.is_stats("w", w.value_NK, w.value_NK.shape());
  call.num_dims("dy", dy, 2);
  call.is_either("dy", dy, {dy.dim(0), w.value_NK.dim(0)});
  call.is("dx", dx, {dy.dim(0), w.value_NK.dim(1)});
  flops_ += gemm_flops(dx, w.value_NK);
  do_linear_dgrad(dx, dy, w, write);
}

void Kernels::linear_wgrad(Tensor dw, Tensor dy, Tensor x) {
  Call call("linear_wgrad", takes_bf16());
  call.num_dims("dw", dw, 2);
  call.leads("x", x, 2);
  call.shapes("dw", dw);
  call.is_stats("dw", dw, dw.shape());
  call.is("x", x, {x.dim(0), dw.dim(1)});
  call.is_either("dy", dy, {x.dim(0), dw.dim(0)});
  flops_ += gemm_flops(x, dw);
  do_linear_wgrad(dw, dy, x);
}

// --- embedding

void Kernels::embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) {
  Call call("embedding", takes_bf16());
  call.num_dims("table", table, 2);
  call.leads("y", y, 2);
  call.shapes("table", table);
  call.is_stats("table", table, table.shape());
  call.num_dims("ids", ids, 1);
  call.is_index("ids", ids, {ids.dim(0)});
  call.is("y", y, {ids.dim(0), table.dim(1)});
  do_embedding(y, ids, table, vocab_begin);
}

void Kernels::embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) {
  Call call("embedding_wgrad", takes_bf16());
  call.num_dims("dtable", dtable, 2);
  call.leads("dy", dy, 2);
  call.shapes("dtable", dtable);
  call.is_stats("dtable", dtable, dtable.shape());
  call.num_dims("ids", ids, 1);
  call.is_index("ids", ids, {ids.dim(0)});
  call.is("dy", dy, {ids.dim(0), dtable.dim(1)});
  do_embedding_wgrad(dtable, dy, ids, vocab_begin);
}

// --- cross entropy

void Kernels::cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets, std::int64_t vocab_begin) {
  Call call("cross_entropy_stats", takes_bf16());
  call.leads("logits", logits, 2);
  call.require(logits.dim(1) > 0, "a vocabulary share has at least one row");
  call.is_stats("stats", stats, {3, logits.dim(0)});
  call.is_index("targets", targets, {logits.dim(0)});
  do_cross_entropy_stats(stats, logits, targets, vocab_begin);
}

void Kernels::cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) {
  Call call("cross_entropy_join", takes_bf16());
  call.leads_stats("stats", stats, 3);
  const std::int64_t t = stats.dim(2);
  call.require(stats.dim(0) > 0, "there is at least one vocabulary share");
  call.is("stats", stats, {stats.dim(0), 3, t});
  call.is("loss", loss, {t});
  call.is_stats("lse", lse, {t});
  call.is_index("targets", targets, {t});
  do_cross_entropy_join(loss, lse, stats, targets);
}

void Kernels::cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                     double weight) {
  Call call("cross_entropy_backward", takes_bf16());
  call.leads("logits", logits, 2);
  call.is_stats("lse", lse, {logits.dim(0)});
  call.is_index("targets", targets, {logits.dim(0)});
  do_cross_entropy_backward(logits, lse, targets, vocab_begin, weight);
}

// --- rows

void Kernels::gather_rows(Tensor dst, Tensor src, Tensor index) {
  Call call("gather_rows", takes_bf16());
  call.leads("src", src, 2);
  call.num_dims("dst", dst, 2);
  call.is("dst", dst, {dst.dim(0), src.dim(1)});
  call.is_index("index", index, {dst.dim(0)});
  if (sees_values()) call.in_range("index", index, 0, src.dim(0));
  do_gather_rows(dst, src, index);
}

void Kernels::combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) {
  Call call("combine", takes_bf16());
  call.leads("y", y, 2);
  if (!x.empty()) call.is("x", x, y.shape());
  call.num_dims("rows", rows, 2);
  call.is("rows", rows, {rows.dim(0), y.dim(1)});
  call.num_dims("pos", pos, 2);
  call.is_index("pos", pos, {y.dim(0), pos.dim(1)});
  if (sees_values()) call.in_range("pos", pos, kDropped, rows.dim(0));
  call.is_stats("weights", weights, pos.shape());
  do_combine(y, x, rows, pos, weights);
}

void Kernels::combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                               Tensor weights) {
  Call call("combine_backward", takes_bf16());
  call.leads("dy", dy, 2);
  call.num_dims("rows", rows, 2);
  call.is("rows", rows, {rows.dim(0), dy.dim(1)});
  call.is("drows", drows, rows.shape());
  call.num_dims("pos", pos, 2);
  call.is_index("pos", pos, {dy.dim(0), pos.dim(1)});
  if (sees_values()) call.in_range("pos", pos, kDropped, rows.dim(0));
  call.is_stats("weights", weights, pos.shape());
  call.is_stats("dweights", dweights, pos.shape());
  do_combine_backward(drows, dweights, dy, rows, pos, weights);
}

void Kernels::sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) {
  Call call("sum_rows", takes_bf16());
  call.leads("dx", dx, 2);
  call.num_dims("rows", rows, 2);
  call.is("rows", rows, {rows.dim(0), dx.dim(1)});
  call.num_dims("pos", pos, 2);
  call.is_index("pos", pos, {dx.dim(0), pos.dim(1)});
  if (sees_values()) call.in_range("pos", pos, kDropped, rows.dim(0));
  do_sum_rows(dx, rows, pos, write);
}

// --- elementwise

void Kernels::add(Tensor y, Tensor a, Tensor b) {
  Call call("add", takes_bf16());
  call.leads("y", y);
  call.is("a", a, y.shape());
  call.is("b", b, y.shape());
  do_add(y, a, b);
}

void Kernels::accumulate(Tensor y, Tensor x) {
  Call call("accumulate", takes_bf16());
  if (y.dtype() == tensor::stats_of(x.dtype())) {
    call.leads("x", x);
    call.is_stats("y", y, x.shape());
  } else {
    call.leads("y", y);
    call.is_either("x", x, y.shape());
  }
  do_accumulate(y, x);
}

void Kernels::fill(Tensor y, double value) {
  Call call("fill", takes_bf16());
  call.leads("y", y);
  do_fill(y, value);
}

double Kernels::sum(Tensor x) {
  Call call("sum", takes_bf16());
  call.leads("x", x);
  return do_sum(x);
}

double Kernels::sum_squares(Tensor x) {
  Call call("sum_squares", takes_bf16());
  call.leads("x", x);
  return do_sum_squares(x);
}

void Kernels::sum_to(Tensor to, Tensor x, double scale, Write write) {
  Call call("sum_to", takes_bf16());
  call.leads("x", x);
  call.is("to", to, DType::f64, {1});
  do_sum_to(to, x, scale, write);
}

void Kernels::do_sum_to(Tensor to, Tensor x, double scale, Write write) {
  double& at = *to.as<double>();
  at = (write == Write::accumulate ? at : 0.0) + scale * do_sum(x);
}

void Kernels::sum_squares_to(Tensor to, Tensor x, Write write) {
  Call call("sum_squares_to", takes_bf16());
  call.leads("x", x);
  call.is("to", to, DType::f64, {1});
  do_sum_squares_to(to, x, write);
}

void Kernels::do_sum_squares_to(Tensor to, Tensor x, Write write) {
  double& at = *to.as<double>();
  at = (write == Write::accumulate ? at : 0.0) + do_sum_squares(x);
}

void Kernels::adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options) {
  Call call("adamw", takes_bf16());
  call.leads_stats("p", p, p.shape().num_dims());
  call.is("g", g, p.shape());
  call.is("m", m, p.shape());
  call.is("v", v, p.shape());
  do_adamw(p, g, m, v, options);
}

}  // namespace tessera::kernels
