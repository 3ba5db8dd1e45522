#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "cli/commands.h"
#include "cli/explain_plan.h"
#include "cli/placed_load.h"
#include "cli/simulate_input.h"
#include "cost/engine_step.h"
#include "cost/step.h"
#include "report/simulation.h"
#include "search/search.h"
#include "sim/simulate.h"
#include "trace/chrome.h"

namespace tessera::cli {
namespace {

using Json = nlohmann::ordered_json;
using report::SimulationView;

// The order of a plan file is kept; else it is made for the stages' times, as software that measures them.
schedule::Schedule schedule_of(const SimulateInput& input, const cost::StepWork& work) {
  if (input.keeps_schedule) return input.plan->schedule;
  const cost::Candidate& c = input.candidate;
  return schedule::lower(
      schedule::generate({.kind = c.schedule,
                          .pp = c.pp,
                          .vpp = c.vpp,
                          .num_microbatches = static_cast<std::int32_t>(work.num_microbatches),
                          .costs = cost::stage_costs(work)}));
}

// Are the stages cut as the cost model cuts them?
bool is_model_split(const SimulateInput& input) {
  const cost::StageSplit cut(input.setup.model, input.candidate.pp * input.candidate.vpp,
                             input.setup.practice.balanced_stages);
  for (std::int32_t s = 0; s < cut.num_stages(); ++s) {
    if (cut.layers(s) != input.stage_layers[static_cast<std::size_t>(s)]) return false;
  }
  return true;
}

double seconds_of(schedule::SimTime t) {
  return schedule::to_seconds(t).value;
}

template <class Values>
Json by_axis(const Values& values) {
  Json out = Json::object();
  for (std::int32_t a = 0; a < graph::kNumAxes; ++a) {
    const auto value = values[static_cast<std::size_t>(a)];
    double number = 0.0;
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(value)>, schedule::SimTime>) {
      number = seconds_of(value);
    } else {
      number = value;
    }
    if (number > 0.0) out[std::string(graph::name(static_cast<graph::Axis>(a)))] = number;
  }
  return out;
}

Json rank_json(const SimulationView& view, std::int32_t r) {
  const sim::RankResult& rank = view.result->ranks[static_cast<std::size_t>(r)];
  const report::PeakParts parts = report::peak_parts(*view.schedule, *view.work, r, rank);
  Json seconds = Json::object();
  for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
    const auto part = static_cast<cost::Part>(p);
    if (rank[part].value != 0) seconds[std::string(cost::name(part))] = seconds_of(rank[part]);
  }
  return {{"pipeline_rank", r},
          {"world_rank", rank.rank.value},
          {"busy_seconds", seconds_of(rank.busy)},
          {"idle_seconds", seconds_of(rank.idle)},
          {"seconds", std::move(seconds)},
          {"communication_seconds", by_axis(rank.comm)},
          {"exposed_seconds", by_axis(rank.exposed)},
          {"bytes_sent", by_axis(rank.bytes_sent)},
          {"memory",
           {{"static_bytes", parts.fixed},
            {"activation_bytes", parts.activations},
            {"transient_bytes", parts.transient},
            {"peak_bytes", rank.peak_bytes},
            {"reserved_bytes", report::reserved_bytes(rank.peak_bytes)},
            {"peak_at_seconds", seconds_of(rank.peak_at)}}}};
}

Json to_json(const SimulationView& view) {
  const cost::Setup& s = *view.setup;
  const double seconds = view.result->seconds();
  const double tokens =
      static_cast<double>(s.work.global_batch_size) * static_cast<double>(s.work.sequence_length);
  Json parts = Json::object();
  for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
    const auto part = static_cast<cost::Part>(p);
    if (view.cost[part] != 0.0) parts[std::string(cost::name(part))] = view.cost[part];
  }
  const double usable = search::usable_memory(s);
  bool fits = true;
  Json ranks = Json::array();
  for (std::int32_t r = 0; r < view.schedule->pp; ++r) {
    const double peak = view.result->ranks[static_cast<std::size_t>(r)].peak_bytes;
    fits = fits && report::reserved_bytes(peak) <= usable;
    ranks.push_back(rank_json(view, r));
  }
  Json out = {{"model", view.model},
              {"cluster", s.cluster.name},
              {"device", s.calibration.name},
              {"num_devices", view.candidate->world_size()},
              {"practice", s.practice.name},
              {"layout", cost::to_text(*view.candidate)},
              {"microbatches", view.schedule->num_microbatches},
              {"step_seconds", seconds},
              {"tokens_per_s_per_device", tokens / seconds / view.candidate->world_size()},
              {"mfu", view.cost.mfu()},
              {"mfu_full", view.cost.mfu_full()},
              {"hfu", view.cost.hfu()},
              {"seconds", std::move(parts)},
              {"bottleneck", report::simulation_bottleneck(view)},
              {"fits", fits},
              {"usable_bytes", usable},
              {"ranks", std::move(ranks)}};
  if (const std::string load = load_json(s, view.candidate->ep); !load.empty())
    out["expert_load"] = Json::parse(load);
  if (view.closed_form) out["closed_form_seconds"] = *view.closed_form;
  if (view.without_stragglers) out["seconds_without_stragglers"] = *view.without_stragglers;
  return out;
}

void write_trace(const SimulateFlags& flags, const SimulationView& view, trace::Trace trace) {
  trace.metadata["model"] = view.model;
  trace.metadata["cluster"] = view.setup->cluster.name;
  trace.metadata["devices"] = fmt::format("{}", view.candidate->world_size());
  trace.metadata["layout"] = cost::to_text(*view.candidate);
  trace::write_chrome(flags.trace, trace);
}

// The step that is played and what it was priced at.
struct Priced {
  cost::StepWork work;
  schedule::Schedule lists;
  cost::StepCost cost;
  std::optional<double> closed_form;  // where the formula is of the same step
};

// Jobs that train here are priced operation by operation, as the engine runs them.
bool is_of_the_engine(const SimulateInput& input) {
  if (input.setup.practice.name != "tessera" || !(input.setup.routing == cost::RoutingLoad())) return false;
  Problems problems;
  spec::check_engine_runs(input.plan->job, "job", problems);
  return problems.empty();
}

Priced price(const SimulateInput& input) {
  if (is_of_the_engine(input)) {
    const plan::Plan& p = *input.plan;
    cost::EngineStep step =
        cost::engine_step({p.job, p.layout, p.schedule}, input.setup.cluster, input.setup.calibration);
    return {.work = std::move(step.work), .lists = p.schedule, .cost = step.cost};
  }
  cost::StepModel model(input.setup);
  const bool same_split = is_model_split(input);
  Priced out{.cost = model.predict(input.candidate)};
  out.work = same_split ? model.work(input.candidate) : model.work(input.candidate, input.stage_layers);
  out.lists = schedule_of(input, out.work);
  if (same_split) out.closed_form = out.cost.seconds();
  return out;
}

sim::Result play(const SimulateInput& input, const Priced& priced, const sim::Options& options) {
  plan::Plan plan = *input.plan;
  plan.schedule = priced.lists;
  return sim::simulate(plan, priced.work, options);
}

// Explanations price whole layouts; what the user changed inside of one is not theirs.
void require_layout_prices(const SimulateInput& input) {
  const bool plain = !is_of_the_engine(input) && is_model_split(input) && input.rank_slowdown.empty();
  if (plain) return;
  throw Error(
      ErrorKind::config,
      "--what-if and --against compare layouts with even stages and no stragglers, of a practice of GPU "
      "frameworks",
      "tessera simulate", "leave out --stragglers and stage_layers, or name a --practice");
}

}  // namespace

int simulate(const SimulateFlags& flags, const Terminal& terminal) {
  const SimulateInput input = read_simulate_input(flags);
  const Priced priced = price(input);
  sim::Options options;
  options.rank_slowdown = input.rank_slowdown;
  options.shared_links = flags.shared_links;
  options.detail = flags.trace_detail == "actions" ? sim::Detail::actions : sim::Detail::segments;
  const sim::Result result = play(input, priced, options);
  SimulationView view{.setup = &input.setup,
                      .candidate = &input.candidate,
                      .schedule = &priced.lists,
                      .work = &priced.work,
                      .result = &result,
                      .cost = report::simulated_cost(result, priced.cost),
                      .model = input.model,
                      .stage_layers = input.stage_layers,
                      .rank_slowdown = input.rank_slowdown};
  if (!input.rank_slowdown.empty()) {
    options.rank_slowdown.clear();
    view.without_stragglers = sim::makespan(priced.lists, priced.work, options);
  } else if (!flags.shared_links) {
    view.closed_form = priced.closed_form;
  }
  if (!flags.trace.empty()) write_trace(flags, view, result.trace);
  const bool explained = flags.what_if || !flags.against.empty();
  if (explained) require_layout_prices(input);
  const Comparison other{"this plan", "the other", input.candidate,
                         flags.against.empty() ? input.candidate : parse_layout(flags.against, input.setup)};
  if (flags.json) {
    Json j = to_json(view);
    if (flags.what_if) j["what_if"] = Json::parse(what_if_json(input.setup, input.candidate));
    if (!flags.against.empty()) j["against"] = Json::parse(against_json(input.setup, other));
    std::printf("%s\n", j.dump(2).c_str());
    return 0;
  }
  std::printf("%s", report::simulation_page(view, terminal.style).c_str());
  const std::string note = load_note(input.setup, input.candidate.ep);
  if (!note.empty()) std::printf("\n  %s\n", note.c_str());
  if (!flags.against.empty()) {
    std::printf("\n%s", titled("Beside " + cost::to_text(other.other),
                               against_text(input.setup, other, Detail::table, inner_of(terminal.style)),
                               terminal.style)
                            .c_str());
  }
  if (flags.what_if) {
    std::printf("\n%s",
                titled("What one change brings",
                       what_if_text(input.setup, input.candidate, inner_of(terminal.style)), terminal.style)
                    .c_str());
  }
  if (!flags.trace.empty()) {
    std::printf("\n  trace of %zu spans: %s (open it in ui.perfetto.dev)\n", result.trace.spans.size(),
                flags.trace.c_str());
  }
  return 0;
}

}  // namespace tessera::cli
