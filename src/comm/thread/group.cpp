#include "comm/thread/group.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "comm/thread/group_wait.h"
#include "comm/thread/world.h"

namespace tessera::comm::thread {

namespace {
constexpr std::int64_t kNoStep = -1;
constexpr auto kSeqCst = std::memory_order_seq_cst;

std::uint32_t bit_of(std::int32_t rank) {
  return std::uint32_t{1} << static_cast<std::uint32_t>(rank % 32);  // shared bits only wake too many
}
}  // namespace

Group::Group(World& world, std::vector<Rank> members, std::string_view label, std::int32_t instance)
    : world_(world),
      members_(std::move(members)),
      label_(label),
      instance_(instance),
      slots_(members_.size()),
      channels_(members_.size() * members_.size()) {
  for (Slot& s : slots_) {
    s.wanted = std::make_unique<std::atomic<std::int64_t>[]>(members_.size());
    for (std::size_t r = 0; r < members_.size(); ++r) s.wanted[r].store(kNoStep, kSeqCst);
  }
  for (Channel& c : channels_) c.queue.reserve(Channel::kSlots);
}

void Group::step(std::int32_t me) {
  Slot& s = slot(me);
  const std::uint32_t now = s.progress.load(std::memory_order_relaxed) + 1;
  // Total order with a sleeper's `waiters` and its second look at progress: one of the two sees the other.
  s.progress.store(now, kSeqCst);
  if (s.waiters.load(kSeqCst) == 0) return;
  std::uint32_t wake = 0;
  for (std::int32_t r = 0; r < size(); ++r) {
    const std::int64_t wanted = s.wanted[static_cast<std::size_t>(r)].load(kSeqCst);
    if (wanted != kNoStep && reached(now, static_cast<std::uint32_t>(wanted))) wake |= bit_of(r);
  }
  if (wake != 0) futex_wake(s.progress, wake);
}

void Group::wait_step(std::int32_t me, std::int32_t peer, std::uint32_t target) {
  Slot& p = slot(peer);
  const auto done = [&] { return reached(p.progress.load(kSeqCst), target); };
  if (spin(done)) return;
  auto& wanted = p.wanted[static_cast<std::size_t>(me)];
  wanted.store(std::int64_t{target}, kSeqCst);
  p.waiters.fetch_add(1, kSeqCst);
  const auto leave = [&] {
    p.waiters.fetch_sub(1, kSeqCst);
    wanted.store(kNoStep, kSeqCst);
  };
  try {
    sleep(me, peer, p.progress, bit_of(me), done);
  } catch (...) {
    leave();
    throw;
  }
  leave();
}

void Group::bump(Word& word, Word& waiters) {
  word.fetch_add(1, kSeqCst);
  if (waiters.load(kSeqCst) != 0) futex_wake(word, kEveryone);
}

void Group::sync_all(std::int32_t me) {
  Slot& s = slot(me);
  s.arrivals.store(s.arrivals.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  const std::uint32_t generation = generation_.load(kSeqCst);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<std::uint32_t>(size())) {
    arrived_.store(0, std::memory_order_relaxed);  // nobody arrives again before it sees the new generation
    bump(generation_, generation_waiters_);
    return;
  }
  wait_word(me, kAll, generation_, generation_waiters_,
            [&] { return generation_.load(kSeqCst) != generation; });
}

void Group::begin_read(std::int32_t me) {
  slot(me).busy.store(1, kSeqCst);
  if (!world_.stopped()) return;
  end_read(me);
  world_.throw_stopped(fmt::format("rank {}, {}", world_rank(me).value, title()));
}

void Group::quiesce(std::int32_t me) {
  // Readers never wait while they are busy, so this ends after at most one copy.
  for (std::int32_t r = 0; r < size(); ++r)
    while (r != me && slot(r).busy.load(kSeqCst) != 0) std::this_thread::yield();
}

void Group::wake_all() {
  for (Slot& s : slots_) futex_wake(s.progress, kEveryone);
  futex_wake(generation_, kEveryone);
  for (Channel& c : channels_) {
    futex_wake(c.posted, kEveryone);
    futex_wake(c.received, kEveryone);
  }
}

bool Group::missing(std::int32_t me, std::int32_t peer) const {
  return slot(peer).arrivals.load(std::memory_order_relaxed) <
         slot(me).arrivals.load(std::memory_order_relaxed);
}

bool Group::has_left(std::int32_t r) const {
  const RankState state = world_.state(world_rank(r));
  return state == RankState::finished || state == RankState::failed;
}

std::int32_t Group::who_left(std::int32_t me, std::int32_t peer) const {
  if (peer != kAll) return has_left(peer) ? peer : kNobody;
  for (std::int32_t r = 0; r < size(); ++r)
    if (r != me && missing(me, r) && has_left(r)) return r;
  return kNobody;
}

void Group::check_wait(std::int32_t me, std::int32_t peer, std::int32_t left, std::int64_t started_ns,
                       std::int64_t now) {
  if (world_.stopped())
    world_.throw_stopped(fmt::format("rank {}, {}; {}", world_rank(me).value, title(), doing(me)));
  if (left != kNobody)
    world_.fail(world_rank(me), peer_left(world_rank(me), doing(me), world_rank(left), group_name()));
  if (now - started_ns > world_.timeout_ns())
    world_.fail(world_rank(me), no_answer(world_rank(me), doing(me), now - started_ns,
                                          waited_for_text(me, peer), group_name()));
}

std::string Group::waited_for_text(std::int32_t me, std::int32_t peer) const {
  if (peer != kAll) return fmt::format("rank {}", world_rank(peer).value);
  std::vector<std::string> late;
  for (std::int32_t r = 0; r < size(); ++r)
    if (r != me && missing(me, r)) late.push_back(fmt::format("{}", world_rank(r).value));
  if (late.empty()) return "the other ranks";
  return fmt::format("{} {}", late.size() == 1 ? "rank" : "ranks", join(late, ", "));
}

std::string Group::doing(std::int32_t r) const {
  const FlightLog& log = slot(r).log;
  const std::int32_t whom = log.waiting_for();
  return log.doing(group_name(), whom == kNobody ? "" : waited_for_text(r, whom));
}

std::string Group::recent(std::int32_t r) const {
  return slot(r).log.recent(group_name());
}

}  // namespace tessera::comm::thread
