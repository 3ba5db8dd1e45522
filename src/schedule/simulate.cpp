#include "schedule/simulate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace tessera::schedule {

SimTime to_sim_time(Seconds seconds) {
  if (!(seconds.value >= 0 && seconds.value <= 8.64e6)) {
    throw Error(ErrorKind::config, fmt::format("{} s is not a time of the simulator", seconds.value),
                "simulate", "use seconds of 0 or more, at most 100 days");
  }
  return SimTime(std::llround(seconds.value * 1e12));
}

Seconds to_seconds(SimTime time) {
  return Seconds(static_cast<double>(time.value) * 1e-12);
}

namespace {

constexpr std::int64_t kNever = -1;
using ExactDurations = std::vector<std::vector<SimTime>>;

// Walks all lists as far as their inputs allow until nothing moves.
class Walk {
 public:
  Walk(const Schedule& schedule, const ExactDurations& durations, SimTime latency)
      : schedule_(schedule), durations_(durations), latency_(latency), lowered_(schedule.is_lowered()) {
    const auto cells =
        static_cast<std::size_t>(schedule.num_stages()) * static_cast<std::size_t>(schedule.num_microbatches);
    for (auto* table : {&forward_end_, &backward_end_, &sent_forward_, &sent_backward_}) {
      table->assign(cells, kNever);
    }
    waiter_forward_.assign(cells, -1);
    waiter_backward_.assign(cells, -1);
    next_.assign(schedule.ranks.size(), 0);
    free_at_.assign(schedule.ranks.size(), 0);
    sim_.actions.resize(schedule.ranks.size());
    sim_.busy.resize(schedule.ranks.size());
    for (std::size_t r = 0; r < schedule.ranks.size(); ++r) sim_.actions[r].resize(schedule.ranks[r].size());
  }

  Simulation run() {
    for (std::size_t r = 0; r < schedule_.ranks.size(); ++r) runnable_.push_back(r);
    while (!runnable_.empty()) {
      const std::size_t r = runnable_.back();
      runnable_.pop_back();
      while (next_[r] < schedule_.ranks[r].size() && step(r)) ++next_[r];
    }
    for (std::size_t r = 0; r < schedule_.ranks.size(); ++r) {
      if (next_[r] == schedule_.ranks[r].size()) continue;
      throw Error(ErrorKind::config,
                  fmt::format("the schedule hangs at {}", to_text(schedule_.ranks[r][next_[r]])),
                  fmt::format("rank {}, action {}", r, next_[r]),
                  "run the checker on the schedule: it names the cause");
    }
    finish();
    return std::move(sim_);
  }

 private:
  [[nodiscard]] std::size_t cell(std::int32_t stage, MicrobatchId k) const {
    return static_cast<std::size_t>(stage) * static_cast<std::size_t>(schedule_.num_microbatches) +
           static_cast<std::size_t>(k.value);
  }
  [[nodiscard]] bool same_rank(std::int32_t a, std::int32_t b) const {
    return schedule_.rank_of(StageId(a)) == schedule_.rank_of(StageId(b));
  }

  // When the input that neighbour stage `from` makes is here, or kNever (then the rank is woken later).
  std::int64_t input_at(const Action& a, std::int32_t from, bool forward) {
    const bool message = !is_compute(a.kind);
    const bool local = same_rank(from, a.stage.value);
    if (lowered_ && !message && !local) return 0;  // the receive before it has waited
    const std::vector<std::int64_t>& table =
        message ? (forward ? sent_forward_ : sent_backward_) : (forward ? forward_end_ : backward_end_);
    const std::int64_t end = table[cell(from, a.microbatch)];
    if (end == kNever) {
      (forward ? waiter_forward_ : waiter_backward_)[cell(from, a.microbatch)] = schedule_.rank_of(a.stage);
      return kNever;
    }
    return local ? end : end + latency_.value;
  }

  std::int64_t ready_at(const Action& a) {
    switch (a.kind) {
      case ActionKind::forward:
      case ActionKind::recv_forward:
        return a.stage.value == 0 ? 0 : input_at(a, a.stage.value - 1, true);
      case ActionKind::backward_input:
      case ActionKind::backward:
      case ActionKind::recv_backward:
        if (!schedule_.is_last(a.stage)) return input_at(a, a.stage.value + 1, false);
        return forward_end_[cell(a.stage.value, a.microbatch)];
      case ActionKind::backward_weight:
      case ActionKind::send_forward:
      case ActionKind::send_backward:
      case ActionKind::reduce_grad:
        return 0;
    }
    return 0;
  }

  void publish(std::vector<std::int64_t>& table, std::vector<std::int32_t>& waiters, const Action& a,
               std::int64_t end) {
    const std::size_t c = cell(a.stage.value, a.microbatch);
    table[c] = end;
    if (waiters[c] < 0) return;
    runnable_.push_back(static_cast<std::size_t>(waiters[c]));
    waiters[c] = -1;
  }

  bool step(std::size_t r) {
    const Action& a = schedule_.ranks[r][next_[r]];
    const std::int64_t ready = ready_at(a);
    if (ready == kNever) return false;
    const std::int64_t duration = durations_[r][next_[r]].value;
    // A receive takes the rank from now until its message is there; everything else starts when it can run.
    const bool waits = a.kind == ActionKind::recv_forward || a.kind == ActionKind::recv_backward;
    const std::int64_t begin = std::max(free_at_[r], ready);
    const std::int64_t end = begin + duration;
    sim_.actions[r][next_[r]] = {SimTime(waits ? free_at_[r] : begin), SimTime(end)};
    free_at_[r] = end;
    if (is_compute(a.kind)) sim_.busy[r] += SimTime(duration);
    if (a.kind == ActionKind::forward) publish(forward_end_, waiter_forward_, a, end);
    if (a.kind == ActionKind::send_forward) publish(sent_forward_, waiter_forward_, a, end);
    if (a.kind == ActionKind::backward || a.kind == ActionKind::backward_input) {
      publish(backward_end_, waiter_backward_, a, end);
    }
    if (a.kind == ActionKind::send_backward) publish(sent_backward_, waiter_backward_, a, end);
    return true;
  }

  void finish() {
    for (const std::int64_t t : free_at_) sim_.makespan = std::max(sim_.makespan, SimTime(t));
    std::int64_t idle = 0;
    for (const SimTime busy : sim_.busy) {
      sim_.idle.push_back(sim_.makespan - busy);
      idle += sim_.idle.back().value;
      TESSERA_CHECK(sim_.idle.back().value >= 0, "a rank cannot be busy for longer than the makespan");
    }
    const double total = static_cast<double>(sim_.makespan.value) * static_cast<double>(free_at_.size());
    sim_.bubble_fraction = total > 0 ? static_cast<double>(idle) / total : 0;
  }

  const Schedule& schedule_;
  const ExactDurations& durations_;
  SimTime latency_;
  bool lowered_;
  std::vector<std::int64_t> forward_end_, backward_end_, sent_forward_, sent_backward_;
  std::vector<std::int32_t> waiter_forward_, waiter_backward_;
  std::vector<std::size_t> next_, runnable_;
  std::vector<std::int64_t> free_at_;
  Simulation sim_;
};

void check_actions(const Schedule& s) {
  TESSERA_CHECK_EQ(s.ranks.size(), s.pp, "one action list per pipeline rank");
  for (std::size_t r = 0; r < s.ranks.size(); ++r) {
    for (const Action& a : s.ranks[r]) {
      const bool inside = a.stage.value >= 0 && a.stage.value < s.num_stages() && a.microbatch.value >= 0 &&
                          a.microbatch.value < s.num_microbatches;
      if (inside && s.rank_of(a.stage) == static_cast<std::int32_t>(r)) continue;
      throw Error(ErrorKind::config, fmt::format("{} does not belong to rank {}", to_text(a), r), "simulate",
                  "run the checker on the schedule: it names the cause");
    }
  }
}

}  // namespace

Simulation simulate(const Schedule& schedule, const StageCosts& costs) {
  const auto n = static_cast<std::size_t>(schedule.num_stages());
  if (costs.forward.size() != n || costs.backward_input.size() != n || costs.backward_weight.size() != n) {
    throw Error(ErrorKind::config,
                fmt::format("costs have {}, {} and {} entries for {} stages", costs.forward.size(),
                            costs.backward_input.size(), costs.backward_weight.size(), n),
                "simulate: costs", "give one F, I and W cost per stage");
  }
  check_actions(schedule);
  Durations durations(schedule.ranks.size());
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    for (const Action& a : schedule.ranks[r]) {
      const auto s = static_cast<std::size_t>(a.stage.value);
      Seconds d{};
      if (a.kind == ActionKind::forward) d = costs.forward[s];
      if (a.kind == ActionKind::backward_input) d = costs.backward_input[s];
      if (a.kind == ActionKind::backward_weight) d = costs.backward_weight[s];
      if (a.kind == ActionKind::backward) d = costs.backward_input[s] + costs.backward_weight[s];
      durations[r].push_back(d);
    }
  }
  return simulate(schedule, durations, costs.p2p_latency);
}

Simulation simulate(const Schedule& schedule, const Durations& durations, Seconds p2p_latency) {
  check_actions(schedule);
  if (durations.size() != schedule.ranks.size()) {
    throw Error(ErrorKind::config,
                fmt::format("durations of {} ranks for pp={}", durations.size(), schedule.ranks.size()),
                "simulate: durations", "give one list per pipeline rank");
  }
  ExactDurations exact(durations.size());
  double longest = 0;  // no path through the step is longer than all of it in a row
  for (std::size_t r = 0; r < durations.size(); ++r) {
    if (durations[r].size() != schedule.ranks[r].size()) {
      throw Error(ErrorKind::config,
                  fmt::format("{} durations for {} actions", durations[r].size(), schedule.ranks[r].size()),
                  fmt::format("simulate: durations[{}]", r), "give one duration per action, 0 for messages");
    }
    for (const Seconds d : durations[r]) {
      exact[r].push_back(to_sim_time(d));
      longest += d.value + p2p_latency.value;
    }
  }
  static_cast<void>(to_sim_time(Seconds(longest)));  // throws when the clock could overflow
  return Walk(schedule, exact, to_sim_time(p2p_latency)).run();
}

}  // namespace tessera::schedule
