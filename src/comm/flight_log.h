// The flight recorder of one rank in one group: its last calls, always on, and the words that an error needs
// about them. The rank's thread writes; a reporting thread reads at any time, hence atomics: a torn line is
// possible and harmless.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/ids.h"
#include "comm/communicator.h"
#include "comm/site.h"

namespace tessera::comm {

inline constexpr std::int32_t kNobody = -1;
inline constexpr std::int32_t kAll = -2;
inline constexpr std::int32_t kRecords = 16;

// What a rank calls. `match` and `detail` must agree on all ranks of a collective.
struct CallInfo {
  Call call = Call::barrier;
  tensor::DType dtype = tensor::DType::u8;
  std::int64_t bytes = 0;   // of this rank's tensor
  std::int64_t match = 0;   // bytes of the tensor, or of one row where row counts may differ
  std::int64_t detail = 0;  // root, or operation
  std::int32_t peer = kNobody;
  std::int64_t tag = 0;
  bool ends_send = false;  // wait_send
};

struct Record {
  std::atomic<std::int64_t> number{0};
  std::atomic<std::int64_t> bytes{0};
  std::atomic<std::int64_t> tag{0};
  std::atomic<std::int64_t> step{-1};
  std::atomic<std::int32_t> peer{kNobody};
  std::atomic<std::int32_t> layer{-1};
  std::atomic<std::int32_t> microbatch{-1};
  std::atomic<Call> call{Call::barrier};
  std::atomic<tensor::DType> dtype{tensor::DType::u8};
  std::atomic<Phase> phase{Phase::none};
  std::atomic<bool> ends_send{false};
  std::atomic<bool> open{false};
};

// The group as its messages name it.
struct GroupName {
  std::string_view label;
  std::span<const Rank> members;
};
[[nodiscard]] std::string title(const GroupName& group);  // "group tp {0, 2}"

class FlightLog {
 public:
  Record& begin(const CallInfo& info, std::int64_t number, const Site& site);
  static void end(Record& record) { record.open.store(false, std::memory_order_relaxed); }
  // Group rank, kAll, or kNobody when it does not wait.
  void wait_for(std::int32_t peer) { waiting_for_.store(peer, std::memory_order_relaxed); }
  [[nodiscard]] std::int32_t waiting_for() const { return waiting_for_.load(std::memory_order_relaxed); }

  // "waits in tp all_reduce #41 (1.00 MiB f32) for rank 2 at step 7, layer 3", or "" when the rank is in no
  // call. whom: "rank 2".
  [[nodiscard]] std::string doing(const GroupName& group, std::string_view whom) const;
  // "tp: all_reduce #26-#41 (1.00 MiB f32), barrier #42", or "" without any call.
  [[nodiscard]] std::string recent(const GroupName& group) const;

 private:
  std::array<Record, kRecords> records_;
  std::atomic<std::int64_t> count_{0};
  std::atomic<std::int32_t> waiting_for_{kNobody};
};

// "all_reduce #41 (1.00 MiB f32)"
[[nodiscard]] std::string call_text(const CallInfo& info, std::int64_t number);

// The errors of waiting and of calls that differ, the same in every backend. doing: FlightLog::doing.
[[nodiscard]] Error peer_left(Rank me, std::string_view doing, Rank left, const GroupName& group);
[[nodiscard]] Error no_answer(Rank me, std::string_view doing, std::int64_t waited_ns, std::string_view whom,
                              const GroupName& group);
struct OneCall {
  Rank rank;
  const CallInfo& info;
  std::int64_t number;
  Site site{};
};
[[nodiscard]] Error calls_differ(const OneCall& mine, const OneCall& theirs, std::string_view detail,
                                 const GroupName& group);
// What the detail of two collectives that differ in `detail` alone is: roots or operations.
[[nodiscard]] std::string detail_text(const CallInfo& mine, const CallInfo& theirs);
struct MessageEnd {
  Rank rank;
  std::int64_t bytes;
  tensor::DType dtype;
};
[[nodiscard]] Error message_differs(const MessageEnd& sender, const MessageEnd& receiver, std::int64_t tag,
                                    const GroupName& group);

}  // namespace tessera::comm
