// What `--what-if` and `--against` print: the table of single changes, and why one layout is faster than
// another. Pure, thread safe.
#pragma once
#include <span>
#include <string>

#include "explain/against.h"
#include "explain/what_if.h"
#include "report/terminal.h"

namespace tessera::report {

struct WhatIfView {
  const cost::Setup* setup = nullptr;
  const explain::Priced* base = nullptr;
  std::span<const explain::Change> changes;
};
// What fits first, most tokens per second first; then what does not fit; then what is not possible, with the
// reason.
[[nodiscard]] std::string what_if_table(const WhatIfView& view, const Style& style);

struct AgainstView {
  std::string chosen_name, other_name;  // "the best", "your layout"
  const explain::Priced* chosen = nullptr;
  const explain::Priced* other = nullptr;
  std::span<const explain::Margin> margins;
};
// "The best takes 12.1 s, your layout 14.9 s (+23%): ..." and where the difference lies, cause by cause.
[[nodiscard]] std::string against_sentence(const AgainstView& view);
[[nodiscard]] std::string against_table(const AgainstView& view, const Style& style);
// Which coefficient must be how wrong before the order turns. "" without margins.
[[nodiscard]] std::string margin_sentence(const AgainstView& view);

}  // namespace tessera::report
