// What a run computes on: the cores of this machine, or its GPUs.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "exec/trainer.h"
#include "spec/job.h"

namespace tessera::cli {

struct TrainDevice {
  exec::Compute compute;
  std::int32_t units = 1;              // cores, or GPUs, of all hosts
  std::optional<FlopsPerSecond> peak;  // of one, in the job's precision; none: a GPU whose peak is not known
  std::string peak_source;             // "measured f32 FMA peak (AVX2)"
  std::string text;                    // "2 cores, 33.1 GFLOP/s f32 FMA peak per core (AVX2)"
};

// Where a process stands in the run.
struct DeviceSite {
  std::int32_t hosts = 1;            // of the run
  std::int32_t gpu_shift = 0;        // a rank has GPU (rank + this) of its host, in turn
  bool measured = true;              // false where this process prints nothing of the device
  Seconds timeout = Seconds(120.0);  // of a collective between GPUs
};
// name: cpu or cuda. Error{unsupported} where there is no GPU, saying why.
[[nodiscard]] TrainDevice open_device(const std::string& name, tensor::DType dtype, const DeviceSite& site);
// The same error, before anything is prepared.
void require_device(const std::string& name);
[[nodiscard]] spec::JobUse use_on(const std::string& device);

}  // namespace tessera::cli
