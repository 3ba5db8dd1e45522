#include "comm/planned.h"

#include <string>

#include "base/error.h"

namespace tessera::comm {

namespace {

class PlannedCommunicator final : public Communicator {
 public:
  PlannedCommunicator(std::int32_t rank, std::int32_t size, std::string_view label)
      : Communicator(rank, size, label) {}

 private:
  using Rows = std::span<const std::int64_t>;
  [[noreturn]] void refuse() const {
    throw Error(ErrorKind::internal, "a call of a communicator that is only planned", std::string(label()),
                "this is a defect of Tessera: please report it");
  }
  void do_all_reduce(Tensor /*x*/) override { refuse(); }
  void do_all_reduce_direct(Tensor /*x*/, Op /*op*/) override { refuse(); }
  void do_reduce_scatter(Tensor /*out*/, Tensor /*in*/) override { refuse(); }
  void do_all_gather(Tensor /*out*/, Tensor /*in*/) override { refuse(); }
  void do_all_gather_v(Tensor /*out*/, Tensor /*in*/, Rows /*rows*/) override { refuse(); }
  void do_reduce_scatter_v(Tensor /*out*/, Tensor /*in*/, Rows /*rows*/) override { refuse(); }
  void do_all_to_all_v(Tensor /*out*/, Rows /*recv_rows*/, Tensor /*in*/, Rows /*send_rows*/) override {
    refuse();
  }
  void do_send(Tensor /*x*/, std::int32_t /*to*/, std::int64_t /*tag*/) override { refuse(); }
  void do_recv(Tensor /*x*/, std::int32_t /*from*/, std::int64_t /*tag*/) override { refuse(); }
  void do_wait_send(std::int32_t /*to*/, std::int64_t /*tag*/) override { refuse(); }
  void do_broadcast(Tensor /*x*/, std::int32_t /*root*/) override { refuse(); }
  void do_barrier() override { refuse(); }
};

}  // namespace

std::unique_ptr<Communicator> make_planned(std::int32_t rank, std::int32_t size, std::string_view label) {
  return std::make_unique<PlannedCommunicator>(rank, size, label);
}

}  // namespace tessera::comm
