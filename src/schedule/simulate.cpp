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

void require_owned(const Schedule& s) {
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

void throw_if_hanging(const Schedule& schedule, const std::vector<std::size_t>& reached) {
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    if (reached[r] >= schedule.ranks[r].size()) continue;
    throw Error(ErrorKind::config,
                fmt::format("the schedule hangs at {}", to_text(schedule.ranks[r][reached[r]])),
                fmt::format("rank {}, action {}", r, reached[r]),
                "run the checker on the schedule: it names the cause");
  }
}

namespace {

using ExactDurations = std::vector<std::vector<SimTime>>;

// One lane a rank. Four events a (stage, micro-batch): ends of its forward and backward, its two messages.
class Builder {
 public:
  Builder(const Schedule& schedule, SimTime latency)
      : schedule_(schedule),
        latency_(latency),
        lowered_(schedule.is_lowered()),
        cells_(schedule.num_stages() * schedule.num_microbatches) {}

  [[nodiscard]] Lanes lanes(const ExactDurations& durations) const {
    Lanes out;
    out.signals.assign(4 * static_cast<std::size_t>(cells_), 1);
    out.lanes.resize(schedule_.ranks.size());
    for (std::size_t r = 0; r < schedule_.ranks.size(); ++r) {
      out.lanes[r].reserve(schedule_.ranks[r].size());
      for (std::size_t i = 0; i < schedule_.ranks[r].size(); ++i) {
        const Action& a = schedule_.ranks[r][i];
        LaneOp op = waiting(a);
        op.duration = durations[r][i].value;
        op.signal = signal(a);
        out.lanes[r].push_back(op);
      }
    }
    return out;
  }

 private:
  enum Table : std::uint8_t { forward_end, backward_end, sent_forward, sent_backward };

  [[nodiscard]] std::int32_t event(Table table, std::int32_t stage, MicrobatchId k) const {
    return table * cells_ + stage * schedule_.num_microbatches + k.value;
  }

  // The input that neighbour stage `from` makes.
  [[nodiscard]] LaneOp input(const Action& a, std::int32_t from, bool forward) const {
    const bool message = !is_compute(a.kind);
    const bool local = schedule_.rank_of(StageId(from)) == schedule_.rank_of(a.stage);
    if (lowered_ && !message && !local) return {};  // the receive before it has waited
    const Table table =
        message ? (forward ? sent_forward : sent_backward) : (forward ? forward_end : backward_end);
    return {.delay = local ? 0 : latency_.value, .wait = event(table, from, a.microbatch)};
  }

  [[nodiscard]] LaneOp waiting(const Action& a) const {
    switch (a.kind) {
      case ActionKind::forward:
      case ActionKind::recv_forward:
        return a.stage.value == 0 ? LaneOp{} : input(a, a.stage.value - 1, true);
      case ActionKind::backward_input:
      case ActionKind::backward:
      case ActionKind::recv_backward:
        if (!schedule_.is_last(a.stage)) return input(a, a.stage.value + 1, false);
        return {.wait = event(forward_end, a.stage.value, a.microbatch)};
      case ActionKind::backward_weight:
      case ActionKind::send_forward:
      case ActionKind::send_backward:
      case ActionKind::reduce_grad:
        return {};
    }
    return {};
  }

  [[nodiscard]] std::int32_t signal(const Action& a) const {
    switch (a.kind) {
      case ActionKind::forward:
        return event(forward_end, a.stage.value, a.microbatch);
      case ActionKind::backward_input:
      case ActionKind::backward:
        return event(backward_end, a.stage.value, a.microbatch);
      case ActionKind::send_forward:
        return event(sent_forward, a.stage.value, a.microbatch);
      case ActionKind::send_backward:
        return event(sent_backward, a.stage.value, a.microbatch);
      case ActionKind::backward_weight:
      case ActionKind::recv_forward:
      case ActionKind::recv_backward:
      case ActionKind::reduce_grad:
        return -1;
    }
    return -1;
  }

  const Schedule& schedule_;
  SimTime latency_;
  bool lowered_;
  std::int32_t cells_;
};

void finish(const Schedule& schedule, Simulation& sim) {
  std::int64_t idle = 0;
  for (std::size_t r = 0; r < schedule.ranks.size(); ++r) {
    SimTime busy{}, before{};
    for (std::size_t i = 0; i < schedule.ranks[r].size(); ++i) {
      const ActionKind kind = schedule.ranks[r][i].kind;
      Interval& at = sim.actions[r][i];
      if (is_compute(kind)) busy += at.end - at.start;
      // A receive takes the rank from now until its message is there; all else starts when it can run.
      if (kind == ActionKind::recv_forward || kind == ActionKind::recv_backward) at.start = before;
      before = at.end;
    }
    sim.busy.push_back(busy);
    sim.idle.push_back(sim.makespan - busy);
    idle += sim.idle.back().value;
    TESSERA_CHECK(sim.idle.back().value >= 0, "a rank cannot be busy for longer than the makespan");
  }
  const double total = static_cast<double>(sim.makespan.value) * static_cast<double>(schedule.ranks.size());
  sim.bubble_fraction = total > 0 ? static_cast<double>(idle) / total : 0;
}

Simulation simulate_exact(const Schedule& schedule, const ExactDurations& durations, SimTime latency) {
  LaneTimes times = run(Builder(schedule, latency).lanes(durations));
  throw_if_hanging(schedule, times.reached);
  Simulation sim;
  sim.actions = std::move(times.ops);
  sim.makespan = times.makespan;
  finish(schedule, sim);
  return sim;
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
  require_owned(schedule);
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
  require_owned(schedule);
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
  return simulate_exact(schedule, exact, to_sim_time(p2p_latency));
}

}  // namespace tessera::schedule
