#include "comm/message/message_communicator.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <thread>

#include "base/clock.h"
#include "comm/chunks.h"
#include "comm/message/scope.h"
#include "comm/thread/sum.h"

namespace tessera::comm::message {

namespace {

// Up to here all contributions are exchanged: one latency instead of 2 (N - 1).
constexpr std::int64_t kExchangedBytes = 8 << 10;
constexpr std::int64_t kDirectGatherBytes = 64 << 10;

std::byte* at(const Tensor& x, std::int64_t offset) {
  return static_cast<std::byte*>(x.raw()) + offset;
}

std::int64_t bytes_of_row(const Tensor& x) {
  return x.row_elements() * tensor::size_of(x.dtype());
}

std::int64_t sum_before(std::span<const std::int64_t> rows, std::int32_t rank) {
  std::int64_t sum = 0;
  for (const std::int64_t r : rows.first(static_cast<std::size_t>(rank))) sum += r;
  return sum;
}

void copy_bytes(void* out, const void* in, std::int64_t bytes) {
  // `in` may be the very part of `out` that it belongs to.
  if (bytes > 0 && out != in) std::memcpy(out, in, static_cast<std::size_t>(bytes));
}

CallInfo info_of(Call call, const Tensor& x, std::int64_t match, std::int64_t detail = 0) {
  return {.call = call, .dtype = x.dtype(), .bytes = x.bytes().value, .match = match, .detail = detail};
}

}  // namespace

MessageCommunicator::MessageCommunicator(Seat& seat, std::string_view label, Post& post, thread::World& world,
                                         std::unique_ptr<Wire::Sums> sums)
    : Communicator(seat.place, static_cast<std::int32_t>(seat.members.size()), label),
      seat_(seat),
      post_(post),
      world_(world),
      box_(post.mailbox(seat.group, seat.members[static_cast<std::size_t>(seat.place)])),
      sums_(std::move(sums)),
      exceptions_at_start_(std::uncaught_exceptions()),
      receipts_(seat.members.size()),
      sends_(seat.members.size()),
      sources_(seat.members.size()) {}

Envelope MessageCommunicator::envelope(std::int32_t to, Kind kind, std::int64_t bytes) const {
  return {.group = seat_.group,
          .kind = kind,
          .from = world_rank(rank()).value,
          .to = world_rank(to).value,
          .bytes = bytes,
          .number = number_,
          .info = info_,
          .site = site_now_};
}

std::byte* MessageCommunicator::scratch(std::int64_t bytes) {
  if (std::ssize(scratch_) < bytes) scratch_.resize(static_cast<std::size_t>(bytes));
  return scratch_.data();
}

void MessageCommunicator::post_send(std::int32_t to, const void* data, std::int64_t bytes) {
  post_.send(envelope(to, Kind::collective, bytes), data, outgoing(to));
}

void MessageCommunicator::post_receive(std::int32_t from, void* data, std::int64_t bytes) {
  Receipt& r = receipt(from);
  r.box = &box_;
  r.kind = Kind::collective;
  r.from = world_rank(from).value;
  r.number = number_;
  r.info = info_;
  r.site = site_now_;
  r.compares_sites = compares_sites();
  r.data = data;
  r.bytes = bytes;
  post_.receive(r);
}

void MessageCommunicator::finish_receive(std::int32_t from) {
  Receipt& r = receipt(from);
  wait(from, [&] { return r.over(); });
  if (r.state.load(std::memory_order_relaxed) == Receipt::State::refused) refuse(r);
  r.state.store(Receipt::State::idle, std::memory_order_relaxed);
}

void MessageCommunicator::finish_send(std::int32_t to) {
  Outgoing& s = outgoing(to);
  if (!s.done()) wait(to, [&] { return s.done(); });
}

void MessageCommunicator::finish_sends() {
  for (std::int32_t r = 0; r < size(); ++r) finish_send(r);
}

std::byte* MessageCommunicator::gather_all(const Tensor& x) {
  const std::int64_t bytes = x.bytes().value;
  std::byte* all = scratch(bytes * size());
  for (std::int32_t i = 1; i < size(); ++i) {
    const std::int32_t from = (rank() + i) % size();
    post_receive(from, all + from * bytes, bytes);
  }
  for (std::int32_t i = 1; i < size(); ++i) post_send((rank() + i) % size(), x.raw(), bytes);
  copy_bytes(all + rank() * bytes, x.raw(), bytes);
  for (std::int32_t i = 1; i < size(); ++i) finish_receive((rank() + size() - i) % size());
  finish_sends();
  return all;
}

void MessageCommunicator::ring_reduce(const Tensor& x, void* out) {
  const Chunks chunks(x.num_elements(), size());
  const std::int64_t width = tensor::size_of(x.dtype());
  std::byte* partial = scratch(chunks.length() * width);
  for (std::int32_t s = 0; s < size() - 1; ++s) {
    const std::int32_t mine = (rank() - 2 - s + 2 * size()) % size();
    const std::int32_t sent = (mine + 1) % size();
    post_receive(previous(), partial, chunks.count(mine) * width);
    post_send(next(), at(x, chunks.begin(sent) * width), chunks.count(sent) * width);
    finish_receive(previous());
    std::byte* own = at(x, chunks.begin(mine) * width);
    thread::add(s == size() - 2 ? out : own, partial, own, chunks.count(mine), x.dtype());
    finish_send(next());
  }
}

void MessageCommunicator::ring_gather(std::byte* data, std::int64_t elements, std::int64_t width) {
  const Chunks chunks(elements, size());
  for (std::int32_t s = 0; s < size() - 1; ++s) {
    const std::int32_t mine = (rank() - 1 - s + size()) % size();
    const std::int32_t sent = (mine + 1) % size();
    post_receive(previous(), data + chunks.begin(mine) * width, chunks.count(mine) * width);
    post_send(next(), data + chunks.begin(sent) * width, chunks.count(sent) * width);
    finish_receive(previous());
    finish_send(next());
  }
}

void MessageCommunicator::check(std::int64_t /*waited_ns*/) {
  if (world_.stopped())
    world_.throw_stopped(fmt::format("rank {}, {}", world_rank(rank()).value, title(seat_.name())));
}

void MessageCommunicator::do_all_reduce(Tensor x) {
  const std::int64_t bytes = x.bytes().value;
  const Scope scope(*this, Scope::Lane::collective, info_of(Call::all_reduce, x, bytes));
  if (sums_) {
    Open open{0};
    post_.with_wire([&](Wire&) { sums_->all_reduce(x, open); });
    return wait(kAll, [&] { return open.load(std::memory_order_acquire) == 0; });
  }
  const Chunks chunks(x.num_elements(), size());
  const std::int64_t width = tensor::size_of(x.dtype());
  if (bytes > kExchangedBytes) {
    ring_reduce(x, at(x, chunks.begin(rank()) * width));
    return ring_gather(at(x, 0), x.num_elements(), width);
  }
  const std::byte* all = gather_all(x);
  for (std::int32_t c = 0; c < size(); ++c) {
    const std::int64_t offset = chunks.begin(c) * width;
    for (std::int32_t i = 0; i < size(); ++i)
      sources_[static_cast<std::size_t>(i)] = all + ((c + 1 + i) % size()) * bytes + offset;
    thread::fold(at(x, offset), sources_, chunks.count(c), x.dtype(), Op::sum, thread::Source::own);
  }
}

void MessageCommunicator::do_all_reduce_direct(Tensor x, Op op) {
  const std::int64_t bytes = x.bytes().value;
  const Scope scope(*this, Scope::Lane::collective,
                    info_of(Call::all_reduce_direct, x, bytes, static_cast<std::int64_t>(op)));
  const std::byte* all = gather_all(x);
  for (std::int32_t r = 0; r < size(); ++r) sources_[static_cast<std::size_t>(r)] = all + r * bytes;
  thread::fold(x.raw(), sources_, x.num_elements(), x.dtype(), op, thread::Source::own);
}

void MessageCommunicator::do_reduce_scatter(Tensor out, Tensor in) {
  const Scope scope(*this, Scope::Lane::collective, info_of(Call::reduce_scatter, in, in.bytes().value));
  if (sums_) {
    Open open{0};
    post_.with_wire([&](Wire&) { sums_->reduce_scatter(out, in, open); });
    return wait(kAll, [&] { return open.load(std::memory_order_acquire) == 0; });
  }
  ring_reduce(in, out.raw());
}

void MessageCommunicator::do_all_gather(Tensor out, Tensor in) {
  const std::int64_t part = in.bytes().value;
  const Scope scope(*this, Scope::Lane::collective, info_of(Call::all_gather, in, part));
  copy_bytes(at(out, rank() * part), in.raw(), part);
  if (part > kDirectGatherBytes)
    return ring_gather(at(out, 0), out.num_elements(), tensor::size_of(out.dtype()));
  for (std::int32_t i = 1; i < size(); ++i) {
    const std::int32_t from = (rank() + i) % size();
    post_receive(from, at(out, from * part), part);
  }
  for (std::int32_t i = 1; i < size(); ++i) post_send((rank() + i) % size(), in.raw(), part);
  for (std::int32_t i = 1; i < size(); ++i) finish_receive((rank() + size() - i) % size());
  finish_sends();
}

void MessageCommunicator::do_all_gather_v(Tensor out, Tensor in, Rows rows) {
  const std::int64_t row = bytes_of_row(in);
  const Scope scope(*this, Scope::Lane::collective, info_of(Call::all_gather_v, in, row), rows, row);
  for (std::int32_t i = 1; i < size(); ++i) {
    const std::int32_t from = (rank() + i) % size();
    post_receive(from, at(out, sum_before(rows, from) * row), rows[static_cast<std::size_t>(from)] * row);
  }
  for (std::int32_t i = 1; i < size(); ++i) post_send((rank() + i) % size(), in.raw(), in.bytes().value);
  copy_bytes(at(out, sum_before(rows, rank()) * row), in.raw(), in.bytes().value);
  for (std::int32_t i = 1; i < size(); ++i) finish_receive((rank() + size() - i) % size());
  finish_sends();
}

void MessageCommunicator::do_reduce_scatter_v(Tensor out, Tensor in, Rows rows) {
  const std::int64_t row = bytes_of_row(in);
  const std::int64_t part = out.bytes().value;
  const Scope scope(*this, Scope::Lane::collective, info_of(Call::reduce_scatter_v, in, row), rows, row);
  std::byte* parts = scratch(part * size());
  for (std::int32_t i = 1; i < size(); ++i) {
    const std::int32_t from = (rank() + i) % size();
    post_receive(from, parts + from * part, part);
  }
  for (std::int32_t i = 1; i < size(); ++i) {
    const std::int32_t to = (rank() + i) % size();
    post_send(to, at(in, sum_before(rows, to) * row), rows[static_cast<std::size_t>(to)] * row);
  }
  for (std::int32_t i = 1; i < size(); ++i) finish_receive((rank() + size() - i) % size());
  for (std::int32_t r = 0; r < size(); ++r)
    sources_[static_cast<std::size_t>(r)] =
        r == rank() ? at(in, sum_before(rows, rank()) * row) : parts + r * part;
  thread::fold(out.raw(), sources_, out.num_elements(), out.dtype(), Op::sum, thread::Source::own);
  finish_sends();
}

void MessageCommunicator::do_all_to_all_v(Tensor out, Rows recv_rows, Tensor in, Rows send_rows) {
  const std::int64_t row = bytes_of_row(in);
  const Scope scope(*this, Scope::Lane::collective, info_of(Call::all_to_all_v, in, row), recv_rows, row);
  for (std::int32_t i = 1; i < size(); ++i) {
    const std::int32_t from = (rank() + i) % size();
    post_receive(from, at(out, sum_before(recv_rows, from) * row),
                 recv_rows[static_cast<std::size_t>(from)] * row);
  }
  for (std::int32_t i = 1; i < size(); ++i) {
    const std::int32_t to = (rank() + i) % size();
    post_send(to, at(in, sum_before(send_rows, to) * row), send_rows[static_cast<std::size_t>(to)] * row);
  }
  copy_bytes(at(out, sum_before(recv_rows, rank()) * row), at(in, sum_before(send_rows, rank()) * row),
             recv_rows[static_cast<std::size_t>(rank())] * row);
  for (std::int32_t i = 1; i < size(); ++i) finish_receive((rank() + size() - i) % size());
  finish_sends();
}

void MessageCommunicator::do_broadcast(Tensor x, std::int32_t root) {
  const std::int64_t bytes = x.bytes().value;
  const Scope scope(*this, Scope::Lane::collective, info_of(Call::broadcast, x, bytes, root));
  if (rank() != root) {
    post_receive(root, x.raw(), bytes);
    finish_receive(root);
    post_send(root, nullptr, 0);
    return finish_send(root);
  }
  for (std::int32_t i = 1; i < size(); ++i) {
    const std::int32_t r = (rank() + i) % size();
    post_receive(r, nullptr, 0);
    post_send(r, x.raw(), bytes);
  }
  for (std::int32_t i = 1; i < size(); ++i) finish_receive((rank() + i) % size());
  finish_sends();
}

void MessageCommunicator::do_barrier() {
  const Scope scope(*this, Scope::Lane::collective, CallInfo{.call = Call::barrier});
  for (std::int32_t far = 1; far < size(); far *= 2) {
    const std::int32_t from = (rank() + size() - far) % size();
    post_receive(from, nullptr, 0);
    post_send((rank() + far) % size(), nullptr, 0);
    finish_receive(from);
    finish_send((rank() + far) % size());
  }
}

}  // namespace tessera::comm::message
