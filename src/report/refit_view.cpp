#include "report/refit_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "report/numbers.h"
#include "report/page.h"
#include "report/table.h"

namespace tessera::report {

namespace {

using validate::Coefficient;
using validate::CoefficientState;
using validate::Residual;

std::string value_text(const Coefficient& c, double value) {
  return c.constant.high < 1e-3 ? fmt::format("{:.1f} us", value * 1e6) : fmt::format("{:.3f}", value);
}

std::string state_text(const Coefficient& c) {
  switch (c.state) {
    case CoefficientState::fitted:
      return c.at_bound ? "fitted, at its bound" : "fitted";
    case CoefficientState::no_effect:
    case CoefficientState::alike:
      return "as shipped";
  }
  return "";
}

std::string coefficient_table(const validate::Refit& refit, const Style& style) {
  Table table({{.header = "coefficient", .align = Align::left},
               {.header = "shipped"},
               {.header = "now"},
               {.header = "", .align = Align::left},
               {.header = "what it is", .align = Align::left, .drop = 1}});
  for (const Coefficient& c : refit.coefficients) {
    table.add_row({std::string(c.constant.name), value_text(c, c.shipped), value_text(c, c.value),
                   state_text(c), std::string(c.constant.meaning)},
                  c.state == CoefficientState::fitted ? Tone::strong : Tone::faint);
  }
  return table.render(style);
}

std::string error_text(double predicted, double measured) {
  return fmt::format("{:+.1f}%", 100.0 * (predicted / measured - 1.0));
}

std::string mean_text(const validate::Refit& refit, double Residual::*predicted) {
  double sum = 0;
  for (const Residual& r : refit.residuals) sum += std::abs(r.*predicted / r.measured - 1.0);
  return percent(sum / static_cast<double>(refit.residuals.size()));
}

std::string residual_table(const validate::Refit& refit, const Style& style) {
  Table table({{.header = "run", .align = Align::left},
               {.header = "measured s"},
               {.header = "as shipped"},
               {.header = "fitted"},
               {.header = "left out"}});
  double left_out = 0;
  bool any = false;
  for (const Residual& r : refit.residuals) {
    const bool told = r.left_out.has_value();
    table.add_row({r.name, fmt::format("{:.4g}", r.measured), error_text(r.shipped, r.measured),
                   error_text(r.fitted, r.measured), told ? error_text(*r.left_out, r.measured) : "--"});
    if (told) left_out += std::abs(*r.left_out / r.measured - 1.0);
    any = any || told;
  }
  table.add_footer({"mean error", "", mean_text(refit, &Residual::shipped),
                    mean_text(refit, &Residual::fitted),
                    any ? percent(left_out / static_cast<double>(refit.residuals.size())) : "--"});
  return table.render(style);
}

// "the runs do not tell launch from sustained: it stays at 40.0 us".
std::string warning_of(const Coefficient& c) {
  const std::string stays = fmt::format("it stays at the shipped {}", value_text(c, c.shipped));
  if (c.state == CoefficientState::no_effect) {
    return fmt::format("{}: no run depends on it (at most {}); {}", c.constant.name,
                       percent(std::expm1(c.effect)), stays);
  }
  return fmt::format("{}: the runs cannot tell it from {}; {}", c.constant.name, c.alike_as, stays);
}

}  // namespace

std::string refit_page(const RefitView& view, const Style& style) {
  const validate::Refit& refit = *view.refit;
  Page page(style);
  const auto runs = refit.residuals.size();
  page.title(fmt::format("{}: {} measured {}", view.device, runs, runs == 1 ? "run" : "runs"));
  for (const std::string& note : view.notes) page.item("- ", note, Tone::plain);
  page.section("Coefficients");
  page.block(coefficient_table(refit, page.inner()));
  for (const Coefficient& c : refit.coefficients) {
    if (c.state != CoefficientState::fitted) page.item("WARNING ", warning_of(c), Tone::warning);
    if (c.at_bound) {
      page.item("WARNING ",
                fmt::format("{} went to its bound: something else than it makes these runs what they are",
                            c.constant.name),
                Tone::warning);
    }
  }
  page.section("Predicted against measured");
  page.block(residual_table(refit, page.inner()));
  const bool any = std::ranges::count(refit.coefficients, CoefficientState::fitted, &Coefficient::state) > 0;
  std::string_view note = "Nothing was fitted: the file is the calibration that it started from.";
  if (any && runs < 2) {
    note =
        "One run shows no error of the fit: it is met by construction. Give a second one, of another layout "
        "or size.";
  } else if (any) {
    note =
        "left out: predicted by a fit to the other runs, which is what to expect of a run that is not here.";
  }
  page.paragraph(note, Tone::faint);
  return page.text();
}

}  // namespace tessera::report
