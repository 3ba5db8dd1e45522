#include "cli/profile_command.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/train_device.h"
#include "exec/profile.h"
#include "plan/plan.h"
#include "report/profile_view.h"

namespace tessera::cli {

namespace {

report::ProfileView view_of(const exec::StepProfile& p, std::int32_t steps, const TrainDevice& device) {
  report::ProfileView view;
  const double per_step = 1.0 / steps;
  for (const kernels::OperatorUse& use : p.uses) {
    view.rows.push_back({.name = use.name,
                         .width = use.width,
                         .calls = static_cast<double>(use.calls) * per_step,
                         .time = use.time * per_step,
                         .bytes = static_cast<double>(use.bytes.value) * per_step,
                         .flops = static_cast<double>(use.flops.value) * per_step});
  }
  view.peak = device.peak.value_or(FlopsPerSecond(0.0));
  view.peak_source = device.peak_source;
  view.bandwidth = p.copy;
  view.step = p.step;
  return view;
}

void print_json(const report::ProfileView& view) {
  nlohmann::ordered_json j;
  j["step_s"] = view.step.value;
  j["peak_flops_per_s"] = view.peak.value;
  j["peak_source"] = view.peak_source;
  j["copy_bytes_per_s"] = view.bandwidth.value;
  for (const report::ProfileRow& r : view.rows) {
    const report::Share share = report::share_of(r, view);
    j["operations"].push_back({{"name", r.name},
                               {"width", r.width},
                               {"calls", r.calls},
                               {"time_s", r.time.value},
                               {"bytes", r.bytes},
                               {"flops", r.flops},
                               {"limit", share.limit == report::Limit::compute ? "compute" : "memory"},
                               {"share_of_limit", share.reached}});
  }
  std::printf("%s\n", j.dump().c_str());
}

}  // namespace

int profile(const ProfileFlags& f, const Terminal& terminal) {
  require_one_process("profile");
  const spec::Job job = spec::read_job(f.job, f.overrides, use_on(f.device));
  const plan::Plan plan = plan::make_plan(job);
  const TrainDevice device = open_device(f.device, dtype_of(job.train.precision), {});
  const exec::StepProfile p = exec::profile_steps(plan, f.steps, device.compute);
  const report::ProfileView view = view_of(p, f.steps, device);
  if (f.json) {
    print_json(view);
    return 0;
  }
  std::printf("%s\nrank 0 of %d on %s, per step:\n\n%s", plan::describe(plan).c_str(),
              plan.layout.world_size(), device.text.c_str(),
              report::render(view, f.most, terminal.style).c_str());
  return 0;
}

}  // namespace tessera::cli
