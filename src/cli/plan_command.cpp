#include "cli/plan_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/text.h"
#include "cli/explain_plan.h"
#include "cli/framework_files.h"
#include "cli/placed_load.h"
#include "cli/robust_plan.h"
#include "plan/plan.h"
#include "report/plan_table.h"
#include "report/waterfall.h"
#include "search/refine.h"
#include "search/search.h"

namespace tessera::cli {
namespace {

using Json = nlohmann::ordered_json;

// Mean error of step times on published runs of other sources, rounded up (docs/accuracy.md): dense models,
// and those with experts.
constexpr double kDenseBand = 0.12, kMoeBand = 0.14;

search::Options options_of(const PlanFlags& flags, const cost::Setup& setup) {
  search::Options o;
  o.top = flags.robust ? std::max(flags.top, kRobustCandidates) : flags.top;
  o.threads = flags.threads;
  o.memory_fraction = flags.memory;
  o.distinct = flags.all_choices ? search::Distinct::candidates : search::Distinct::layouts;
  if (!flags.closed_form) {
    o.refine = search::simulated(setup);
    o.account = search::simulated_parts(setup);
  }
  o.refined = std::max(32, 2 * o.top);
  return o;
}

// The fewest devices, in doublings, on which something fits; 0: none tried.
std::int32_t enough_devices(const cost::Setup& setup, const search::Space& space,
                            const search::Options& options) {
  search::Options quick = options;
  quick.top = 1;
  quick.refine = quick.account = nullptr;
  for (std::int32_t factor = 2; factor <= 16; factor *= 2) {
    try {
      cost::Setup larger = setup;
      larger.cluster = spec::with_devices(setup.cluster, setup.cluster.num_devices * factor);
      if (!search::search(larger, space, quick).best.empty()) return larger.cluster.num_devices;
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::internal) throw;
      return 0;  // the cluster cannot grow so far, or the pins do not divide it
    }
  }
  return 0;
}

// Why there is no layout, and what would mend it.
Error nothing_found(const PlanFlags& flags, const Question& q, const search::Result& r,
                    const search::Options& options) {
  const cost::Setup& s = q.setup;
  const auto find = [&](search::Reason reason) {
    const auto at = std::find_if(r.rejections.begin(), r.rejections.end(),
                                 [&](const search::Rejection& x) { return x.reason == reason; });
    return at == r.rejections.end() ? nullptr : &*at;
  };
  const std::string pins = flags.pins.empty() ? "" : "lift a pin (" + join(flags.pins, ", ") + "); ";
  const std::string on = fmt::format("{} on {} x {}", flags.model, s.cluster.num_devices, s.calibration.name);
  if (const search::Rejection* big = find(search::Reason::does_not_fit)) {
    std::string mend = pins;
    if (const std::int32_t enough = enough_devices(s, q.space, options); enough > 0) {
      mend += fmt::format("it fits on {} devices (--devices {}); ", enough, enough);
    }
    mend += "use more devices, devices with more memory, or a shorter --seq";
    std::vector<std::string> parts;
    for (std::int32_t p = 0; p < cost::kNumMemoryParts; ++p) {
      const auto part = static_cast<cost::MemoryPart>(p);
      parts.push_back(fmt::format("{} {:.1f}", cost::name(part), big->memory[part] / 1e9));
    }
    return {
        ErrorKind::config, fmt::format("no layout of {} fits: {}", on, report::describe(*big)),
        fmt::format("memory of the nearest, GB: {}; {} candidates tried", join(parts, ", "), r.enumerated),
        mend};
  }
  for (const auto reason : {search::Reason::schedule, search::Reason::shape, search::Reason::batch}) {
    if (const search::Rejection* x = find(reason)) {
      return {ErrorKind::config, fmt::format("no layout of {} is valid: {}", on, report::describe(*x)),
              fmt::format("{} layouts tried", r.layouts),
              pins + fmt::format("use --gbs with more divisors (now {}) or another number of --devices",
                                 s.work.global_batch_size)};
    }
  }
  return {ErrorKind::config, fmt::format("no layout of {} is left by the pins", on), "tessera plan",
          pins + "pins contradict each other or the number of devices"};
}

Json to_json(const cost::Candidate& c) {
  return {{"tp", c.tp},
          {"cp", c.cp},
          {"pp", c.pp},
          {"vpp", c.vpp},
          {"dp", c.dp},
          {"ep", c.ep},
          {"etp", c.etp},
          {"micro_batch_size", c.micro_batch_size},
          {"zero_stage", c.zero_stage},
          {"order", cost::name(c.order)},
          {"recompute", search::to_text({.mode = c.recompute, .modules = c.recompute_modules})},
          {"schedule", schedule::name(c.schedule)},
          {"sequence_parallel", c.sequence_parallel}};
}

Json to_json(const cost::MemoryCost& m) {
  Json j = Json::object();
  for (std::int32_t p = 0; p < cost::kNumMemoryParts; ++p) {
    const auto part = static_cast<cost::MemoryPart>(p);
    j[std::string(cost::name(part)) + "_bytes"] = m[part];
  }
  j["allocated_bytes"] = m.allocated();
  j["reserved_bytes"] = m.reserved();
  j["pipeline_rank"] = m.pipeline_rank;
  return j;
}

Json to_json(const cost::Setup& setup, const search::Ranked& r) {
  Json j = to_json(r.candidate);
  j["step_seconds"] = r.cost.seconds();
  j["tokens_per_s_per_device"] = report::tokens_per_device_second(setup, r.cost);
  j["mfu"] = r.cost.mfu();
  j["mfu_full"] = r.cost.mfu_full();
  j["hfu"] = r.cost.hfu();
  j["bubble_fraction"] = r.cost.bubble_fraction;
  Json seconds = Json::object();
  for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
    const auto part = static_cast<cost::Part>(p);
    seconds[std::string(cost::name(part))] = r.cost[part];
  }
  j["seconds"] = std::move(seconds);
  j["memory"] = to_json(r.cost.memory);
  if (setup.cluster.price_per_device_hour > 0) {
    j["price_per_billion_tokens"] = report::price_of_billion_tokens(setup, r.cost);
  }
  return j;
}

Json to_json(const cost::Setup& setup, const search::Rejection& r) {
  Json j = {{"reason", search::name(r.reason)}, {"count", r.count}, {"nearest", to_json(r.nearest)}};
  if (r.reason == search::Reason::slower) j["lost_to"] = cost::name(r.lost_to);
  if (!r.why.empty()) j["why"] = r.why;
  if (r.reason == search::Reason::does_not_fit) {
    j["needs_bytes"] = r.needs;
    j["limit_bytes"] = r.limit;
  } else if (r.needs > 0) {
    j["needs_seconds"] = r.needs;
    j["limit_seconds"] = r.limit;
  }
  j["text"] = report::describe(r);
  (void)setup;
  return j;
}

void print_json(const PlanFlags& flags, const cost::Setup& setup, const search::Result& r, double band,
                const std::vector<Comparison>& others, const std::optional<RobustPlan>& robust,
                const search::Ranked& chosen, const FrameworkFiles& files) {
  Json best = Json::array(), rejections = Json::array();
  for (const search::Ranked& x : r.best) best.push_back(to_json(setup, x));
  for (const search::Rejection& x : r.rejections) rejections.push_back(to_json(setup, x));
  Json j = {{"model", flags.model},
            {"cluster", setup.cluster.name},
            {"device", setup.calibration.name},
            {"num_devices", setup.cluster.num_devices},
            {"global_batch_size", setup.work.global_batch_size},
            {"sequence_length", setup.work.sequence_length},
            {"precision", spec::name(setup.work.precision)},
            {"practice", setup.practice.name},
            {"error_band", band},
            {"layouts", r.layouts},
            {"candidates", r.enumerated},
            {"costed", r.costed},
            {"bottleneck", report::bottleneck(setup, r.best.front())},
            {"best", std::move(best)},
            {"rejected", std::move(rejections)}};
  for (const Comparison& c : others)
    j[c.other_name == "yours" ? "against" : "runner_up"] = Json::parse(against_json(setup, c));
  if (flags.what_if) j["what_if"] = Json::parse(what_if_json(setup, r.best.front().candidate));
  if (robust) j["robust"] = Json::parse(robust_json(*robust));
  if (const std::string load = load_json(setup, r.best.front().candidate.ep); !load.empty())
    j["expert_load"] = Json::parse(load);
  if (const std::string from = files.from_json(setup); !from.empty()) j["from"] = Json::parse(from);
  if (const std::string made = files.emitted_json(setup, chosen); !made.empty())
    j["emitted"] = Json::parse(made);
  std::printf("%s\n", j.dump(2).c_str());
}

// Under the scenarios, with all of the memory: what --memory leaves free is for them. Then the list is as
// long as asked for.
RobustPlan robust_of(const PlanFlags& flags, double quantile, const cost::Setup& setup,
                     search::Result& result) {
  RobustPlan robust = robust_plan(setup, result,
                                  {.quantile = quantile,
                                   .scenarios = flags.scenarios,
                                   .network_spread = flags.network_spread,
                                   .routing_excess = flags.routing_excess,
                                   .threads = flags.threads});
  if (std::ssize(result.best) > flags.top) result.best.resize(static_cast<std::size_t>(flags.top));
  return robust;
}

}  // namespace

int plan(const PlanFlags& asked, const Terminal& terminal) {
  const FrameworkFiles files(asked);
  const PlanFlags& flags = files.flags();
  const double quantile = parse_quantile(flags.quantile);
  const Question q = read_question(flags);
  const search::Options options = options_of(flags, q.setup);
  search::Result result = search::search(q.setup, q.space, options);
  if (result.best.empty()) throw nothing_found(flags, q, result, options);
  std::optional<RobustPlan> robust;
  search::Ranked chosen = result.best.front();  // what is written
  if (flags.robust) {
    const std::vector<search::Ranked> all = result.best;  // the list becomes as short as asked for
    robust = robust_of(flags, quantile, q.setup, result);
    chosen = all[static_cast<std::size_t>(robust->choice)];
  }
  if (!flags.output.empty()) {
    plan::Plan best = plan::make_plan(cost::to_job(q.setup, chosen.candidate));
    best.planned_for = {.cluster = q.setup.cluster, .practice = q.setup.practice.name};
    plan::write_plan(flags.output, best);
  }
  const double band = q.setup.model.moe ? kMoeBand : kDenseBand;
  const cost::Candidate& best = result.best.front().candidate;
  std::vector<Comparison> others;
  if (result.best.size() > 1) {
    others.push_back({"the best", "the runner-up", best, result.best[1].candidate});
  }
  if (!flags.against.empty()) {
    others.push_back({"the best", "yours", best, parse_layout(flags.against, q.setup)});
  }
  if (const auto yours = files.candidate()) others.push_back({"the best", "yours", best, *yours});
  if (flags.json) {
    print_json(flags, q.setup, result, band, others, robust, chosen, files);
    return 0;
  }
  if (files.emits_alone()) {
    std::printf("%s", files.emitted(q.setup, chosen).c_str());
    return 0;
  }
  const report::PlanView view{.setup = &q.setup,
                              .result = &result,
                              .model = std::filesystem::path(flags.model).filename().string(),
                              .error_band = band};
  std::printf("%s", report::plan_page(view, terminal.style).c_str());
  const std::string note = load_note(q.setup, result.best.front().candidate.ep);
  if (!note.empty()) std::printf("\n  %s\n", note.c_str());
  for (const Comparison& c : others) {
    std::printf("\n%s",
                titled("Why not " + c.other_name + ", " + cost::to_text(c.other),
                       against_text(q.setup, c, c.other_name == "yours" ? Detail::table : Detail::sentences,
                                    inner_of(terminal.style)),
                       terminal.style)
                    .c_str());
  }
  if (flags.what_if) {
    std::printf("\n%s", titled("What one change of the best brings",
                               what_if_text(q.setup, best, inner_of(terminal.style)), terminal.style)
                            .c_str());
  }
  std::printf("%s", files.page(q.setup, chosen, terminal.style).c_str());
  if (robust) {
    std::printf("\n%s", titled("The robust choice", robust_text(*robust, flags.top, inner_of(terminal.style)),
                               terminal.style)
                            .c_str());
  }
  if (!flags.output.empty()) {
    std::printf("\nwrote %s: the plan of the %s\n", flags.output.c_str(),
                robust ? "robust choice" : "best one");
  }
  return 0;
}

}  // namespace tessera::cli
