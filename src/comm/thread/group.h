// Group: what the ranks of one thread communicator share: one slot per rank, a central arrival counter, and
// one channel per ordered pair for messages.
//
// Progress: each rank owns a word that counts the steps of its collectives; a peer that needs step k of rank
// r waits for r's word alone. Every rank makes the same number of steps in a call, so words agree between
// calls. Calls in which everyone needs everyone (sync_all) meet at the arrival counter instead: N wakes, not
// N^2.
// No rank can be more than one call ahead of another: headers and inline data are double-buffered.
//
// Peers read each other's buffers directly. A rank that leaves a call early (its world was stopped) must not
// free its buffer under a reader: readers raise `busy` and look at the stop flag, leavers look at `busy`
// after the stop flag is up (quiesce).
#pragma once
#include <array>
#include <atomic>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "comm/communicator.h"
#include "comm/flight_log.h"
#include "comm/thread/futex.h"

namespace tessera::comm::thread {

class World;

inline constexpr std::int64_t kInlineBytes = 512;  // small tensors travel inside the slots
// A published call: plain memory, written before the owner's step and read after it was seen.
struct Header {
  std::int64_t number = 0;
  CallInfo info;
  Site site;
  std::byte* data = nullptr;
  std::span<const std::int64_t> rows;  // row counts that this rank holds, of the caller
};

struct alignas(128) Slot {
  Word progress{0};
  Word waiters{0};                                      // ranks asleep on progress, or about to be
  std::unique_ptr<std::atomic<std::int64_t>[]> wanted;  // [size]: step a sleeper needs, kNoStep if none
  alignas(64) std::atomic<std::uint32_t> busy{0};
  std::atomic<std::int64_t> arrivals{0};  // sync_all calls entered
  std::array<Header, 2> headers;
  alignas(64) std::array<std::array<std::byte, kInlineBytes>, 2> inline_data;
  std::atomic<bool> held{false};  // by a communicator
  std::int64_t calls = 0;         // collectives started; of the owner
  std::int64_t messages = 0;      // sends and receives started; of the owner
  FlightLog log;
};

struct Message {
  std::int64_t id = 0;
  std::int64_t tag = 0;
  const void* data = nullptr;
  std::int64_t bytes = 0;
  tensor::DType dtype = tensor::DType::u8;
  bool taken = false;  // its receiver is copying
};

// Messages of one ordered pair of ranks. The sender's buffer is read in place.
struct Channel {
  static constexpr std::size_t kSlots = 64;  // outstanding messages before the queue grows
  std::mutex mutex;
  std::vector<Message> queue;  // oldest first
  std::int64_t next_id = 0;
  bool closed = false;  // the sender's communicator is gone
  alignas(64) Word posted{0};
  Word posted_waiters{0};
  alignas(64) Word received{0};
  Word received_waiters{0};
};

class Group {
 public:
  Group(World& world, std::vector<Rank> members, std::string_view label, std::int32_t instance);

  [[nodiscard]] std::int32_t size() const { return static_cast<std::int32_t>(members_.size()); }
  [[nodiscard]] const std::vector<Rank>& members() const { return members_; }
  [[nodiscard]] Rank world_rank(std::int32_t r) const { return members_[static_cast<std::size_t>(r)]; }
  [[nodiscard]] std::string_view label() const { return label_; }
  [[nodiscard]] std::int32_t instance() const { return instance_; }
  [[nodiscard]] World& world() const { return world_; }
  [[nodiscard]] Slot& slot(std::int32_t r) { return slots_[static_cast<std::size_t>(r)]; }
  [[nodiscard]] const Slot& slot(std::int32_t r) const { return slots_[static_cast<std::size_t>(r)]; }
  [[nodiscard]] Channel& channel(std::int32_t from, std::int32_t to) {
    return channels_[static_cast<std::size_t>(from * size() + to)];
  }

  // One more step of `me` is done: its peers may rely on everything written before.
  void step(std::int32_t me);
  // Until `peer` has made the step; throws when the world stops, the peer leaves or time runs out.
  void wait_step(std::int32_t me, std::int32_t peer, std::uint32_t target);
  // Until all ranks have entered.
  void sync_all(std::int32_t me);
  // Counts the word up and wakes who sleeps on it.
  static void bump(Word& word, Word& waiters);
  // Until done(); `word` changes whenever done() may have become true. peer: whom we wait for, or kAll.
  template <class Done>
  void wait_word(std::int32_t me, std::int32_t peer, Word& word, Word& waiters, const Done& done);

  // Brackets every access to a peer's buffer. begin_read throws when the world is stopped.
  void begin_read(std::int32_t me);
  void end_read(std::int32_t me) { slot(me).busy.store(0, std::memory_order_release); }
  // The world is stopped: until nobody of the group reads foreign memory any more.
  void quiesce(std::int32_t me);

  // Takes back what `me` has sent and nobody has received; afterwards its buffers are its own again.
  // close: receivers that still want something are told so.
  void withdraw(std::int32_t me, bool close);
  void open_all();  // the channels that withdraw has closed

  // Wakes every sleeper of the group so that it sees a stop.
  void wake_all();

  // "waits in tp all_reduce #41 (1.00 MiB f32) for rank 2", or "" when `r` is in no call.
  [[nodiscard]] std::string doing(std::int32_t r) const;
  // "tp: all_reduce #26-#41 (1.00 MiB f32), barrier #42", or "" without any call.
  [[nodiscard]] std::string recent(std::int32_t r) const;
  [[nodiscard]] std::string waited_for_text(std::int32_t me, std::int32_t peer) const;
  [[nodiscard]] GroupName group_name() const { return {label_, members_}; }
  [[nodiscard]] std::string title() const { return comm::title(group_name()); }

 private:
  template <class Done>
  [[nodiscard]] bool spin(const Done& done) const;
  template <class Done>
  void sleep(std::int32_t me, std::int32_t peer, Word& word, std::uint32_t bits, const Done& done);
  // Throws when waiting makes no sense any more.
  void check_wait(std::int32_t me, std::int32_t peer, std::int32_t left, std::int64_t started_ns,
                  std::int64_t now);
  [[nodiscard]] bool has_left(std::int32_t r) const;
  // A rank that this wait needs and that will never come, or kNobody.
  [[nodiscard]] std::int32_t who_left(std::int32_t me, std::int32_t peer) const;
  [[nodiscard]] bool missing(std::int32_t me, std::int32_t peer) const;

  World& world_;
  std::vector<Rank> members_;
  std::string_view label_;
  std::int32_t instance_;
  std::vector<Slot> slots_;
  std::vector<Channel> channels_;
  alignas(64) Word arrived_{0};
  alignas(64) Word generation_{0};
  Word generation_waiters_{0};
};

}  // namespace tessera::comm::thread
