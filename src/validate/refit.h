// The constants of a calibration, fitted again to a few steps that were measured on the user's own machines:
// `tessera calibrate --from-log`. Where fit() has thousands of rows, here are one to some tens, so what they
// can tell is asked first.
//
// A coefficient is fitted only if the rows identify it: moved up and down by 15 % of its range it changes
// some prediction by more than 1 %, in a way that the coefficients chosen before it cannot imitate (pivoted
// Gram-Schmidt on the changes of log seconds). At most as many as there are rows; one row identifies one
// scale. Every other one stays as shipped and is named with the reason. The chosen ones minimise the sum of
// Huber(log predicted / measured) by damped Gauss-Newton within their bounds. What the fit is worth is told
// by predicting each row with a fit to the others.
//
//   const Refit r = refit(observations, step_model(), {});
//   r.coefficients[0].state == CoefficientState::fitted
//
// Deterministic; threads share nothing.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "validate/fit.h"

namespace tessera::validate {

// A measured step. The setups of all have calibrations of one chip.
struct Observation {
  std::string name;
  cost::Setup setup;
  cost::Candidate candidate;
  double seconds = 0;
};

enum class CoefficientState : std::uint8_t {
  fitted,
  no_effect,  // moves no prediction
  alike,      // moves them as fitted coefficients do, or there are no rows left to tell
};

struct Coefficient {
  Constant constant;
  double shipped = 0, value = 0;
  CoefficientState state = CoefficientState::no_effect;
  double effect = 0;     // log of the largest change of a prediction, by those 15 % up and down
  std::string alike_as;  // of state alike: the fitted one that looks most like it
  bool at_bound = false;
};

struct Residual {
  std::string name;
  double measured = 0, shipped = 0, fitted = 0;  // seconds
  std::optional<double>
      left_out;  // by a fit without it (of above 20 rows, without every 20th); absent: one row
};

struct Refit {
  std::vector<Coefficient> coefficients;
  std::vector<Residual> residuals;
  [[nodiscard]] cost::Calibration applied(cost::Calibration calibration) const;
};

struct RefitOptions {
  std::vector<std::string> names;  // of the constants; empty: all
  std::int32_t threads = 1;        // of the rows left out
};
// Error{config}: no observation or above 200, one that the predictor does not price, several chips.
[[nodiscard]] Refit refit(std::span<const Observation> observations, const Predictor& predictor,
                          const RefitOptions& options);

// Of a set of residuals: mean |log error| by a member.
[[nodiscard]] double mean_error(std::span<const Residual> residuals, double Residual::*predicted);

}  // namespace tessera::validate
