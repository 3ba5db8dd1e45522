#include "cli/robust_plan.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/explain_plan.h"
#include "report/robust_view.h"

namespace tessera::cli {

namespace {

using Json = nlohmann::ordered_json;

report::RobustView view_of(const RobustPlan& p, std::int32_t shown) {
  return {.candidates = p.candidates,
          .times = p.times,
          .options = &p.options,
          .shown = shown,
          .price_of_first = p.price_of_first,
          .price_of_choice = p.price_of_choice};
}

// Not a number where it runs out of memory.
Json number(double seconds) {
  return std::isfinite(seconds) ? Json(seconds) : Json();
}

Json by_cause(const std::array<double, explain::kNumDisturbances>& seconds) {
  constexpr std::array<const char*, explain::kNumDisturbances> kNames = {"nodes", "network", "routing"};
  Json j = Json::object();
  for (std::size_t d = 0; d < seconds.size(); ++d) j[kNames[d]] = number(seconds[d]);
  return j;
}

}  // namespace

double parse_quantile(const std::string& text) {
  std::string digits = text;
  if (digits.empty()) return explain::RobustOptions().quantile;
  if (digits.front() == 'p') digits.erase(0, 1);
  double value = 0.0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, value);
  if (value > 1.0) value /= 100.0;
  if (error != std::errc() || stop != end || !(value > 0.0 && value <= 1.0)) {
    throw Error(ErrorKind::config, fmt::format("\"{}\" is no quantile", text), "--robust",
                "write a number above 0 and up to 1, 0.9 or p90, or nothing behind the flag");
  }
  return value;
}

RobustPlan robust_plan(const cost::Setup& setup, const search::Result& result,
                       const explain::RobustOptions& options) {
  RobustPlan p{.options = options, .has_experts = setup.model.moe.has_value()};
  for (const search::Ranked& r : result.best) p.candidates.push_back(r.candidate);
  p.times = explain::robust_times(setup, p.candidates, options);
  p.choice = explain::robust_choice(p.times);
  p.price_of_first = explain::price_of_each(setup, p.candidates.front(), options);
  p.price_of_choice = p.choice == 0 ? p.price_of_first
                                    : explain::price_of_each(
                                          setup, p.candidates[static_cast<std::size_t>(p.choice)], options);
  return p;
}

std::string robust_text(const RobustPlan& plan, std::int32_t shown, const report::Style& style) {
  const report::RobustView view = view_of(plan, shown);
  std::string text = report::robust_table(view, style) + "\n";
  for (const std::string& line : report::wrap(report::robust_sentence(view), report::columns(style)))
    text += line + "\n";
  std::string how = fmt::format(
      "{} scenarios, the same for every layout (seed {}): nodes as slow as the calibration's stragglers, "
      "bandwidths above the innermost links divided by 1 + {:g} |z|",
      plan.options.scenarios, plan.options.seed, plan.options.network_spread);
  if (plan.has_experts)
    how += fmt::format(", the busiest expert 1 + {:g} |z| times the mean", plan.options.routing_excess);
  how += "; z is normal. Planned steps have the stragglers as a constant.";
  for (const std::string& line : report::wrap(how, report::columns(style)))
    text += report::paint(line, report::Tone::faint, style) + "\n";
  return text;
}

std::string robust_json(const RobustPlan& plan) {
  Json layouts = Json::array();
  for (std::size_t i = 0; i < plan.times.size(); ++i) {
    const explain::Robust& r = plan.times[i];
    layouts.push_back({{"layout", Json::parse(layout_json(plan.candidates[i]))},
                       {"planned_seconds", r.nominal_seconds},
                       {"mean_seconds", number(r.mean_seconds)},
                       {"quantile_seconds", number(r.quantile_seconds)},
                       {"worst_seconds", number(r.worst_seconds)},
                       {"out_of_memory", r.overflows},
                       {"scenario_at_quantile", r.at}});
  }
  return Json{{"quantile", plan.options.quantile},
              {"scenarios", plan.options.scenarios},
              {"seed", plan.options.seed},
              {"choice", plan.choice},
              {"changes", plan.choice != 0},
              {"fastest_pays_seconds", by_cause(plan.price_of_first)},
              {"choice_pays_seconds", by_cause(plan.price_of_choice)},
              {"layouts", std::move(layouts)}}
      .dump();
}

}  // namespace tessera::cli
