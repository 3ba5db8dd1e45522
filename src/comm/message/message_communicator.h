// One rank's end of a group whose members are in several processes. The same additions in the same order as
// the thread backend, made of messages:
//   all_reduce: small ones exchange all contributions; else a ring, N - 1 steps reducing and N - 1 gathering
//   reduce_scatter: the reducing half of the ring; all_gather: direct when small, else the gathering half
//   all_gather_v, reduce_scatter_v, all_to_all_v, all_reduce_direct: everyone to everyone
//   broadcast: the root to everyone, and back an empty message; barrier: dissemination (log2 N rounds)
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/flight_log.h"
#include "comm/message/post.h"
#include "comm/thread/world.h"

namespace tessera::comm::message {

// What stays of one rank in one group when its communicators are gone: the flight recorder and the counts.
struct Seat {
  std::uint64_t group = 0;
  std::string label;
  std::vector<Rank> members;
  std::int32_t place = 0;
  FlightLog log;
  std::int64_t calls = 0;     // collectives started
  std::int64_t messages = 0;  // sends and receives started
  std::atomic<bool> held{false};

  [[nodiscard]] GroupName name() const { return {label, members}; }
};

class MessageCommunicator final : public Communicator {
 public:
  // sums: null, or the library's own for all_reduce and reduce_scatter.
  MessageCommunicator(Seat& seat, std::string_view label, Post& post, thread::World& world,
                      std::unique_ptr<Wire::Sums> sums);
  ~MessageCommunicator() override;
  void check(std::int64_t waited_ns) override;

 private:
  class Scope;
  using Rows = std::span<const std::int64_t>;
  struct Sending {  // of send, until wait_send
    std::int32_t to = kNobody;
    std::int64_t tag = 0;
    std::int64_t bytes = 0;
    tensor::DType dtype{};
    Outgoing sent;
  };

  void do_all_reduce(Tensor x) override;
  void do_all_reduce_direct(Tensor x, Op op) override;
  void do_reduce_scatter(Tensor out, Tensor in) override;
  void do_all_gather(Tensor out, Tensor in) override;
  void do_all_gather_v(Tensor out, Tensor in, Rows rows) override;
  void do_reduce_scatter_v(Tensor out, Tensor in, Rows rows) override;
  void do_all_to_all_v(Tensor out, Rows recv_rows, Tensor in, Rows send_rows) override;
  void do_send(Tensor x, std::int32_t to, std::int64_t tag) override;
  void do_recv(Tensor x, std::int32_t from, std::int64_t tag) override;
  void do_wait_send(std::int32_t to, std::int64_t tag) override;
  void do_broadcast(Tensor x, std::int32_t root) override;
  void do_barrier() override;

  // Pieces of collectives. Slots of receipts and sends are those of the peer.
  void post_send(std::int32_t to, const void* data, std::int64_t bytes);
  void post_receive(std::int32_t from, void* data, std::int64_t bytes);
  void finish_receive(std::int32_t from);
  void finish_sends();
  void finish_send(std::int32_t to);
  // All contributions side by side in the scratch, rank 0 first.
  std::byte* gather_all(const Tensor& x);
  // chunk `me` of x complete, written to `out`; the other chunks are left with partial sums.
  void ring_reduce(const Tensor& x, void* out);
  void ring_gather(std::byte* data, std::int64_t elements, std::int64_t width);

  // Waits for done(), called again and again.
  template <class Done>
  void wait(std::int32_t peer, const Done& done);
  void check_wait(std::int32_t peer, std::int64_t started_ns, std::int64_t now);
  [[noreturn]] void refuse(const Receipt& receipt);
  [[noreturn]] void differ(const Envelope& theirs);
  // Of a rows call whose sizes differ, else "".
  [[nodiscard]] std::string rows_text(const Envelope& theirs, std::int32_t from) const;
  void quiesce();
  void keep_open_memory();

  [[nodiscard]] Rank world_rank(std::int32_t r) const { return seat_.members[static_cast<std::size_t>(r)]; }
  [[nodiscard]] Envelope envelope(std::int32_t to, Kind kind, std::int64_t bytes) const;
  [[nodiscard]] std::byte* scratch(std::int64_t bytes);
  [[nodiscard]] std::int32_t next() const { return (rank() + 1) % size(); }
  [[nodiscard]] std::int32_t previous() const { return (rank() + size() - 1) % size(); }
  [[nodiscard]] Receipt& receipt(std::int32_t from) { return receipts_[static_cast<std::size_t>(from)]; }
  [[nodiscard]] Outgoing& outgoing(std::int32_t to) { return sends_[static_cast<std::size_t>(to)]; }

  Seat& seat_;
  Post& post_;
  thread::World& world_;
  Mailbox& box_;
  std::unique_ptr<Wire::Sums> sums_;
  std::int32_t exceptions_at_start_;
  CallInfo info_;  // of the call that runs
  Site site_now_;  //
  std::int64_t number_ = 0;
  std::int64_t left_ns_ = 0;  // when a wait for a send first saw that its receiver has left
  Rows rows_;                 // of a rows call: what this rank gets from each
  std::int64_t row_bytes_ = 0;
  std::vector<Receipt> receipts_;                  // [size]
  std::vector<Outgoing> sends_;                    // [size]
  std::vector<std::unique_ptr<Sending>> sending_;  // used again once received
  std::vector<const void*> sources_;               // [size]
  std::vector<std::byte> scratch_;                 // grows to the largest need
};

}  // namespace tessera::comm::message
