// The outcome of a validation as tables, for the terminal or as Markdown, and as one line a row. Pure.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "validate/run.h"
#include "validate/stats.h"

namespace tessera::validate {

struct SummaryTable {
  std::string title, note;
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;  // the first column is text, the others are numbers
};

// How the predictions were made: shown above the tables.
enum class Sample : std::uint8_t {
  shipped,        // with the calibration files as they are
  fitted,         // constants fitted on all rows
  out_of_source,  // of each source with constants fitted on the others
  out_of_model,   // of each model with constants fitted on the others
};
[[nodiscard]] std::string_view name(Sample s);

[[nodiscard]] std::vector<SummaryTable> summary(std::span<const Outcome> outcomes, Sample sample);
[[nodiscard]] std::string to_text(std::span<const SummaryTable> tables);
[[nodiscard]] std::string to_markdown(std::span<const SummaryTable> tables);

// One line a row: id, why not or measured, predicted, error, parts of the step, memory.
[[nodiscard]] std::string to_csv(std::span<const Outcome> outcomes);
[[nodiscard]] std::string to_json(std::span<const Outcome> outcomes, std::span<const SummaryTable> tables);

}  // namespace tessera::validate
