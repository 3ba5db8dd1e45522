// What this core can do at most: the denominators of MFU and of bandwidth ratios, measured on the calling
// thread with its CPU clock, so that other work on the machine does not lower them. The best of several
// short runs counts.
//
//   const Peaks p = measure_peaks();                        // about 0.1 s
//   mfu = (model_flops / step_time).value / p.fma_f32.value;
#pragma once
#include <cstdint>
#include <string_view>

#include "base/quantity.h"

namespace tessera::kernels {

struct Peaks {
  FlopsPerSecond fma_f32, fma_f64;  // independent multiply-adds (2 FLOPs each) in registers, widest vectors
  BytesPerSecond read;              // one stream read from memory
  BytesPerSecond triad;  // y = a + s b on arrays in memory, y streamed past the caches: 12 B an element
};

enum class Bandwidth : std::uint8_t { skip, measure };  // measuring takes 192 MiB and about 0.3 s

// read and triad are 0 when skipped.
[[nodiscard]] Peaks measure_peaks(Bandwidth bandwidth = Bandwidth::skip);

// The instruction set that make_cpu() chooses here: "AVX-512", "AVX2" or "generic".
[[nodiscard]] std::string_view instruction_set();

}  // namespace tessera::kernels
