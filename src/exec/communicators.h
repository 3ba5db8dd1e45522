// The communicators of one rank, one per axis of the layout. Labels are the axes of traces and metrics.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "comm/communicator.h"
#include "comm/device_network.h"
#include "layout/layout.h"
#include "moe/dispatch.h"

namespace tessera::exec {

using comm::Communicator;

// Makes this rank's end of a communicator over `members` (ThreadWorld, MPI, ... behind it).
using CommFactory =
    std::function<std::unique_ptr<Communicator>(std::span<const Rank> members, std::string_view label)>;

inline constexpr std::size_t kNumCommunicators = 12;

struct Communicators {
  std::unique_ptr<Communicator> tp;  // sequence parallelism and tensor parallelism of dense layers
  std::unique_ptr<Communicator> cp;  // ranks that share sequences: keys and values, units of a micro-batch
  std::unique_ptr<Communicator> pp;  // pipeline messages; group rank = pipeline rank
  std::unique_ptr<Communicator> ep;  // dispatch and combine
  // Of hierarchical dispatch, else of one rank: ep ranks in this one's place on each node, and on this node.
  std::unique_ptr<Communicator> ep_inter, ep_intra;
  std::unique_ptr<Communicator> etp;    // experts cut over their width
  std::unique_ptr<Communicator> dp;     // gradients of dense weights
  std::unique_ptr<Communicator> tp_dp;  // gradients of weights that every tp rank holds whole
  std::unique_ptr<Communicator> edp;    // gradients of expert weights
  std::unique_ptr<Communicator> tie;    // first and last stage, when they share the embedding; else one rank
  std::unique_ptr<Communicator> world;  // scalars: loss, norm, routing statistics

  [[nodiscard]] moe::ExpertGroups expert_groups() const;
  [[nodiscard]] Communicator& grad_group(layout::GradGroup group) const;
  // All of them, in a fixed order.
  [[nodiscard]] std::array<Communicator*, kNumCommunicators> all() const;
};

// How tensors in the memory of GPUs travel between ranks.
struct DeviceRoutes {
  std::shared_ptr<tensor::Memory> memory;  // of this rank's tensors
  comm::DeviceNetwork* network = nullptr;  // null: through the host
  bool tp_messages = false;                // tp_comm_overlap: all tp ranks send to all
};

// dispatch_nodes: nodes that hierarchical dispatch tells apart in an ep group; 1: none.
[[nodiscard]] Communicators make_communicators(const layout::Layout& layout, Rank rank, bool tied,
                                               std::int32_t dispatch_nodes, const CommFactory& factory,
                                               const DeviceRoutes& routes);

}  // namespace tessera::exec
