// What the ranks of a process compute on: kernels of a CPU or of a GPU, and how GPUs reach each other.
#pragma once
#include <functional>
#include <memory>

#include "base/ids.h"
#include "comm/device_network.h"
#include "kernels/kernels.h"
#include "spec/job.h"
#include "tensor/memory.h"

namespace tessera::exec {

// Of a rank; empty: kernels::make_cpu.
using MakeKernels = std::function<std::unique_ptr<kernels::Kernels>(Rank)>;
[[nodiscard]] std::unique_ptr<kernels::Kernels> kernels_for(Rank rank, const MakeKernels& make);
// Of a rank whose tensors lie there; may give null.
using MakeNetwork =
    std::function<std::unique_ptr<comm::DeviceNetwork>(Rank, const std::shared_ptr<tensor::Memory>& memory)>;

// Of activations.
[[nodiscard]] tensor::DType dtype_of(spec::Precision precision);

struct Compute {
  MakeKernels kernels;
  MakeNetwork network;  // empty: tensors of GPUs go from rank to rank through the host
  spec::EngineOn on = spec::EngineOn::cpu;
};

}  // namespace tessera::exec
