// UnitShards: brings what a unit needs before each of its passes when the ranks of a group hold parts.
//
// ZeRO-3: the values by an all-gather, for F, and for I or B, but for the embedding, whose backward needs
// none; each use anew. ZeRO-2, -3: an empty buffer for the gradients of one micro-batch. ZeRO-1, -2 with a
// helper thread that gathers ahead: the values that the update of the step before has left with their owners.
//
// Ahead means that values travel while units before them compute; gradients are reduced while earlier units
// compute. Who needs either before it is there waits, which exposed_ns counts.
#pragma once
#include <cstdint>
#include <vector>

#include "comm/worker.h"
#include "exec/param_store.h"
#include "exec/stage.h"

namespace tessera::exec {

class UnitShards final : public UnitGuard {
 public:
  // What goes on while the rank computes; else the rank waits for it at once.
  struct Ahead {
    bool gathers = true;
    bool reduces = true;
  };
  // worker: null: all in line. All outlive this.
  UnitShards(ParamStore& store, kernels::Kernels& kernels, comm::CommWorker* worker, const Ahead& ahead);

  void before_unit(StageId stage, UnitPass pass, std::int32_t position, std::int32_t next) override;
  // The unit that the next pass of this rank begins with: its values are brought behind the last of the pass
  // before. kNoUnit: none.
  void expect(StageId stage, UnitPass pass, std::int32_t position);
  // Starts the sum of a bucket's gradients, which are complete (of this micro-batch or of the step).
  void reduce(std::size_t bucket);
  // The update has changed the owned values of whole buckets: now, or for the next forward pass, the others
  // get them. Weights are packed then.
  void gather_updated();
  void forget_update();  // all values were written whole
  void begin_step();     // asks for what the last update has left
  [[nodiscard]] std::int64_t exposed_ns() const { return exposed_ns_; }

 private:
  using Ticket = comm::CommWorker::Ticket;
  struct Use {           // of one bucket
    bool comes = false;  // its values are asked for and not yet used
    bool left = false;   // its values are with their owners since the last update
    Ticket values, gradients;
  };
  struct Expected {
    StageId stage;
    UnitPass pass = UnitPass::forward;
    std::int32_t position = kNoUnit;
  };
  [[nodiscard]] static bool needs_values(UnitPass pass, std::int32_t position);
  // visit(bucket) for those that hold values of the unit, gathered before use.
  template <class Visit>
  void visit_values(StageId stage, std::int32_t position, Visit visit);
  void ask(std::size_t bucket);
  void ask_for_left();
  void bring_left(StageId stage, std::int32_t position);
  void ask_ahead(const Expected& ahead, StageId stage, std::int32_t position);
  void wait(Ticket ticket);

  ParamStore& store_;
  kernels::Kernels& kernels_;
  comm::CommWorker* worker_;
  bool ahead_;  // gathers
  bool reduces_ahead_;
  bool some_left_ = false;
  std::vector<Use> uses_;                   // parallel to the buckets
  std::vector<std::size_t> forward_order_;  // of the buckets
  std::vector<std::int32_t> grad_user_;     // bucket whose gradients were last in a buffer; -1: none
  Expected expected_;
  std::int64_t exposed_ns_ = 0;
};

}  // namespace tessera::exec
