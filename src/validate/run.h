// Every row predicted, or the reason why not. Rows are independent: they run on all threads, the result does
// not depend on how many.
//
//   const std::vector<Outcome> outcomes = run(rows, shipped_library(), step_model(), 2);
//   outcomes[7].error();  // predicted / measured - 1
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cost/step.h"
#include "validate/mapping.h"
#include "validate/row.h"

namespace tessera::validate {

struct Prediction {
  std::optional<cost::StepCost> cost;
  std::string reason;  // when there is none
};
// Thread safe.
using Predictor = std::function<Prediction(const cost::Setup&, const cost::Candidate&)>;
// cost::StepModel, refusing what cost::why_invalid refuses.
[[nodiscard]] Predictor step_model();

struct Outcome {
  Row row;
  std::optional<Case> question;        // absent: not modelled
  std::optional<cost::StepCost> cost;  // absent: not modelled
  std::string reason, detail;          // then

  [[nodiscard]] bool timed() const { return cost.has_value() && question->step_seconds.has_value(); }
  [[nodiscard]] double predicted() const { return cost->seconds(); }         // REQUIRES cost
  [[nodiscard]] double measured() const { return *question->step_seconds; }  // REQUIRES timed()
  [[nodiscard]] double error() const { return predicted() / measured() - 1.0; }
};

[[nodiscard]] std::vector<Outcome> run(std::span<const Row> rows, const Library& library,
                                       const Predictor& predictor, std::int32_t threads);
// The same questions again, after their calibrations changed.
void predict_again(std::span<Outcome> outcomes, const Predictor& predictor, std::int32_t threads);

// body(i) for i in [0, count) on `threads` threads `chunk` at a time; rethrows the first failure.
void parallel_for(std::int64_t count, std::int64_t chunk, std::int32_t threads,
                  const std::function<void(std::int64_t)>& body);

// Rows that could not be predicted, by reason, most frequent first.
struct ReasonCount {
  std::string reason;
  std::int32_t rows = 0;
  std::int32_t good_rows = 0;  // of quality A and B with a measured step
  std::string example;         // id and detail of the first
};
[[nodiscard]] std::vector<ReasonCount> reasons(std::span<const Outcome> outcomes);

}  // namespace tessera::validate
