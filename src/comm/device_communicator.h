// A communicator whose tensors travel from GPU to GPU: what lies in the device's memory goes over a
// DeviceNetwork, queued behind the work that makes it and before the work that reads it, and the host waits
// for nothing; tensors of the host, barriers and the agreement on everything go over the communicator inside.
//
// Messages: each direction between two ranks has a group and a lane of its own, so that one that nobody has
// asked for yet holds nothing up. The sender's host tells the receiver's the tag of each, in the order they
// travel; one that comes before it is asked for is kept.
//
// Not as in Communicator: sums are in the network's order; of all_to_all_v and all_gather_v the counts of
// both sides are not compared (a difference hangs, until the network's patience ends); a call is counted when
// it is queued, so its wall time is not that of the transfer.
#pragma once
#include <memory>

#include "comm/communicator.h"
#include "comm/device_network.h"
#include "tensor/memory.h"

namespace tessera::comm {

// Between which ranks of a group messages of device tensors go.
enum class MessagePairs : std::uint8_t {
  none,
  neighbours,  // r and r + 1, the last and the first
  all,
};

// Over `inner`, whose ranks all call this. Staged (staged.h) where network is null, where the group has one
// rank, and where two of its ranks share a GPU. network outlives the result.
[[nodiscard]] std::unique_ptr<Communicator> make_between_devices(
    std::unique_ptr<Communicator> inner, const std::shared_ptr<tensor::Memory>& memory,
    DeviceNetwork* network, MessagePairs pairs);

}  // namespace tessera::comm
