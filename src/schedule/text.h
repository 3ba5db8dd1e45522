// The text form of schedules; reads back exactly.
//
//   tessera-schedule 1: kind=1f1b pp=2 vpp=1 m=2 placement=loop
//   rank 0: 0F0 0F1 0B0 0B1
//   rank 1: 1F0 1B0 1F1 1B1
//
// One line per rank in order, actions separated by blanks. Empty lines and text after # are ignored when
// reading.
#pragma once
#include <string>
#include <string_view>

#include "schedule/schedule.h"

namespace tessera::schedule {

[[nodiscard]] std::string to_text(const Schedule& schedule);

// Throws Error{config} with every problem of the text, each with `source`:line:column; Error{unsupported} on
// a newer version. What the actions mean together is check()'s matter.
[[nodiscard]] Schedule from_text(std::string_view text, std::string_view source = "schedule");

// One action such as 1SEND_F3; REQUIRES nothing of the stage but 0 <= stage. False when the word is none.
[[nodiscard]] bool parse_action(std::string_view word, Action& action);

}  // namespace tessera::schedule
