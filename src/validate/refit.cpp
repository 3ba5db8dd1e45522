#include "validate/refit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace tessera::validate {
namespace {

using Vector = std::vector<double>;

// What is asked of a coefficient: its place in its range this much up and down,
constexpr double kAround = 0.15;
// and whether that changes a prediction by more than this. Iterations of one run differ by as much.
constexpr double kNoise = 0.01;
// Of two coefficients whose effects are within this factor, the earlier one of the table is the plainer
// cause.
constexpr double kAlike = 2.0;
// Above this |log error| a row pulls with constant force.
constexpr double kHuber = 0.1;
// A coefficient that moved over its whole range counts as a row that is off by this: what the rows hardly
// show stays where it was.
constexpr double kPull = 0.01;
constexpr std::int32_t kIterations = 40;
// Rows are left out one at a time, of many every twentieth together.
constexpr std::int64_t kMostFolds = 20;
constexpr std::size_t kMostRows = 200;

// Coefficients as places in their ranges, 0 to 1: on the logarithm where the range allows it.
double place_of(const Constant& c, double value) {
  return c.low > 0 ? std::log(value / c.low) / std::log(c.high / c.low) : (value - c.low) / (c.high - c.low);
}
double value_at(const Constant& c, double place) {
  const double p = std::clamp(place, 0.0, 1.0);
  return c.low > 0 ? c.low * std::pow(c.high / c.low, p) : c.low + p * (c.high - c.low);
}

// The values to start from; a coefficient that stays at its place keeps its value to the last bit, even
// outside of its range.
struct Start {
  std::vector<Constant> constants;
  Vector shipped, places;
  [[nodiscard]] double value(std::size_t i, double place) const {
    return place == places[i] ? shipped[i] : value_at(constants[i], place);
  }
};

class Rows {
 public:
  Rows(std::span<const Observation> rows, const Start& start, const Predictor& predictor)
      : start_(start), predictor_(predictor), rows_(rows.begin(), rows.end()) {}

  [[nodiscard]] std::size_t rows() const { return rows_.size(); }
  [[nodiscard]] const Observation& row(std::size_t r) const { return rows_[r]; }

  // log seconds of every row, all constants at these places.
  Vector predict(const Vector& places) {
    Vector out;
    for (Observation& row : rows_) {
      for (std::size_t i = 0; i < places.size(); ++i)
        start_.constants[i].set(row.setup.calibration, start_.value(i, places[i]));
      out.push_back(std::log(predicted(row)));
    }
    return out;
  }

  double predicted(const Observation& row) const {
    const Prediction p = predictor_(row.setup, row.candidate);
    if (!p.cost || !(p.cost->seconds() > 0.0) || !std::isfinite(p.cost->seconds())) {
      throw Error(ErrorKind::config, fmt::format("{} cannot be priced: {}", row.name, p.reason), row.name,
                  "correct its layout; tessera simulate says the same of it");
    }
    return p.cost->seconds();
  }

  // d log seconds / d place, a column a constant: the change over a step of `width` inside of the range.
  std::vector<Vector> jacobian(const Vector& places, const Vector& base, double width) {
    std::vector<Vector> columns;
    for (std::size_t i = 0; i < places.size(); ++i) {
      Vector moved = places;
      const double step = places[i] + width <= 1.0 ? width : -width;
      moved[i] += step;
      Vector column = predict(moved);
      for (std::size_t r = 0; r < column.size(); ++r) column[r] = (column[r] - base[r]) / step;
      columns.push_back(std::move(column));
    }
    return columns;
  }

 private:
  const Start& start_;
  const Predictor& predictor_;
  std::vector<Observation> rows_;
};

double norm(const Vector& v) {
  double largest = 0;
  for (const double x : v) largest = std::max(largest, std::abs(x));
  return largest;
}
double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The plainest of the columns that are neither taken nor flat; columns.size(): none.
std::size_t next_of(const std::vector<Vector>& columns, const std::vector<std::size_t>& taken) {
  double most = 0;
  const auto free = [&](std::size_t i) { return std::ranges::find(taken, i) == taken.end(); };
  for (std::size_t i = 0; i < columns.size(); ++i) {
    if (free(i)) most = std::max(most, norm(columns[i]));
  }
  for (std::size_t i = 0; i < columns.size(); ++i) {
    if (free(i) && norm(columns[i]) > kNoise && kAlike * norm(columns[i]) >= most) return i;
  }
  return columns.size();
}

// Which columns the rows can tell apart, in the order in which they were chosen.
std::vector<std::size_t> identified(std::vector<Vector> columns, std::size_t rows) {
  std::vector<std::size_t> chosen;
  while (chosen.size() < rows) {
    const std::size_t next = next_of(columns, chosen);
    if (next == columns.size()) break;
    chosen.push_back(next);
    const Vector axis = columns[next];
    const double square = dot(axis, axis);
    for (Vector& column : columns) {
      const double share = dot(column, axis) / square;
      for (std::size_t r = 0; r < column.size(); ++r) column[r] -= share * axis[r];
    }
  }
  return chosen;
}

// x of a x = b, a symmetric and positive definite: elimination with pivots on the diagonal's order.
Vector solved(std::vector<Vector> a, Vector b) {
  const std::size_t n = b.size();
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = i + 1; j < n; ++j) {
      const double factor = a[j][i] / a[i][i];
      for (std::size_t k = i; k < n; ++k) a[j][k] -= factor * a[i][k];
      b[j] -= factor * b[i];
    }
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t k = i + 1; k < n; ++k) b[i] -= a[i][k] * b[k];
    b[i] /= a[i][i];
  }
  return b;
}

double loss_of(const Vector& errors, const Vector& places, const Vector& start) {
  double sum = 0;
  for (std::size_t i = 0; i < places.size(); ++i) {
    const double pull = kPull * (places[i] - start[i]);
    sum += 0.5 * pull * pull;
  }
  for (const double e : errors) {
    const double size = std::abs(e);
    sum += size <= kHuber ? 0.5 * e * e : kHuber * (size - 0.5 * kHuber);
  }
  return sum;
}

Vector errors_of(const Rows& data, const Vector& predicted) {
  Vector out;
  for (std::size_t r = 0; r < predicted.size(); ++r)
    out.push_back(predicted[r] - std::log(data.row(r).seconds));
  return out;
}

// One damped step: the places to try.
Vector step_from(const Vector& places, const Vector& start, const std::vector<std::size_t>& chosen,
                 const std::vector<Vector>& columns, const Vector& errors, double damping) {
  std::vector<Vector> a(chosen.size(), Vector(chosen.size(), 0.0));
  Vector b(chosen.size(), 0.0);
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    b[i] = -kPull * kPull * (places[chosen[i]] - start[chosen[i]]);
    a[i][i] = kPull * kPull;
    for (std::size_t r = 0; r < errors.size(); ++r) {
      const double weight = std::min(1.0, kHuber / std::max(std::abs(errors[r]), 1e-300));
      b[i] -= weight * columns[chosen[i]][r] * errors[r];
      for (std::size_t j = 0; j < chosen.size(); ++j)
        a[i][j] += weight * columns[chosen[i]][r] * columns[chosen[j]][r];
    }
    a[i][i] = a[i][i] * (1.0 + damping) + 1e-12;
  }
  const Vector step = solved(std::move(a), std::move(b));
  Vector out = places;
  for (std::size_t i = 0; i < chosen.size(); ++i)
    out[chosen[i]] = std::clamp(places[chosen[i]] + step[i], 0.0, 1.0);
  return out;
}

Vector minimised(Rows& data, Vector places, const std::vector<std::size_t>& chosen) {
  constexpr double kWidth = 1e-3, kSmallest = 1e-3, kLargest = 1e9;
  double damping = kSmallest;
  const Vector start = places;
  Vector errors = errors_of(data, data.predict(places));
  double loss = loss_of(errors, places, start);
  for (std::int32_t i = 0; i < kIterations && damping < kLargest; ++i) {
    const std::vector<Vector> columns = data.jacobian(places, data.predict(places), kWidth);
    bool better = false;
    while (!better && damping < kLargest) {
      Vector next = step_from(places, start, chosen, columns, errors, damping);
      Vector now = errors_of(data, data.predict(next));
      const double least = loss_of(now, next, start);
      better = least < loss * (1.0 - 1e-12);
      damping = better ? std::max(kSmallest, damping * 0.1) : damping * 10.0;
      if (!better) continue;
      const bool done = loss - least < 1e-14;
      places = std::move(next);
      errors = std::move(now);
      loss = least;
      if (done) return places;
    }
  }
  return places;
}

struct Solution {
  Vector places;
  std::vector<std::size_t> chosen;
  std::vector<Vector> columns;  // over the whole range, at the start
};

Solution solve(Rows& data, const Start& start) {
  Solution out{.places = start.places, .chosen = {}, .columns = {}};
  for (std::size_t i = 0; i < start.constants.size(); ++i) {
    Vector low = start.places, high = start.places;
    low[i] = std::max(0.0, low[i] - kAround);
    high[i] = std::min(1.0, high[i] + kAround);
    Vector column = data.predict(high);
    const Vector other = data.predict(low);
    for (std::size_t r = 0; r < column.size(); ++r) column[r] -= other[r];
    out.columns.push_back(std::move(column));
  }
  out.chosen = identified(out.columns, data.rows());
  out.places = minimised(data, start.places, out.chosen);
  return out;
}

// The fitted coefficient whose column has the smallest angle to this one.
std::string nearest_of(const Solution& s, std::span<const Constant> constants, std::size_t i) {
  std::string best;
  double most = -1;
  for (const std::size_t k : s.chosen) {
    const double length = std::sqrt(dot(s.columns[i], s.columns[i]) * dot(s.columns[k], s.columns[k]));
    const double cosine = length > 0 ? std::abs(dot(s.columns[i], s.columns[k])) / length : 0.0;
    if (cosine > most) {
      most = cosine;
      best = std::string(constants[k].name);
    }
  }
  return best;
}

Coefficient coefficient_of(const Solution& s, const Start& start, std::size_t i) {
  Coefficient c{.constant = start.constants[i], .shipped = start.shipped[i], .value = start.shipped[i]};
  c.effect = norm(s.columns[i]);
  if (std::ranges::find(s.chosen, i) != s.chosen.end()) {
    c.state = CoefficientState::fitted;
    c.value = start.value(i, s.places[i]);
    c.at_bound = s.places[i] <= 1e-9 || s.places[i] >= 1.0 - 1e-9;
  } else if (c.effect > kNoise) {
    c.state = CoefficientState::alike;
    c.alike_as = nearest_of(s, start.constants, i);
  }
  return c;
}

void check_rows(std::span<const Observation> rows) {
  if (rows.empty())
    throw Error(ErrorKind::config, "no measured step is left to fit to", "calibrate", "give one");
  if (rows.size() > kMostRows) {
    throw Error(ErrorKind::config, fmt::format("{} measured steps, at most {}", rows.size(), kMostRows),
                "calibrate", "tessera validate --fit --write-calibrations fits to many");
  }
  const std::string chip = chip_of(rows.front().setup.calibration.name);
  for (const Observation& row : rows) {
    if (!(row.seconds > 0.0) || !std::isfinite(row.seconds)) {
      throw Error(ErrorKind::config, fmt::format("a step of {} seconds", row.seconds), row.name,
                  "give a time above zero");
    }
    if (chip_of(row.setup.calibration.name) == chip) continue;
    throw Error(ErrorKind::config,
                fmt::format("measured on {} and on {}", rows.front().setup.calibration.name,
                            row.setup.calibration.name),
                row.name, "fit one accelerator at a time");
  }
}

}  // namespace

cost::Calibration Refit::applied(cost::Calibration calibration) const {
  for (const Coefficient& c : coefficients) {
    if (c.state == CoefficientState::fitted) c.constant.set(calibration, c.value);
  }
  return calibration;
}

double mean_error(std::span<const Residual> residuals, double Residual::*predicted) {
  double sum = 0;
  for (const Residual& r : residuals) sum += std::abs(std::log(r.*predicted / r.measured));
  return residuals.empty() ? 0.0 : sum / static_cast<double>(residuals.size());
}

Refit refit(std::span<const Observation> rows, const Predictor& predictor, const RefitOptions& options) {
  check_rows(rows);
  Start start{.constants = chosen_constants(options.names), .shipped = {}, .places = {}};
  for (const Constant& c : start.constants) {
    start.shipped.push_back(c.get(rows.front().setup.calibration));
    start.places.push_back(place_of(c, std::clamp(start.shipped.back(), c.low, c.high)));
  }
  Refit out;
  Rows all(rows, start, predictor);
  for (const Observation& row : rows)
    out.residuals.push_back({.name = row.name, .measured = row.seconds, .shipped = all.predicted(row)});
  const Solution s = solve(all, start);
  for (std::size_t i = 0; i < start.constants.size(); ++i)
    out.coefficients.push_back(coefficient_of(s, start, i));
  const auto with = [&](const Observation& row, const Solution& by) {
    Observation copy = row;
    for (const std::size_t i : by.chosen)
      start.constants[i].set(copy.setup.calibration, start.value(i, by.places[i]));
    return all.predicted(copy);
  };
  for (std::size_t r = 0; r < rows.size(); ++r) out.residuals[r].fitted = with(rows[r], s);
  if (rows.size() < 2) return out;
  const std::int64_t folds = std::min(std::ssize(rows), kMostFolds);
  parallel_for(folds, 1, options.threads, [&](std::int64_t fold) {
    const auto held = [&](std::int64_t r) { return r % folds == fold; };
    std::vector<Observation> others;
    for (std::int64_t r = 0; r < std::ssize(rows); ++r) {
      if (!held(r)) others.push_back(rows[static_cast<std::size_t>(r)]);
    }
    Rows without(others, start, predictor);
    const Solution by = solve(without, start);
    for (std::int64_t r = fold; r < std::ssize(rows); r += folds) {
      const auto row = static_cast<std::size_t>(r);
      out.residuals[row].left_out = with(rows[row], by);
    }
  });
  return out;
}

}  // namespace tessera::validate
