// What the forms of Dispatch share: sorting choices by expert, the order of rows in an expert over etp, and
// running a transfer on a worker. Inside of this room. Legend: dispatch.h.
#pragma once
#include <algorithm>
#include <cstdint>

#include "moe/dispatch.h"

namespace tessera::moe {

// Rows of the local experts that come from all ep and etp ranks.
class RowOrder {
 public:
  RowOrder(const Dispatch::Options& options, comm::Communicator& ep, comm::Communicator& etp);

  // Takes counts, indices and part_rows_Q.
  void reserve(DispatchSlot& slot, Arena& arena) const;
  // This rank's counts by sender: [ep][e] of counts_QPe, to be filled before index().
  [[nodiscard]] Tensor own_counts(const DispatchSlot& slot) const;
  // Collective over etp. From the counts: received, begin_e1, from_full_R, from_expert_R, part_rows_Q.
  void index(Context& ctx, DispatchSlot& slot) const;

  [[nodiscard]] std::int64_t part_rows(const DispatchSlot& slot) const;  // of this rank
  [[nodiscard]] std::int64_t most_part_rows() const;
  // full_RH = the rows of all etp ranks, and the sum back.
  void gather(Tensor full_RH, Tensor part_RH, const DispatchSlot& slot) const;
  void sum(Tensor part_RH, Tensor full_RH, const DispatchSlot& slot) const;

  [[nodiscard]] std::int64_t ep() const { return ep_size_; }
  [[nodiscard]] std::int64_t etp() const { return etp_size_; }
  [[nodiscard]] std::int64_t local_experts() const { return o_.num_experts / ep_size_; }

 private:
  Dispatch::Options o_;
  comm::Communicator& ep_;
  comm::Communicator& etp_;
  std::int64_t ep_size_, etp_size_;
};

// Runs `transfer` on the worker, or here without one. finish waits for it, the other pass first.
template <class Transfer>
void start(Context& ctx, Travel& tr, const Transfer& transfer) {
  if (ctx.worker == nullptr) {
    transfer();
    return;
  }
  tr.in_flight.ticket = ctx.worker->post(transfer);
  tr.in_flight.worker = ctx.worker;
}
void finish(Context& ctx, Travel& tr);

// A transfer with nothing beside it but the other pass, if there is one.
template <class Transfer>
void transfer_now(Context& ctx, Travel& tr, const Transfer& transfer) {
  if (ctx.turn == nullptr) {
    transfer();
    return;
  }
  start(ctx, tr, transfer);
  finish(ctx, tr);
}
// Few bytes, needed at once.
template <class Transfer>
void share_now(Context& ctx, const Transfer& transfer) {
  if (ctx.turn == nullptr) {
    transfer();
  } else {
    ctx.worker->wait(ctx.worker->post(transfer));
  }
}

[[nodiscard]] std::unique_ptr<Dispatch> make_local(const Dispatch::Options& options);
[[nodiscard]] std::unique_ptr<Dispatch> make_all_to_all(const Dispatch::Options& options,
                                                        comm::Communicator& ep, comm::Communicator& etp);
[[nodiscard]] std::unique_ptr<Dispatch> make_all_gather(const Dispatch::Options& options,
                                                        comm::Communicator& ep, comm::Communicator& etp);
[[nodiscard]] std::unique_ptr<Dispatch> make_hierarchical(const Dispatch::Options& options,
                                                          const ExpertGroups& groups);

}  // namespace tessera::moe
