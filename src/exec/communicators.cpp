#include "exec/communicators.h"

#include <algorithm>
#include <vector>

#include "comm/device_communicator.h"

namespace tessera::exec {

using layout::Axis;

Communicator& Communicators::grad_group(layout::GradGroup group) const {
  switch (group) {
    case layout::GradGroup::dp:
      return *dp;
    case layout::GradGroup::tp_dp:
      return *tp_dp;
    case layout::GradGroup::edp:
      return *edp;
  }
  return *dp;
}

moe::ExpertGroups Communicators::expert_groups() const {
  return {*ep, *etp, ep_inter.get(), ep_intra.get()};
}

std::array<Communicator*, kNumCommunicators> Communicators::all() const {
  return {tp.get(), cp.get(),  pp.get(),       dp.get(),       tp_dp.get(), edp.get(),
          ep.get(), etp.get(), ep_inter.get(), ep_intra.get(), tie.get(),   world.get()};
}

namespace {
// The ranks of this pipeline that hold the embedding and the head, when they differ; else only this rank.
std::vector<Rank> tie_members(const layout::Layout& layout, Rank rank, bool tied) {
  const std::vector<Rank> pipeline = layout.dense.group(rank, {Axis::pp});
  const auto at = [&](std::int32_t stage) {
    return pipeline[static_cast<std::size_t>(layout.stage_rank[static_cast<std::size_t>(stage)])];
  };
  const Rank first = at(0);
  const Rank last = at(static_cast<std::int32_t>(layout.stages.size()) - 1);
  if (!tied || first == last || (rank != first && rank != last)) return {rank};
  return {std::min(first, last), std::max(first, last)};
}
}  // namespace

Communicators make_communicators(const layout::Layout& layout, Rank rank, bool tied,
                                 std::int32_t dispatch_nodes, const CommFactory& factory,
                                 const DeviceRoutes& routes) {
  using comm::MessagePairs;
  const auto make = [&](const std::vector<Rank>& members, std::string_view label,
                        MessagePairs pairs = MessagePairs::none) {
    return comm::make_between_devices(members.size() == 1 ? comm::make_self(label) : factory(members, label),
                                      routes.memory, routes.network, pairs);
  };
  std::vector<Rank> everyone;
  everyone.reserve(static_cast<std::size_t>(layout.world_size()));
  for (std::int32_t r = 0; r < layout.world_size(); ++r) everyone.emplace_back(r);
  const layout::RankGrid& d = layout.dense;
  const layout::RankGrid& e = layout.expert;
  Communicators c;
  c.tp = make(d.group(rank, {Axis::tp}), "tp", routes.tp_messages ? MessagePairs::all : MessagePairs::none);
  c.cp = make(d.group(rank, {Axis::cp}), "cp", MessagePairs::neighbours);
  c.pp = make(d.group(rank, {Axis::pp}), "pp", MessagePairs::neighbours);
  c.dp = make(d.group(rank, {Axis::cp, Axis::dp}), "dp");
  c.tp_dp = make(d.group(rank, {Axis::tp, Axis::cp, Axis::dp}), "tp_dp");
  c.edp = make(e.group(rank, {Axis::edp}), "edp");
  c.ep = make(e.group(rank, {Axis::ep}), "ep");
  c.etp = make(e.group(rank, {Axis::etp}), "etp");
  const layout::NodeGroups nodes = layout::expert_nodes(layout, rank, dispatch_nodes);
  c.ep_inter = make(nodes.across, "ep_inter");
  c.ep_intra = make(dispatch_nodes > 1 ? nodes.inside : std::vector<Rank>{rank}, "ep_intra");
  c.tie = make(tie_members(layout, rank, tied), "tie");
  c.world = make(everyone, "world");
  return c;
}

}  // namespace tessera::exec
