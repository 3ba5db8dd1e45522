// DivergenceWatch: which steps diverge by the job's rule, and how the run goes on after them. It sees only
// numbers that are equal on every rank, so all ranks decide alike. Its state goes into checkpoints: a resumed
// run decides as the uninterrupted one.
//
//   DivergenceWatch watch(job.train.divergence);
//   engine.train_step(watch.order(step), [&](const StepResult& r) { return watch.judge(r); });
//   if (!watch.fault().empty()) switch (watch.decide(step)) ...
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "exec/rank_engine.h"
#include "spec/job.h"

namespace tessera::exec {

class DivergenceWatch {
 public:
  explicit DivergenceWatch(const spec::DivergenceSpec& spec);

  [[nodiscard]] StepOrder order(std::int64_t step) const;
  // True: good; its loss and norm count from now on. False: fault() says why.
  [[nodiscard]] bool judge(const StepResult& result);
  [[nodiscard]] const std::string& fault() const { return fault_; }  // of the last step judged; empty: none
  [[nodiscard]] bool is_finite() const { return finite_; }           // the last step's numbers

  // After a fault. skip: already booked. rollback: the caller loads the checkpoint's state, then calls
  // rolled_back. stop: also where the policy's patience is at its end.
  [[nodiscard]] spec::OnDivergence decide(std::int64_t step);
  // The checkpoint's state is loaded and holds for `to` steps; `from` diverged with the data of `batch`.
  void rolled_back(std::int64_t from, std::int64_t batch, std::int64_t to);

  // Empty as long as it says nothing that a fresh one does not.
  [[nodiscard]] std::vector<double> state() const;
  // Of the same or another policy; empty: none. A rollback's count of divergences stays.
  void restore(std::span<const double> state);

 private:
  struct Sample {
    double loss = 0.0, grad_norm = 0.0;
  };
  [[nodiscard]] std::string find_fault(const StepResult& result) const;

  spec::DivergenceSpec spec_;
  std::vector<Sample> recent_;  // good steps, oldest first
  std::int64_t updates_left_out_ = 0;
  std::int64_t batches_jumped_ = 0;
  std::int64_t in_a_row_ = 0;  // divergences
  std::int64_t last_ = -1;     // the latest step of them
  std::string fault_;
  bool finite_ = true;
};

}  // namespace tessera::exec
