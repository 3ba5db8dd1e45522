// Point to point: the sender queues a note that points at its tensor, the receiver copies from there.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <thread>

#include "comm/thread/group_wait.h"
#include "comm/thread/scope.h"
#include "comm/thread/sum.h"

namespace tessera::comm::thread {

namespace {

CallInfo info_of(Call call, const Tensor& x, std::int32_t peer, std::int64_t tag) {
  return {.call = call, .dtype = x.dtype(), .bytes = x.bytes().value, .peer = peer, .tag = tag};
}

// The oldest message of the tag that nobody receives yet. Channel locked.
Message* find(Channel& channel, std::int64_t tag) {
  const auto it =
      std::ranges::find_if(channel.queue, [&](const Message& m) { return m.tag == tag && !m.taken; });
  return it == channel.queue.end() ? nullptr : &*it;
}

}  // namespace

ThreadCommunicator::~ThreadCommunicator() {
  // While an error unwinds this rank the receivers shall hear of that error, not of a closed communicator.
  const bool leaves_in_order = std::uncaught_exceptions() <= exceptions_at_start_;
  group_.withdraw(me_, leaves_in_order);
  slot_.held.store(false, std::memory_order_release);
}

void Group::withdraw(std::int32_t me, bool close) {
  for (std::int32_t to = 0; to < size(); ++to) {
    Channel& c = channel(me, to);
    bool copying = true;
    while (copying) {
      {
        const std::lock_guard lock(c.mutex);
        if (close) c.closed = true;
        std::erase_if(c.queue, [](const Message& m) { return !m.taken; });
        copying = !c.queue.empty();
      }
      if (copying) std::this_thread::yield();
    }
    bump(c.posted, c.posted_waiters);
  }
}

void Group::open_all() {
  for (std::int32_t from = 0; from < size(); ++from) {
    for (std::int32_t to = 0; to < size(); ++to) {
      Channel& c = channel(from, to);
      const std::lock_guard lock(c.mutex);
      c.closed = false;
    }
  }
}

void ThreadCommunicator::do_send(Tensor x, std::int32_t to, std::int64_t tag) {
  Scope scope(*this, Scope::Kind::message, info_of(Call::send, x, to, tag));
  Channel& channel = group_.channel(me_, to);
  {
    const std::lock_guard lock(channel.mutex);
    channel.queue.push_back(
        {.id = channel.next_id++, .tag = tag, .data = x.raw(), .bytes = x.bytes().value, .dtype = x.dtype()});
  }
  Group::bump(channel.posted, channel.posted_waiters);
}

Message ThreadCommunicator::take(Channel& channel, const Tensor& x, std::int32_t from, std::int64_t tag) {
  Message taken;
  bool closed = false;
  const auto try_take = [&] {
    const std::lock_guard lock(channel.mutex);
    Message* m = find(channel, tag);
    if (m == nullptr) {
      closed = channel.closed;
      return closed;
    }
    // A message of another size stays in the queue: the error below must not leave it marked.
    if (m->bytes == x.bytes().value && m->dtype == x.dtype()) m->taken = true;
    taken = *m;
    return true;
  };
  while (true) {
    const std::uint32_t seen = channel.posted.load(std::memory_order_seq_cst);
    if (try_take()) break;
    group_.wait_word(me_, from, channel.posted, channel.posted_waiters,
                     [&] { return channel.posted.load(std::memory_order_seq_cst) != seen; });
  }
  if (taken.taken) return taken;
  World& world = group_.world();
  if (world.stopped())
    world.throw_stopped(fmt::format("rank {}, {}", group_.world_rank(me_).value, group_.title()));
  const Rank me = group_.world_rank(me_);
  const Rank sender = group_.world_rank(from);
  if (closed)
    world.fail(me, Error(ErrorKind::comm,
                         fmt::format("rank {} closed its communicator before rank {} received {} tag {}",
                                     sender.value, me.value, label(), tag),
                         fmt::format("rank {}, {}", me.value, group_.title()),
                         "keep the communicator and the sent tensor until wait_send returns"));
  world.fail(me, message_differs({sender, taken.bytes, taken.dtype}, {me, x.bytes().value, x.dtype()}, tag,
                                 group_.group_name()));
}

void ThreadCommunicator::do_recv(Tensor x, std::int32_t from, std::int64_t tag) {
  Scope scope(*this, Scope::Kind::message, info_of(Call::recv, x, from, tag));
  Channel& channel = group_.channel(from, me_);
  const Message message = take(channel, x, from, tag);
  copy_from_peer(x.raw(), message.data, message.bytes);
  {
    const std::lock_guard lock(channel.mutex);
    std::erase_if(channel.queue, [&](const Message& m) { return m.id == message.id; });
  }
  Group::bump(channel.received, channel.received_waiters);
}

void ThreadCommunicator::do_wait_send(std::int32_t to, std::int64_t tag) {
  Channel& channel = group_.channel(me_, to);
  const auto pending = [&] {
    const std::lock_guard lock(channel.mutex);
    const auto it = std::ranges::find_if(channel.queue, [&](const Message& m) { return m.tag == tag; });
    return it == channel.queue.end() ? std::int64_t{-1} : it->bytes;
  };
  std::uint32_t seen = channel.received.load(std::memory_order_seq_cst);
  std::int64_t bytes = pending();
  if (bytes < 0) return;
  const CallInfo info{.call = Call::send, .bytes = bytes, .peer = to, .tag = tag, .ends_send = true};
  Scope scope(*this, Scope::Kind::message, info);
  while (bytes >= 0) {
    group_.wait_word(me_, to, channel.received, channel.received_waiters,
                     [&] { return channel.received.load(std::memory_order_seq_cst) != seen; });
    seen = channel.received.load(std::memory_order_seq_cst);
    bytes = pending();
  }
}

}  // namespace tessera::comm::thread
