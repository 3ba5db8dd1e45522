#include "comm/message/scope.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>

namespace tessera::comm::message {

namespace {
// How long a rank that an error ends waits for bodies that still use its memory. One that nobody takes in
// never ends; after this time its memory may go: only a wire that moves on its own would still read it.
constexpr std::int64_t kGraceNs = 50'000'000;
// After a rank has left: until what was sent to it is known to have arrived, or counts as never received.
constexpr std::int64_t kLearnsNs = 1'000'000'000;
}  // namespace

MessageCommunicator::Scope::Scope(MessageCommunicator& comm, Lane lane, const CallInfo& info, Rows rows,
                                  std::int64_t row_bytes)
    : comm_(comm) {
  if (comm.world_.stopped())
    comm.world_.throw_stopped(
        fmt::format("rank {}, {} {}", comm.world_rank(comm.rank()).value, comm.label(), name(info.call)));
  Seat& seat = comm.seat_;
  comm.number_ = lane == Lane::collective ? ++seat.calls : ++seat.messages;
  comm.info_ = info;
  comm.site_now_ = comm.site();
  comm.rows_ = rows;
  comm.row_bytes_ = row_bytes;
  record_ = &seat.log.begin(info, comm.number_, comm.site_now_);
}

MessageCommunicator::Scope::~Scope() {
  if (comm_.world_.stopped()) comm_.quiesce();
  FlightLog::end(*record_);
  comm_.seat_.log.wait_for(kNobody);
}

void MessageCommunicator::quiesce() {
  for (Receipt& r : receipts_) post_.withdraw(r);
  for (std::int32_t to = 0; to < size(); ++to)
    if (!outgoing(to).done()) post_.withdraw(post_.mailbox(seat_.group, world_rank(to)), outgoing(to));
  const auto moving = [](const Receipt& r) {
    return r.state.load(std::memory_order_acquire) == Receipt::State::moving && !r.over();
  };
  const auto open = [](const Outgoing& s) { return !s.done(); };
  const std::int64_t start = tessera::wall_ns();
  while ((std::ranges::any_of(receipts_, moving) || std::ranges::any_of(sends_, open)) &&
         tessera::wall_ns() - start < kGraceNs) {
    post_.poll();
    ::sched_yield();
  }
  for (Receipt& r : receipts_)
    if (moving(r)) post_.forget(r.open);
  for (Outgoing& s : sends_)
    if (open(s)) post_.forget(s.open);
}

MessageCommunicator::~MessageCommunicator() {
  // Sent and never waited for: in order, the memory goes when the receiver has it.
  const bool in_order = std::uncaught_exceptions() <= exceptions_at_start_;
  const std::int64_t start = tessera::wall_ns();
  const auto open = [](const auto& s) { return !s->sent.done(); };
  while (in_order && std::ranges::any_of(sending_, open) && !world_.stopped() &&
         tessera::wall_ns() - start < world_.timeout_ns()) {
    post_.poll();
    std::this_thread::sleep_for(kSleep);
  }
  for (const auto& s : sending_)
    if (!s->sent.done()) post_.withdraw(post_.mailbox(seat_.group, world_rank(s->to)), s->sent);
  const std::int64_t stopped = tessera::wall_ns();
  while (std::ranges::any_of(sending_, open) && tessera::wall_ns() - stopped < kGraceNs) {
    post_.poll();
    ::sched_yield();
  }
  for (const auto& s : sending_)
    if (open(s)) post_.forget(s->sent.open);
  keep_open_memory();
  seat_.held.store(false, std::memory_order_release);
}

// The wire may still count bodies down, and write into the scratch.
void MessageCommunicator::keep_open_memory() {
  const bool open = std::ranges::any_of(sending_, [](const auto& s) { return !s->sent.done(); }) ||
                    std::ranges::any_of(sends_, [](const Outgoing& s) { return !s.done(); }) ||
                    std::ranges::any_of(receipts_, [](const Receipt& r) {
                      return r.state.load() == Receipt::State::moving && !r.over();
                    });
  if (!open) return;
  struct Kept {
    std::vector<Receipt> receipts;
    std::vector<Outgoing> sends;
    std::vector<std::unique_ptr<Sending>> sending;
    std::vector<std::byte> scratch;
  };
  auto kept = std::make_shared<Kept>();
  kept->receipts.swap(receipts_);
  kept->sends.swap(sends_);
  kept->sending.swap(sending_);
  kept->scratch.swap(scratch_);
  post_.keep(std::move(kept));
}

void MessageCommunicator::check_wait(std::int32_t peer, std::int64_t started_ns, std::int64_t now) {
  const Rank me = world_rank(rank());
  const std::string whom = peer == kAll ? "the other ranks" : fmt::format("rank {}", world_rank(peer).value);
  const auto doing = [&] { return seat_.log.doing(seat_.name(), whom); };
  const auto end_if_stopped = [&] {
    if (!world_.stopped()) return;
    world_.throw_stopped(fmt::format("rank {}, {}; {}", me.value, title(seat_.name()), doing()));
  };
  end_if_stopped();
  Envelope other;
  if (info_.peer == kNobody && post_.find_other_call(box_, info_, number_, other)) differ(other);
  const auto left = [&](std::int32_t r) {
    const thread::RankState state = world_.state(world_rank(r));
    return state == thread::RankState::finished || state == thread::RankState::failed;
  };
  for (std::int32_t r = 0; r < size(); ++r) {
    if (r == rank() || (peer != kAll && r != peer) || !left(r)) continue;
    // Its last messages came before the word that it left; but one may have been taken in since.
    if (r == peer && (receipt(r).over() || receipt(r).state == Receipt::State::moving)) continue;
    // It may have left because it has all that was sent to it, which this end only learns a moment later.
    if (r == peer && !outgoing(r).done()) {
      if (left_ns_ < started_ns) left_ns_ = now;
      if (now - left_ns_ < kLearnsNs) continue;
    }
    end_if_stopped();  // a rank that failed has told why before
    world_.fail(me, peer_left(me, doing(), world_rank(r), seat_.name()));
  }
  if (now - started_ns > world_.timeout_ns())
    world_.fail(me, no_answer(me, doing(), now - started_ns, whom, seat_.name()));
}

std::string MessageCommunicator::rows_text(const Envelope& theirs, std::int32_t from) const {
  if (rows_.empty() || row_bytes_ <= 0 || theirs.info.call != info_.call || theirs.number != number_ ||
      theirs.info.match != info_.match)
    return "";
  const Rank me = world_rank(rank());
  const Rank it = world_rank(from);
  const std::int64_t sent = theirs.bytes / row_bytes_;
  if (info_.call == Call::all_to_all_v)
    return fmt::format(": rank {} sends {} rows to rank {}, which expects {}", it.value, sent, me.value,
                       rows_[static_cast<std::size_t>(from)]);
  const std::int32_t i = info_.call == Call::all_gather_v ? from : rank();
  return fmt::format(": rows[{}] is {} on rank {} and {} on rank {}", i, rows_[static_cast<std::size_t>(i)],
                     me.value, sent, it.value);
}

void MessageCommunicator::differ(const Envelope& theirs) {
  std::int32_t from = 0;
  while (world_rank(from).value != theirs.from) ++from;
  const Rank me = world_rank(rank());
  std::string detail = rows_text(theirs, from);
  if (detail.empty() && theirs.info.call == info_.call) detail = detail_text(info_, theirs.info);
  world_.fail(
      me, calls_differ({me, info_, number_, site_now_},
                       {Rank(theirs.from), theirs.info, theirs.number, theirs.site}, detail, seat_.name()));
}

void MessageCommunicator::refuse(const Receipt& r) {
  if (world_.stopped())
    world_.throw_stopped(fmt::format("rank {}, {}", world_rank(rank()).value, title(seat_.name())));
  if (r.kind == Kind::collective) differ(r.got);
  const Rank me = world_rank(rank());
  world_.fail(me, message_differs({Rank(r.from), r.got.bytes, r.got.info.dtype}, {me, r.bytes, r.info.dtype},
                                  r.info.tag, seat_.name()));
}

void MessageCommunicator::do_send(Tensor x, std::int32_t to, std::int64_t tag) {
  const CallInfo info{
      .call = Call::send, .dtype = x.dtype(), .bytes = x.bytes().value, .peer = to, .tag = tag};
  const Scope scope(*this, Scope::Lane::direct, info);
  // A slot whose message has been received is free, waited for or not.
  auto it = std::ranges::find_if(sending_, [](const auto& s) { return s->sent.done(); });
  if (it == sending_.end()) it = sending_.insert(it, std::make_unique<Sending>());
  Sending& s = **it;
  s.to = to;
  s.tag = tag;
  s.bytes = x.bytes().value;
  s.dtype = x.dtype();
  post_.send(envelope(to, Kind::direct, s.bytes), x.raw(), s.sent);
  post_.poll();
}

void MessageCommunicator::do_recv(Tensor x, std::int32_t from, std::int64_t tag) {
  const CallInfo info{
      .call = Call::recv, .dtype = x.dtype(), .bytes = x.bytes().value, .peer = from, .tag = tag};
  const Scope scope(*this, Scope::Lane::direct, info);
  Receipt& r = receipt(from);
  r.box = &box_;
  r.kind = Kind::direct;
  r.from = world_rank(from).value;
  r.number = number_;
  r.info = info;
  r.data = x.raw();
  r.bytes = x.bytes().value;
  post_.receive(r);
  finish_receive(from);
}

void MessageCommunicator::do_wait_send(std::int32_t to, std::int64_t tag) {
  for (const auto& s : sending_) {
    if (s->to != to || s->tag != tag || s->sent.done()) continue;
    const CallInfo info{
        .call = Call::send, .dtype = s->dtype, .bytes = s->bytes, .peer = to, .tag = tag, .ends_send = true};
    const Scope scope(*this, Scope::Lane::direct, info);
    wait(to, [&] { return s->sent.done(); });
  }
}

}  // namespace tessera::comm::message
