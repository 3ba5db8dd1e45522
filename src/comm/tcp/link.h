// Link: the connection of two processes once they have met, cut into frames. Notes and what steers bodies go
// before the bodies, whose pieces take turns, so that a note waits for a piece and not for a body.
//
// A body begins to flow unasked: its first kUnasked bytes go at once and, where no receive is posted yet,
// wait in memory of the receiver, at most kWindow of them for each sender; what is beyond flows when the
// receiver has said "ready", straight into its memory. So nobody stops reading, and two that send to each
// other never wait for each other.
//
// Not thread safe. Nothing here waits.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "comm/message/wire.h"
#include "comm/tcp/socket.h"

namespace tessera::comm::tcp {

inline constexpr std::int64_t kUnasked = 64 << 10;
inline constexpr std::int64_t kWindow = 1 << 20;
inline constexpr std::int64_t kPiece = 128 << 10;

class Link {
 public:
  using Open = message::Open;
  explicit Link(Socket socket) : socket_(std::move(socket)), buffer_(kBuffer) {}

  // Where what comes in goes.
  struct Sink {
    virtual ~Sink() = default;
    virtual void note(std::span<const std::byte> bytes) = 0;
    virtual void die(std::int32_t exit_code) = 0;
  };

  void send_note(std::span<const std::byte> head, std::span<const std::byte> rest);
  void send_body(std::int32_t tag, const void* data, std::int64_t bytes, Open& open);
  void receive_body(std::int32_t tag, void* data, std::int64_t bytes, Open& open);
  void send_die(std::int32_t exit_code);
  // Bodies that count this down are given up: their memory is free.
  void forget(Open& open);

  void read(Sink& sink);  // what has come, up to some MiB
  void write();           // what the kernel takes
  void shut();            // nothing more will be written
  // Throws away what comes. True when the other end has shut, too.
  [[nodiscard]] bool drain();

  [[nodiscard]] int fd() const { return socket_.fd(); }
  [[nodiscard]] bool wants_to_write() const { return !gone_ && (!queue_.empty() || !flowing_.empty()); }
  [[nodiscard]] bool busy() const { return wants_to_write() || !waiting_.empty() || !incoming_.empty(); }
  [[nodiscard]] bool is_gone() const { return gone_; }

 private:
  static constexpr std::size_t kBuffer = 128 << 10;
  enum class Kind : std::int32_t { note = 1, unasked, asked, ready, held, taken, die };
  struct Head {
    Kind kind{};
    std::int32_t tag = 0;
    // of what follows; ready and taken: of unasked bytes that were taken, die: the code
    std::int64_t bytes = 0;
  };
  struct Frame {
    Head head;
    const std::byte* data = nullptr;  // of a body; else `own`
    std::int64_t bytes = 0;           // that follow the head
    std::int64_t sent = 0;            // of head and bytes
    Open* open = nullptr;             // of the body
    bool last = false;                // and these are its last bytes
    std::vector<std::byte> own;
  };
  struct Body {  // on its way out, beyond what went unasked
    std::int32_t tag = 0;
    const std::byte* data = nullptr;
    std::int64_t bytes = 0, queued = 0;
    Open* open = nullptr;
  };
  struct Incoming {
    std::int32_t tag = 0;
    std::byte* data = nullptr;  // of the receive, once posted
    std::int64_t bytes = -1;    // of the receive
    std::int64_t here = 0;
    Open* open = nullptr;
    bool held = false;             // its sender waits for "ready"
    bool forgotten = false;        // what still comes is thrown away
    std::vector<std::byte> early;  // what came before the receive
  };

  Frame& queue(Kind kind, std::int32_t tag, std::int64_t value);
  void queue_data(Kind kind, Body& body, std::int64_t bytes);
  void advance(std::int64_t bytes);
  void lose();

  Incoming& incoming(std::int32_t tag);
  void finish_if_whole(std::int32_t tag);
  void say_ready(std::int32_t tag);
  void take(std::int64_t unasked);
  bool handle(const Head& head, Sink& sink);
  bool begin_body(const Head& head);
  [[nodiscard]] std::span<std::byte> target();  // of what comes of the body at hand
  void arrived(std::int64_t bytes);
  bool parse(Sink& sink);

  Socket socket_;
  bool gone_ = false;
  // Out.
  std::deque<Frame> queue_;
  std::vector<Body> waiting_, flowing_;
  std::size_t turn_ = 0;
  std::int64_t unconfirmed_ = 0;  // unasked bytes that the other end may still hold
  // In.
  std::vector<std::byte> buffer_;
  std::size_t begin_ = 0, end_ = 0;
  std::vector<Incoming> incoming_;
  std::vector<std::vector<std::byte>> spare_;  // memory of early bytes
  std::vector<std::byte> scrap_;
  Head body_;                   // whose bytes come now
  std::int64_t body_left_ = 0;  // of them
  std::int64_t taken_ = 0;      // unasked bytes to be confirmed
};

}  // namespace tessera::comm::tcp
