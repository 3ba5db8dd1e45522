// The public functions of attention by parts of the keys: checks, FLOPs, then the backend.
#include <algorithm>

#include "kernels/checks.h"
#include "kernels/kernels.h"

namespace tessera::kernels {

// Query i sees the keys from max(0, i + d - window + 1), all of them where there is no window; d: distance.
std::int64_t AttentionPart::kept_pairs(const AttentionShape& shape) const {
  if (distance == 0) {
    AttentionShape alone = shape;
    alone.seq = rows;
    return alone.kept_pairs();
  }
  if (shape.window == 0) return rows * rows;
  const std::int64_t first = distance - shape.window + 1;  // hidden from query 0
  const std::int64_t whole = std::clamp<std::int64_t>(1 - first, 0, rows);
  // The others hide first + i keys, i from `whole`, until none is left.
  const std::int64_t most = std::min(rows, rows - first);
  const std::int64_t some = std::max<std::int64_t>(0, most - whole);
  return whole * rows + some * (rows - first) - some * (2 * whole + some - 1) / 2;
}

namespace {

void check_part(const Call& call, const AttentionShape& shape, const AttentionPart& part) {
  call.require(shape.heads > 0 && shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 &&
                   shape.head_dim > 0 && shape.window >= 0,
               "kv_heads divides heads, and a head has columns");
  call.require(part.rows >= 0 && part.q_first >= 0 && part.k_first >= 0 &&
                   part.q_first + part.rows <= shape.seq && part.k_first + part.rows <= shape.seq,
               "the part lies inside of the rows of a sequence");
  if (part.distance != 0 && part.distance < part.rows) {
    call.fail(fmt::format("distance={} is below rows={}", part.distance, part.rows));
  }
}

void check_rows(const Call& call, const AttentionShape& shape, Tensor out, Tensor lse, Tensor q, Tensor kv) {
  const std::int64_t t = shape.batch * shape.seq;
  call.is("q", q, {t, q.dim(1)});
  call.require(q.dim(1) >= shape.q_dim(), "q has the columns of all heads");
  call.is("kv", kv, {t, shape.qkv_dim() - shape.q_dim()});
  call.is("out", out, {t, shape.out_dim()});
  call.is_stats("lse", lse, {t, shape.heads});
}

Flops part_flops(const AttentionShape& shape, const AttentionPart& part) {
  const std::int64_t pairs = shape.batch * shape.heads * part.kept_pairs(shape);
  return Flops(2 * (shape.head_dim + shape.v_dim()) * pairs);
}

}  // namespace

void Kernels::attention_part(Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor sinks,
                             const AttentionShape& shape, const AttentionPart& part, Write write) {
  Call call("attention_part", takes_bf16());
  check_part(call, shape, part);
  call.leads("q", q, 2);
  check_rows(call, shape, out, lse, q, kv);
  if (!sinks.empty()) call.is_stats("sinks", sinks, {shape.heads});
  flops_ += part_flops(shape, part);
  do_attention_part(out, lse, q, kv, sinks, shape, part, write);
}

void Kernels::attention_part_backward(Tensor dq, Tensor dkv, Tensor dout, Tensor q, Tensor kv, Tensor out,
                                      Tensor lse, const AttentionShape& shape, const AttentionPart& part) {
  Call call("attention_part_backward", takes_bf16());
  check_part(call, shape, part);
  call.leads("q", q, 2);
  check_rows(call, shape, out, lse, q, kv);
  call.is("dq", dq, q.shape());
  call.is("dkv", dkv, kv.shape());
  call.is("dout", dout, out.shape());
  flops_ += 2 * part_flops(shape, part);
  do_attention_part_backward(dq, dkv, dout, q, kv, out, lse, shape, part);
}

void Kernels::attention_sinks_backward(Tensor dsinks, Tensor dout, Tensor out, Tensor lse, Tensor sinks,
                                       const AttentionShape& shape) {
  Call call("attention_sinks_backward", takes_bf16());
  call.leads("out", out, 2);
  call.is("out", out, {shape.batch * shape.seq, shape.out_dim()});
  call.is("dout", dout, out.shape());
  call.is_stats("lse", lse, {out.dim(0), shape.heads});
  call.is_stats("sinks", sinks, {shape.heads});
  call.is_stats("dsinks", dsinks, {shape.heads});
  do_attention_sinks_backward(dsinks, dout, out, lse, sinks, shape);
}

}  // namespace tessera::kernels
