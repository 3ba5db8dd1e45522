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
  constexpr auto relaxed = std::memory_order_relaxed;
  const std::int64_t count = slot.num_records.load(relaxed);
  record_ = &slot.records[static_cast<std::size_t>(count % kRecords)];
  record_->number.store(number_, relaxed);
  record_->bytes.store(info.bytes, relaxed);
  record_->tag.store(info.tag, relaxed);
  record_->peer.store(info.peer, relaxed);
  record_->call.store(info.call, relaxed);
  record_->dtype.store(info.dtype, relaxed);
  record_->ends_send.store(info.ends_send, relaxed);
  record_->open.store(true, relaxed);
  slot.num_records.store(count + 1, std::memory_order_release);
}

ThreadCommunicator::Scope::~Scope() {
  Group& group = comm_.group_;
  if (group.world().stopped()) {
    group.quiesce(comm_.me_);
    group.world().withdraw(group.world_rank(comm_.me_));
  }
  record_->open.store(false, std::memory_order_relaxed);
}

void ThreadCommunicator::Scope::publish(void* data, std::span<const std::int64_t> rows) {
  Header& header = comm_.slot_.headers[static_cast<std::size_t>(number_ % 2)];
  header.number = number_;
  header.info = info_;
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
