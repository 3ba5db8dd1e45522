#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <thread>

#include "base/file.h"
#include "cli/commands.h"
#include "cost/calibration.h"
#include "validate/fit.h"
#include "validate/scatter.h"
#include "validate/summary.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
using validate::Calibrations;
using validate::Sample;

validate::Library library_of(const ValidateFlags& flags) {
  validate::Library out = validate::shipped_library();
  if (flags.calibrations.empty()) return out;
  if (!fs::is_directory(flags.calibrations)) {
    throw Error(ErrorKind::config, fmt::format("no folder {}", flags.calibrations), "--calibrations",
                "name a folder of calibration files (*.yaml)");
  }
  for (const fs::directory_entry& e : fs::directory_iterator(flags.calibrations)) {
    if (e.path().extension() != ".yaml") continue;
    cost::Calibration c = cost::read_calibration(e.path());
    out.calibrations.insert_or_assign(c.name, std::move(c));
  }
  return out;
}

std::string fit_text(const validate::Fit& fit) {
  std::string out = "Constants fitted to whole steps (mean |log error| at the start and at the end)\n";
  for (const auto& [chip, f] : fit.chips) {
    out += fmt::format("  {}: {} rows of {} sources, {:.3f} -> {:.3f}\n", chip, f.rows, f.sources, f.before,
                       f.after);
    for (std::size_t i = 0; i < fit.constants.size(); ++i) {
      out += fmt::format("    {:<22} {:>10.4g}  {}\n", fit.constants[i].name, f.values[i],
                         fit.constants[i].meaning);
    }
  }
  return out;
}

void write_calibrations(const Calibrations& calibrations, const fs::path& folder) {
  fs::create_directories(folder);
  for (const auto& [name, c] : calibrations) write_atomically(folder / (name + ".yaml"), cost::to_yaml(c));
}

}  // namespace

int validate_runs(const ValidateFlags& flags) {
  Problems problems;
  const std::string text = read_text(flags.runs);
  const std::vector<validate::Row> rows = validate::parse_rows(text, flags.runs, problems);
  problems.throw_if_any();
  const std::int32_t cores = static_cast<std::int32_t>(std::max(1U, std::thread::hardware_concurrency()));
  const std::int32_t threads = flags.threads > 0 ? flags.threads : cores;
  validate::Library library = library_of(flags);
  const validate::Predictor predictor = validate::step_model();
  std::vector<validate::Outcome> outcomes = validate::run(rows, library, predictor, threads);
  validate::FitOptions options;
  options.names = flags.constants;
  options.threads = threads;
  options.from_shipped = flags.from_shipped;
  Sample sample = Sample::shipped;
  std::string fitted;
  if (flags.fit || !flags.write_calibrations.empty()) {
    const validate::Fit fit = validate::fit(outcomes, library.calibrations, predictor, options);
    fitted = fit_text(fit);
    library.calibrations = fit.applied(library.calibrations);
    if (!flags.write_calibrations.empty()) write_calibrations(library.calibrations, flags.write_calibrations);
    outcomes = validate::run(rows, library, predictor, threads);
    sample = Sample::fitted;
  }
  if (!flags.folds.empty()) {
    const bool by_model = flags.folds == "model";
    sample = by_model ? Sample::out_of_model : Sample::out_of_source;
    validate::predict_out_of_fold(outcomes, library.calibrations,
                                  by_model ? validate::fold_by_model : validate::fold_by_source, predictor,
                                  options);
  }
  const std::vector<validate::SummaryTable> tables = validate::summary(outcomes, sample);
  if (!flags.csv.empty()) write_atomically(flags.csv, validate::to_csv(outcomes));
  if (!flags.svg.empty()) {
    write_atomically(flags.svg, validate::scatter_svg(outcomes, validate::counts, {}));
  }
  if (flags.json) {
    std::printf("%s", validate::to_json(outcomes, tables).c_str());
  } else if (flags.markdown) {
    std::printf("%s", validate::to_markdown(tables).c_str());
  } else {
    std::printf("%s%s%s", fitted.c_str(), fitted.empty() ? "" : "\n", validate::to_text(tables).c_str());
  }
  return 0;
}

}  // namespace tessera::cli
