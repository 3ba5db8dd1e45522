// A row as a question for the cost model: (Setup, Candidate), or the reason why it cannot be asked. Facts
// that a row does not print are taken from what its source says of its software and network (sources.h); what
// is assumed is listed, and a row that cannot be modelled is refused with a reason, never guessed at. Pure.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "cost/candidate.h"
#include "validate/library.h"
#include "validate/row.h"

namespace tessera::validate {

enum class ModelClass : std::uint8_t { dense, moe };
[[nodiscard]] std::string_view name(ModelClass c);

// A published peak of memory, bytes of the fullest rank.
struct MemoryMeasured {
  double bytes = 0;
  MemoryKind kind = MemoryKind::unknown;
};

struct Case {
  cost::Setup setup;
  cost::Candidate candidate;
  std::string source;  // mpt, nano, ...
  std::string model;   // as printed
  ModelClass model_class = ModelClass::dense;
  std::string accelerator;             // name of the calibration
  std::string axes;                    // "tp+pp+dp": degrees above 1
  std::optional<double> step_seconds;  // measured; absent where only a memory or a verdict is known
  std::string step_origin;             // "printed", "derived", "tokens/s", "hardware TFLOP/s"
  std::optional<MemoryMeasured> memory;
  std::vector<std::string> assumptions;  // what the row does not print
  bool guessed = false;                  // one of them may change the step by more than some percent
};

struct Mapped {
  std::optional<Case> value;
  std::string reason;  // when there is no value: a phrase to group by
  std::string detail;  // with the numbers
};

[[nodiscard]] Mapped to_case(const Row& row, const Library& library);

// Seconds of a step as measured, by the best of the columns; absent when none is there. `origin` says which.
[[nodiscard]] std::optional<double> measured_step(const Row& row, std::string& origin);

}  // namespace tessera::validate
