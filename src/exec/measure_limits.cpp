#include "exec/measure_limits.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "tensor/arena.h"
#include "tensor/bf16.h"

namespace tessera::exec {

namespace {

using tensor::DType;
using tensor::Tensor;

constexpr double kLongEnough = 1e-3;  // of a product

// Time between marks around work(), `repeats` times: the median.
template <class Work>
Seconds median_time(tensor::Memory& memory, int repeats, const Work& work) {
  const std::unique_ptr<tensor::Mark> start = memory.make_mark(), end = memory.make_mark();
  std::vector<std::int64_t> ns;
  for (int i = 0; i < repeats; ++i) {
    start->record();
    work();
    end->record();
    ns.push_back(end->ns_since(*start));
  }
  std::ranges::nth_element(ns, ns.begin() + repeats / 2);
  return Seconds(static_cast<double>(std::max<std::int64_t>(1, ns[ns.size() / 2])) * 1e-9);
}

BytesPerSecond measure_copy(const std::shared_ptr<tensor::Memory>& memory) {
  constexpr std::int64_t kBytes = std::int64_t{256} << 20U;
  constexpr int kCopies = 4, kRounds = 5;
  const tensor::Buffer a(memory, Bytes(kBytes), tensor::Reach::own),
      b(memory, Bytes(kBytes), tensor::Reach::own);
  const Tensor from(a.data(), DType::u8, {kBytes}, memory->device());
  const Tensor to(b.data(), DType::u8, {kBytes}, memory->device());
  memory->copy(to, from);
  const Seconds time = median_time(*memory, kRounds, [&] {
    for (int i = 0; i < kCopies; ++i) memory->copy(to, from);
  });
  return BytesPerSecond(2.0 * kCopies * static_cast<double>(kBytes) / time.value);
}

void spread(tensor::Memory& memory, const Tensor& t) {
  tensor::on_host(memory, t, tensor::Access::write, [](const Tensor& h) {
    for (std::int64_t i = 0; i < h.num_elements(); ++i) {
      const double x = static_cast<double>((i * 2654435761 >> 7) % 2048) / 1024.0 - 1.0;
      if (h.dtype() == DType::bf16) {
        h.as<tensor::Bf16>()[i] = static_cast<float>(x);
      } else if (h.dtype() == DType::f64) {
        h.as<double>()[i] = x;
      } else {
        h.as<float>()[i] = static_cast<float>(x);
      }
    }
  });
}

Seconds product_time(kernels::Kernels& kernels, DType activations, std::int64_t n) {
  const std::shared_ptr<tensor::Memory> memory = kernels.memory();
  const DType weights = activations == DType::bf16 ? DType::f32 : activations;
  const Bytes packed = kernels.packed_bytes(activations, n, n);
  const Bytes bytes(n * n * (2 * size_of(activations) + size_of(weights)) + packed.value +
                    4 * tensor::kAlignment);
  tensor::Arena arena(memory, {.all = bytes, .own = bytes, .shared = Bytes(0)});
  const Tensor x = arena.take(activations, {n, n}), y = arena.take(activations, {n, n});
  kernels::Weight w{arena.take(weights, {n, n}), {}};
  if (packed.value > 0) w.packed = arena.take(DType::u8, {packed.value});
  spread(*memory, x);
  spread(*memory, w.value_NK);
  kernels.pack(w);
  const auto work = [&] { kernels.linear(y, x, w); };
  const Seconds rough = median_time(*memory, 3, work);
  return median_time(*memory, static_cast<int>(std::clamp(0.1 / rough.value, 3.0, 50.0)), work);
}

Seconds measure_launch(kernels::Kernels& kernels) {
  constexpr int kCalls = 1000, kRounds = 5;
  const std::shared_ptr<tensor::Memory> memory = kernels.memory();
  const tensor::Buffer buffer(memory, Bytes(tensor::kAlignment), tensor::Reach::own);
  const Tensor one(buffer.data(), DType::f32, {1}, memory->device());
  const auto work = [&] {
    for (int i = 0; i < kCalls; ++i) kernels.fill(one, 1.0);
  };
  work();
  return Seconds(median_time(*memory, kRounds, work).value / kCalls);
}

}  // namespace

DeviceLimits measure_limits(kernels::Kernels& kernels, DType activations) {
  constexpr std::int64_t kLargest = 8192;
  DeviceLimits limits;
  limits.copy = measure_copy(kernels.memory());
  limits.launch = measure_launch(kernels);
  for (std::int64_t n = 64;; n *= 2) {
    const Seconds time = product_time(kernels, activations, n);
    const auto side = static_cast<double>(n);
    limits.product = FlopsPerSecond(2.0 * side * side * side / time.value);
    limits.side = n;
    if (time.value >= kLongEnough || n == kLargest) return limits;
  }
}

}  // namespace tessera::exec
