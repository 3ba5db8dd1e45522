#include "cli/profile_command.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/train_device.h"
#include "exec/profile.h"
#include "plan/plan.h"
#include "report/profile_view.h"

namespace tessera::cli {

namespace {

report::ProfileView view_of(const exec::StepProfile& p, const spec::Job& job, std::int32_t steps,
                            const TrainDevice& device) {
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
  view.bandwidth = p.limits.copy;
  view.product = p.limits.product;
  view.side = p.limits.side;
  view.launch = p.limits.launch;
  view.step = p.step;
  view.fastest = p.fastest;
  const std::int64_t seq = job.train.sequence_length;
  view.tokens = static_cast<double>(job.train.global_batch_size * seq);
  view.model_flops = spec::train_flops_per_token(job.model, seq, spec::AttentionFlops::causal);
  view.model_flops_full = spec::train_flops_per_token(job.model, seq, spec::AttentionFlops::full);
  view.units = std::min(device.units, job.parallel.world_size());
  return view;
}

void print_json(const report::ProfileView& view, const std::string& device) {
  nlohmann::ordered_json j;
  j["device"] = device;
  j["step_s"] = view.step.value;
  j["fastest_step_s"] = view.fastest.value;
  j["tokens_per_s"] = view.tokens / view.step.value;
  j["model_flops_per_token"] = view.model_flops;
  j["model_flops_per_token_full"] = view.model_flops_full;
  j["units"] = view.units;
  j["mfu"] = report::mfu(view) ? nlohmann::ordered_json(*report::mfu(view)) : nullptr;
  j["mfu_full"] = report::mfu_full(view) ? nlohmann::ordered_json(*report::mfu_full(view)) : nullptr;
  j["peak_flops_per_s"] = view.peak.value;
  j["peak_source"] = view.peak_source;
  j["product_flops_per_s"] = view.product.value;
  j["product_side"] = view.side;
  j["copy_bytes_per_s"] = view.bandwidth.value;
  j["launch_s"] = view.launch.value;
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
  const TrainDevice device = open_device(f.device, exec::dtype_of(job.train.precision), {});
  const exec::StepProfile p = exec::profile_steps(plan, f.steps, device.compute);
  const report::ProfileView view = view_of(p, plan.job, f.steps, device);
  if (f.json) {
    print_json(view, device.text);
    return 0;
  }
  std::printf("%s\nrank 0 of %d on %s, per step:\n\n%s", plan::describe(plan).c_str(),
              plan.layout.world_size(), device.text.c_str(),
              report::render(view, f.most, terminal.style).c_str());
  return 0;
}

}  // namespace tessera::cli
