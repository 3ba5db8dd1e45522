#include "validate/fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "base/text.h"

namespace tessera::validate {
namespace {

using cost::Calibration;

template <double Calibration::*Field>
double get_number(const Calibration& c) {
  return c.*Field;
}
template <double Calibration::*Field>
void set_number(Calibration& c, double v) {
  c.*Field = v;
}
template <Seconds Calibration::*Field>
double get_seconds(const Calibration& c) {
  return (c.*Field).value;
}
template <Seconds Calibration::*Field>
void set_seconds(Calibration& c, double v) {
  c.*Field = Seconds(v);
}

constexpr std::array kConstants = {
    Constant{"sustained", "clock under a whole step beside a single kernel's benchmark", 0.6, 1.05, 0.78,
             get_number<&Calibration::sustained>, set_number<&Calibration::sustained>},
    Constant{"sustained_low", "the same of 8-bit and narrower operands", 0.5, 1.05, 0.85,
             get_number<&Calibration::sustained_low>, set_number<&Calibration::sustained_low>},
    Constant{"sustained_attention", "the same of attention", 0.5, 1.2, 0.9,
             get_number<&Calibration::sustained_attention>, set_number<&Calibration::sustained_attention>},
    Constant{"flash1", "FlashAttention-1 and Triton's kernel beside it", 0.15, 1.0, 0.5,
             get_number<&Calibration::attention_flash1>, set_number<&Calibration::attention_flash1>},
    Constant{"launch", "host time of one operator", 1e-6, 120e-6, 60e-6, get_seconds<&Calibration::launch>,
             set_seconds<&Calibration::launch>},
    Constant{"sustained_memory", "rate of elementwise work in a step beside plain streaming", 0.4, 1.2, 0.9,
             get_number<&Calibration::sustained_memory>, set_number<&Calibration::sustained_memory>},
    Constant{"overlap_slowdown", "of compute while a collective runs beside it", 0.0, 0.6, 0.1,
             get_number<&Calibration::overlap_slowdown>, set_number<&Calibration::overlap_slowdown>},
    Constant{"straggler", "of the step for each doubling of devices beyond one node", 0.0, 0.04, 0.003,
             get_number<&Calibration::straggler>, set_number<&Calibration::straggler>},
    Constant{"sustained_network", "rate between nodes in a run beside a collective's own benchmark", 0.5, 1.0,
             0.8, get_number<&Calibration::sustained_network>, set_number<&Calibration::sustained_network>},
    Constant{"optimizer_passes", "bytes of the optimizer step beside one read and write of each state", 0.8,
             6.0, 1.5, get_number<&Calibration::optimizer_passes>,
             set_number<&Calibration::optimizer_passes>},
};

// Pull towards the start, of |log error| for a constant that moved over its whole range.
constexpr double kPull = 0.01;

double distance(const Constant& c, double value) {
  if (c.low > 0) return std::abs(std::log(value / c.start)) / std::log(c.high / c.low);
  return std::abs(value - c.start) / (c.high - c.low);
}

struct Sample {
  cost::Setup setup;
  cost::Candidate candidate;
  double log_measured = 0;
  std::int32_t source = 0;
};

// The rows of one chip that a fit may look at.
class TrainingRows {
 public:
  TrainingRows(std::span<const Outcome> outcomes, const std::function<bool(const Outcome&)>& which,
               std::span<const Constant> constants, const Predictor& predictor)
      : constants_(constants), predictor_(predictor) {
    std::map<std::string, std::int32_t> sources;
    for (const Outcome& o : outcomes) {
      if (!counts(o) || !which(o)) continue;
      const auto [it, fresh] =
          sources.try_emplace(o.question->source, static_cast<std::int32_t>(sources.size()));
      samples_.push_back({.setup = o.question->setup,
                          .candidate = o.question->candidate,
                          .log_measured = std::log(o.measured()),
                          .source = it->second});
    }
    num_sources_ = static_cast<std::int32_t>(sources.size());
  }

  [[nodiscard]] bool empty() const { return samples_.empty(); }
  [[nodiscard]] std::int32_t rows() const { return static_cast<std::int32_t>(samples_.size()); }
  [[nodiscard]] std::int32_t sources() const { return num_sources_; }

  // Mean over sources of the mean |log error|, each source with the weight of the root of its rows: neither a
  // thousand rows of one cluster nor three of another say it all.
  [[nodiscard]] double error(const std::vector<double>& values) {
    std::vector<double> sum(static_cast<std::size_t>(num_sources_), 0.0);
    std::vector<std::int32_t> rows(static_cast<std::size_t>(num_sources_), 0);
    for (Sample& s : samples_) {
      for (std::size_t i = 0; i < constants_.size(); ++i) constants_[i].set(s.setup.calibration, values[i]);
      const Prediction p = predictor_(s.setup, s.candidate);
      const double e = p.cost ? std::abs(std::log(p.cost->seconds()) - s.log_measured) : 3.0;
      // A row that is off by half has a cause outside of the model and says nothing of constants.
      constexpr double kFarOff = 0.4;
      sum[static_cast<std::size_t>(s.source)] += std::isfinite(e) ? std::min(e, kFarOff) : kFarOff;
      ++rows[static_cast<std::size_t>(s.source)];
    }
    double total = 0;
    double weights = 0;
    for (std::size_t k = 0; k < sum.size(); ++k) {
      const double weight = std::sqrt(static_cast<double>(rows[k]));
      total += weight * sum[k] / rows[k];
      weights += weight;
    }
    return total / weights;
  }

  [[nodiscard]] double objective(const std::vector<double>& values) {
    double pull = 0;
    for (std::size_t i = 0; i < constants_.size(); ++i) pull += distance(constants_[i], values[i]);
    return error(values) + kPull * pull;
  }

 private:
  std::span<const Constant> constants_;
  const Predictor& predictor_;
  std::vector<Sample> samples_;
  std::int32_t num_sources_ = 0;
};

double moved(const Constant& c, double value, double step, int direction) {
  const double next = c.low > 0 ? value * std::exp(direction * step * std::log(c.high / c.low))
                                : value + direction * step * (c.high - c.low);
  return std::clamp(next, c.low, c.high);
}

// The best of a coarse grid over the range of one constant: leaves a flat start behind.
void scan(TrainingRows& problem, const Constant& c, std::vector<double>& values, std::size_t i,
          double& best) {
  constexpr int kPoints = 8;
  double kept = values[i];
  for (int k = 0; k <= kPoints; ++k) {
    const double share = static_cast<double>(k) / kPoints;
    values[i] = c.low > 0 ? c.low * std::pow(c.high / c.low, share) : c.low + share * (c.high - c.low);
    const double now = problem.objective(values);
    if (now < best - 1e-7) {
      best = now;
      kept = values[i];
    }
  }
  values[i] = kept;
}

ChipFit descend(TrainingRows& problem, std::span<const Constant> constants, std::vector<double> values,
                std::int32_t rounds) {
  ChipFit out;
  out.rows = problem.rows();
  out.sources = problem.sources();
  out.before = problem.error(values);
  double best = problem.objective(values);
  for (std::size_t i = 0; i < constants.size(); ++i) scan(problem, constants[i], values, i, best);
  double step = 0.08;  // of the range, halved when a round brings little
  for (std::int32_t round = 0; round < rounds; ++round) {
    const double start = best;
    for (std::size_t i = 0; i < constants.size(); ++i) {
      for (const int direction : {+1, -1}) {
        bool better = false;
        // On in the good direction as long as it helps.
        for (std::int32_t k = 0; k < 6; ++k) {
          const double old = values[i];
          values[i] = moved(constants[i], old, step, direction);
          const double now = values[i] == old ? best : problem.objective(values);
          if (!(now < best - 1e-7)) {
            values[i] = old;
            break;
          }
          best = now;
          better = true;
        }
        if (better) break;
      }
    }
    if (start - best < 1e-3) step *= 0.5;
    if (step < 0.01) break;
  }
  out.after = problem.error(values);
  out.values = std::move(values);
  return out;
}

std::vector<double> start_values(std::span<const Constant> constants, const Calibration& shipped,
                                 bool from_shipped) {
  std::vector<double> values;
  for (const Constant& c : constants) {
    values.push_back(std::clamp(from_shipped ? c.get(shipped) : c.start, c.low, c.high));
  }
  return values;
}

const Calibration& of_chip(const Calibrations& calibrations, std::string_view chip) {
  for (const auto& [name, c] : calibrations) {
    if (chip_of(name) == chip) return c;
  }
  throw Error(ErrorKind::internal, "a chip without a calibration", std::string(chip), "report it");
}

std::set<std::string> chips_of(std::span<const Outcome> outcomes) {
  std::set<std::string> chips;
  for (const Outcome& o : outcomes) {
    if (o.question) chips.insert(chip_of(o.question->accelerator));
  }
  return chips;
}

}  // namespace

std::span<const Constant> constants() {
  return kConstants;
}

std::vector<Constant> chosen_constants(const std::vector<std::string>& names) {
  std::vector<Constant> out;
  std::vector<std::string> known;
  for (const Constant& c : kConstants) known.emplace_back(c.name);
  for (const std::string& name : names) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string near = nearest(name, known);
    throw Error(ErrorKind::config, fmt::format("no constant '{}'", name), "--constants",
                near.empty() ? "use some of " + join(known, ", ") : fmt::format("did you mean {}?", near));
  }
  for (const Constant& c : kConstants) {
    const bool wanted = names.empty() || std::find(names.begin(), names.end(), c.name) != names.end();
    if (wanted) out.push_back(c);
  }
  return out;
}

std::string chip_of(std::string_view accelerator) {
  const auto is = [&](std::string_view start) { return accelerator.substr(0, start.size()) == start; };
  if (accelerator.find("500w") != std::string_view::npos)
    return std::string(accelerator);  // a clock of its own
  if (is("a100") || is("a800")) return "a100";
  if (is("h100") || is("h200") || is("h800")) return "h100";
  if (is("b200") || is("gb200")) return "b200";
  if (is("b300") || is("gb300")) return "b300";
  return std::string(accelerator);
}

Calibrations Fit::applied(Calibrations calibrations) const {
  for (auto& [name, c] : calibrations) {
    const auto it = chips.find(chip_of(name));
    if (it == chips.end()) continue;
    for (std::size_t i = 0; i < constants.size(); ++i) constants[i].set(c, it->second.values[i]);
  }
  return calibrations;
}

Fit fit(std::span<const Outcome> outcomes, const Calibrations& calibrations, const Predictor& predictor,
        const FitOptions& options) {
  Fit out;
  out.constants = chosen_constants(options.names);
  const std::set<std::string> names = chips_of(outcomes);
  const std::vector<std::string> chips(names.begin(), names.end());
  std::vector<ChipFit> fits(chips.size());
  parallel_for(static_cast<std::int64_t>(chips.size()), 1, options.threads, [&](std::int64_t i) {
    const std::string& chip = chips[static_cast<std::size_t>(i)];
    TrainingRows problem(
        outcomes, [&](const Outcome& o) { return chip_of(o.question->accelerator) == chip; }, out.constants,
        predictor);
    if (problem.empty()) return;
    fits[static_cast<std::size_t>(i)] = descend(
        problem, out.constants,
        start_values(out.constants, of_chip(calibrations, chip), options.from_shipped), options.rounds);
  });
  for (std::size_t i = 0; i < chips.size(); ++i) {
    if (fits[i].rows > 0) out.chips.emplace(chips[i], std::move(fits[i]));
  }
  return out;
}

std::string fold_by_source(const Outcome& o) {
  return o.question ? o.question->source : "";
}

std::string fold_by_model(const Outcome& o) {
  if (!o.question) return "";
  const spec::ModelSpec& m = o.question->setup.model;
  return fmt::format("{} x {} x {}, {} experts", m.hidden_size, m.intermediate_size, m.num_attention_heads,
                     m.moe ? m.moe->num_experts : 0);
}

void predict_out_of_fold(std::span<Outcome> outcomes, const Calibrations& calibrations, const KeyOf& fold,
                         const Predictor& predictor, const FitOptions& options) {
  const std::vector<Constant> fitted = chosen_constants(options.names);
  // One fit for each fold and each chip that the fold has rows of.
  std::set<std::pair<std::string, std::string>> pairs;
  for (const Outcome& o : outcomes) {
    if (o.timed()) pairs.emplace(fold(o), chip_of(o.question->accelerator));
  }
  const std::vector<std::pair<std::string, std::string>> jobs(pairs.begin(), pairs.end());
  std::vector<std::vector<double>> values(jobs.size());
  parallel_for(static_cast<std::int64_t>(jobs.size()), 1, options.threads, [&](std::int64_t i) {
    const auto& [held, chip] = jobs[static_cast<std::size_t>(i)];
    TrainingRows problem(
        outcomes,
        [&](const Outcome& o) { return chip_of(o.question->accelerator) == chip && fold(o) != held; }, fitted,
        predictor);
    std::vector<double> start = start_values(fitted, of_chip(calibrations, chip), options.from_shipped);
    values[static_cast<std::size_t>(i)] =
        problem.empty() ? start : descend(problem, fitted, std::move(start), options.rounds).values;
  });
  std::map<std::pair<std::string, std::string>, std::size_t> at;
  for (std::size_t i = 0; i < jobs.size(); ++i) at.emplace(jobs[i], i);
  for (Outcome& o : outcomes) {
    if (!o.timed()) continue;
    const std::vector<double>& v = values[at.at({fold(o), chip_of(o.question->accelerator)})];
    for (std::size_t k = 0; k < fitted.size(); ++k) fitted[k].set(o.question->setup.calibration, v[k]);
  }
  predict_again(outcomes, predictor, options.threads);
}

}  // namespace tessera::validate
