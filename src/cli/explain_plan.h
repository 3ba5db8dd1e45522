// `--what-if` and `--against` of plan and simulate. Inside of this room.
#pragma once
#include <cstdint>
#include <string>

#include "cost/candidate.h"
#include "report/terminal.h"

namespace tessera::cli {

// "tp=8,pp=4,mbs=1,recompute=full" as a candidate of as many devices as the setup's cluster has: what is not
// named is 1, dp is what is left, ZeRO 1, the schedule by vpp. Error{config} with every problem.
[[nodiscard]] cost::Candidate parse_layout(const std::string& text, const cost::Setup& setup);

// The degrees and choices by the names of flags. JSON text.
[[nodiscard]] std::string layout_json(const cost::Candidate& c);

// A section of a page: a title, then lines that stand inside of it.
[[nodiscard]] report::Style inner_of(const report::Style& style);
[[nodiscard]] std::string titled(const std::string& title, const std::string& lines,
                                 const report::Style& style);

[[nodiscard]] std::string what_if_text(const cost::Setup& setup, const cost::Candidate& base,
                                       const report::Style& style);
// JSON texts.
[[nodiscard]] std::string what_if_json(const cost::Setup& setup, const cost::Candidate& base);

struct Comparison {
  std::string chosen_name, other_name;
  cost::Candidate chosen, other;
};
enum class Detail : std::uint8_t { sentences, table };
[[nodiscard]] std::string against_text(const cost::Setup& setup, const Comparison& c, Detail detail,
                                       const report::Style& style);
[[nodiscard]] std::string against_json(const cost::Setup& setup, const Comparison& c);

}  // namespace tessera::cli
