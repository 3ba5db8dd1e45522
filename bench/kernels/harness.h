// Every kernel is printed as a ratio to its own limit: `of_peak` = FLOPs per second / FMA peak of this core,
// `of_triad`
// = bytes per second / triad bandwidth. The limit is measured before and after the loop in the same run, on
// the thread's CPU clock like the loop itself, so that the ratio holds on a shared machine.
#pragma once
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/random.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"
#include "tensor/arena.h"

namespace tessera::kernels::bench {

// A tensor with its own memory, filled with reproducible values in [-spread, spread).
class Data {
 public:
  Data(DType dtype, tensor::Shape shape, double spread = 1.0)
      : buffer_(Bytes(std::max<std::int64_t>(shape.num_elements() * tensor::size_of(dtype), 64))),
        tensor_(buffer_.data(), dtype, shape) {
    const std::int64_t n = shape.num_elements();
    if (dtype != DType::f32) return;
    float* p = tensor_.as<float>();
    std::uint64_t state = stream_of(shape.text());
    for (std::int64_t i = 0; i < n; ++i) {
      state = state * 6364136223846793005ULL + 1442695040888963407ULL;
      p[i] = static_cast<float>(spread * (static_cast<double>(state >> 40) / 8388608.0 - 1.0));
    }
  }
  explicit Data(tensor::Shape shape, double spread = 1.0) : Data(DType::f32, shape, spread) {}
  operator Tensor() const { return tensor_; }
  [[nodiscard]] const Tensor& tensor() const { return tensor_; }

 private:
  tensor::Buffer buffer_;
  Tensor tensor_;
};

// A weight, packed.
class PackedData {
 public:
  PackedData(Kernels& kernels, std::int64_t n, std::int64_t k)
      : value_({n, k}), packed_(DType::u8, {kernels.packed_bytes(DType::f32, n, k).value}) {
    weight_ = {.value_NK = value_, .packed = packed_};
    kernels.pack(weight_);
  }
  [[nodiscard]] Weight& weight() { return weight_; }

 private:
  Data value_, packed_;
  Weight weight_;
};

// Runs the loop and reports `flops_per_call` against the FMA peak.
template <class Call>
void against_peak(benchmark::State& state, double flops_per_call, Call call) {
  call();
  const double before = measure_peaks().fma_f32.value;
  for (auto _ : state) call();
  const double peak = std::max(before, measure_peaks().fma_f32.value);
  state.counters["GFLOP/s"] =
      benchmark::Counter(flops_per_call * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] =
      benchmark::Counter(flops_per_call / peak, benchmark::Counter::kIsIterationInvariantRate);
}

// Likewise `bytes_per_call` against the triad bandwidth.
template <class Call>
void against_memory(benchmark::State& state, double bytes_per_call, Call call) {
  call();
  const double before = measure_peaks(Bandwidth::measure).triad.value;
  for (auto _ : state) call();
  const double triad = std::max(before, measure_peaks(Bandwidth::measure).triad.value);
  state.counters["GB/s"] =
      benchmark::Counter(bytes_per_call * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_triad"] =
      benchmark::Counter(bytes_per_call / triad, benchmark::Counter::kIsIterationInvariantRate);
}

// Likewise against the bandwidth of reading alone.
template <class Call>
void against_read(benchmark::State& state, double bytes_per_call, Call call) {
  call();
  const double before = measure_peaks(Bandwidth::measure).read.value;
  for (auto _ : state) call();
  const double read = std::max(before, measure_peaks(Bandwidth::measure).read.value);
  state.counters["GB/s"] =
      benchmark::Counter(bytes_per_call * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_read"] =
      benchmark::Counter(bytes_per_call / read, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace tessera::kernels::bench
