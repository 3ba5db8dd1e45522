#include "search/refine.h"

#include <algorithm>
#include <optional>

#include "schedule/schedule.h"
#include "sim/simulate.h"

namespace tessera::search {

namespace {

// The parts sum to `seconds`.
void add_to_bubble(cost::StepCost& cost, double more) {
  using cost::Part;
  for (const Part p : {Part::bubble, Part::pp, Part::dp, Part::jitter, Part::tp, Part::gemm}) {
    double& part = cost.parts[static_cast<std::size_t>(p)];
    const double taken = std::max(more, -part);
    part += taken;
    more -= taken;
  }
}

// What the simulator plays; none where that would be too long.
struct Simulated {
  cost::StepWork work;
  schedule::Schedule schedule;
};

std::optional<Simulated> run_of(const cost::Setup& setup, const cost::Candidate& c) {
  const std::int64_t m = cost::num_microbatches(setup.work, c);
  if (m * c.pp * c.vpp > kMaxRefinedCells) return std::nullopt;
  cost::StepModel model(setup);
  Simulated run{.work = model.work(c), .schedule = {}};
  run.schedule = schedule::generate({.kind = c.schedule,
                                     .pp = c.pp,
                                     .vpp = c.vpp,
                                     .num_microbatches = static_cast<std::int32_t>(m),
                                     .costs = cost::stage_costs(run.work)});
  return run;
}

}  // namespace

Refine simulated(const cost::Setup& setup) {
  return [&setup](const cost::Candidate& c, const cost::StepCost& coarse) {
    cost::StepCost fine = coarse;
    if (const auto run = run_of(setup, c)) {
      add_to_bubble(fine, sim::makespan(run->schedule, run->work) - coarse.seconds());
      fine.bubble_fraction = fine[cost::Part::bubble] / fine.seconds();
    }
    return fine;
  };
}

Refine simulated_parts(const cost::Setup& setup) {
  return [&setup](const cost::Candidate& c, const cost::StepCost& coarse) {
    cost::StepCost fine = coarse;
    if (const auto run = run_of(setup, c)) {
      const sim::Result r = sim::simulate(run->schedule, run->work, {.detail = sim::Detail::none});
      fine.parts = r.waterfall(cost::StepModel(setup).predict(c));
      fine.bubble_fraction = fine[cost::Part::bubble] / fine.seconds();
    }
    return fine;
  };
}

}  // namespace tessera::search
