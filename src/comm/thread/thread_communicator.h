// One rank's end of a Group. Collectives read the peers' buffers in place; see group.h for the waiting rules.
#pragma once
#include <vector>

#include "comm/communicator.h"
#include "comm/thread/group.h"

namespace tessera::comm::thread {

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(Group& group, std::int32_t rank);
  // Withdraws sends that nobody has received: their buffers may go now.
  ~ThreadCommunicator() override;
  void check(std::int64_t waited_ns) override;

 private:
  class Scope;
  class Read;
  using Rows = std::span<const std::int64_t>;

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

  // The three ways of all_reduce: all make the same additions in the same order.
  void all_reduce_inline(Scope& scope, const Tensor& x);
  void all_reduce_gathered(Scope& scope, const Tensor& x);
  void all_reduce_ring(Scope& scope, const Tensor& x);

  [[nodiscard]] const Header& header(std::int32_t peer) const;
  [[nodiscard]] std::byte* data(std::int32_t peer) const;
  // Throws when the peer makes another call than this rank.
  void check_match(std::int32_t peer) const;
  void check_rows(std::int32_t peer) const;        // row counts equal everywhere
  void check_transposed(std::int32_t peer) const;  // its send_rows[me] == my recv_rows[it]
  [[noreturn]] void mismatch(std::int32_t peer, const std::string& detail) const;
  // Sources of a sum over ranks in ring order for chunk c, or in rank order; bytes from each buffer's start.
  void ring_sources(std::int32_t chunk, std::int64_t offset);
  void rank_sources(std::int64_t offset);
  [[nodiscard]] Message take(Channel& channel, const Tensor& x, std::int32_t from, std::int64_t tag);
  [[nodiscard]] std::byte* scratch(std::int64_t bytes);

  Group& group_;
  std::int32_t me_;
  Slot& slot_;
  std::int32_t exceptions_at_start_;
  std::vector<const void*> sources_;  // [size]
  std::vector<std::byte> scratch_;    // grows to the largest all_reduce_direct
};

// Error{internal} when the rank holds a communicator of the group already.
[[nodiscard]] std::unique_ptr<Communicator> make_communicator(Group& group, std::int32_t rank);

}  // namespace tessera::comm::thread
