// The checkout itself under the house's rules: who includes whom, what is not used, how long things are, what
// a page promises. A failure names file, line and the mend.
#include <gtest/gtest.h>

#include "house/rules.h"

namespace tessera::house {
namespace {

const std::vector<SourceFile>& tree() {
  static const std::vector<SourceFile> files = read_tree(TESSERA_SOURCE_DIR);
  return files;
}

RoomTable rooms() {
  for (const SourceFile& file : tree()) {
    if (file.path == "src/rooms.txt") return parse_rooms(file.text);
  }
  ADD_FAILURE() << "src/rooms.txt is missing";
  return {};
}

bool is_cpp(const SourceFile& file) {
  return file.path.ends_with(".cpp") || file.path.ends_with(".cu") || file.path.ends_with(".h");
}
bool is_test(const SourceFile& file) {
  return file.path.ends_with("_test.cpp");
}
bool is_own_text(const SourceFile& file) {  // what people write, not data that came from elsewhere
  return file.path != "LICENSE" && !file.path.starts_with("tests/data/") &&
         !file.path.starts_with("tests/golden/");
}

// Runs one rule over the files that `applies` picks and fails with everything that it found.
template <class Rule, class Applies>
void expect_clean(Rule rule, Applies applies) {
  std::vector<Finding> all;
  int looked_at = 0;
  for (const SourceFile& file : tree()) {
    if (!applies(file)) continue;
    ++looked_at;
    const std::vector<Finding> found = rule(file);
    all.insert(all.end(), found.begin(), found.end());
  }
  EXPECT_GT(looked_at, 0) << "the rule met no file at all";
  EXPECT_TRUE(all.empty()) << to_text(all);
}

TEST(House, RoomsIncludeOnlyWhatTheirRowAllows) {
  const RoomTable table = rooms();
  EXPECT_GT(table.size(), 10U);
  expect_clean([&](const SourceFile& file) { return check_includes(file, table); }, is_cpp);
}

TEST(House, EveryRoomIsInTheTableAndInTheArchitecturePage) {
  const std::vector<Finding> found = check_rooms_are_known(tree(), rooms());
  EXPECT_TRUE(found.empty()) << to_text(found);
}

TEST(House, EveryRoomWithSourcesHasTests) {
  // room -> why it needs none
  const std::map<std::string, std::string> excused = {};
  const std::vector<Finding> found = check_rooms_have_tests(tree(), rooms(), excused);
  EXPECT_TRUE(found.empty()) << to_text(found);
}

TEST(House, HeadersOpenWithTheirContractAndPullInNothingHeavy) {
  expect_clean(check_header, is_cpp);
}

TEST(House, OnlyTheCommandLinePrintsExitsOrReadsTheEnvironment) {
  expect_clean(check_banned, is_cpp);
}

TEST(House, NoMutableVariableOutlivesItsCall) {
  expect_clean(check_globals, is_cpp);
}

TEST(House, LinesFilesAndFunctionsStayShort) {
  expect_clean(check_size, is_cpp);
}

TEST(House, SourcesAreAscii) {
  expect_clean(check_ascii, is_cpp);
}

TEST(House, NothingIsLeftForLater) {
  expect_clean(check_markers, is_own_text);
}

TEST(House, NothingNamesOneMachine) {
  expect_clean(check_machine_traces, [](const SourceFile&) { return true; });
}

TEST(House, EveryTestExpectsSomething) {
  expect_clean(check_tests_expect, is_test);
}

TEST(House, LinksOfThePagesResolve) {
  std::set<std::string> paths = {"."};
  for (const SourceFile& file : tree()) {
    for (std::filesystem::path p = file.path; !p.empty(); p = p.parent_path()) paths.insert(p.string());
  }
  expect_clean([&](const SourceFile& file) { return check_links(file, paths); },
               [](const SourceFile& file) { return file.path.ends_with(".md"); });
}

TEST(House, CodeInPagesIsCodeThatCompiles) {
  expect_clean([&](const SourceFile& file) { return check_snippets(file, tree()); },
               [](const SourceFile& file) { return file.path.ends_with(".md"); });
}

TEST(House, PagesAndScriptAgreeOnTheCommands) {
  std::set<std::string> verbs;
  for (const SourceFile& file : tree()) {
    if (file.path == "dev") verbs = verbs_of(file.text);
  }
  EXPECT_TRUE(verbs.contains("demo") && verbs.contains("test"));
  expect_clean([&](const SourceFile& file) { return check_verbs(file, verbs); },
               [](const SourceFile& file) { return file.path.ends_with(".md"); });
}

}  // namespace
}  // namespace tessera::house
