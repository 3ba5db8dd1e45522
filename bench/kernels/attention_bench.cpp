// Causal attention, forward and backward, against the FMA peak. FLOPs are those of the pairs that mask and
// window keep, the backward pass counted as twice the forward pass (what it computes again is not counted).
#include "kernels/harness.h"

namespace tessera::kernels::bench {
namespace {

struct Case {
  AttentionShape shape;
  double flops;
  explicit Case(const benchmark::State& state)
      : shape{.batch = state.range(0),
              .seq = state.range(1),
              .heads = state.range(2),
              .kv_heads = state.range(3),
              .head_dim = state.range(4),
              .scale = 0.125,
              .v_head_dim = state.range(5),
              .window = state.range(6)},
        flops(2.0 * static_cast<double>(shape.batch * shape.heads * (shape.head_dim + shape.v_dim()) *
                                        shape.kept_pairs())) {}
  [[nodiscard]] std::int64_t tokens() const { return shape.batch * shape.seq; }
};

void attention_forward(benchmark::State& state) {
  const Case c(state);
  const auto kernels = make_cpu();
  const Data qkv({c.tokens(), c.shape.qkv_dim()}), out({c.tokens(), c.shape.out_dim()}),
      lse({c.tokens(), c.shape.heads});
  against_peak(state, c.flops, [&] { kernels->attention(out, lse, qkv, c.shape); });
}

void attention_backward(benchmark::State& state) {
  const Case c(state);
  const auto kernels = make_cpu();
  const Data qkv({c.tokens(), c.shape.qkv_dim()}), out({c.tokens(), c.shape.out_dim()}),
      lse({c.tokens(), c.shape.heads});
  const Data dqkv({c.tokens(), c.shape.qkv_dim()}), dout({c.tokens(), c.shape.out_dim()});
  kernels->attention(out, lse, qkv, c.shape);
  against_peak(state, 2 * c.flops, [&] { kernels->attention_backward(dqkv, dout, qkv, out, lse, c.shape); });
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "seq", "heads", "kv", "d", "v", "window"});
  b->Args({4, 64, 12, 12, 64, 64, 0})->Args({1, 1024, 12, 12, 64, 64, 0});
  b->Args({8, 256, 8, 8, 64, 64, 0})->Args({1, 1024, 12, 4, 64, 64, 0});
  for (const std::int64_t window : {128, 512}) b->Args({1, 2048, 12, 4, 64, 64, window});
  b->Args({1, 2048, 12, 4, 64, 64, 0})->Args({1, 1024, 8, 8, 192, 128, 0});
}
BENCHMARK(attention_forward)->Apply(shapes);
BENCHMARK(attention_backward)->Apply(shapes);

}  // namespace
}  // namespace tessera::kernels::bench
