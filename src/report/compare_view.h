// What `tessera compare` prints: two trainings side by side, and a verdict with its reasons. Pure, thread
// safe.
#pragma once
#include <string>
#include <vector>

#include "explain/compare.h"
#include "report/terminal.h"

namespace tessera::report {

struct CompareView {
  std::string title;
  std::string note;  // how the second was made; may be empty
  const explain::Side* first = nullptr;
  const explain::Side* second = nullptr;
  const explain::CompareOptions* options = nullptr;
  std::string gain_source;  // of options->gain
};

[[nodiscard]] std::string compare_page(const CompareView& view, const Style& style);
// The verdict alone, a sentence an entry; the first one is the answer.
[[nodiscard]] std::vector<std::string> verdict_sentences(const CompareView& view);

}  // namespace tessera::report
