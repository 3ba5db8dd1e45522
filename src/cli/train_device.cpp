#include "cli/train_device.h"

#include <fmt/format.h>
#include <sched.h>

#include "comm/nccl/nccl_network.h"
#include "cudalib/library_ops.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/gpu_peaks.h"
#include "kernels/peak.h"

namespace tessera::cli {

namespace {

std::int32_t available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

TrainDevice open_cores(tensor::DType dtype, std::int32_t hosts, bool measured) {
  const kernels::Peaks peaks = measured ? kernels::measure_peaks() : kernels::Peaks{};
  const bool f64 = dtype == tensor::DType::f64;
  TrainDevice d;
  d.units = available_cores() * hosts;
  d.peak = f64 ? peaks.fma_f64 : peaks.fma_f32;
  d.peak_source = fmt::format("measured {} FMA peak ({})", f64 ? "f64" : "f32", kernels::instruction_set());
  d.text = fmt::format("{} cores, {:.1f} GFLOP/s f32 FMA peak per core ({})", d.units,
                       peaks.fma_f32.value * 1e-9, kernels::instruction_set());
  return d;
}

kernels::DeviceList require_gpus() {
  kernels::DeviceList list = kernels::cuda_devices();
  if (list.count == 0) {
    throw Error(
        ErrorKind::unsupported, "there is no GPU: " + list.why_none, "--device cuda",
        "run on a machine with an NVIDIA GPU and its driver, with a build that found the CUDA toolkit "
        "(docs/gpu.md), or leave the flag out");
  }
  return list;
}

TrainDevice open_gpus(tensor::DType dtype, const DeviceSite& site) {
  const kernels::DeviceList list = require_gpus();
  const std::string& name = list.names.front();
  TrainDevice d;
  d.compute.on = spec::EngineOn::gpu;
  d.compute.kernels = [count = list.count, shift = site.gpu_shift](Rank rank) {
    return cudalib::make_gpu_kernels((rank.value + shift) % count);
  };
  if (comm::nccl::is_built_in()) {
    d.compute.network = [count = list.count, site](Rank rank, const std::shared_ptr<tensor::Memory>& memory) {
      return comm::nccl::make_network((rank.value + site.gpu_shift) % count, memory, site.timeout);
    };
  }
  d.units = list.count * site.hosts;
  d.peak = kernels::published_peak(name, dtype);
  d.peak_source = d.peak ? fmt::format("published {} peak of {}", tensor::name(dtype), name)
                         : fmt::format("no published peak of {} is known", name);
  d.text = fmt::format("{} GPU{} ({})", d.units, d.units == 1 ? "" : "s", name);
  return d;
}

}  // namespace

TrainDevice open_device(const std::string& name, tensor::DType dtype, const DeviceSite& site) {
  return name == "cuda" ? open_gpus(dtype, site) : open_cores(dtype, site.hosts, site.measured);
}

void require_device(const std::string& name) {
  if (name == "cuda") (void)require_gpus();
}

spec::JobUse use_on(const std::string& device) {
  return device == "cuda" ? spec::JobUse::train_on_gpu : spec::JobUse::train;
}

}  // namespace tessera::cli
