#include "schedule/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "schedule/dry_run.h"
#include "schedule/grid.h"

namespace tessera::schedule {

namespace {

constexpr std::size_t kMaxProblems = 20;
constexpr std::int32_t kAbsent = -1;

std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}

constexpr std::size_t kNumKinds = static_cast<std::size_t>(ActionKind::reduce_grad) + 1;
std::size_t at(ActionKind kind) {
  return static_cast<std::size_t>(kind);
}

class Checker {
 public:
  explicit Checker(const Schedule& schedule) : s_(schedule) {}

  CheckReport run() {
    report_.num_microbatches = s_.num_microbatches;
    if (shape() && owners()) {
      positions();
      completeness();
      order();
      ascending_weights();
      const bool lowered = s_.is_lowered();
      if (lowered) messages();
      if (report_.problems.empty()) {
        const Schedule other = lowered ? Schedule{} : lower(s_);
        prove_no_hang(lowered ? s_ : other);
      }
      if (report_.problems.empty()) {
        count_slots();
        return std::move(report_);
      }
    }
    if (skipped_ > 0) {
      report_.problems.add(fmt::format("and {} more problems", skipped_), "schedule",
                           "mend the ones above first");
    }
    if (!bad_.empty()) report_.grid = marked_lists(s_, bad_);
    return std::move(report_);
  }

 private:
  void add(std::string what, std::string where, std::string mend) {
    if (report_.problems.list().size() < kMaxProblems) {
      report_.problems.add(std::move(what), std::move(where), std::move(mend));
    } else {
      ++skipped_;
    }
  }
  void bad(std::int32_t rank, std::int32_t position, std::string what, std::string mend) {
    bad_.insert({rank, position});
    add(std::move(what), fmt::format("rank {}, action {}", rank, position), std::move(mend));
  }
  [[nodiscard]] std::size_t cell(std::int32_t stage, std::int32_t k) const {
    return at(stage) * at(s_.num_microbatches) + at(k);
  }
  [[nodiscard]] bool crosses(std::int32_t stage) const {  // from stage to stage + 1
    return s_.rank_of(StageId(stage)) != s_.rank_of(StageId(stage + 1));
  }

  bool shape() {
    for (const auto& [what, value] : {std::pair{"pp", s_.pp}, {"vpp", s_.vpp}, {"m", s_.num_microbatches}}) {
      if (value < 1) add(fmt::format("{}={} is below 1", what, value), "schedule", "use 1 or more");
    }
    if (!report_.problems.empty()) return false;
    const std::int64_t stages = std::int64_t{s_.pp} * s_.vpp;
    if (stages > kMaxCells || stages * s_.num_microbatches > kMaxCells) {
      add(fmt::format("pp={} x vpp={} x m={} is more than {} cells", s_.pp, s_.vpp, s_.num_microbatches,
                      kMaxCells),
          "schedule", "use fewer micro-batches or stages");
    }
    if (s_.placement == Placement::vee && s_.vpp != 2) {
      add(fmt::format("placement vee with vpp={}", s_.vpp), "schedule", "use vpp=2, or placement loop");
    }
    if (static_cast<std::int64_t>(s_.ranks.size()) != s_.pp) {
      add(fmt::format("{} action lists for pp={}", s_.ranks.size(), s_.pp), "schedule",
          "give one list per pipeline rank");
    }
    return report_.problems.empty();
  }

  bool owners() {
    for (std::int32_t r = 0; r < s_.pp; ++r) {
      const ActionList& list = s_.ranks[at(r)];
      for (std::int32_t i = 0; i < static_cast<std::int32_t>(list.size()); ++i) {
        const Action& a = list[at(i)];
        if (a.stage.value < 0 || a.stage.value >= s_.num_stages()) {
          bad(r, i, fmt::format("{} names stage {} of {}", to_text(a), a.stage.value, s_.num_stages()),
              fmt::format("use stages 0 to {}", s_.num_stages() - 1));
        } else if (a.microbatch.value < 0 || a.microbatch.value >= s_.num_microbatches) {
          bad(r, i,
              fmt::format("{} names micro-batch {} of {}", to_text(a), a.microbatch.value,
                          s_.num_microbatches),
              fmt::format("use micro-batches 0 to {}", s_.num_microbatches - 1));
        } else if (s_.rank_of(a.stage) != r) {
          bad(r, i,
              fmt::format("{} runs on rank {}, but stage {} is on rank {}", to_text(a), r, a.stage.value,
                          s_.rank_of(a.stage)),
              fmt::format("move it to rank {}", s_.rank_of(a.stage)));
        } else if (a.kind == ActionKind::reduce_grad && a.microbatch.value != 0) {
          bad(r, i, fmt::format("{} carries micro-batch {}", to_text(a), a.microbatch.value),
              "use micro-batch 0");
        }
      }
    }
    return report_.problems.empty();
  }

  // Where each action stands in its rank's list; twice is a problem.
  void positions() {
    const auto cells = at(s_.num_stages()) * at(s_.num_microbatches);
    for (auto& table : position_) table.assign(cells, kAbsent);
    for (std::int32_t r = 0; r < s_.pp; ++r) {
      const ActionList& list = s_.ranks[at(r)];
      for (std::int32_t i = 0; i < static_cast<std::int32_t>(list.size()); ++i) {
        const Action& a = list[at(i)];
        std::int32_t& p = position_[at(a.kind)][cell(a.stage.value, a.microbatch.value)];
        if (p != kAbsent) {
          bad(r, i, fmt::format("{} is there twice, first as action {}", to_text(a), p),
              "remove one of them");
        } else {
          p = i;
        }
      }
    }
  }
  [[nodiscard]] std::int32_t position(ActionKind kind, std::int32_t stage, std::int32_t k) const {
    return position_[at(kind)][cell(stage, k)];
  }
  // Of I or B, and of W or B.
  [[nodiscard]] std::int32_t gradient_position(std::int32_t stage, std::int32_t k) const {
    return std::max(position(ActionKind::backward_input, stage, k), position(ActionKind::backward, stage, k));
  }
  [[nodiscard]] std::int32_t weight_position(std::int32_t stage, std::int32_t k) const {
    return std::max(position(ActionKind::backward_weight, stage, k),
                    position(ActionKind::backward, stage, k));
  }

  template <class Visit>
  void each_cell(Visit visit) {
    for (std::int32_t stage = 0; stage < s_.num_stages(); ++stage) {
      const std::int32_t rank = s_.rank_of(StageId(stage));
      for (std::int32_t k = 0; k < s_.num_microbatches; ++k) visit(rank, stage, k);
    }
  }

  void completeness() {
    each_cell([&](std::int32_t rank, std::int32_t stage, std::int32_t k) {
      const std::string where = fmt::format("rank {}, stage {}, micro-batch {}", rank, stage, k);
      const bool i = position(ActionKind::backward_input, stage, k) != kAbsent;
      const bool w = position(ActionKind::backward_weight, stage, k) != kAbsent;
      const std::int32_t b = position(ActionKind::backward, stage, k);
      if (position(ActionKind::forward, stage, k) == kAbsent) {
        add(fmt::format("{}F{} is missing", stage, k), where, fmt::format("add it to rank {}", rank));
        mark_neighbour(rank, stage, k);
      }
      if (b != kAbsent && (i || w)) {
        bad(rank, b, fmt::format("{}B{} is there beside {}{}{}", stage, k, stage, i ? "I" : "W", k),
            "use either B, or I and W");
      } else if (b == kAbsent && !(i && w)) {
        const std::string missing = !i && !w ? "B" : i ? "W" : "I";
        add(fmt::format("{}{}{} is missing", stage, missing, k), where,
            fmt::format("add it to rank {}", rank));
        mark_neighbour(rank, stage, k);
      }
    });
  }

  // For a missing action: what is there of the same stage and micro-batch.
  void mark_neighbour(std::int32_t rank, std::int32_t stage, std::int32_t k) {
    for (const auto& table : position_) {
      const std::int32_t p = table[cell(stage, k)];
      if (p != kAbsent) {
        bad_.insert({rank, p});
        return;
      }
    }
  }

  // `later` must stand behind `earlier` on the same rank, where both are there.
  void behind(std::int32_t rank, std::int32_t earlier, std::int32_t later) {
    if (earlier == kAbsent || later == kAbsent || earlier < later || earlier == later) return;
    const ActionList& list = s_.ranks[at(rank)];
    bad(rank, later,
        fmt::format("{} runs before {} (action {})", to_text(list[at(later)]), to_text(list[at(earlier)]),
                    earlier),
        fmt::format("move {} behind {}", to_text(list[at(later)]), to_text(list[at(earlier)])));
  }

  void order() {
    each_cell([&](std::int32_t rank, std::int32_t stage, std::int32_t k) {
      behind(rank, position(ActionKind::forward, stage, k), gradient_position(stage, k));
      behind(rank, gradient_position(stage, k), weight_position(stage, k));
      if (stage + 1 < s_.num_stages() && !crosses(stage)) {
        behind(rank, position(ActionKind::forward, stage, k), position(ActionKind::forward, stage + 1, k));
        behind(rank, gradient_position(stage + 1, k), gradient_position(stage, k));
      }
    });
  }

  void ascending_weights() {
    for (std::int32_t stage = 0; stage < s_.num_stages(); ++stage) {
      const std::int32_t rank = s_.rank_of(StageId(stage));
      for (std::int32_t k = 1; k < s_.num_microbatches; ++k) {
        const std::int32_t before = weight_position(stage, k - 1), now = weight_position(stage, k);
        if (before == kAbsent || now == kAbsent || before < now) continue;
        const ActionList& list = s_.ranks[at(rank)];
        bad(rank, now,
            fmt::format(
                "{} runs before {}: weight gradients of a stage add up in ascending micro-batch order",
                to_text(list[at(now)]), to_text(list[at(before)])),
            fmt::format("move {} behind {}", to_text(list[at(now)]), to_text(list[at(before)])));
      }
    }
  }

  // A receive before its consumer, a send behind its producer, each exactly where two ranks meet.
  void messages() {
    each_cell([&](std::int32_t rank, std::int32_t stage, std::int32_t k) {
      const bool previous = stage > 0 && crosses(stage - 1);
      const bool next = stage + 1 < s_.num_stages() && crosses(stage);
      const std::int32_t forward = position(ActionKind::forward, stage, k);
      const std::int32_t gradient = gradient_position(stage, k);
      message(rank, {ActionKind::recv_forward, StageId(stage), MicrobatchId(k)}, previous, forward);
      message(rank, {ActionKind::send_forward, StageId(stage), MicrobatchId(k)}, next, forward);
      message(rank, {ActionKind::recv_backward, StageId(stage), MicrobatchId(k)}, next, gradient);
      message(rank, {ActionKind::send_backward, StageId(stage), MicrobatchId(k)}, previous, gradient);
    });
    for (std::int32_t stage = 0; stage < s_.num_stages(); ++stage) {
      const std::int32_t rank = s_.rank_of(StageId(stage));
      const std::int32_t reduce = position(ActionKind::reduce_grad, stage, 0);
      if (reduce == kAbsent) {
        add(fmt::format("{}REDUCE_GRAD is missing", stage), fmt::format("rank {}, stage {}", rank, stage),
            fmt::format("add it behind the last W of stage {}", stage));
      }
      behind(rank, weight_position(stage, s_.num_microbatches - 1), reduce);
    }
  }

  void message(std::int32_t rank, const Action& a, bool needed, std::int32_t partner) {
    const std::int32_t p = position(a.kind, a.stage.value, a.microbatch.value);
    const bool receives = is_receive(a.kind);
    if (p == kAbsent && needed) {
      add(fmt::format("{} is missing", to_text(a)), fmt::format("rank {}", rank),
          fmt::format("add it directly {}", receives ? "before its consumer" : "behind its producer"));
      if (partner != kAbsent) bad_.insert({rank, partner});
    } else if (p != kAbsent && !needed) {
      bad(rank, p, fmt::format("{} has no partner on another rank", to_text(a)), "remove it");
    } else if (receives) {
      behind(rank, p, partner);
    } else {
      behind(rank, partner, p);
    }
  }

  void prove_no_hang(const Schedule& lowered);
  void report_hang(const Schedule& lowered, const std::vector<std::int32_t>& next);
  void count_slots();

  const Schedule& s_;
  CheckReport report_;
  std::int64_t skipped_ = 0;
  std::set<std::pair<std::int32_t, std::int32_t>> bad_;  // (rank, position)
  std::array<std::vector<std::int32_t>, kNumKinds> position_;
};

void Checker::prove_no_hang(const Schedule& lowered) {
  const DryRun result = dry_run(lowered);
  if (result.hangs) report_hang(lowered, result.reached);
  report_.stages.resize(at(s_.num_stages()));
  for (std::size_t stage = 0; stage < report_.stages.size(); ++stage) {
    report_.stages[stage].peak_unreceived_forward = result.peak_unreceived_forward[stage];
    report_.stages[stage].peak_unreceived_backward = result.peak_unreceived_backward[stage];
  }
}

void Checker::report_hang(const Schedule& lowered, const std::vector<std::int32_t>& next) {
  for (std::int32_t r = 0; r < s_.pp; ++r) {
    const ActionList& list = lowered.ranks[at(r)];
    if (next[at(r)] == static_cast<std::int32_t>(list.size())) continue;
    const Action& waits = list[at(next[at(r)])];
    const Action wanted = partner_of(waits);
    const std::int32_t other = s_.rank_of(wanted.stage);
    const ActionList& theirs = lowered.ranks[at(other)];
    const std::int32_t stuck = next[at(other)];
    // In the user's list: the action that the receive feeds.
    const ActionKind fed =
        waits.kind == ActionKind::recv_forward ? ActionKind::forward : ActionKind::backward;
    const std::int32_t consumer = fed == ActionKind::forward
                                      ? position(fed, waits.stage.value, waits.microbatch.value)
                                      : gradient_position(waits.stage.value, waits.microbatch.value);
    const std::string there = stuck == static_cast<std::int32_t>(theirs.size())
                                  ? "has finished its list"
                                  : fmt::format("waits at {} before it", to_text(theirs[at(stuck)]));
    bad(r, consumer,
        fmt::format("the schedule hangs: rank {} waits at {} for {} of rank {}, which {}", r, to_text(waits),
                    to_text(wanted), other, there),
        fmt::format("move {} before the action that rank {} is stuck at, or {} behind what it waits for",
                    to_text(wanted), other, to_text(waits)));
  }
}

void Checker::count_slots() {
  report_.live_slot.assign(at(s_.num_stages()) * at(s_.num_microbatches), 0);
  report_.peak_live_rank.assign(at(s_.pp), 0);
  std::vector<std::int32_t> live(at(s_.num_stages()), 0), flying = live, deferred = live;
  std::vector<std::set<std::int32_t>> free(at(s_.num_stages()));
  const auto raise = [](std::int32_t& peak, std::int32_t value) { peak = std::max(peak, value); };
  for (std::int32_t r = 0; r < s_.pp; ++r) {
    std::int32_t live_rank = 0;
    for (const Action& a : s_.ranks[at(r)]) {
      const std::size_t s = at(a.stage.value);
      StageSlots& peaks = report_.stages[s];
      std::int32_t& slot = report_.live_slot[cell(a.stage.value, a.microbatch.value)];
      if (a.kind == ActionKind::forward) {
        raise(report_.peak_live_rank[at(r)], ++live_rank);
        raise(peaks.peak_in_flight, ++flying[s]);
        slot = live[s]++;  // the next new one, unless a lower one is free
        if (!free[s].empty()) {
          slot = *free[s].begin();
          free[s].erase(free[s].begin());
        }
        raise(peaks.peak_live, live[s]);
      }
      if (a.kind == ActionKind::backward_input || a.kind == ActionKind::backward) --flying[s];
      if (a.kind == ActionKind::backward_input) raise(peaks.peak_deferred, ++deferred[s]);
      if (a.kind == ActionKind::backward_weight) --deferred[s];
      if (a.kind == ActionKind::backward_weight || a.kind == ActionKind::backward) {
        --live_rank;
        --live[s];
        free[s].insert(slot);
      }
    }
  }
}

}  // namespace

std::int32_t CheckReport::slot_of(StageId stage, MicrobatchId microbatch) const {
  TESSERA_CHECK(ok(), "a rejected schedule has no slots");
  const auto index = at(stage.value) * at(num_microbatches) + at(microbatch.value);
  TESSERA_CHECK(index < live_slot.size() && microbatch.value < num_microbatches, "outside the schedule");
  return live_slot[index];
}

CheckReport check(const Schedule& schedule) {
  return Checker(schedule).run();
}

CheckReport checked(const Schedule& schedule) {
  CheckReport report = check(schedule);
  if (report.ok()) return report;
  std::vector<Problem> problems = report.problems.list();
  if (!report.grid.empty()) problems.back().mend += "\n" + report.grid;
  throw Error(ErrorKind::config, std::move(problems));
}

}  // namespace tessera::schedule
