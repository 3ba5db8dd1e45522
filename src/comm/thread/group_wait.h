// The waiting loops of Group: look, spin when each rank has a core, then sleep on a futex in slices.
#pragma once
#include <algorithm>

#include "base/clock.h"
#include "comm/thread/group.h"
#include "comm/thread/world.h"

namespace tessera::comm::thread {

// A stop may come between the look at the flag and the sleep; a slice bounds how long that goes unseen.
inline constexpr std::int64_t kSliceNs = 50'000'000;

template <class Done>
bool Group::spin(const Done& done) const {
  if (done()) return true;
  for (std::int32_t i = world_.spins(); i > 0; --i) {
    pause();
    if (done()) return true;
  }
  return false;
}

template <class Done>
void Group::sleep(std::int32_t me, std::int32_t peer, Word& word, std::uint32_t bits, const Done& done) {
  const std::int64_t started = tessera::wall_ns();
  std::int64_t now = started;
  Slot& s = slot(me);
  s.log.wait_for(peer);
  while (true) {
    const std::uint32_t seen = word.load(std::memory_order_seq_cst);
    const std::int32_t left = who_left(me, peer);  // before done(): a rank may finish its part and leave
    if (done()) break;
    if (left != kNobody || world_.stopped() || now - started > world_.timeout_ns())
      check_wait(me, peer, left, started, now);
    futex_wait(word, seen, std::min(now + kSliceNs, started + world_.timeout_ns() + 1), bits);
    now = tessera::wall_ns();
  }
  s.log.wait_for(kNobody);
}

template <class Done>
void Group::wait_word(std::int32_t me, std::int32_t peer, Word& word, Word& waiters, const Done& done) {
  if (spin(done)) return;
  waiters.fetch_add(1, std::memory_order_seq_cst);
  try {
    sleep(me, peer, word, kEveryone, done);
  } catch (...) {
    waiters.fetch_sub(1, std::memory_order_seq_cst);
    throw;
  }
  waiters.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace tessera::comm::thread
