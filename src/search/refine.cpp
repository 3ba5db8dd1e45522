#include "search/refine.h"

#include <algorithm>

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

}  // namespace

Refine simulated(const cost::Setup& setup) {
  return [&setup](const cost::Candidate& c, const cost::StepCost& coarse) {
    cost::StepCost fine = coarse;
    const std::int64_t m = cost::num_microbatches(setup.work, c);
    if (m * c.pp * c.vpp > kMaxRefinedCells) return fine;
    cost::StepModel model(setup);
    const cost::StepWork work = model.work(c);
    const schedule::Schedule s = schedule::generate({.kind = c.schedule,
                                                     .pp = c.pp,
                                                     .vpp = c.vpp,
                                                     .num_microbatches = static_cast<std::int32_t>(m),
                                                     .costs = cost::stage_costs(work)});
    add_to_bubble(fine, sim::makespan(s, work) - coarse.seconds());
    fine.bubble_fraction = fine[cost::Part::bubble] / fine.seconds();
    return fine;
  };
}

}  // namespace tessera::search
