#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "report/schedule_view.h"
#include "schedule/check.h"
#include "schedule/schedule.h"
#include "schedule/simulate.h"
#include "schedule/text.h"

namespace tessera::cli {

int schedule(const ScheduleFlags& flags, const Terminal& terminal) {
  const schedule::Kind kind = schedule::parse_kind(flags.kind, "--kind");
  const std::int32_t needed = schedule::required_vpp(kind);
  const std::int32_t vpp = flags.vpp > 0 ? flags.vpp : (needed > 0 ? needed : 2);
  // Times are given per rank; a stage of a rank with several takes its share.
  const auto share = [&](double t) { return Seconds(t / vpp); };
  const auto costs = schedule::StageCosts::uniform(flags.pp * vpp, share(flags.forward),
                                                   share(flags.backward_input), share(flags.backward_weight));
  schedule::Schedule s = schedule::generate(
      {.kind = kind, .pp = flags.pp, .vpp = vpp, .num_microbatches = flags.microbatches, .costs = costs});
  if (flags.lowered) s = schedule::lower(s);
  const schedule::CheckReport proof = schedule::checked(s);
  const schedule::Simulation sim = schedule::simulate(s, costs);
  std::int32_t most = 0;
  for (const std::int32_t n : proof.peak_live_rank) most = std::max(most, n);
  const double makespan = schedule::to_seconds(sim.makespan).value;
  if (flags.json) {
    const nlohmann::ordered_json j = {{"text", schedule::to_text(s)},
                                      {"makespan", makespan},
                                      {"bubble", sim.bubble_fraction},
                                      {"peak_live_activations", most}};
    std::printf("%s\n", j.dump().c_str());
    return 0;
  }
  if (flags.text) {
    std::printf("%s", schedule::to_text(s).c_str());
    return 0;
  }
  std::printf("%s\n", report::schedule_view(s, costs, terminal.style).c_str());
  const std::string held = vpp == 1 ? "all" : fmt::format("1/{}", vpp);
  const std::string of = vpp > 1 ? fmt::format(", each of 1/{} of its layers", vpp) : "";
  std::printf("%s: makespan %.4g, bubble %.1f%%\nat most %d live activations on a rank%s\n",
              std::string(schedule::name(kind)).c_str(), makespan, 100.0 * sim.bubble_fraction, most,
              of.c_str());
  return 0;
}

}  // namespace tessera::cli
