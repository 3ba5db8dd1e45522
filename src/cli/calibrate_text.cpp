#include "cli/calibrate_text.h"

#include <fmt/format.h>

#include "report/table.h"

namespace tessera::cli {

namespace {

std::string milliseconds(double s) {
  return s < 1e-4 ? fmt::format("{:.3g} us", s * 1e6) : fmt::format("{:.4g} ms", s * 1e3);
}
std::string percent(double x) {
  return fmt::format("{:.1f} %", 100.0 * x);
}

// Rows of cells as a table of the terminal or of a page.
std::string table_text(const std::vector<std::string>& header,
                       const std::vector<std::vector<std::string>>& rows, bool markdown,
                       const Terminal& terminal) {
  if (markdown) {
    std::string out = fmt::format("| {} |\n", fmt::join(header, " | "));
    for (std::size_t i = 0; i < header.size(); ++i) out += i == 0 ? "|---" : "|---:";
    out += "|\n";
    for (const auto& row : rows) out += fmt::format("| {} |\n", fmt::join(row, " | "));
    return out;
  }
  std::vector<report::Column> columns;
  for (const std::string& h : header) {
    columns.push_back({.header = h, .align = columns.empty() ? report::Align::left : report::Align::right});
  }
  report::Table table(std::move(columns));
  for (const auto& row : rows) table.add_row(row);
  return table.render(terminal.style);
}

}  // namespace

std::string fit_text(const std::vector<cost::FitRow>& rows, const CalibrateFlags& flags,
                     const Terminal& terminal) {
  std::vector<std::vector<std::string>> cells;
  for (const cost::FitRow& r : rows) {
    cells.push_back({r.kernel, fmt::format("{}", r.count), milliseconds(r.measured_seconds),
                     milliseconds(r.fitted_seconds), percent(r.median_error), percent(r.worst_error)});
  }
  return table_text({"kernel", "sizes", "measured", "fitted", "median error", "worst"}, cells, flags.markdown,
                    terminal);
}

std::string check_text(const std::vector<CheckResult>& results, const CalibrateFlags& flags,
                       const Terminal& terminal) {
  std::vector<std::vector<std::string>> cells;
  for (const CheckResult& r : results) {
    cells.push_back({r.name, milliseconds(r.predicted), milliseconds(r.measured), milliseconds(r.median),
                     fmt::format("{:+.1f} %", 100.0 * r.error()),
                     fmt::format("{:.0f}", r.tokens / r.measured)});
  }
  return table_text({"step of", "predicted", "measured", "median", "error", "tokens/s"}, cells,
                    flags.markdown, terminal);
}

}  // namespace tessera::cli
