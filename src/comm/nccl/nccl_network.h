// The network between GPUs over NCCL. The only place that knows NCCL; builds without it have absent.cpp
// instead.
//
// NOT EXECUTED ON A GPU YET. What needs none (version, ids, types, the errors of a machine without a GPU) is
// tested; what stands on it (device_communicator.h) is, over another network.
//
// Each group is one NCCL communicator, made without blocking and watched: NCCL itself waits for ever for a
// peer that is gone. Sums of bf16 are rounded at each hop. NCCL chooses its algorithm by size and topology:
// the same bits in every run of one layout on the same GPUs.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "base/quantity.h"
#include "comm/device_network.h"
#include "tensor/memory.h"

namespace tessera::comm::nccl {

[[nodiscard]] bool is_built_in();
[[nodiscard]] std::string version();  // "2.28.9"; "" where it is not built in

// device: as CUDA counts them in this process. memory: of that device, whose lanes the groups queue in.
// timeout: of joining a group, and of a collective. Error{unsupported} where NCCL is not built in, or there
// is no such GPU.
[[nodiscard]] std::unique_ptr<DeviceNetwork> make_network(std::int32_t device,
                                                          std::shared_ptr<tensor::Memory> memory,
                                                          Seconds timeout);

}  // namespace tessera::comm::nccl
