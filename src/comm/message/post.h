// Post: matching of messages between ranks, in this process or another. One per process.
//
// A message is an envelope (who, in which group, which call, how many bytes) and its data. To another process
// the envelope goes as a note, data of a few KiB inside it, more as a body behind it; the receiver finds the
// receive it belongs to and lets the body flow straight into its memory. To a rank of this process the
// envelope points at the sender's memory and the receiver copies from there.
//
// A point-to-point message for which no receive is posted yet flows into memory of the post, as far as that
// has room, so that it travels while its receiver computes; collectives wait for theirs.
//
// Messages of one (group, sender, receiver, lane) arrive in order. Lanes: the collectives of a communicator
// are one; each tag of its point-to-point messages is one.
//
// Thread safe. Nothing here waits: who waits calls poll() again and again.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "comm/flight_log.h"
#include "comm/message/wire.h"

namespace tessera::comm::message {

inline constexpr std::int64_t kInlineBytes = 2048;  // data of so many bytes travels inside the note
inline constexpr std::int64_t kMostLanded = std::int64_t{256} << 20;  // of messages that nobody receives yet

enum class Kind : std::uint8_t { collective, direct, stop, state, left, alive, goodbye, reported };

// Goes over the wire as it lies in memory: all processes run the same program.
struct Envelope {
  std::uint64_t group = 0;  // of the communicator
  Kind kind = Kind::collective;
  bool in_place = false;       // local: `data` is the sender's memory
  std::int32_t from = 0;       // world ranks
  std::int32_t to = 0;         //
  std::int32_t body_tag = -1;  // -1: the data is inside the note
  std::int64_t bytes = 0;      // of the data
  std::int64_t number = 0;     // of the call
  CallInfo info;
  Site site;
};
static_assert(std::is_trivially_copyable_v<Envelope>);

// What a sender keeps of a message until its memory is free. Stays in place while open.
struct Outgoing {
  Open open{0};
  [[nodiscard]] bool done() const { return open.load(std::memory_order_acquire) == 0; }
};

struct Mailbox;

// A receive. Stays in place until it is over or withdrawn.
struct Receipt {
  enum class State : std::uint8_t { idle, waiting, moving, here, refused };
  Mailbox* box = nullptr;
  Kind kind = Kind::collective;
  std::int32_t from = 0;  // world rank
  std::int64_t number = 0;
  CallInfo info;  // direct: tag and dtype; collective: must be the sender's
  Site site;
  bool compares_sites = false;  // the sender's must be this one
  void* data = nullptr;
  std::int64_t bytes = 0;
  std::atomic<State> state{State::idle};
  Open open{0};
  Envelope got;  // when here or refused (it is another call, or another size)

  [[nodiscard]] bool over() const {
    const State s = state.load(std::memory_order_acquire);
    return s == State::here || s == State::refused ||
           (s == State::moving && open.load(std::memory_order_acquire) == 0);
  }
};

struct Block {
  std::array<std::byte, kInlineBytes> bytes;
};

// A message that came before its receive.
struct Landing {
  std::vector<std::byte> memory;
  std::int64_t bytes = 0;
  Open open{0};
  Receipt* receipt = nullptr;  // that wants it, once posted
};

struct Arrival {
  Envelope envelope;
  std::int32_t process = -1;      // -1: this one
  const void* data = nullptr;     // in_place: the sender's
  Outgoing* sender = nullptr;     // in_place
  std::unique_ptr<Block> inside;  // the data of the note
  Landing* landing = nullptr;     // where the body goes
};

// Of one rank in one group.
struct Mailbox {
  std::vector<Receipt*> posted;   // oldest first
  std::vector<Arrival> arrivals;  // oldest first
};

class Post {
 public:
  // process_of: of each world rank. Control notes (all kinds but the first two) are kept for take_control.
  Post(Wire& wire, std::vector<std::int32_t> process_of);

  struct Control {
    std::int32_t process = 0;
    Envelope envelope;
    std::string text;
  };

  [[nodiscard]] Mailbox& mailbox(std::uint64_t group, Rank rank);
  // Data stays unchanged until sent.done().
  void send(const Envelope& envelope, const void* data, Outgoing& sent);
  void receive(Receipt& receipt);
  void set_lands(bool lands);  // messages without a receive; they do
  // What has come is moved on. Returns at once when another thread is at it. True: more is on its way.
  bool poll();
  // Of a stopped world: this receive and this send give up their memory, as far as that can be had at once.
  void withdraw(Receipt& receipt);
  void withdraw(Mailbox& receiver, Outgoing& sent);

  // A message of a collective that has come from a member and is not the call `number` as described by
  // `info`: its sender makes another call.
  [[nodiscard]] bool find_other_call(Mailbox& box, const CallInfo& info, std::int64_t number,
                                     Envelope& found);

  void send_control(std::int32_t process, const Envelope& envelope, std::string_view text);
  [[nodiscard]] std::vector<Control> take_control();
  // When something of this process was last heard.
  [[nodiscard]] std::int64_t heard_ns(std::int32_t process) const {
    return heard_[static_cast<std::size_t>(process)].load(std::memory_order_relaxed);
  }
  // The last message of a rank of another process, if any.
  [[nodiscard]] std::optional<Envelope> last_of(Rank rank);

  // Of a stopped world: the bodies that count this down, as far as the wire can give them up.
  void forget(Open& open);
  // Processes whose connection has ended. All that they sent before has been taken in.
  [[nodiscard]] std::vector<std::int32_t> gone();

  // Memory that bodies of a stopped world may still use: stays until the end.
  void keep(std::shared_ptr<void> memory);

  [[nodiscard]] std::unique_ptr<Wire::Sums> make_sums(std::span<const std::int32_t> processes);
  template <class F>
  void with_wire(const F& f) {
    const std::lock_guard lock(mutex_);
    f(wire_);
  }

 private:
  struct Copy {  // of local data, made outside the lock
    Receipt* receipt = nullptr;
    const void* data = nullptr;
    Outgoing* sender = nullptr;
  };
  void handle(const Wire::Note& note);
  // The receipt gets this arrival; local data is left to the caller. Locked.
  [[nodiscard]] Copy start(Receipt& receipt, Arrival& arrival);
  void drop_inside(Arrival& arrival);
  [[nodiscard]] Landing* land(const Envelope& envelope, std::int32_t process);
  void hand_over_landed();
  [[nodiscard]] std::int32_t next_body_tag(std::int32_t process);
  static void finish(const Copy& copy);

  Wire& wire_;
  std::vector<std::int32_t> process_of_;
  std::mutex mutex_;  // of what follows and of the wire
  std::map<std::pair<std::uint64_t, std::int32_t>, std::unique_ptr<Mailbox>> boxes_;
  std::vector<std::unique_ptr<Block>> spare_;
  std::vector<std::unique_ptr<Landing>> landings_, spare_landings_;
  std::int64_t landed_bytes_ = 0;  // of landings_
  bool lands_ = true;
  std::vector<std::int32_t> body_tags_;
  std::vector<Envelope> last_;  // of each rank; number 0: none
  std::vector<Control> control_;
  std::vector<std::shared_ptr<void>> kept_;
  std::vector<std::atomic<std::int64_t>> heard_;
};

}  // namespace tessera::comm::message
