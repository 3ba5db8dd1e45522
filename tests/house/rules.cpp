#include "house/rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <regex>

#include "base/file.h"
#include "base/text.h"

namespace tessera::house {
namespace {

constexpr std::int64_t kMaxColumns = 110;
constexpr std::int64_t kMaxFileLines = 600;
constexpr std::int64_t kMaxFunctionLines = 70;

bool is_header(const SourceFile& file) {
  return file.path.ends_with(".h");
}

// "schedule" of "src/schedule/generate.cpp"; "" outside `top`.
std::string room_of(const std::string& path, std::string_view top) {
  if (!path.starts_with(top)) return "";
  const std::size_t end = path.find('/', top.size());
  return end == std::string::npos ? "" : path.substr(top.size(), end - top.size());
}

struct Include {
  std::string name;
  std::int64_t line;
};
std::vector<Include> includes_of(const SourceFile& file) {
  static const std::regex include(R"re(^\s*#\s*include\s*[<"]([^>"]+)[>"])re");
  std::vector<Include> found;
  std::int64_t number = 0;
  for (const std::string& line : split(file.text, '\n')) {
    ++number;
    std::smatch match;
    if (line.find('#') == std::string::npos) continue;
    if (std::regex_search(line, match, include)) found.push_back({match[1], number});
  }
  return found;
}

constexpr const char* kSink = "return the text or write to the sink that is passed in; only src/cli prints";
constexpr const char* kThrow = "throw tessera::Error; only src/cli chooses the exit code";
constexpr const char* kCheck = "use TESSERA_CHECK or TESSERA_CHECK_EQ, which stay on and name the place";
constexpr const char* kPhilox =
    "draw from base/random.h: keyed by name and element, the same on every layout";
constexpr const char* kEnvironment = "only src/cli reads the environment, once, and passes what it found";
constexpr const char* kScan =
    "write the few lines of scanning by hand: std::regex is slow to compile and to run";

// How a banned word must stand to be meant: std::word, fmt::word, or a call of a plain, std:: or :: word (an
// own abort(why) is another thing, hence empty_call).
enum class Use : std::uint8_t { in_std, in_fmt, call, empty_call };
enum class Scope : std::uint8_t { rooms, everywhere };  // rooms: but cli
struct Banned {
  Use use;
  Scope scope;
  const char* mend;
};
const std::map<std::string, Banned, std::less<>> kBanned = {
    {"cout", {Use::in_std, Scope::rooms, kSink}},
    {"cerr", {Use::in_std, Scope::rooms, kSink}},
    {"clog", {Use::in_std, Scope::rooms, kSink}},
    {"cin", {Use::in_std, Scope::rooms, kSink}},
    {"printf", {Use::call, Scope::rooms, kSink}},
    {"fprintf", {Use::call, Scope::rooms, kSink}},
    {"vprintf", {Use::call, Scope::rooms, kSink}},
    {"puts", {Use::call, Scope::rooms, kSink}},
    {"fputs", {Use::call, Scope::rooms, kSink}},
    {"putchar", {Use::call, Scope::rooms, kSink}},
    {"print", {Use::in_fmt, Scope::rooms, kSink}},
    {"println", {Use::in_fmt, Scope::rooms, kSink}},
    {"exit", {Use::call, Scope::rooms, kThrow}},
    {"_exit", {Use::call, Scope::rooms, kThrow}},
    {"_Exit", {Use::call, Scope::rooms, kThrow}},
    {"quick_exit", {Use::call, Scope::rooms, kThrow}},
    {"abort", {Use::empty_call, Scope::rooms, kThrow}},
    {"terminate", {Use::in_std, Scope::rooms, kThrow}},
    {"getenv", {Use::call, Scope::rooms, kEnvironment}},
    {"secure_getenv", {Use::call, Scope::rooms, kEnvironment}},
    {"regex", {Use::in_std, Scope::everywhere, kScan}},
    {"assert", {Use::call, Scope::everywhere, kCheck}},
    {"rand", {Use::call, Scope::everywhere, kPhilox}},
    {"srand", {Use::call, Scope::everywhere, kPhilox}},
    {"random_device", {Use::in_std, Scope::everywhere, kPhilox}},
    {"mt19937", {Use::in_std, Scope::everywhere, kPhilox}},
    {"mt19937_64", {Use::in_std, Scope::everywhere, kPhilox}},
    {"default_random_engine", {Use::in_std, Scope::everywhere, kPhilox}},
};
const std::map<std::string, const char*> kBannedPhrases = {
    {"using namespace std", "write std:: where it is needed"},
    {"system_clock", "measure with base/clock.h: the time of day jumps"},
    {"CLOCK_REALTIME", "measure with base/clock.h: the time of day jumps"},
    {"gettimeofday", "measure with base/clock.h: the time of day jumps"},
    {"#pragma omp", "use std::jthread: the thread sanitizer reports falsely on OpenMP loops"},
};

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

// Whether the word at line[begin, end) stands as the rule means it.
bool stands_as(Use use, std::string_view line, std::size_t begin, std::size_t end) {
  const std::string_view before = line.substr(0, begin);
  const std::string_view after = trim(line.substr(end));
  switch (use) {
    case Use::in_std:
      return before.ends_with("std::");
    case Use::in_fmt:
      return before.ends_with("fmt::");
    case Use::empty_call:
      if (!after.starts_with("(") || !trim(after.substr(1)).starts_with(")")) return false;
      break;
    case Use::call:
      if (!after.starts_with("(")) return false;
      break;
  }
  if (before.ends_with("std::")) return true;
  if (before.ends_with("::")) return before.size() == 2 || !is_word(before[before.size() - 3]);
  return before.empty() || (before.back() != '.' && before.back() != '>');
}

// Headers that no header of src/ may pull into its readers, and those that no room outside cli may use at
// all.
const std::map<std::string, std::string> kHeavy = {
    {"nlohmann/", "include it in the .cpp only, json_fwd.hpp too: no JSON type in an interface"},
    {"yaml-cpp/", "include it in the .cpp only"},
    {"CLI/", "include it in src/cli/*.cpp only"},
    {"gtest/", "tests belong to tests/"},
    {"gmock/", "tests belong to tests/"},
    {"simdjson", "include it in the .cpp only"},
    {"sentencepiece", "include it in the .cpp only"},
    {"iostream", "use <string> in the interface; only src/cli prints"},
    {"regex", "write the few lines of scanning by hand"},
    {"cblas.h", "include it in the .cpp only"},
    {"mpi.h", "include it in the .cpp of the backend folder only"},
};

bool has_expectation(const std::string& body) {
  static const std::regex expectation(
      R"(\b(EXPECT_\w+|ASSERT_\w+|FAIL|ADD_FAILURE|static_assert|\w*([Ee]xpect|[Cc]heck)\w*))"
      R"(\s*(<[^;{}]*>)?\s*\()");
  // The first line is the TEST( macro itself, whose name may hold such a word.
  return std::regex_search(body.substr(std::min(body.size(), body.find('{'))), expectation);
}

}  // namespace

std::string to_text(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& f : findings) {
    text += f.line > 0 ? fmt::format("{}:{}: {}\n  mend: {}\n", f.path, f.line, f.what, f.mend)
                       : fmt::format("{}: {}\n  mend: {}\n", f.path, f.what, f.mend);
  }
  return text;
}

std::vector<SourceFile> read_tree(const std::filesystem::path& root) {
  namespace fs = std::filesystem;
  static const std::set<std::string> extensions = {".h",  ".cpp",  ".cu",  ".inc",  ".cmake", ".txt", ".md",
                                                   ".py", ".yaml", ".yml", ".json", ".sh",    ".svg", ""};
  std::vector<SourceFile> files;
  for (auto it = fs::recursive_directory_iterator(root); it != fs::recursive_directory_iterator(); ++it) {
    const std::string name = it->path().filename().string();
    const bool hidden =
        name.starts_with(".") && name != ".ci" && name != ".clang-tidy" && name != ".clang-format";
    if (it->is_directory() &&
        (hidden || name.starts_with("build") || name == "runs" || name == "__pycache__")) {
      it.disable_recursion_pending();
    }
    if (!it->is_regular_file() || hidden || !extensions.contains(it->path().extension().string())) continue;
    files.push_back({fs::relative(it->path(), root).string(), read_text(it->path())});
  }
  std::ranges::sort(files, {}, &SourceFile::path);
  return files;
}

RoomTable parse_rooms(std::string_view rooms_txt) {
  RoomTable table;
  for (const std::string& line : split(rooms_txt, '\n')) {
    const std::size_t colon = line.find(':');
    if (line.empty() || line[0] == '#' || colon == std::string::npos) continue;
    std::set<std::string>& allowed = table[line.substr(0, colon)];
    for (const std::string& word : split(line.substr(colon + 1), ' ')) {
      if (!trim(word).empty()) allowed.emplace(trim(word));
    }
  }
  return table;
}

std::vector<Finding> check_includes(const SourceFile& file, const RoomTable& table) {
  std::vector<Finding> findings;
  const std::string room = room_of(file.path, "src/");
  const auto row = table.find(room);
  if (row == table.end()) return findings;
  for (const Include& include : includes_of(file)) {
    const std::string target = room_of(include.name, "");
    if (!table.contains(target) || target == room || row->second.contains(target)) continue;
    std::vector<std::string> allowed(row->second.begin(), row->second.end());
    findings.push_back(
        {file.path, include.line,
         fmt::format("room `{}` includes \"{}\" of room `{}`", room, include.name, target),
         fmt::format("`{}` may include {{{}}}: move the shared part down into one of them, or pass a "
                     "value in; if the row is wrong, change src/rooms.txt and say why in "
                     "docs/architecture.md",
                     room, join(allowed, ", "))});
  }
  return findings;
}

std::vector<Finding> check_header(const SourceFile& file) {
  std::vector<Finding> findings;
  if (!is_header(file) || !file.path.starts_with("src/")) return findings;
  if (!file.text.starts_with("//")) {
    findings.push_back({file.path, 1, "the header does not open with a comment",
                        "say in its first lines what the thing is, with units, errors and the thread rule"});
  }
  if (file.text.find("\n#pragma once") == std::string::npos) {
    findings.push_back({file.path, 1, "the header has no #pragma once", "put it below the opening comment"});
  }
  for (const Include& include : includes_of(file)) {
    for (const auto& [prefix, mend] : kHeavy) {
      if (!include.name.starts_with(prefix)) continue;
      findings.push_back(
          {file.path, include.line, fmt::format("a header includes <{}>", include.name), mend});
    }
  }
  return findings;
}

std::vector<Finding> check_banned(const SourceFile& file) {
  std::vector<Finding> findings;
  const std::string room = room_of(file.path, "src/");
  if (room.empty()) return findings;
  std::int64_t number = 0;
  const auto add = [&](std::string_view what, const char* mend) {
    findings.push_back({file.path, number, fmt::format("`{}` is not used here", what), mend});
  };
  for (const std::string& line : split(code_only(file.text), '\n')) {
    ++number;
    for (std::size_t i = 0; i < line.size();) {
      std::size_t end = i;
      while (end < line.size() && is_word(line[end])) ++end;
      const auto rule = kBanned.find(std::string_view(line).substr(i, end - i));
      const bool meant = rule != kBanned.end() && (rule->second.scope == Scope::everywhere || room != "cli");
      if (meant && stands_as(rule->second.use, line, i, end)) add(rule->first, rule->second.mend);
      i = std::max(end, i + 1);
    }
    for (const auto& [phrase, mend] : kBannedPhrases) {
      if (line.find(phrase) != std::string::npos) add(phrase, mend);
    }
  }
  for (const Include& include : includes_of(file)) {
    number = include.line;
    if (include.name == "iostream" && room != "cli") add("<iostream>", kSink);
    if (include.name == "cassert") add("<cassert>", kCheck);
    if (include.name == "regex") add("<regex>", kScan);
  }
  return findings;
}

std::vector<Finding> check_globals(const SourceFile& file) {
  std::vector<Finding> findings;
  if (!file.path.starts_with("src/")) return findings;
  static const std::regex harmless(
      R"(^(inline\s+|static\s+)*(const|constexpr|constinit const|using|typedef|class|struct|union|enum)\b)"
      R"(|^(namespace|extern|template|friend|static_assert|concept|__extension__|return)\b)"
      R"(|^(public|private|protected)\b)"
      R"(|=\s*(default|delete)$)");
  static const std::regex constant(R"(\b(const|constexpr)\b)");
  static const std::regex variable(R"(^[\w:<>,&*\s\[\]]+\s[&*]*\w+(\[[^\]]*\])*\s*([={][\s\S]*)?$)");
  const Outline outline = outline_of(file.text);
  const auto add = [&](const Statement& s, const char* mend) {
    const std::string text = split(s.text, '\n').front();
    findings.push_back(
        {file.path, s.line, fmt::format("mutable variable that outlives its call: `{}`", text), mend});
  };
  for (const Statement& s : outline.at_namespace_scope) {
    const std::string before_value = s.text.substr(0, s.text.find_first_of("={"));
    if (std::regex_search(s.text, harmless) || before_value.find('(') != std::string::npos) continue;
    if (std::regex_search(before_value, constant) || !std::regex_match(s.text, variable)) continue;
    add(s, "pass it as a parameter or make it const");
  }
  for (const Statement& s : outline.static_in_function) {
    if (!std::regex_search(s.text, constant)) add(s, "keep the state in an object that the caller owns");
  }
  return findings;
}

std::vector<Finding> check_size(const SourceFile& file) {
  std::vector<Finding> findings;
  std::int64_t number = 0;
  // A raw string shows a file as it is, which may have long lines.
  for (const std::string& text : split(without_raw_strings(file.text), '\n')) {
    ++number;
    const std::string_view line = std::string_view(text).substr(0, text.find_last_not_of(' ') + 1);
    // Continuation bytes of UTF-8 take no column.
    const auto columns = std::ranges::count_if(line, [](char c) { return (c & 0xC0) != 0x80; });
    if (columns > kMaxColumns) {
      findings.push_back(
          {file.path, number, fmt::format("{} columns, {} allowed", columns, kMaxColumns), "wrap it"});
    }
  }
  const std::int64_t lines = std::ranges::count(file.text, '\n');
  if (lines > kMaxFileLines) {
    findings.push_back({file.path, 0, fmt::format("{} lines, {} allowed", lines, kMaxFileLines),
                        "split it where the subject changes"});
  }
  for (const Function& f : outline_of(file.text).functions) {
    const std::int64_t length = f.last_line - f.first_line + 1;
    if (length <= kMaxFunctionLines) continue;
    findings.push_back({file.path, f.first_line,
                        fmt::format("`{}` has {} lines, {} allowed", split(f.signature, '\n').front(), length,
                                    kMaxFunctionLines),
                        "keep the branches here and move pure work into helpers"});
  }
  return findings;
}

std::vector<Finding> check_ascii(const SourceFile& file) {
  std::vector<Finding> findings;
  std::int64_t number = 0;
  for (const std::string& line : split(file.text, '\n')) {
    ++number;
    const auto odd =
        std::ranges::find_if(line, [](char c) { return (c & 0x80) != 0 || c == '\t' || c == '\r'; });
    if (odd == line.end()) continue;
    findings.push_back(
        {file.path, number,
         fmt::format("byte {:#04x} in column {}", static_cast<unsigned char>(*odd), odd - line.begin() + 1),
         "sources are ASCII with blanks and line feeds; write a glyph as \\u or \\x in its string"});
  }
  return findings;
}

std::vector<Finding> check_markers(const SourceFile& file) {
  // Written in two halves, so that this file does not hold them.
  static const std::regex marker(
      "\\b("
      "TO"
      "DO|FIX"
      "ME|X"
      "XX|HA"
      "CK)\\b");
  std::vector<Finding> findings;
  std::int64_t number = 0;
  for (const std::string& line : split(file.text, '\n')) {
    ++number;
    std::smatch match;
    if (line.find_first_of("TFXH") == std::string::npos || !std::regex_search(line, match, marker)) continue;
    findings.push_back({file.path, number, fmt::format("marker `{}`", match.str()),
                        "do it now, or leave it out; a known limit belongs into the docs as a limit"});
  }
  return findings;
}

std::vector<Finding> check_machine_traces(const SourceFile& file) {
  static const std::regex trace(
      "(^|[^\\w.])/(wo"
      "rk|ro"
      "ot|ho"
      "me)/\\w|/t"
      "mp/t/|deb\\.deb"
      "ian\\.org|registry\\.np"
      "mjs|localhost:\\d");
  std::vector<Finding> findings;
  std::int64_t number = 0;
  for (const std::string& line : split(file.text, '\n')) {
    ++number;
    std::smatch match;
    if (line.find_first_of("/:.") == std::string::npos || !std::regex_search(line, match, trace)) continue;
    findings.push_back({file.path, number,
                        fmt::format("a place of one machine or registry: `{}`", match.str()),
                        "use a path relative to the checkout, or std::filesystem::temp_directory_path()"});
  }
  return findings;
}

std::vector<Finding> check_tests_expect(const SourceFile& file) {
  static const std::regex test(R"(^(TYPED_)?TEST(_F|_P)?\s*\()");
  static const std::regex callee(R"((\w+)\s*\()");
  const std::vector<Function> functions = outline_of(file.text).functions;
  // Helpers of the same file that expect something, directly or through one another.
  std::set<std::string> helpers;
  const auto expects = [&](const Function& f) {
    if (has_expectation(f.body)) return true;
    const std::string body = f.body.substr(std::min(f.body.size(), f.body.find('{')));
    static const std::regex call(R"((\w+)\s*(<[^;{}()]*>)?\s*\()");
    for (std::sregex_iterator it(body.begin(), body.end(), call); it != std::sregex_iterator(); ++it) {
      if (helpers.contains((*it)[1])) return true;
    }
    return false;
  };
  for (bool grown = true; grown;) {
    grown = false;
    for (const Function& f : functions) {
      std::smatch name;
      const bool is_helper =
          !std::regex_search(f.signature, test) && std::regex_search(f.signature, name, callee);
      if (is_helper && !helpers.contains(name[1]) && expects(f)) grown = helpers.insert(name[1]).second;
    }
  }
  std::vector<Finding> findings;
  for (const Function& f : functions) {
    if (!std::regex_search(f.signature, test) || expects(f)) continue;
    findings.push_back(
        {file.path, f.first_line, fmt::format("`{}` expects nothing, so it cannot fail", f.signature),
         "add an EXPECT_ or ASSERT_, or call a helper that has one (in this file, or named so)"});
  }
  return findings;
}

std::vector<Finding> check_links(const SourceFile& file, const std::set<std::string>& paths) {
  static const std::regex link(R"(\]\(([^)\s]+)\))");
  std::vector<Finding> findings;
  std::int64_t number = 0;
  const std::filesystem::path folder = std::filesystem::path(file.path).parent_path();
  for (const std::string& line : split(file.text, '\n')) {
    ++number;
    for (std::sregex_iterator it(line.begin(), line.end(), link); it != std::sregex_iterator(); ++it) {
      const std::string whole = (*it)[1];
      const std::string target = whole.substr(0, whole.find('#'));
      if (target.empty() || target.find("://") != std::string::npos) continue;
      std::string path = (folder / target).lexically_normal().string();
      if (path.ends_with("/")) path.pop_back();
      if (paths.contains(path)) continue;
      findings.push_back({file.path, number, fmt::format("link to `{}`, which does not exist", whole),
                          "link to a file of the checkout, relative to this page"});
    }
  }
  return findings;
}

std::vector<Finding> check_snippets(const SourceFile& page, const std::vector<SourceFile>& files) {
  static const std::regex fence(R"(^```cpp (\S+)#(\w+)$)");
  std::vector<Finding> findings;
  const std::vector<std::string> lines = split(page.text, '\n');
  for (std::size_t i = 0; i < lines.size(); ++i) {
    std::smatch match;
    if (!std::regex_match(lines[i], match, fence)) continue;
    const std::string path = match[1];
    const std::string part = match[2];
    std::string shown;
    for (std::size_t j = i + 1; j < lines.size() && lines[j] != "```"; ++j) shown += lines[j] + "\n";
    const auto file = std::ranges::find(files, path, &SourceFile::path);
    const std::string text = file == files.end() ? "" : file->text;
    const std::string open = "// [" + part + "]\n";
    const std::size_t begin = text.find(open);
    const std::size_t end = text.find("// [/" + part + "]\n");
    const bool found = begin != std::string::npos && end != std::string::npos;
    if (found && text.substr(begin + open.size(), end - begin - open.size()) == shown) continue;
    findings.push_back({page.path, static_cast<std::int64_t>(i) + 1,
                        found ? fmt::format("the code differs from part `{}` of {}", part, path)
                              : fmt::format("{} has no part `{}`", path, part),
                        "./dev docs --update copies it from there"});
  }
  return findings;
}

std::set<std::string> verbs_of(std::string_view dev_script) {
  static const std::regex label(R"(^\s+([a-z]+)( \| [^)]*)?\) )");
  std::set<std::string> verbs;
  const std::size_t begin = dev_script.rfind("case $verb in");
  if (begin == std::string_view::npos) return verbs;
  for (const std::string& line : split(dev_script.substr(begin), '\n')) {
    std::smatch match;
    if (std::regex_search(line, match, label)) verbs.insert(match[1]);
  }
  return verbs;
}

std::vector<Finding> check_verbs(const SourceFile& page, const std::set<std::string>& verbs) {
  static const std::regex call(R"(\./dev ([a-z]+))");
  std::vector<Finding> findings;
  std::set<std::string> named;
  std::int64_t number = 0;
  for (const std::string& line : split(page.text, '\n')) {
    ++number;
    for (std::sregex_iterator it(line.begin(), line.end(), call); it != std::sregex_iterator(); ++it) {
      const std::string verb = (*it)[1];
      named.insert(verb);
      if (verbs.contains(verb)) continue;
      findings.push_back(
          {page.path, number, fmt::format("`./dev {}` does not exist", verb), "see ./dev help"});
    }
  }
  for (const std::string& verb : verbs) {
    if (page.path != "README.md" || named.contains(verb)) continue;
    findings.push_back(
        {page.path, 0, fmt::format("`./dev {}` is not in the table of commands", verb), "add it"});
  }
  return findings;
}

std::vector<Finding> check_rooms_have_tests(const std::vector<SourceFile>& files, const RoomTable& table,
                                            const std::map<std::string, std::string>& excused) {
  std::set<std::string> with_sources;
  std::set<std::string> with_tests;
  for (const SourceFile& file : files) {
    if (file.path.ends_with(".cpp")) with_sources.insert(room_of(file.path, "src/"));
    if (file.path.ends_with("_test.cpp")) with_tests.insert(room_of(file.path, "tests/"));
  }
  std::vector<Finding> findings;
  for (const auto& [room, allowed] : table) {
    if (!with_sources.contains(room) || with_tests.contains(room) || excused.contains(room)) continue;
    findings.push_back({"src/" + room, 0, "the room has no tests",
                        fmt::format("add tests/{}/NAME_test.cpp; CMake finds it by itself", room)});
  }
  return findings;
}

std::vector<Finding> check_rooms_are_known(const std::vector<SourceFile>& files, const RoomTable& table) {
  std::vector<Finding> findings;
  std::string architecture;
  std::set<std::string> folders;
  for (const SourceFile& file : files) {
    if (file.path == "docs/architecture.md") architecture = file.text;
    folders.insert(room_of(file.path, "src/"));
  }
  folders.erase("");
  for (const std::string& folder : folders) {
    if (table.contains(folder)) continue;
    findings.push_back({"src/" + folder, 0, "the folder is no room", "add its row to src/rooms.txt"});
  }
  for (const auto& [room, allowed] : table) {
    if (architecture.find("`" + room + "`") != std::string::npos) continue;
    findings.push_back({"docs/architecture.md", 0, fmt::format("room `{}` is not described", room),
                        "add its line to the table of rooms"});
  }
  return findings;
}

}  // namespace tessera::house
