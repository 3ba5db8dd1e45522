// Row, loss and optimiser kernels against the triad bandwidth, counting the bytes that must move: each input
// read once, each output written once. Arrays that fit a cache may pass 1.
#include "kernels/harness.h"

namespace tessera::kernels::bench {
namespace {

double bytes(std::int64_t elements) {
  return 4.0 * static_cast<double>(elements);
}

void adamw(benchmark::State& state) {
  const auto kernels = make_cpu();
  const std::int64_t n = state.range(0);
  const Data p({n}), g({n}), m({n}), v({n});
  kernels->fill(v, 0.5);
  const AdamWOptions o{.lr = 1e-4,
                       .beta1 = 0.9,
                       .beta2 = 0.95,
                       .eps = 1e-8,
                       .weight_decay = 0.1,
                       .bias_correction1 = 0.5,
                       .bias_correction2 = 0.5,
                       .grad_scale = 0.7};
  against_memory(state, bytes(7 * n), [&] { kernels->adamw(p, g, m, v, o); });
}
BENCHMARK(adamw)->Arg(38 << 20);

void add(benchmark::State& state) {
  const auto kernels = make_cpu();
  const std::int64_t n = state.range(0);
  const Data y({n}), a({n}), b({n});
  against_memory(state, bytes(3 * n), [&] { kernels->add(y, a, b); });
}
BENCHMARK(add)->Arg(16 << 20)->Arg(256 * 768)->Arg(1024 * 768);

void sum_squares(benchmark::State& state) {
  const auto kernels = make_cpu();
  const std::int64_t n = state.range(0);
  const Data x({n});
  against_memory(state, bytes(n), [&] { benchmark::DoNotOptimize(kernels->sum_squares(x)); });
}
BENCHMARK(sum_squares)->Arg(38 << 20);

struct Rows {
  std::int64_t t, h;
  explicit Rows(const benchmark::State& state) : t(state.range(0)), h(state.range(1)) {}
};

void rms_norm(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const Data x({r.t, r.h}), y({r.t, r.h}), w({r.h}), rstd({r.t});
  against_memory(state, bytes(2 * r.t * r.h), [&] { kernels->rms_norm(y, rstd, x, w, 1e-5); });
}
void rms_norm_backward(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const Data x({r.t, r.h}), y({r.t, r.h}), w({r.h}), rstd({r.t}), dy({r.t, r.h}), dx({r.t, r.h}), dw({r.h});
  kernels->rms_norm(y, rstd, x, w, 1e-5);
  against_memory(state, bytes(5 * r.t * r.h), [&] {
    kernels->rms_norm_dgrad(dx, dy, x, rstd, w, Write::overwrite);
    kernels->rms_norm_wgrad(dw, dy, x, rstd);
  });
}
void swiglu(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const Data h({r.t, r.h}), gate_up({r.t, 2 * r.h}, 4.0);
  against_memory(state, bytes(3 * r.t * r.h), [&] { kernels->swiglu(h, gate_up); });
}
void swiglu_backward(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const Data dh({r.t, r.h}), gate_up({r.t, 2 * r.h}, 4.0), dgate_up({r.t, 2 * r.h});
  against_memory(state, bytes(5 * r.t * r.h), [&] { kernels->swiglu_backward(dgate_up, dh, gate_up); });
}
// 1: gelu, 2: gelu_tanh, 3: clamped_swiglu.
void activation(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const ActivationOptions o = {static_cast<Activation>(state.range(2)), 7.0};
  const std::int64_t wide = o.gated() ? 2 : 1;
  const Data h({r.t, r.h}), z({r.t, wide * r.h}, 4.0);
  against_memory(state, bytes((1 + wide) * r.t * r.h), [&] { kernels->activation(h, z, o); });
}
void activation_backward(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const ActivationOptions o = {static_cast<Activation>(state.range(2)), 7.0};
  const std::int64_t wide = o.gated() ? 2 : 1;
  const Data dh({r.t, r.h}), z({r.t, wide * r.h}, 4.0), dz({r.t, wide * r.h});
  against_memory(state, bytes((1 + 2 * wide) * r.t * r.h),
                 [&] { kernels->activation_backward(dz, dh, z, o); });
}
void layer_norm(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const Data x({r.t, r.h}), y({r.t, r.h}), w({r.h}), b({r.h}), mean({r.t}), rstd({r.t});
  against_memory(state, bytes(2 * r.t * r.h), [&] { kernels->layer_norm(y, mean, rstd, x, w, b, 1e-5); });
}
// Heads of 64 of q and k of a row.
void head_norm(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const ColumnGroups cols = {.first = 0, .groups = r.h / 64, .width = 64};
  const Data x({r.t, r.h}), y({r.t, r.h}), w({64}), sums({r.t, cols.groups});
  against_memory(state, bytes(2 * r.t * r.h), [&] {
    kernels->group_squares(sums, x, cols);
    kernels->group_norm(y, x, sums, w, {1e-6, 64}, cols);
  });
}
// 0: halves, 1: interleaved.
void rope(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const RopeShape shape = {.seq = r.t,
                           .heads = r.h / 64,
                           .first = 0,
                           .stride = 64,
                           .rotated = 64,
                           .pairs = static_cast<RopePairs>(state.range(2))};
  const Data x({r.t, r.h}), cos({r.t, 32}), sin({r.t, 32});
  against_memory(state, bytes(2 * r.t * r.h), [&] { kernels->rope(x, cos, sin, shape, false); });
}
// T tokens over E experts, 8 chosen: 0 by softmax, 1 by sigmoid, bias and groups.
void router(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const bool grouped = state.range(2) == 1;
  RouterOptions o = {.top_k = static_cast<std::int32_t>(std::min<std::int64_t>(8, r.h / 4)),
                     .score = grouped ? RouterScore::sigmoid : RouterScore::softmax_then_topk,
                     .renormalise = true};
  if (grouped) {
    o.n_group = 8;
    o.topk_group = 4;
    o.group_score = GroupScore::top2_sum;
  }
  const Data logits({r.t, r.h}, 4.0), probs({r.t, r.h}), lse({r.t}), index(DType::i32, {r.t, o.top_k});
  const Data weights({r.t, o.top_k}), bias({r.h}, 0.1), dlogits({r.t, r.h}), dweights({r.t, o.top_k});
  const Tensor used = grouped ? bias.tensor() : Tensor();
  if (state.range(3) == 0) {
    against_memory(state, bytes(2 * r.t * r.h),
                   [&] { kernels->router(probs, lse, index, weights, logits, used, o); });
  } else {
    kernels->router(probs, lse, index, weights, logits, used, o);
    against_memory(state, bytes(2 * r.t * r.h), [&] {
      kernels->router_backward(dlogits, dweights, probs, lse, index, weights, {}, {}, 0, o);
    });
  }
}
void cross_entropy(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const Data logits({r.t, r.h}, 4.0), stats({3, r.t}), lse({r.t}), targets(DType::i32, {r.t});
  kernels->fill(lse, 12.0);
  against_memory(state, bytes(3 * r.t * r.h), [&] {
    kernels->cross_entropy_stats(stats, logits, targets, 0);
    kernels->cross_entropy_backward(logits, lse, targets, 0, 1e-3);
  });
}
void gather_rows(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const Data src({r.t, r.h}), dst({2 * r.t, r.h}), index(DType::i32, {2 * r.t});
  for (std::int64_t i = 0; i < 2 * r.t; ++i) {
    index.tensor().as<std::int32_t>()[i] = static_cast<std::int32_t>(i * 7 % r.t);
  }
  against_memory(state, bytes(4 * r.t * r.h), [&] { kernels->gather_rows(dst, src, index); });
}
void combine(benchmark::State& state) {
  const Rows r(state);
  const auto kernels = make_cpu();
  const Data x({r.t, r.h}), y({r.t, r.h}), rows({2 * r.t, r.h}), weights({r.t, 2}), pos(DType::i32, {r.t, 2});
  for (std::int64_t i = 0; i < 2 * r.t; ++i) {
    pos.tensor().as<std::int32_t>()[i] = static_cast<std::int32_t>(i * 7 % (2 * r.t));
  }
  against_memory(state, bytes(4 * r.t * r.h), [&] { kernels->combine(y, x, rows, pos, weights); });
}
BENCHMARK(rms_norm)->Args({256, 768})->Args({1024, 768})->Args({16384, 768});
BENCHMARK(rms_norm_backward)->Args({256, 768})->Args({1024, 768})->Args({16384, 768});
BENCHMARK(swiglu)->Args({256, 2048})->Args({1024, 2048})->Args({8192, 2048});
BENCHMARK(swiglu_backward)->Args({256, 2048})->Args({1024, 2048})->Args({8192, 2048});
BENCHMARK(activation)->ArgNames({"T", "I", "kind"})->ArgsProduct({{1024}, {2048}, {1, 2, 3}});
BENCHMARK(activation_backward)->ArgNames({"T", "I", "kind"})->ArgsProduct({{1024}, {2048}, {1, 2, 3}});
BENCHMARK(layer_norm)->Args({1024, 768})->Args({16384, 768});
BENCHMARK(head_norm)->Args({1024, 1024});
BENCHMARK(rope)->ArgNames({"T", "H", "pairs"})->ArgsProduct({{1024}, {1024}, {0, 1}});
BENCHMARK(router)
    ->ArgNames({"T", "E", "grouped", "backward"})
    ->ArgsProduct({{2048}, {8, 128, 256}, {0, 1}, {0, 1}});
BENCHMARK(cross_entropy)->Args({256, 50257})->Args({2048, 8192});
BENCHMARK(gather_rows)->Args({2048, 512});
BENCHMARK(combine)->Args({2048, 512});

void limits(benchmark::State& state) {
  Peaks p;
  for (auto _ : state) p = measure_peaks(Bandwidth::measure);
  state.counters["f32_GFLOP/s"] = p.fma_f32.value * 1e-9;
  state.counters["f64_GFLOP/s"] = p.fma_f64.value * 1e-9;
  state.counters["read_GB/s"] = p.read.value * 1e-9;
  state.counters["triad_GB/s"] = p.triad.value * 1e-9;
}
BENCHMARK(limits)->Iterations(1);

}  // namespace
}  // namespace tessera::kernels::bench
