// The constants of a calibration that no kernel's benchmark can give, fitted to whole published steps: a
// coordinate descent on the mean |log(predicted / measured)| over rows of quality A and B, every source with
// the root of its rows as weight. Deterministic: same rows, same constants.
//
//   const Fit f = fit(outcomes, library.calibrations, predictor, options);
//   predict_out_of_fold(outcomes, library.calibrations, fold_by_source, predictor, options);
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "validate/run.h"
#include "validate/stats.h"

namespace tessera::validate {

// One of them: physical meaning, bounds, and the value to start from (also pulled to, faintly, so that what
// the rows do not show stays there).
struct Constant {
  std::string_view name, meaning;
  double low, high, start;
  double (*get)(const cost::Calibration&);
  void (*set)(cost::Calibration&, double);
};
[[nodiscard]] std::span<const Constant> constants();
// Those of these names in the table's order; none named: all. Error{config} with the nearest name.
[[nodiscard]] std::vector<Constant> chosen_constants(const std::vector<std::string>& names);

// Accelerators of one chip share their constants: a100-sxm-80gb and a100-sxm-40gb, b200-sxm and gb200.
[[nodiscard]] std::string chip_of(std::string_view accelerator);

struct FitOptions {
  std::vector<std::string> names;  // of the constants; empty: all
  std::int32_t rounds = 8;
  std::int32_t threads = 1;
  bool from_shipped = false;  // start from the calibration files instead of the table's neutral values
};

struct ChipFit {
  std::vector<double> values;    // in the order of the constants fitted
  double before = 0, after = 0;  // mean |log error| at the start and at the end
  std::int32_t rows = 0, sources = 0;
};
struct Fit {
  std::vector<Constant> constants;
  std::map<std::string, ChipFit> chips;
  [[nodiscard]] Calibrations applied(Calibrations calibrations) const;
};

[[nodiscard]] Fit fit(std::span<const Outcome> outcomes, const Calibrations& calibrations,
                      const Predictor& predictor, const FitOptions& options);

// Folds: what is held out together.
[[nodiscard]] std::string fold_by_source(const Outcome& o);
// The shape of a layer: proxies with fewer layers and other spellings of a model are one.
[[nodiscard]] std::string fold_by_model(const Outcome& o);

// Predicts every fold with constants fitted on all other folds.
void predict_out_of_fold(std::span<Outcome> outcomes, const Calibrations& calibrations, const KeyOf& fold,
                         const Predictor& predictor, const FitOptions& options);

}  // namespace tessera::validate
