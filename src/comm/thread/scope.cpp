#include "comm/thread/scope.h"

#include <fmt/format.h>

namespace tessera::comm::thread {

ThreadCommunicator::Scope::Scope(ThreadCommunicator& comm, Kind kind, const CallInfo& info)
    : comm_(comm), info_(info), base_(comm.slot_.progress.load(std::memory_order_relaxed)) {
  Slot& slot = comm.slot_;
  World& world = comm.group_.world();
  if (world.stopped())
    world.throw_stopped(
        fmt::format("rank {}, {} {}", comm.group_.world_rank(comm.me_).value, comm.label(), name(info.call)));
  number_ = kind == Kind::collective ? ++slot.calls : ++slot.messages;
  record_ = &slot.log.begin(info, number_, comm.site());
}

ThreadCommunicator::Scope::~Scope() {
  Group& group = comm_.group_;
  if (group.world().stopped()) {
    group.quiesce(comm_.me_);
    group.world().withdraw(group.world_rank(comm_.me_));
  }
  FlightLog::end(*record_);
}

void ThreadCommunicator::Scope::publish(void* data, std::span<const std::int64_t> rows) {
  Header& header = comm_.slot_.headers[static_cast<std::size_t>(number_ % 2)];
  header.number = number_;
  header.info = info_;
  header.site = comm_.site();
  header.data = static_cast<std::byte*>(data);
  header.rows = rows;
  comm_.group_.step(comm_.me_);
}

void ThreadCommunicator::Scope::meet(void* data, std::span<const std::int64_t> rows) {
  publish(data, rows);
  comm_.group_.sync_all(comm_.me_);
  for (std::int32_t r = 0; r < comm_.size(); ++r) comm_.check_match(r);
}

}  // namespace tessera::comm::thread
