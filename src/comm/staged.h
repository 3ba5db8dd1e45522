// A communicator for tensors in a GPU's memory over one that moves host memory: every call waits for the work
// queued before it, copies to the host, calls, copies back. For ranks that share one GPU, and where there is
// no NCCL; a group of one rank only copies inside the device. Tensors of the host go through as they are.
//
// Memory on the host grows to what calls need; a message keeps its own until wait_send, or until the next
// message with its peer and tag. bf16 is summed in f32 and rounded once.
#pragma once
#include <memory>

#include "comm/communicator.h"
#include "tensor/memory.h"

namespace tessera::comm {

// `inner` as it is where it moves memory's tensors itself.
[[nodiscard]] std::unique_ptr<Communicator> make_staged(std::unique_ptr<Communicator> inner,
                                                        std::shared_ptr<tensor::Memory> memory);

}  // namespace tessera::comm
