// Sinks of attention, and what the backend adds to a library's attention, which knows none.
//
// A sink is one more score whose value is nothing. So with out0 and l0 = the log-sum-exp without it,
//   l = log(exp(l0) + exp(sink)), out = out0 exp(l0 - l),
// and the usual backward pass, given out and l, is that of attention with sinks: its weights are exp(s - l),
// and the sink adds nothing to sum_j p_j <dout, v_j> = <dout, out>.
#include <cmath>

#include "kernels/cuda/packs.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

// Where the log-sum-exp of a row stands: [T, heads], or [batch, heads, seq] as libraries keep it.
struct LseOrder {
  std::int64_t seq;  // 0: [T, heads]
  std::int64_t heads;
  __device__ std::int64_t at(std::int64_t t, std::int64_t head) const {
    return seq == 0 ? t * heads + head : (t / seq * heads + head) * seq + t % seq;
  }
};

// A warp for each row and head.
template <class S, class A = Acc<S>>
__global__ void join_sinks(S* out, A* lse, const A* sinks, LseOrder order, std::int64_t rows,
                           std::int64_t v_dim, bool wide) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * num_warps() + warp();
  if (i >= rows) return;
  const std::int64_t head = i % order.heads, at = order.at(i / order.heads, head);
  const A before = lse[at], sink = sinks[head];
  const A largest = before > sink ? before : sink;
  const A joined = largest + std::log(std::exp(before - largest) + std::exp(sink - largest));
  const A share = std::exp(before - joined);
  __syncwarp();  // all lanes have read it
  if (lane() == 0) lse[at] = joined;
  for (std::int64_t p = lane(); p < packs_of(v_dim); p += kWarp) {
    A value[kPack];
    load(value, out + i * v_dim, p * kPack, v_dim, wide);
    for (int k = 0; k < kPack; ++k) value[k] *= share;
    store(out + i * v_dim, p * kPack, v_dim, wide, value);
  }
}

// A block for each head, a warp for each of its rows in turn.
template <class S, class A = Acc<S>>
__global__ void sinks_backward_heads(A* dsinks, const S* dout, const S* out, const A* lse, const A* sinks,
                                     LseOrder order, std::int64_t tokens, std::int64_t v_dim, bool wide) {
  const std::int64_t head = blockIdx.x;
  A sum = 0;
  for (std::int64_t t = warp(); t < tokens; t += num_warps()) {
    const std::int64_t row = (t * order.heads + head) * v_dim;
    A dot = 0;
    for (std::int64_t p = lane(); p < packs_of(v_dim); p += kWarp) {
      A up[kPack], value[kPack];
      load(up, dout + row, p * kPack, v_dim, wide);
      load(value, out + row, p * kPack, v_dim, wide);
      for (int k = 0; k < kPack; ++k) dot += up[k] * value[k];
    }
    sum -= std::exp(sinks[head] - lse[order.at(t, head)]) * dot;
  }
  sum = block_sum(sum);  // of all lanes' dots
  if (threadIdx.x == 0) dsinks[head] = sum;
}

template <class S>
void sinks_backward(Stream stream, const Tensor& dsinks, const Tensor& dout, const Tensor& out,
                    const Tensor& lse, const Tensor& sinks, const AttentionShape& shape, LseOrder order) {
  using A = Acc<S>;
  S *up = dout.address<S>(), *value = out.address<S>();
  launch(stream, over_rows(shape.heads), &sinks_backward_heads<S>, dsinks.address<A>(), up, value,
         lse.address<A>(), sinks.address<A>(), order, out.dim(0), shape.v_dim(),
         is_wide(up, shape.v_dim()) && is_wide(value, shape.v_dim()));
}

}  // namespace

bool Backend::library_attention(const Tensor& out, const Tensor& lse, const Tensor& qkv, const Tensor& sinks,
                                const AttentionShape& shape) {
  if (!library_ || !library_->attention(out, lse, qkv, shape)) return false;
  if (sinks.empty()) return true;
  with_scalar(out, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t rows = out.dim(0) * shape.heads, in_block = kThreads / kWarp;
    S* data = out.address<S>();
    launch(stream_, over_rows((rows + in_block - 1) / in_block), &join_sinks<S>, data, lse.address<A>(),
           sinks.address<A>(), LseOrder{shape.seq, shape.heads}, rows, shape.v_dim(),
           is_wide(data, shape.v_dim()));
  });
  return true;
}

bool Backend::library_attention_backward(const Tensor& dqkv, const Tensor& dsinks, const Tensor& dout,
                                         const Tensor& qkv, const Tensor& out, const Tensor& lse,
                                         const Tensor& sinks, const AttentionShape& shape) {
  if (!library_ || !library_->attention_backward(dqkv, dout, qkv, out, lse, shape)) return false;
  if (sinks.empty()) return true;
  with_scalar(out, [&](auto zero) {
    sinks_backward<decltype(zero)>(stream_, dsinks, dout, out, lse, sinks, shape, {shape.seq, shape.heads});
  });
  return true;
}

void Backend::do_attention_sinks_backward(Tensor dsinks, Tensor dout, Tensor out, Tensor lse, Tensor sinks,
                                          const AttentionShape& shape) {
  with_scalar(out, [&](auto zero) {
    sinks_backward<decltype(zero)>(stream_, dsinks, dout, out, lse, sinks, shape, {0, shape.heads});
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
