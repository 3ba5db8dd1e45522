// The house's rules as functions over text: each takes files (or one) in memory and returns what it found,
// with the mend. house_test.cpp runs them over the whole checkout; rules_test.cpp shows each one failing on a
// bad snippet.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::house {

struct SourceFile {
  std::string path;  // relative to the root of the checkout
  std::string text;
};

struct Finding {
  std::string path;
  std::int64_t line = 0;  // from 1; 0 when the file as a whole is meant
  std::string what;
  std::string mend;
};
[[nodiscard]] std::string to_text(
    const std::vector<Finding>& findings);  // "path:line: what\n  mend: ..." each

// All text files below `root` that belong to the project: no build folders, no outputs, nothing git keeps for
// itself.
[[nodiscard]] std::vector<SourceFile> read_tree(const std::filesystem::path& root);

// ---- reading C++ without a compiler

// The same text with comments, strings and character literals blanked out (line breaks stay).
[[nodiscard]] std::string code_only(std::string_view text);
// The same text with only raw strings blanked out.
[[nodiscard]] std::string without_raw_strings(std::string_view text);

// A function definition at namespace or class scope: its signature and the lines from there to its closing
// brace.
struct Function {
  std::string signature;
  std::string body;
  std::int64_t first_line = 0;
  std::int64_t last_line = 0;
};
// A statement outside functions, and a `static` one inside: what may be a variable.
struct Statement {
  std::string text;
  std::int64_t line = 0;
};
struct Outline {
  std::vector<Function> functions;
  std::vector<Statement> at_namespace_scope;
  std::vector<Statement> static_in_function;
};
[[nodiscard]] Outline outline_of(std::string_view text);

// ---- the rules

using RoomTable =
    std::map<std::string, std::set<std::string>>;  // room -> rooms it may include besides itself
[[nodiscard]] RoomTable parse_rooms(std::string_view rooms_txt);

[[nodiscard]] std::vector<Finding> check_includes(const SourceFile& file, const RoomTable& table);
[[nodiscard]] std::vector<Finding> check_header(const SourceFile& file);
[[nodiscard]] std::vector<Finding> check_banned(const SourceFile& file);
[[nodiscard]] std::vector<Finding> check_globals(const SourceFile& file);
[[nodiscard]] std::vector<Finding> check_size(const SourceFile& file);
[[nodiscard]] std::vector<Finding> check_ascii(const SourceFile& file);
[[nodiscard]] std::vector<Finding> check_markers(const SourceFile& file);
[[nodiscard]] std::vector<Finding> check_machine_traces(const SourceFile& file);
[[nodiscard]] std::vector<Finding> check_tests_expect(const SourceFile& file);

// Links of a Markdown file to files that are not in `paths` (files and their folders).
[[nodiscard]] std::vector<Finding> check_links(const SourceFile& file, const std::set<std::string>& paths);
// A fence "```cpp PATH#PART" shows the lines of PATH between "// [PART]" and "// [/PART]", which a compiler
// has seen.
[[nodiscard]] std::vector<Finding> check_snippets(const SourceFile& page,
                                                  const std::vector<SourceFile>& files);
// `./dev VERB` in a page with a verb that the script does not know; in README.md also verbs that it does not
// name.
[[nodiscard]] std::vector<Finding> check_verbs(const SourceFile& page, const std::set<std::string>& verbs);
// The verbs of the script: the words before ")" in its last case statement.
[[nodiscard]] std::set<std::string> verbs_of(std::string_view dev_script);
// Rooms with sources but without tests, unless named in `excused`.
[[nodiscard]] std::vector<Finding> check_rooms_have_tests(const std::vector<SourceFile>& files,
                                                          const RoomTable& table,
                                                          const std::map<std::string, std::string>& excused);
// Folders of src/ that the table lacks, and rooms that the architecture page does not name as `room`.
[[nodiscard]] std::vector<Finding> check_rooms_are_known(const std::vector<SourceFile>& files,
                                                         const RoomTable& table);

}  // namespace tessera::house
