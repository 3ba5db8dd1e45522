// The backends that every kernel test runs. To add one, add a line to implementations(); a backend that picks
// an instruction set at run time gets one line per instruction set that this machine has, for example
//
//   {"cpu", &kernels::make_cpu},
//
// Each runs against the f64 reference in f32 and f64, the gradient checks in f64, the error paths, and the
// row-split tests.
#pragma once
#include <cstdlib>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/kernels.h"
#include "support/emulated_place.h"
#include "support/tensors.h"

namespace tessera::kernels {

struct Implementation {
  std::string name;  // letters, digits and underscores: part of the test's name
  std::function<std::unique_ptr<Kernels>()> make;
};

// Whether there is a GPU; then tests' tensors live where it sees them, and every launch ends before its call
// returns, as on a CPU.
inline bool gpu_to_test() {
  setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
  if (cuda_devices().count == 0) return false;
  test::allocation() = {&allocate_mapped, &free_mapped};
  return true;
}

inline std::vector<Implementation> implementations() {
  std::vector<Implementation> out = {{"reference", &make_reference}};
  if (cpu::supported(cpu::avx512()))
    out.push_back({"cpu_avx512", [] { return cpu::make_cpu(cpu::avx512()); }});
  if (cpu::supported(cpu::avx2())) out.push_back({"cpu_avx2", [] { return cpu::make_cpu(cpu::avx2()); }});
  out.push_back({"cpu_generic", [] { return cpu::make_cpu(cpu::generic()); }});
  out.push_back({"cuda_emulated", &emulated::make});
  if (gpu_to_test()) out.push_back({"cuda", [] { return make_cuda(0); }});
  return out;
}

// One implementation in one dtype.
struct Subject {
  Implementation implementation;
  DType dtype;
  [[nodiscard]] std::string name() const {
    return implementation.name + "_" + std::string(tensor::name(dtype));
  }
  friend std::ostream& operator<<(std::ostream& out, const Subject& s) { return out << s.name(); }
};

inline std::vector<Subject> subjects() {
  std::vector<Subject> out;
  for (const Implementation& i : implementations()) {
    out.push_back({i, DType::f32});
    out.push_back({i, DType::f64});
  }
  return out;
}

}  // namespace tessera::kernels
