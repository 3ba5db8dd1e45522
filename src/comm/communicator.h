// Communicator: the collectives of one group of ranks, seen from one rank. Backends: self/ (one rank),
// thread/ (ranks are threads of this process), message/ (ranks of several processes; mpi/ carries it).
//
// The public functions check the arguments, count bytes and calls, and call the backend's private virtual, so
// every backend gives the same errors and the same counts. Every rank of the group must make the same calls
// in the same order, also with zero rows. One communicator is used by one thread at a time; different
// communicators are independent.
//
// Order of additions (fixed, so results are the same in every run and backend):
//   ring (all_reduce, reduce_scatter): chunk c starts as the contribution of rank c + 1 and adds c + 2, ...,
//   c (mod N); direct (all_reduce_direct, reduce_scatter_v): rank order 0, 1, ..., N - 1.
// Bytes counted are what this rank sends to others. Closed forms, S = bytes of the whole tensor, N ranks:
//   all_reduce 2 (N-1)/N S exactly when N divides the elements (else the sum of the chunks it sends);
//   reduce_scatter and all_gather (N-1)/N S; all_to_all_v the rows for others; all_gather_v (N-1) x own rows;
//   send S; all_reduce_direct (N-1) S; reduce_scatter_v the rows for others; broadcast (N-1) S at the root;
//   barrier and recv 0.
// Memory: every tensor, also one that is only read, must lie in writable memory: the thread backend stores
// bytes of its peers' tensors back unchanged (see thread/sum.h).
// Failures: a rank that dies or leaves calls `abort`; every wait of the group then throws Error{comm} that
// names the first failing rank and its error. A wait longer than the timeout does the same and names who was
// waited for.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/quantity.h"
#include "comm/site.h"
#include "tensor/tensor.h"

namespace tessera::comm {

using tensor::Tensor;

enum class Op : std::uint8_t { sum, max };

enum class Call : std::uint8_t {
  all_reduce,
  all_reduce_direct,
  reduce_scatter,
  all_gather,
  all_gather_v,
  reduce_scatter_v,
  all_to_all_v,
  send,
  recv,
  broadcast,
  barrier
};
inline constexpr std::int32_t kNumCalls = 11;
[[nodiscard]] std::string_view name(Call call);

struct CallCount {
  std::int64_t calls = 0;
  Bytes bytes_sent;          // to other ranks
  std::int64_t wall_ns = 0;  // inside the calls of this kind, waiting included
};
using Counters = std::array<CallCount, kNumCalls>;

class Communicator;

// Told after each call of a communicator, on the calling thread (tracing). Must not throw.
class CallListener {
 public:
  virtual ~CallListener() = default;
  // start and end: wall clock of base/clock.h; sent: bytes this rank sent to others.
  virtual void on_call(const Communicator& comm, Call call, Bytes sent, std::int64_t start_ns,
                       std::int64_t end_ns) = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  [[nodiscard]] std::int32_t rank() const { return rank_; }  // inside this group
  [[nodiscard]] std::int32_t size() const { return size_; }
  [[nodiscard]] std::string_view label() const { return label_; }  // "tp", "dp", ... for messages and traces
  [[nodiscard]] const Counters& counters() const { return counters_; }
  [[nodiscard]] Bytes bytes_sent() const;      // over all calls
  [[nodiscard]] std::int64_t wall_ns() const;  // over all calls
  void reset_counters() { counters_ = {}; }
  void set_listener(CallListener* listener) { listener_ = listener; }  // null: none; outlives its calls
  // Where the rank is, for errors and the flight recorder; worlds set it. Null: unknown.
  void set_whereabouts(const Whereabouts* whereabouts) { whereabouts_ = whereabouts; }
  [[nodiscard]] const Whereabouts* whereabouts() const { return whereabouts_; }
  // Calls of different steps, layers, micro-batches or phases do not match: a rank that leaves out one of
  // many equal calls is found at once. Only for groups whose ranks go through a step alike, on one thread.
  virtual void compare_sites(bool compare) { compares_sites_ = compare; }
  // Whether tensors of this device's memory may be passed.
  [[nodiscard]] virtual bool moves(tensor::Device device) const { return device == tensor::Device::cpu; }
  // For a rank that has waited so long for its device: throws when the group cannot go on, because another
  // rank has failed, or a collective queued there is older than the group's patience. Any thread.
  virtual void check(std::int64_t /*waited_ns*/) {}

  // In place, ring: N-1 reduce-scatter steps and N-1 all-gather steps; chunks are ceil(n / N) elements (last
  // ones may be short or empty). f64, f32, on a GPU bf16; sum. So are reduce_scatter and reduce_scatter_v.
  void all_reduce(Tensor x);
  // In place, every rank adds all contributions in rank order. For few elements. f64, f32, i64, i32; sum or
  // max.
  void all_reduce_direct(Tensor x, Op op);
  // in: N equal parts; out: this rank's part, summed over ranks in ring order. `out` may be this rank's part
  // of `in`. in is left unspecified elsewhere.
  void reduce_scatter(Tensor out, Tensor in);
  // out: N equal parts, part r = rank r's `in`. `in` may be this rank's part of `out`.
  void all_gather(Tensor out, Tensor in);
  // Row counts per rank (rows of dim 0); out holds the rows of rank 0, 1, ... one after another.
  void all_gather_v(Tensor out, Tensor in, std::span<const std::int64_t> rows);
  // in: rows of rank 0, 1, ...; out [rows[rank]] = sum over ranks, in rank order.
  void reduce_scatter_v(Tensor out, Tensor in, std::span<const std::int64_t> rows);
  // send_rows[j] rows of `in` go to rank j in order; out receives recv_rows[i] rows of rank i in order.
  // send_rows on one side must equal recv_rows on the other (checked: Error{comm} naming both ranks and
  // counts).
  void all_to_all_v(Tensor out, std::span<const std::int64_t> recv_rows, Tensor in,
                    std::span<const std::int64_t> send_rows);
  // Point to point, matched by (peer, tag). send does not block and does not copy: `x` must stay unchanged
  // until the peer has received it (wait_send, or any later event that implies it), and its memory must live
  // longer than this communicator, so that a rank that an error unwinds takes the message back first. recv
  // blocks.
  void send(Tensor x, std::int32_t to, std::int64_t tag);
  void recv(Tensor x, std::int32_t from, std::int64_t tag);
  void wait_send(std::int32_t to, std::int64_t tag);  // until that message has been received
  void broadcast(Tensor x, std::int32_t root);
  void barrier();

 protected:
  Communicator(std::int32_t rank, std::int32_t size, std::string_view label)
      : rank_(rank), size_(size), label_(label) {}
  [[nodiscard]] bool compares_sites() const { return compares_sites_; }
  [[nodiscard]] Site site() const { return whereabouts_ == nullptr ? Site{} : whereabouts_->site(); }

 private:
  virtual void do_all_reduce(Tensor x) = 0;
  virtual void do_all_reduce_direct(Tensor x, Op op) = 0;
  virtual void do_reduce_scatter(Tensor out, Tensor in) = 0;
  virtual void do_all_gather(Tensor out, Tensor in) = 0;
  virtual void do_all_gather_v(Tensor out, Tensor in, std::span<const std::int64_t> rows) = 0;
  virtual void do_reduce_scatter_v(Tensor out, Tensor in, std::span<const std::int64_t> rows) = 0;
  virtual void do_all_to_all_v(Tensor out, std::span<const std::int64_t> recv_rows, Tensor in,
                               std::span<const std::int64_t> send_rows) = 0;
  virtual void do_send(Tensor x, std::int32_t to, std::int64_t tag) = 0;
  virtual void do_recv(Tensor x, std::int32_t from, std::int64_t tag) = 0;
  virtual void do_wait_send(std::int32_t to, std::int64_t tag) = 0;
  virtual void do_broadcast(Tensor x, std::int32_t root) = 0;
  virtual void do_barrier() = 0;

  std::int32_t rank_;
  std::int32_t size_;
  std::string_view label_;  // static storage
  Counters counters_{};
  CallListener* listener_ = nullptr;
  const Whereabouts* whereabouts_ = nullptr;
  bool compares_sites_ = false;
};

[[nodiscard]] std::unique_ptr<Communicator> make_self(std::string_view label);

}  // namespace tessera::comm
