// GenerationQueue: which sequence is in which slot and how far it is. A value that every rank holds and
// changes alike, so that all ranks of the world make the same calls.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "exec/generator.h"

namespace tessera::exec {

class GenerationQueue {
 public:
  struct Sequence {
    std::size_t request = 0;
    std::vector<std::int32_t> tokens;  // prompt and text; slid: without what was forgotten
    std::int64_t cached = 0;           // tokens whose rows are in the cache
    std::int64_t made = 0;             // new tokens
    std::uint64_t stream = 0;          // of random numbers
    bool active = false;
  };
  // num_slots: of all replicas; slot s is slot s / replicas of replica s % replicas.
  GenerationQueue(std::span<const Request> requests, std::int32_t num_slots, std::int32_t replicas);

  // Puts waiting requests into free slots.
  void admit();
  [[nodiscard]] bool done() const;  // nothing active, nothing waiting
  [[nodiscard]] std::int32_t num_active() const;
  // Tokens of a replica that prefill must put into the cache: all but the last of each sequence.
  [[nodiscard]] std::int64_t waiting_rows(std::int32_t replica) const;
  [[nodiscard]] std::int64_t most_waiting_rows() const;  // over the replicas
  [[nodiscard]] std::int64_t most_active() const;        // likewise

  // The first `count` waiting rows of a replica; all replicas' sequences count as cached up to there.
  [[nodiscard]] std::vector<DecodeRow> rows_of(std::int32_t replica, std::int64_t count) const;
  void mark_cached(std::int64_t count);  // that many rows of each replica
  // The last token of each active sequence of a replica, by slot.
  [[nodiscard]] std::vector<DecodeRow> last_rows(std::int32_t replica) const;

  [[nodiscard]] Sequence& at(std::int32_t slot) { return slots_[static_cast<std::size_t>(slot)]; }
  [[nodiscard]] const Sequence& at(std::int32_t slot) const { return slots_[static_cast<std::size_t>(slot)]; }
  [[nodiscard]] std::int32_t num_slots() const { return static_cast<std::int32_t>(slots_.size()); }
  [[nodiscard]] std::int32_t slot_of(std::int32_t replica, std::int32_t local) const {
    return local * replicas_ + replica;
  }
  void append(std::int32_t slot, std::int32_t token);  // after its last row was run
  void slide(std::int32_t slot, std::int64_t keep);    // forgets all but the last `keep` tokens
  void finish(std::int32_t slot);

 private:
  std::span<const Request> requests_;
  std::int32_t replicas_;
  std::vector<Sequence> slots_;
  std::size_t next_ = 0;  // request
};

}  // namespace tessera::exec
