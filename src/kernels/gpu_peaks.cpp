#include "kernels/gpu_peaks.h"

#include <array>

namespace tessera::kernels {

namespace {

struct Gpu {
  std::string_view name;  // a part of the driver's, the first that fits
  double bf16, f32, f64;  // FLOP/s
};
constexpr std::array<Gpu, 4> kGpus{{
    {"H100 PCIe", 756e12, 51.2e12, 25.6e12},
    {"H100", 989.4e12, 66.9e12, 33.5e12},
    {"H200", 989.4e12, 66.9e12, 33.5e12},
    {"A100", 312e12, 19.5e12, 9.7e12},
}};

}  // namespace

std::optional<FlopsPerSecond> published_peak(std::string_view device, tensor::DType dtype) {
  for (const Gpu& g : kGpus) {
    if (device.find(g.name) == std::string_view::npos) continue;
    return FlopsPerSecond(dtype == tensor::DType::bf16  ? g.bf16
                          : dtype == tensor::DType::f64 ? g.f64
                                                        : g.f32);
  }
  return std::nullopt;
}

}  // namespace tessera::kernels
