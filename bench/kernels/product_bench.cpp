// Linear layers: forward, input gradient and weight gradient on the shapes of the 124M-parameter model, the
// small MoE and its experts, with OpenBLAS (one thread) beside them when it is installed. Arguments: rows T,
// features K -> N.
#include <vector>

#include "kernels/harness.h"
#ifdef TESSERA_BENCH_OPENBLAS
#include <cblas.h>
extern "C" void openblas_set_num_threads(int);
#endif

namespace tessera::kernels::bench {
namespace {

struct Linear {
  std::int64_t t, k, n;
  explicit Linear(const benchmark::State& state) : t(state.range(0)), k(state.range(1)), n(state.range(2)) {}
  [[nodiscard]] double flops() const { return 2.0 * static_cast<double>(t * n * k); }
};

void forward(benchmark::State& state) {
  const Linear l(state);
  const auto kernels = make_cpu();
  PackedData w(*kernels, l.n, l.k);
  const Data x({l.t, l.k}), y({l.t, l.n});
  against_peak(state, l.flops(), [&] { kernels->linear(y, x, w.weight()); });
}
void dgrad(benchmark::State& state) {
  const Linear l(state);
  const auto kernels = make_cpu();
  PackedData w(*kernels, l.n, l.k);
  const Data dx({l.t, l.k}), dy({l.t, l.n});
  against_peak(state, l.flops(), [&] { kernels->linear_dgrad(dx, dy, w.weight()); });
}
void wgrad(benchmark::State& state) {
  const Linear l(state);
  const auto kernels = make_cpu();
  const Data x({l.t, l.k}), dy({l.t, l.n}), dw({l.n, l.k});
  against_peak(state, l.flops(), [&] { kernels->linear_wgrad(dw, dy, x); });
}
// The weight is packed in the call, into the workspace.
void forward_unpacked(benchmark::State& state) {
  const Linear l(state);
  const auto kernels = make_cpu();
  const Data w({l.n, l.k}), x({l.t, l.k}), y({l.t, l.n});
  const Weight weight{.value_NK = w, .packed = {}};
  against_peak(state, l.flops(), [&] { kernels->linear(y, x, weight); });
}
void dgrad_unpacked(benchmark::State& state) {
  const Linear l(state);
  const auto kernels = make_cpu();
  const Data w({l.n, l.k}), dx({l.t, l.k}), dy({l.t, l.n});
  const Weight weight{.value_NK = w, .packed = {}};
  against_peak(state, l.flops(), [&] { kernels->linear_dgrad(dx, dy, weight); });
}

// A few rows, as in generation: bound by reading the packed weight, of which there are more than the caches
// hold.
void forward_few_rows(benchmark::State& state) {
  const Linear l(state);
  const auto kernels = make_cpu();
  const std::int64_t bytes = 4 * l.n * l.k, count = ((std::int64_t{96} << 20) + bytes - 1) / bytes;
  std::vector<PackedData> weights;
  for (std::int64_t i = 0; i < count; ++i) weights.emplace_back(*kernels, l.n, l.k);
  const Data x({l.t, l.k}), y({l.t, l.n});
  against_read(state, static_cast<double>(count * bytes), [&] {
    for (PackedData& w : weights) kernels->linear(y, x, w.weight());
  });
}

#ifdef TESSERA_BENCH_OPENBLAS
void openblas_forward(benchmark::State& state) {
  openblas_set_num_threads(1);
  const Linear l(state);
  const Data w({l.n, l.k}), x({l.t, l.k}), y({l.t, l.n});
  const int t = static_cast<int>(l.t), n = static_cast<int>(l.n), k = static_cast<int>(l.k);
  const float* a = x.tensor().as<float>();
  const float* b = w.tensor().as<float>();
  float* c = y.tensor().as<float>();
  against_peak(state, l.flops(), [&] {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, t, n, k, 1, a, k, b, k, 0, c, n);
  });
}
void openblas_wgrad(benchmark::State& state) {
  openblas_set_num_threads(1);
  const Linear l(state);
  const Data x({l.t, l.k}), dy({l.t, l.n}), dw({l.n, l.k});
  const int t = static_cast<int>(l.t), n = static_cast<int>(l.n), k = static_cast<int>(l.k);
  const float* a = dy.tensor().as<float>();
  const float* b = x.tensor().as<float>();
  float* c = dw.tensor().as<float>();
  against_peak(state, l.flops(), [&] {
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, n, k, t, 1, a, n, b, k, 1, c, k);
  });
}
#endif

void pack(benchmark::State& state) {
  const auto kernels = make_cpu();
  const std::int64_t k = state.range(0), n = state.range(1);
  PackedData w(*kernels, n, k);
  const auto packed = static_cast<double>(kernels->packed_bytes(DType::f32, n, k).value);
  against_memory(state, static_cast<double>(n * k * 4) + packed, [&] { kernels->pack(w.weight()); });
}

void model_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"T", "K", "N"});
  for (const std::int64_t t : {256, 1024}) {
    b->Args({t, 768, 2304})->Args({t, 768, 768})->Args({t, 768, 4096})->Args({t, 2048, 768});
    b->Args({t, 768, 50257});
  }
  b->Args({2048, 512, 1536})->Args({2048, 512, 512})->Args({2048, 512, 8192})->Args({2048, 512, 8});
  for (const std::int64_t t : {8, 16, 32, 64, 128, 256, 512}) b->Args({t, 512, 2048})->Args({t, 1024, 512});
}

BENCHMARK(forward)->Apply(model_shapes);
BENCHMARK(dgrad)->Apply(model_shapes);
BENCHMARK(forward_few_rows)
    ->ArgNames({"T", "K", "N"})
    ->ArgsProduct({{1, 2, 4, 8}, {2048, 4096}, {2048, 4096}});
BENCHMARK(wgrad)->Apply(model_shapes);
BENCHMARK(forward_unpacked)->Apply(model_shapes);
BENCHMARK(dgrad_unpacked)->Apply(model_shapes);
#ifdef TESSERA_BENCH_OPENBLAS
BENCHMARK(openblas_forward)->Apply(model_shapes);
BENCHMARK(openblas_wgrad)->Apply(model_shapes);
#endif
BENCHMARK(pack)->ArgNames({"K", "N"})->Args({768, 2304})->Args({512, 2048})->Args({768, 50257});

}  // namespace
}  // namespace tessera::kernels::bench
