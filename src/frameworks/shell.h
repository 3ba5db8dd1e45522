// The part of bash that launch scripts are made of: assignments of words and arrays, quotes, line
// continuations, comments, ${NAME:-default}, $((arithmetic)), "${ARRAY[@]}". Nothing is run: a value that
// needs the environment, an argument of the script or a command's output is marked by what it needs. Inside
// of this room. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "frameworks/arguments.h"

namespace tessera::frameworks {

struct ShellWord {
  std::string text;
  std::int32_t line = 0;
  std::string unresolved = {};  // the first variable or command that no line sets
};
struct ShellCommand {
  std::vector<ShellWord> words;
};
struct ShellScript {
  std::vector<ShellCommand> commands;  // in the order of the file; those of branches and loops among them
  std::vector<std::int32_t> branches;  // lines with if, case, for, while: taken as if all ran
};
// Adds a problem for a quote or an array that does not end.
[[nodiscard]] ShellScript parse_shell(std::string_view text, std::string_view file, Problems& problems);

struct LaunchLine {
  Arguments arguments;       // behind the program, without the dashes
  std::int32_t devices = 0;  // nodes x processes a node of torchrun; 0: not said
  std::vector<std::string> notes;
};
// The command that starts a Python program with flags; a problem where there is none, or several that differ.
[[nodiscard]] LaunchLine find_launch(const ShellScript& script, std::string_view file, Problems& problems);

}  // namespace tessera::frameworks
