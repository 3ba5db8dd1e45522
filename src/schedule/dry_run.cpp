#include "schedule/dry_run.h"

#include <algorithm>
#include <array>

namespace tessera::schedule {

bool is_send(ActionKind kind) {
  return kind == ActionKind::send_forward || kind == ActionKind::send_backward;
}
bool is_receive(ActionKind kind) {
  return kind == ActionKind::recv_forward || kind == ActionKind::recv_backward;
}

Action partner_of(const Action& a) {
  switch (a.kind) {
    case ActionKind::send_forward:
      return {ActionKind::recv_forward, StageId(a.stage.value + 1), a.microbatch};
    case ActionKind::recv_forward:
      return {ActionKind::send_forward, StageId(a.stage.value - 1), a.microbatch};
    case ActionKind::send_backward:
      return {ActionKind::recv_backward, StageId(a.stage.value - 1), a.microbatch};
    case ActionKind::recv_backward:
      return {ActionKind::send_backward, StageId(a.stage.value + 1), a.microbatch};
    case ActionKind::forward:
    case ActionKind::backward_input:
    case ActionKind::backward_weight:
    case ActionKind::backward:
    case ActionKind::reduce_grad:
      return a;
  }
  return a;
}

namespace {

constexpr std::int32_t kAbsent = -1;
std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}
std::size_t direction(const Action& a) {
  return a.kind == ActionKind::send_forward || a.kind == ActionKind::recv_forward ? 0 : 1;
}

class Runner {
 public:
  explicit Runner(const Schedule& lowered) : s_(lowered) {
    const std::size_t stages = at(s_.num_stages());
    for (Channel& c : channels_) {
      c.sent_clock.assign(stages * at(s_.num_microbatches), kAbsent);
      c.waiter.assign(stages * at(s_.num_microbatches), kAbsent);
      c.sent.assign(stages, 0);
      c.peak.assign(stages, 0);
      c.received_at.resize(stages);
    }
    for (const ActionList& list : s_.ranks) {
      for (std::int32_t i = 0; i < static_cast<std::int32_t>(list.size()); ++i) {
        const Action& a = list[at(i)];
        if (!is_receive(a.kind)) continue;
        channels_[direction(a)].received_at[at(partner_of(a).stage.value)].push_back(i);
      }
    }
    clock_.assign(at(s_.pp), std::vector<std::int32_t>(at(s_.pp), 0));
    reached_.assign(at(s_.pp), 0);
  }

  DryRun run() {
    for (std::int32_t r = s_.pp - 1; r >= 0; --r) runnable_.push_back(r);
    while (!runnable_.empty()) {
      const std::int32_t r = runnable_.back();
      runnable_.pop_back();
      advance(r);
    }
    DryRun out;
    for (std::size_t r = 0; r < s_.ranks.size(); ++r) {
      out.hangs = out.hangs || at(reached_[r]) != s_.ranks[r].size();
    }
    out.reached = std::move(reached_);
    out.peak_unreceived_forward = std::move(channels_[0].peak);
    out.peak_unreceived_backward = std::move(channels_[1].peak);
    return out;
  }

 private:
  struct Channel {                         // one direction
    std::vector<std::int32_t> sent_clock;  // [cell of the sender] row of clocks_, or kAbsent
    std::vector<std::int32_t> waiter;      // [cell of the sender] rank, or kAbsent
    std::vector<std::int32_t> sent, peak;  // [stage of the sender]
    std::vector<std::vector<std::int32_t>>
        received_at;  // [stage of the sender] positions in the receiver's list
  };

  [[nodiscard]] std::size_t cell(const Action& a) const {
    return at(a.stage.value) * at(s_.num_microbatches) + at(a.microbatch.value);
  }

  void advance(std::int32_t r) {
    const ActionList& list = s_.ranks[at(r)];
    for (std::int32_t& i = reached_[at(r)]; i < static_cast<std::int32_t>(list.size()); ++i) {
      const Action& a = list[at(i)];
      if (is_receive(a.kind) && !receive(r, a)) return;
      clock_[at(r)][at(r)] = i + 1;
      if (is_send(a.kind)) send(r, a);
    }
  }

  void send(std::int32_t r, const Action& a) {
    Channel& c = channels_[direction(a)];
    if (free_rows_.empty()) {
      free_rows_.push_back(static_cast<std::int32_t>(rows_.size()));
      rows_.emplace_back();
    }
    c.sent_clock[cell(a)] = free_rows_.back();
    rows_[at(free_rows_.back())] = clock_[at(r)];
    free_rows_.pop_back();
    const std::int32_t receiver = s_.rank_of(partner_of(a).stage);
    const std::vector<std::int32_t>& receives = c.received_at[at(a.stage.value)];
    const auto surely_received =
        std::lower_bound(receives.begin(), receives.end(), clock_[at(r)][at(receiver)]) - receives.begin();
    std::int32_t& peak = c.peak[at(a.stage.value)];
    peak = std::max(peak, ++c.sent[at(a.stage.value)] - static_cast<std::int32_t>(surely_received));
    if (c.waiter[cell(a)] != kAbsent) runnable_.push_back(c.waiter[cell(a)]);
  }

  bool receive(std::int32_t r, const Action& a) {
    Channel& c = channels_[direction(a)];
    const std::size_t id = cell(partner_of(a));
    const std::int32_t row = c.sent_clock[id];
    if (row == kAbsent) {
      c.waiter[id] = r;
      return false;
    }
    std::vector<std::int32_t>& mine = clock_[at(r)];
    for (std::size_t q = 0; q < mine.size(); ++q) mine[q] = std::max(mine[q], rows_[at(row)][q]);
    free_rows_.push_back(row);
    return true;
  }

  const Schedule& s_;
  std::array<Channel, 2> channels_;  // forward, backward
  // clock_[r][q]: how many actions of rank q have surely happened when rank r is where it is (a vector
  // clock). With it a sender knows which of its messages must have been received.
  std::vector<std::vector<std::int32_t>> clock_;
  std::vector<std::vector<std::int32_t>> rows_;  // clocks of the messages under way
  std::vector<std::int32_t> free_rows_, reached_, runnable_;
};

}  // namespace

DryRun dry_run(const Schedule& lowered) {
  return Runner(lowered).run();
}

}  // namespace tessera::schedule
