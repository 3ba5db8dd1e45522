#include "plan/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "base/math.h"
#include "base/text.h"
#include "schedule/simulate.h"

namespace tessera::plan {

Plan make_plan(spec::Job job) {
  Problems problems;
  spec::validate(job, "job", problems);
  problems.throw_if_any();
  const spec::ParallelSpec& p = job.parallel;
  const spec::Recipe& r = job.train;
  const schedule::Kind kind = schedule::parse_kind(p.schedule, "parallel.schedule");
  const std::int64_t m = div_exact(r.global_batch_size, r.micro_batch_size * p.dp);
  TESSERA_CHECK(m <= std::numeric_limits<std::int32_t>::max(), "a valid job has a bounded global batch");
  schedule::Schedule lists = schedule::lower(schedule::generate(
      {.kind = kind, .pp = p.pp, .vpp = p.vpp, .num_microbatches = static_cast<std::int32_t>(m)}));
  schedule::CheckReport proof = schedule::checked(lists);
  const auto placement =
      lists.placement == schedule::Placement::vee ? layout::Placement::vee : layout::Placement::loop;
  layout::Layout layout = layout::make_layout(job.model, p, placement);
  return {std::move(job), std::move(layout), std::move(lists), std::move(proof)};
}

namespace {

std::string layers_text(const layout::StageCut& cut) {
  std::string text = cut.num_layers == 1
                         ? fmt::format("layer {}", cut.first_layer)
                         : fmt::format("layers {}-{}", cut.first_layer, cut.first_layer + cut.num_layers - 1);
  if (cut.has_embedding) text = "embedding, " + text;
  if (cut.has_head) text += ", head";
  return text;
}

// Parameters of one stage on the first rank that holds it.
std::int64_t stage_parameters(const Plan& plan, StageId stage) {
  const std::int32_t pp_rank = plan.layout.stage_rank.at(static_cast<std::size_t>(stage.value));
  const std::int32_t per_stage_ranks = plan.layout.world_size() / plan.job.parallel.pp;
  std::int64_t sum = 0;
  for (const auto& param : layout::parameters(plan.job.model, plan.layout, Rank(pp_rank * per_stage_ranks))) {
    if (param.stage == stage && !param.tied_copy) sum += param.num_elements();
  }
  return sum;
}

}  // namespace

std::string describe(const Plan& plan) {
  const spec::ModelSpec& model = plan.job.model;
  const spec::ParallelSpec& p = plan.job.parallel;
  const spec::Recipe& r = plan.job.train;
  std::string out = fmt::format("model     {}, {} parameters", spec::name(model.family),
                                human_count(static_cast<double>(spec::num_parameters(model))));
  if (model.moe) {
    out += fmt::format(", {} used by a token (top {} of {} experts)",
                       human_count(static_cast<double>(spec::num_active_parameters(model))),
                       model.moe->num_experts_per_tok, model.moe->num_experts);
  }
  out +=
      fmt::format("\nstep      {} sequences of {} tokens: {} micro-batches of {} on {} replicas\n",
                  r.global_batch_size, r.sequence_length, plan.num_microbatches(), r.micro_batch_size, p.dp);
  out += fmt::format("layout    {} ranks = tp {} x cp {} x dp {} x pp {}", plan.layout.world_size(), p.tp,
                     p.cp, p.dp, p.pp);
  if (model.moe) out += fmt::format("; experts: etp {} x ep {} x edp {} x pp {}", p.etp, p.ep, p.edp(), p.pp);
  const Seconds unit(1.0);
  const auto costs = schedule::StageCosts::uniform(plan.schedule.num_stages(), unit, unit, unit);
  const schedule::Simulation sim = schedule::simulate(plan.schedule, costs);
  out += fmt::format(
      "\nschedule  {}, {} stages, bubble {:.1f} % of the step when F, I and W take equal times\n",
      schedule::name(plan.schedule.kind), plan.schedule.num_stages(), 100.0 * sim.bubble_fraction);
  out += fmt::format("{:>5} {:>7} {:>12} {:>5} {:>8}  {}\n", "stage", "pp rank", "parameters", "live",
                     "deferred", "holds");
  for (std::int32_t s = 0; s < plan.schedule.num_stages(); ++s) {
    const auto at = static_cast<std::size_t>(s);
    out += fmt::format("{:>5} {:>7} {:>12} {:>5} {:>8}  {}\n", s, plan.layout.stage_rank.at(at),
                       human_count(static_cast<double>(stage_parameters(plan, StageId(s)))),
                       plan.proof.stages.at(at).peak_live, plan.proof.stages.at(at).peak_deferred,
                       layers_text(plan.layout.stages.at(at)));
  }
  return out;
}

}  // namespace tessera::plan
