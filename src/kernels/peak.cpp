#include "kernels/peak.h"

#include <algorithm>

#include "base/clock.h"
#include "kernels/cpu/isa.h"
#include "tensor/arena.h"

namespace tessera::kernels {

namespace {

// Amount of work per second: the best of `runs` calls of work(), which returns its amount.
template <class Work>
double best_rate(std::int32_t runs, Work work) {
  double best = 0;
  for (std::int32_t r = 0; r < runs; ++r) {
    const std::int64_t start = thread_cpu_ns();
    const auto amount = static_cast<double>(work());
    const std::int64_t ns = std::max<std::int64_t>(thread_cpu_ns() - start, 1);
    best = std::max(best, amount / static_cast<double>(ns) * 1e9);
  }
  return best;
}

// Runs of about 4 ms.
template <class T>
FlopsPerSecond fma_peak(const cpu::Loops<T>& loops) {
  T sink = T(0);
  std::int64_t count = 10'000;
  const double rough = best_rate(2, [&] { return loops.peak(count, &sink); });
  const std::int64_t per_round = loops.peak(1, &sink);
  count = std::max<std::int64_t>(1, static_cast<std::int64_t>(rough * 0.004) / per_round);
  return FlopsPerSecond(best_rate(10, [&] { return loops.peak(count, &sink); }));
}

}  // namespace

Peaks measure_peaks(Bandwidth bandwidth) {
  const cpu::Isa& isa = cpu::best();
  Peaks peaks{.fma_f32 = fma_peak(*isa.f32), .fma_f64 = fma_peak(*isa.f64), .read = {}, .triad = {}};
  switch (bandwidth) {
    case Bandwidth::skip:
      break;
    case Bandwidth::measure: {
      constexpr std::int64_t kElements = std::int64_t{16} << 20;
      const tensor::Buffer memory(Bytes(3 * kElements * 4));
      auto* y = reinterpret_cast<float*>(memory.data());
      volatile double sink = 0;
      peaks.read = BytesPerSecond(best_rate(8, [&] {
        sink = isa.read(y, 3 * kElements);
        return 3 * kElements * 4;
      }));
      peaks.triad = BytesPerSecond(best_rate(8, [&] {
        isa.triad(y, y + kElements, y + 2 * kElements, 0.5f, kElements);
        return kElements * 12;
      }));
      break;
    }
  }
  return peaks;
}

std::string_view instruction_set() {
  return cpu::best().name;
}

}  // namespace tessera::kernels
