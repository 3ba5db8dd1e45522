#include "cli/calibrate_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "base/file.h"
#include "base/text.h"
#include "cli/simulate_input.h"
#include "report/refit_view.h"
#include "validate/refit.h"
#include "validate/stats.h"
#include "validate/training_log.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
using validate::Observation;

// What was read: observations, and a line to tell of each.
struct Runs {
  std::vector<Observation> observations;
  std::vector<std::string> notes;
};

std::string memory_note(const validate::TrainingLog& log, const Observation& run) {
  std::optional<double> measured = log.memory_bytes;
  if (!measured && log.memory_share && *log.memory_share <= 1.0) {
    measured = *log.memory_share * static_cast<double>(run.setup.calibration.memory.value);
  }
  if (!measured) return "";
  cost::StepModel model(run.setup);
  const double predicted = model.memory(run.candidate).allocated();
  return fmt::format("; memory {:.1f} GB, predicted {:.1f} GB ({:+.1f} %)", *measured / 1e9, predicted / 1e9,
                     100.0 * (predicted / *measured - 1.0));
}

std::string log_note(const validate::TrainingLog& log, const validate::Steady& s, const Observation& run) {
  std::string note = fmt::format("{}: {}, median of {} iteration{} {:.4g} s", run.name, name(log.kind),
                                 s.used, s.used == 1 ? "" : "s", s.median);
  if (s.used > 3) note += fmt::format(" (half of them within {:.1f} %)", 100.0 * s.spread);
  if (s.dropped > 0) note += "; dropped as warm-up: " + s.dropped_text;
  if (log.unreadable > 0) note += fmt::format("; {} lines without a time", log.unreadable);
  return note + memory_note(log, run);
}

void read_log(const std::string& path, const std::string& plan, const CalibrateFlags& flags, Runs& runs) {
  Problems problems;
  const std::string text = read_text(path);
  const validate::TrainingLog log = validate::parse_training_log(text, path, problems);
  problems.throw_if_any();
  SimulateFlags layout;
  layout.plan = plan;
  layout.cluster = flags.cluster;
  layout.practice = flags.practice;
  layout.calibration = flags.base;
  const SimulateInput input = read_simulate_input(layout);
  Observation run{
      .name = fs::path(path).filename().string(), .setup = input.setup, .candidate = input.candidate};
  const cost::Workload& work = run.setup.work;
  if (log.global_batch_size && *log.global_batch_size != work.global_batch_size) {
    throw Error(ErrorKind::config,
                fmt::format("the log says a global batch of {} sequences, the plan {}",
                            *log.global_batch_size, work.global_batch_size),
                path + ", " + plan, "give the plan of the run that wrote the log");
  }
  const validate::Steady s = validate::steady(log, {.global_batch_size = work.global_batch_size,
                                                    .sequence_length = work.sequence_length,
                                                    .devices = run.candidate.world_size()});
  run.seconds = s.median;
  runs.notes.push_back(log_note(log, s, run));
  runs.observations.push_back(std::move(run));
}

void read_csv(const std::string& path, Runs& runs) {
  Problems problems;
  const std::vector<validate::Row> rows = validate::parse_rows(read_text(path), path, problems);
  problems.throw_if_any();
  const validate::Library library = validate::shipped_library();
  std::int32_t used = 0;
  for (const validate::Row& row : rows) {
    const validate::Mapped mapped = validate::to_case(row, library);
    if (!mapped.value || !mapped.value->step_seconds) {
      runs.notes.push_back(fmt::format("{} is left out: {}", row.id,
                                       !mapped.value           ? mapped.reason + " " + mapped.detail
                                       : mapped.reason.empty() ? "no time was measured"
                                                               : mapped.reason));
      continue;
    }
    const validate::Case& c = *mapped.value;
    runs.observations.push_back(
        {.name = row.id, .setup = c.setup, .candidate = c.candidate, .seconds = *c.step_seconds});
    ++used;
    if (!c.assumptions.empty())
      runs.notes.push_back(fmt::format("{}: assumed: {}", row.id, join(c.assumptions, ", ")));
  }
  if (used > 0) return;
  throw Error(ErrorKind::config, fmt::format("none of the {} rows is a step that can be priced", rows.size()),
              path, runs.notes.empty() ? "the columns are in validation/README.md" : runs.notes.front());
}

void check_flags(const CalibrateFlags& flags) {
  const std::size_t logs = flags.from_log.size(), plans = flags.plan.size();
  if (logs == 0 && plans > 0) {
    throw Error(ErrorKind::config, "a plan and no log", "--plan " + flags.plan.front(),
                "give the log of its run with --from-log");
  }
  if (logs > 0 && plans != logs && plans != 1) {
    throw Error(
        ErrorKind::config, fmt::format("{} logs and {} plans", logs, plans), "--from-log, --plan",
        "give one plan for all logs, or one a log in the same order; tessera plan --output writes one");
  }
  if (flags.check || flags.quick || flags.cores > 0 || !flags.machine.empty()) {
    throw Error(ErrorKind::config, "nothing is measured on this machine with --from-log or --from-csv",
                "--check, --quick, --cores, --machine", "leave them out");
  }
}

// Fitted calibrations say what they are.
cost::Calibration written(const validate::Refit& refit, const Runs& runs, const std::string& name) {
  cost::Calibration c = refit.applied(runs.observations.front().setup.calibration);
  std::vector<std::string> fitted;
  for (const validate::Coefficient& x : refit.coefficients) {
    if (x.state == validate::CoefficientState::fitted) fitted.emplace_back(x.constant.name);
  }
  c.description = fmt::format("{} with {} fitted to {} measured {}", c.name,
                              fitted.empty() ? std::string("nothing") : join(fitted, ", "),
                              runs.observations.size(), runs.observations.size() == 1 ? "run" : "runs");
  c.name = name;
  return c;
}

std::string to_json(const Runs& runs, const validate::Refit& refit, const fs::path& path) {
  using Json = nlohmann::ordered_json;
  Json j = {{"calibration", path.string()}, {"notes", runs.notes}};
  j["coefficients"] = Json::array();
  for (const validate::Coefficient& c : refit.coefficients) {
    const bool fitted = c.state == validate::CoefficientState::fitted;
    Json one = {{"name", c.constant.name}, {"shipped", c.shipped}, {"value", c.value}, {"fitted", fitted}};
    if (c.state == validate::CoefficientState::alike) one["alike"] = c.alike_as;
    if (c.at_bound) one["at_bound"] = true;
    j["coefficients"].push_back(std::move(one));
  }
  j["runs"] = Json::array();
  for (const validate::Residual& r : refit.residuals) {
    Json one = {{"name", r.name},
                {"measured_seconds", r.measured},
                {"shipped_seconds", r.shipped},
                {"fitted_seconds", r.fitted}};
    if (r.left_out) one["left_out_seconds"] = *r.left_out;
    j["runs"].push_back(std::move(one));
  }
  return j.dump(2);
}

}  // namespace

int calibrate_from_runs(const CalibrateFlags& flags, const Terminal& terminal) {
  check_flags(flags);
  Runs runs;
  for (std::size_t i = 0; i < flags.from_log.size(); ++i)
    read_log(flags.from_log[i], flags.plan[flags.plan.size() == 1 ? 0 : i], flags, runs);
  if (!flags.from_csv.empty()) read_csv(flags.from_csv, runs);
  const auto cores = static_cast<std::int32_t>(std::max(1U, std::thread::hardware_concurrency()));
  const validate::Refit refit = validate::refit(runs.observations, validate::step_model(),
                                                {.names = flags.constants, .threads = cores});
  fs::create_directories(flags.output);
  const fs::path path = fs::path(flags.output) / (flags.name + ".yaml");
  write_atomically(path, cost::to_yaml(written(refit, runs, flags.name)));
  if (flags.json) {
    std::printf("%s\n", to_json(runs, refit, path).c_str());
    return 0;
  }
  const report::RefitView view{
      .device = runs.observations.front().setup.calibration.name, .notes = runs.notes, .refit = &refit};
  std::printf("%s\nwrote %s: tessera plan MODEL CLUSTER --calibration %s\n",
              report::refit_page(view, terminal.style).c_str(), path.c_str(), path.c_str());
  return 0;
}

}  // namespace tessera::cli
