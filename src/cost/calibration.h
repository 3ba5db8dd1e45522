// Calibration: what one accelerator type does, one YAML file a type (src/cost/calibrations/, built into the
// program). Peaks are of the data sheet; efficiencies are fitted to published measurements of kernels and
// collectives and carry their source. `tessera calibrate` writes the same file for a machine of one's own.
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/quantity.h"
#include "spec/job.h"

namespace tessera::cost {

// Matrix products of one data type.
struct GemmModel {
  double peak = 0.0;        // FLOP/s of the data sheet, dense
  double efficiency = 0.8;  // of the peak, of a large product
  std::int32_t tile_m = 128,
               tile_n = 256;  // of the output, one a processor; halves and quarters may be chosen
  double small_tile = 0.0;    // a tile of 1/x of the area has efficiency x^-small_tile beside the whole one
  double tail = 0.0;    // of the processors idle in the last wave, the share that still finds work: 0 whole
                        // waves, 1 spread evenly
  double k_half = 0.0;  // k at which a tile reaches half of its rate: prologue and epilogue as a length of k
  double bytes = 2.0;   // an element of the operands
  friend bool operator==(const GemmModel&, const GemmModel&) = default;
};

struct Calibration {
  std::string name;               // h100-sxm
  std::string description;        // with the sources
  std::int32_t processors = 132;  // SMs, CUs, cores
  Bytes memory;                   // as sold
  Bytes usable_memory;            // what a process gets: without context, ECC, driver
  double memory_bandwidth = 0.0;  // B/s of the data sheet
  double memory_efficiency = 0.85;
  double l2_bytes = 0.0;
  GemmModel f32, bf16, fp8, fp8_block, mxfp8, nvfp4;  // fp16 as bf16; peak 0: not there
  double grouped_efficiency = 0.9;  // of a grouped product beside a single one of the same tiles
  Seconds group_latency;            // of each group of a grouped product
  double attention_forward = 0.6;   // of the bf16 peak, long sequence, head_dim 128
  double attention_backward = 0.5;
  double attention_short = 0.0;  // keys a query sees at which attention forward reaches half of that rate
  double attention_short_backward = 0.0;
  double attention_wide = 1.0;  // beside head_dim 128, of the 192 + 128 of MLA
  // Older kernels beside these: FlashAttention-2, and FlashAttention-1 or Triton's.
  double attention_flash2 = 1.0;
  double attention_flash1 = 0.6;
  Seconds kernel_latency;  // from the end of a kernel to the start of the next, queued: not part of a kernel
  Seconds launch;          // host time of one operator (no graphs)
  // Links.
  double intra_efficiency = 0.8;         // of the bandwidth of the innermost tier
  double inter_efficiency = 0.85;        // of the tiers above
  double all_to_all_efficiency = 0.8;    // beside a ring
  double in_network_efficiency = 0.55;   // of an all-reduce in the innermost switch (NVLS): bytes / time
  Seconds intra_latency, inter_latency;  // of one step of a collective
  Seconds chunk_latency;                 // of one chunk of a pipelined transfer in the innermost tier
  Seconds collective_launch;             // fixed, of one call
  // Whole steps: physical constants, fitted on published runs (docs/accuracy.md).
  // Rate of kernels under a whole training step beside a single kernel's benchmark: the clock follows the
  // power.
  // Products of 16-bit and wider operands, of narrower ones, and attention.
  double sustained = 1.0;
  double sustained_low = 1.0;
  double sustained_attention = 1.0;
  double sustained_memory = 1.0;   // rate of elementwise work in a step beside plain streaming
  double sustained_network = 1.0;  // rate between nodes in a training run beside a collective's own benchmark
  double overlap_slowdown = 0.0;   // of compute while a collective runs beside it (fraction of that time)
  double straggler = 0.0;          // of the step for each doubling of devices beyond one node
  double optimizer_passes = 1.0;   // bytes of the optimizer step beside one read and write of each state
  friend bool operator==(const Calibration&, const Calibration&) = default;
};

// By precision; bf16 when the accelerator has no such type.
[[nodiscard]] const GemmModel& gemm_model(const Calibration& c, spec::Precision precision);

[[nodiscard]] std::vector<std::string> calibration_names();
[[nodiscard]] Calibration calibration(std::string_view name);  // Error{config}: nearest name
[[nodiscard]] Calibration parse_calibration(std::string_view yaml, std::string_view where,
                                            Problems& problems);
[[nodiscard]] Calibration read_calibration(const std::filesystem::path& path);
[[nodiscard]] std::string to_yaml(const Calibration& c);
void validate(const Calibration& c, std::string_view where, Problems& problems);

}  // namespace tessera::cost
