#include "sim/simulate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "sim/program.h"

namespace tessera::sim {
namespace {

std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}

class Checker {
 public:
  Checker(const schedule::Schedule& schedule, const cost::StepWork& work, const Options& options)
      : schedule_(schedule), work_(work), options_(options) {}

  void check() {
    shapes();
    if (problems_.empty()) numbers();
    problems_.throw_if_any();
    schedule::require_owned(schedule_);
    horizon();
  }

 private:
  void size(std::size_t have, std::int32_t want, std::string_view name, bool may_be_empty) {
    if (have == at(want) || (may_be_empty && have == 0)) return;
    problems_.add(fmt::format("{} has {} entries, not {}", name, have, want), "simulate",
                  "make the work from the candidate that the schedule is of");
  }
  void shapes() {
    const std::int32_t pp = schedule_.pp;
    size(work_.stages.size(), schedule_.num_stages(), "work.stages", false);
    size(work_.static_bytes.size(), pp, "work.static_bytes", true);
    size(work_.grad_seconds.size(), pp, "work.grad_seconds", true);
    size(work_.grad_bytes.size(), pp, "work.grad_bytes", true);
    size(work_.param_seconds.size(), pp, "work.param_seconds", true);
    size(work_.param_bytes.size(), pp, "work.param_bytes", true);
    size(work_.optimizer_seconds.size(), pp, "work.optimizer_seconds", true);
    size(options_.rank_slowdown.size(), pp, "options.rank_slowdown", true);
    if (work_.num_microbatches != 0 && work_.num_microbatches != schedule_.num_microbatches) {
      problems_.add(fmt::format("the work is of {} micro-batches, the schedule of {}", work_.num_microbatches,
                                schedule_.num_microbatches),
                    "simulate", "make the work from the candidate that the schedule is of");
    }
    if (options_.num_buckets < 1 || options_.num_buckets > 1024) {
      problems_.add(fmt::format("num_buckets is {}", options_.num_buckets), "simulate", "use 1 to 1024");
    }
    const auto replicas =
        static_cast<std::int64_t>(std::max<std::size_t>(1, options_.replica_slowdown.size()));
    const double buckets = static_cast<double>(replicas) * pp *
                           static_cast<double>(options_.num_buckets + schedule_.vpp) *
                           static_cast<double>(work_.grad_repeats + work_.param_repeats);
    if (!(buckets <= schedule::kMaxCells)) {
      problems_.add(fmt::format("{} buckets of gradients and weights", buckets), "simulate: num_buckets",
                    fmt::format("simulate at most {} of them in all", schedule::kMaxCells));
    }
    const std::int64_t cells = replicas * schedule_.num_stages() * schedule_.num_microbatches;
    if (cells > schedule::kMaxCells) {
      problems_.add(fmt::format("{} replicas of {} stages and {} micro-batches", replicas,
                                schedule_.num_stages(), schedule_.num_microbatches),
                    "simulate", fmt::format("simulate at most {} of them in all", schedule::kMaxCells));
    }
  }

  void time(double seconds, std::string_view name) {
    if (seconds >= 0 && seconds <= 8.64e6) return;
    problems_.add(fmt::format("{} is {} s", name, seconds), "simulate", "use 0 to 100 days");
  }
  void phase(const std::vector<cost::Segment>& segments, double whole, std::size_t stage,
             std::string_view name) {
    time(whole, fmt::format("{} of stage {}", name, stage));
    double sum = 0;
    for (const cost::Segment& s : segments) {
      time(s.seconds, fmt::format("'{}' of stage {}", s.name, stage));
      time(s.exposed, fmt::format("'{}' of stage {}", s.name, stage));
      sum += s.exposed;
    }
    if (segments.empty() || std::abs(sum - whole) <= 1e-9 * std::max(whole, 1e-6)) return;
    problems_.add(fmt::format("{} of stage {} is {} s, its segments take {} s", name, stage, whole, sum),
                  "simulate", "let it be the sum of the exposed seconds");
  }
  void numbers() {
    for (std::size_t s = 0; s < work_.stages.size(); ++s) {
      const cost::StageWork& w = work_.stages[s];
      phase(w.forward, w.forward_seconds, s, "forward_seconds");
      phase(w.backward_input, w.backward_input_seconds, s, "backward_input_seconds");
      phase(w.backward_weight, w.backward_weight_seconds, s, "backward_weight_seconds");
      time(w.p2p_seconds, "p2p_seconds");
    }
    for (const double v : work_.grad_seconds) time(v, "grad_seconds");
    for (const double v : work_.param_seconds) time(v, "param_seconds");
    for (const double v : work_.optimizer_seconds) time(v, "optimizer_seconds");
    if (!(work_.jitter_share >= 0 && work_.jitter_share <= 100)) {
      problems_.add(fmt::format("jitter_share is {}", work_.jitter_share), "simulate",
                    "use a share of the step");
    }
    if (!(work_.overlap_slowdown >= 0)) {
      problems_.add(fmt::format("overlap_slowdown is {}", work_.overlap_slowdown), "simulate",
                    "use a share of the time, 0 or more");
    }
    const std::int64_t m = schedule_.num_microbatches;
    if (work_.grad_repeats != 1 && work_.grad_repeats != m) {
      problems_.add(fmt::format("grad_repeats is {} with {} micro-batches", work_.grad_repeats, m),
                    "simulate", "use 1 or the number of micro-batches");
    }
    if (work_.param_repeats != 1 && work_.param_repeats != m && work_.param_repeats != 2 * m) {
      problems_.add(fmt::format("param_repeats is {} with {} micro-batches", work_.param_repeats, m),
                    "simulate", "use 1, or once or twice the number of micro-batches");
    }
    for (const auto* factors : {&options_.rank_slowdown, &options_.replica_slowdown}) {
      for (const double f : *factors) {
        if (f > 0 && f <= 1e6) continue;
        problems_.add(fmt::format("a slowdown is {}", f), "simulate",
                      "use factors above 0, 1 is no slowdown");
      }
    }
  }

  // No path through the step is longer than all of it in a row, shared links or not, slowed at most 10 times.
  void horizon() const {
    double slow = 1, all = 0;
    for (const double f : options_.rank_slowdown) slow = std::max(slow, f);
    double replicas = 0, slowest = 1;
    for (const double f : options_.replica_slowdown) replicas += 1, slowest = std::max(slowest, f);
    for (const cost::StageWork& w : work_.stages) {
      all += schedule_.num_microbatches *
             ((w.forward_seconds + w.backward_input_seconds + w.backward_weight_seconds) * slow * slowest +
              2 * w.p2p_seconds);
    }
    for (const auto* extra : {&work_.grad_seconds, &work_.param_seconds, &work_.optimizer_seconds}) {
      for (const double v : *extra) all += v;
    }
    static_cast<void>(
        schedule::to_sim_time(Seconds(all * std::max(1.0, replicas) * 10 * (1 + work_.jitter_share))));
  }

  const schedule::Schedule& schedule_;
  const cost::StepWork& work_;
  const Options& options_;
  Problems problems_;
};

// Where the first replica's ranks got stuck, as positions in their lists.
[[noreturn]] void throw_hang(const schedule::Schedule& schedule, const cost::StepWork& work,
                             const Options& options) {
  const Program program = make_program(schedule, work, options, schedule::Record::intervals);
  const schedule::LaneTimes times = schedule::run(program.lanes);
  std::vector<std::size_t> reached;
  for (std::int32_t r = 0; r < schedule.pp; ++r) {
    const auto lane = at(program.lane(0, r, LaneKind::compute));
    const std::size_t ended = times.reached[lane];
    const bool inside = ended < program.info[lane].size() && program.info[lane][ended].action >= 0;
    reached.push_back(inside ? at(program.info[lane][ended].action) : schedule.ranks[at(r)].size());
  }
  schedule::throw_if_hanging(schedule, reached);
  throw Error(ErrorKind::internal, "a proven schedule hangs", "simulate", "report this with the plan");
}

// Added at the end of the step.
SimTime jitter_of(const cost::StepWork& work, SimTime makespan) {
  return SimTime(std::llround(static_cast<double>(makespan.value) * work.jitter_share));
}

Result simulate_ranks(const schedule::Schedule& schedule, const cost::StepWork& work, const Options& options,
                      const std::vector<Rank>& world_ranks) {
  Checker(schedule, work, options).check();
  const Program program = make_program(schedule, work, options, schedule::Record::intervals);
  const schedule::LaneTimes times = schedule::run(program.lanes);
  if (times.hangs) throw_hang(schedule, work, options);
  const SimTime jitter = jitter_of(work, times.makespan);
  Result result = account(program, times, schedule, work, jitter);
  for (std::size_t r = 0; r < world_ranks.size(); ++r) result.ranks[r].rank = world_ranks[r];
  result.trace = make_trace(program, times, schedule, work, world_ranks, jitter, options.detail);
  return result;
}

}  // namespace

std::array<double, cost::kNumParts> Result::waterfall() const {
  std::array<double, cost::kNumParts> mean{};
  for (std::size_t p = 0; p < mean.size(); ++p) {
    SimTime sum{};
    for (const RankResult& r : ranks) sum += r.parts[p];
    mean[p] = schedule::to_seconds(sum).value / static_cast<double>(ranks.size());
  }
  return mean;
}

std::array<double, cost::kNumParts> Result::waterfall(const cost::StepCost& cost) const {
  std::array<double, cost::kNumParts> mean = waterfall();
  const auto part = [&mean](cost::Part p) -> double& { return mean[static_cast<std::size_t>(p)]; };
  const double attention = part(cost::Part::attention) - cost[cost::Part::attention];  // useful
  const double products = cost[cost::Part::ideal] - attention;
  part(cost::Part::attention) -= attention;
  part(cost::Part::gemm) -= products;
  part(cost::Part::ideal) += attention + products;
  return mean;
}

Result simulate(const plan::Plan& plan, const cost::StepWork& work, const Options& options) {
  const std::vector<Rank> ranks = plan.layout.dense.group(Rank(0), {layout::Axis::pp});
  return simulate_ranks(plan.schedule, work, options, ranks);
}

Result simulate(const schedule::Schedule& schedule, const cost::StepWork& work, const Options& options) {
  std::vector<Rank> ranks;
  for (std::int32_t r = 0; r < schedule.pp; ++r) ranks.emplace_back(r);
  return simulate_ranks(schedule, work, options, ranks);
}

double makespan(const schedule::Schedule& schedule, const cost::StepWork& work, const Options& options) {
  Checker(schedule, work, options).check();
  const Program program = make_program(schedule, work, options, schedule::Record::makespan);
  const schedule::LaneTimes times = schedule::run(program.lanes, schedule::Record::makespan);
  if (times.hangs) throw_hang(schedule, work, options);
  return schedule::to_seconds(times.makespan + jitter_of(work, times.makespan)).value;
}

}  // namespace tessera::sim
