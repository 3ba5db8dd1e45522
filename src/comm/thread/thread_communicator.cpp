#include "comm/thread/thread_communicator.h"

#include <fmt/format.h>

#include <cstring>
#include <exception>

#include "comm/chunks.h"
#include "comm/thread/scope.h"
#include "comm/thread/sum.h"
#include "comm/thread/world.h"

namespace tessera::comm::thread {

namespace {

void copy(void* out, const void* in, std::int64_t bytes) {
  // `in` may be the very part of `out` that it belongs to.
  if (bytes > 0 && out != in) std::memcpy(out, in, static_cast<std::size_t>(bytes));
}

std::byte* at(const Tensor& x, std::int64_t offset) {
  return static_cast<std::byte*>(x.raw()) + offset;
}

std::int64_t row_bytes(const Tensor& x) {
  return x.row_elements() * tensor::size_of(x.dtype());
}

std::int64_t sum_before(std::span<const std::int64_t> rows, std::int32_t rank) {
  std::int64_t sum = 0;
  for (const std::int64_t r : rows.first(static_cast<std::size_t>(rank))) sum += r;
  return sum;
}

CallInfo info_of(Call call, const Tensor& x, std::int64_t match, std::int64_t detail = 0) {
  return {.call = call, .dtype = x.dtype(), .bytes = x.bytes().value, .match = match, .detail = detail};
}

// With three ranks or more, what fits here is cheaper by three meetings than by 2 (N - 1) ring steps.
constexpr std::int64_t kGatheredBytes = 1 << 20;

}  // namespace

ThreadCommunicator::ThreadCommunicator(Group& group, std::int32_t rank)
    : Communicator(rank, group.size(), group.label()),
      group_(group),
      me_(rank),
      slot_(group.slot(rank)),
      exceptions_at_start_(std::uncaught_exceptions()),
      sources_(static_cast<std::size_t>(group.size())) {
  for (std::int32_t to = 0; to < size(); ++to) {
    Channel& channel = group_.channel(me_, to);
    const std::lock_guard lock(channel.mutex);
    channel.closed = false;
  }
}

std::unique_ptr<Communicator> make_communicator(Group& group, std::int32_t rank) {
  if (group.slot(rank).held.exchange(true))
    throw Error(ErrorKind::internal,
                fmt::format("instance {} is already in use by this rank", group.instance()),
                fmt::format("rank {}, communicator {}", group.world_rank(rank).value, group.label()),
                "ask for another instance, or destroy the first communicator");
  return std::make_unique<ThreadCommunicator>(group, rank);
}

const Header& ThreadCommunicator::header(std::int32_t peer) const {
  return group_.slot(peer).headers[static_cast<std::size_t>(slot_.calls % 2)];
}

std::byte* ThreadCommunicator::data(std::int32_t peer) const {
  return header(peer).data;
}

void ThreadCommunicator::mismatch(std::int32_t peer, const std::string& detail) const {
  const Header& mine = header(me_);
  const Header& theirs = header(peer);
  group_.world().fail(group_.world_rank(me_),
                      calls_differ({group_.world_rank(me_), mine.info, mine.number, mine.site},
                                   {group_.world_rank(peer), theirs.info, theirs.number, theirs.site}, detail,
                                   group_.group_name()));
}

void ThreadCommunicator::check_match(std::int32_t peer) const {
  const CallInfo& a = header(me_).info;
  const CallInfo& b = header(peer).info;
  if (compares_sites() && header(me_).site != header(peer).site) mismatch(peer, "");
  if (a.call != b.call || a.dtype != b.dtype || a.match != b.match) mismatch(peer, "");
  if (a.detail != b.detail) mismatch(peer, detail_text(a, b));
}

void ThreadCommunicator::check_rows(std::int32_t peer) const {
  const auto mine = header(me_).rows;
  const auto theirs = header(peer).rows;
  for (std::size_t i = 0; i < mine.size(); ++i)
    if (mine[i] != theirs[i])
      mismatch(peer, fmt::format(": rows[{}] is {} on rank {} and {} on rank {}", i, mine[i],
                                 group_.world_rank(me_).value, theirs[i], group_.world_rank(peer).value));
}

void ThreadCommunicator::ring_sources(std::int32_t chunk, std::int64_t offset) {
  for (std::int32_t i = 0; i < size(); ++i)
    sources_[static_cast<std::size_t>(i)] = data((chunk + 1 + i) % size()) + offset;
}

void ThreadCommunicator::rank_sources(std::int64_t offset) {
  for (std::int32_t i = 0; i < size(); ++i) sources_[static_cast<std::size_t>(i)] = data(i) + offset;
}

std::byte* ThreadCommunicator::scratch(std::int64_t bytes) {
  if (std::ssize(scratch_) < bytes) scratch_.resize(static_cast<std::size_t>(bytes));
  return scratch_.data();
}

void ThreadCommunicator::check(std::int64_t /*waited_ns*/) {
  World& world = group_.world();
  if (world.stopped())
    world.throw_stopped(fmt::format("rank {}, {}", group_.world_rank(me_).value, group_.title()));
}

void ThreadCommunicator::do_all_reduce(Tensor x) {
  const std::int64_t bytes = x.bytes().value;
  Scope scope(*this, Scope::Kind::collective, info_of(Call::all_reduce, x, bytes));
  if (bytes <= kInlineBytes)
    all_reduce_inline(scope, x);
  else if (size() > 2 && bytes <= kGatheredBytes)
    all_reduce_gathered(scope, x);
  else
    all_reduce_ring(scope, x);
}

void ThreadCommunicator::all_reduce_inline(Scope& scope, const Tensor& x) {
  auto& mine = slot_.inline_data[static_cast<std::size_t>(slot_.calls % 2)];
  copy(mine.data(), x.raw(), x.bytes().value);
  scope.meet(mine.data());
  const Chunks chunks(x.num_elements(), size());
  const std::int64_t width = tensor::size_of(x.dtype());
  for (std::int32_t c = 0; c < size(); ++c) {
    ring_sources(c, chunks.begin(c) * width);
    fold(at(x, chunks.begin(c) * width), sources_, chunks.count(c), x.dtype(), Op::sum, Source::own);
  }
}

void ThreadCommunicator::all_reduce_gathered(Scope& scope, const Tensor& x) {
  const Chunks chunks(x.num_elements(), size());
  const std::int64_t width = tensor::size_of(x.dtype());
  const auto offset = [&](std::int32_t c) { return chunks.begin(c) * width; };
  scope.meet(x.raw());
  {
    const Read read(*this);
    ring_sources(me_, offset(me_));
    fold(at(x, offset(me_)), sources_, chunks.count(me_), x.dtype(), Op::sum, Source::peers);
  }
  group_.sync_all(me_);
  {
    const Read read(*this);
    for (std::int32_t i = 1; i < size(); ++i) {
      const std::int32_t c = (me_ + i) % size();
      copy_from_peer(at(x, offset(c)), data(c) + offset(c), chunks.count(c) * width);
    }
  }
  group_.sync_all(me_);
}

void ThreadCommunicator::do_all_reduce_direct(Tensor x, Op op) {
  const std::int64_t bytes = x.bytes().value;
  Scope scope(*this, Scope::Kind::collective,
              info_of(Call::all_reduce_direct, x, bytes, static_cast<std::int64_t>(op)));
  if (bytes <= kInlineBytes) {
    auto& mine = slot_.inline_data[static_cast<std::size_t>(slot_.calls % 2)];
    copy(mine.data(), x.raw(), bytes);
    scope.meet(mine.data());
    rank_sources(0);
    return fold(x.raw(), sources_, x.num_elements(), x.dtype(), op, Source::own);
  }
  std::byte* sum = scratch(bytes);
  scope.meet(x.raw());
  {
    const Read read(*this);
    rank_sources(0);
    fold(sum, sources_, x.num_elements(), x.dtype(), op, Source::peers);
  }
  group_.sync_all(me_);  // now nobody needs the contribution in x
  copy(x.raw(), sum, bytes);
}

void ThreadCommunicator::do_reduce_scatter(Tensor out, Tensor in) {
  Scope scope(*this, Scope::Kind::collective, info_of(Call::reduce_scatter, in, in.bytes().value));
  scope.meet(in.raw());
  {
    const Read read(*this);
    ring_sources(me_, me_ * out.bytes().value);
    fold(out.raw(), sources_, out.num_elements(), out.dtype(), Op::sum, Source::peers);
  }
  group_.sync_all(me_);
}

void ThreadCommunicator::do_reduce_scatter_v(Tensor out, Tensor in, Rows rows) {
  Scope scope(*this, Scope::Kind::collective, info_of(Call::reduce_scatter_v, in, in.bytes().value));
  scope.meet(in.raw(), rows);
  {
    const Read read(*this);
    for (std::int32_t r = 0; r < size(); ++r) check_rows(r);
    rank_sources(sum_before(rows, me_) * row_bytes(in));
    fold(out.raw(), sources_, out.num_elements(), out.dtype(), Op::sum, Source::peers);
  }
  group_.sync_all(me_);
}

void ThreadCommunicator::do_all_gather(Tensor out, Tensor in) {
  const std::int64_t part = in.bytes().value;
  Scope scope(*this, Scope::Kind::collective, info_of(Call::all_gather, in, part));
  scope.meet(in.raw());
  {
    const Read read(*this);
    for (std::int32_t i = 0; i < size(); ++i) {
      const std::int32_t r = (me_ + i) % size();  // not all at the same peer at once
      copy_from_peer(at(out, r * part), data(r), part);
    }
  }
  group_.sync_all(me_);
}

void ThreadCommunicator::do_all_gather_v(Tensor out, Tensor in, Rows rows) {
  const std::int64_t row = row_bytes(in);
  Scope scope(*this, Scope::Kind::collective, info_of(Call::all_gather_v, in, row));
  scope.meet(in.raw(), rows);
  {
    const Read read(*this);
    for (std::int32_t r = 0; r < size(); ++r) check_rows(r);
    for (std::int32_t i = 0; i < size(); ++i) {
      const std::int32_t r = (me_ + i) % size();
      copy_from_peer(at(out, sum_before(rows, r) * row), data(r), rows[static_cast<std::size_t>(r)] * row);
    }
  }
  group_.sync_all(me_);
}

void ThreadCommunicator::do_all_to_all_v(Tensor out, Rows recv_rows, Tensor in, Rows send_rows) {
  const std::int64_t row = row_bytes(in);
  Scope scope(*this, Scope::Kind::collective, info_of(Call::all_to_all_v, in, row));
  scope.meet(in.raw(), send_rows);
  {
    const Read read(*this);
    for (std::int32_t r = 0; r < size(); ++r) {
      const std::int64_t sent = header(r).rows[static_cast<std::size_t>(me_)];
      const std::int64_t expected = recv_rows[static_cast<std::size_t>(r)];
      if (sent != expected)
        mismatch(r, fmt::format(": rank {} sends {} rows to rank {}, which expects {}",
                                group_.world_rank(r).value, sent, group_.world_rank(me_).value, expected));
    }
    for (std::int32_t i = 0; i < size(); ++i) {
      const std::int32_t r = (me_ + i) % size();
      copy_from_peer(at(out, sum_before(recv_rows, r) * row), data(r) + sum_before(header(r).rows, me_) * row,
                     recv_rows[static_cast<std::size_t>(r)] * row);
    }
  }
  group_.sync_all(me_);
}

void ThreadCommunicator::do_broadcast(Tensor x, std::int32_t root) {
  Scope scope(*this, Scope::Kind::collective, info_of(Call::broadcast, x, x.bytes().value, root));
  scope.meet(x.raw());
  if (me_ != root) {
    const Read read(*this);
    copy_from_peer(x.raw(), data(root), x.bytes().value);
  }
  group_.sync_all(me_);
}

void ThreadCommunicator::do_barrier() {
  Scope scope(*this, Scope::Kind::collective, CallInfo{.call = Call::barrier});
  scope.meet(nullptr);
}

}  // namespace tessera::comm::thread
