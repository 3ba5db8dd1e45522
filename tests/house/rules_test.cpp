// Each rule of the house shown failing on a snippet that breaks it, and passing on the nearest one that does
// not.
#include "house/rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace tessera::house {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::int64_t> lines_of(const std::vector<Finding>& findings) {
  std::vector<std::int64_t> lines;
  for (const Finding& f : findings) lines.push_back(f.line);
  return lines;
}

const RoomTable kTable = parse_rooms("# comment\nbase:\nspec: base\nexec: base spec\ncli: base spec exec\n");

TEST(RoomTable, ReadsRowsAndSkipsComments) {
  EXPECT_EQ(kTable.size(), 4U);
  EXPECT_TRUE(kTable.at("base").empty());
  EXPECT_THAT(kTable.at("exec"), ElementsAre("base", "spec"));
}

TEST(Includes, AnUpwardIncludeIsFoundWithItsLineAndMend) {
  const auto found = check_includes({"src/spec/a.cpp", "// x\n#include \"exec/train.h\"\n"}, kTable);
  ASSERT_THAT(lines_of(found), ElementsAre(2));
  EXPECT_THAT(to_text(found),
              HasSubstr("src/spec/a.cpp:2: room `spec` includes \"exec/train.h\" of room `exec`"));
  EXPECT_THAT(to_text(found), HasSubstr("mend: `spec` may include {base}"));
}

TEST(Includes, OwnRoomAllowedRoomsAndTheStandardLibraryAreFine) {
  const std::string text =
      "#include <vector>\n#include \"exec/a.h\"\n#include \"spec/b.h\"\n#include <exec>\n";
  EXPECT_TRUE(check_includes({"src/exec/a.cpp", text}, kTable).empty());
  EXPECT_TRUE(check_includes({"tests/spec/a.cpp", text}, kTable).empty());
}

TEST(Header, NeedsAnOpeningCommentAndAGuard) {
  EXPECT_EQ(check_header({"src/base/a.h", "int f();\n"}).size(), 2U);
  EXPECT_TRUE(check_header({"src/base/a.h", "// What it is.\n#pragma once\nint f();\n"}).empty());
}

TEST(Header, MayNotIncludeJsonYamlArgumentsOrStreams) {
  for (const char* heavy :
       {"nlohmann/json.hpp", "yaml-cpp/yaml.h", "CLI/CLI.hpp", "gtest/gtest.h", "iostream"}) {
    const std::string text = "// A.\n#pragma once\n#include <" + std::string(heavy) + ">\n";
    EXPECT_THAT(lines_of(check_header({"src/cli/a.h", text})), ElementsAre(3)) << heavy;
    EXPECT_TRUE(check_header({"src/cli/a.cpp", text}).empty()) << heavy;
  }
}

TEST(Banned, EachThingIsFoundAndItsReplacementNamed) {
  const std::map<std::string, std::string> cases = {
      {"std::cout << 1;", "only src/cli prints"},
      {"std::cerr << 1;", "only src/cli prints"},
      {"printf(\"x\");", "only src/cli prints"},
      {"std::fprintf(stderr, \"x\");", "only src/cli prints"},
      {"fmt::print(\"x\");", "only src/cli prints"},
      {"#include <iostream>", "only src/cli prints"},
      {"exit(1);", "throw tessera::Error"},
      {"std::exit(1);", "throw tessera::Error"},
      {"::_exit(1);", "throw tessera::Error"},
      {"std::abort();", "throw tessera::Error"},
      {"std::terminate();", "throw tessera::Error"},
      {"const char* v = std::getenv(\"V\");", "only src/cli reads the environment"},
      {"std::regex r(\"x\");", "scanning by hand"},
      {"assert(x > 0);", "TESSERA_CHECK"},
      {"#include <cassert>", "TESSERA_CHECK"},
      {"int r = rand();", "base/random.h"},
      {"std::mt19937 g(1);", "base/random.h"},
      {"using namespace std;", "write std::"},
      {"#pragma omp parallel for", "std::jthread"},
      {"auto t = std::chrono::system_clock::now();", "base/clock.h"},
      {"clock_gettime(CLOCK_REALTIME, &t);", "base/clock.h"},
  };
  for (const auto& [code, mend] : cases) {
    const auto found = check_banned({"src/exec/a.cpp", "\n" + code + "\n"});
    EXPECT_THAT(lines_of(found), ElementsAre(2)) << code;
    EXPECT_THAT(to_text(found), HasSubstr(mend)) << code;
  }
}

TEST(Banned, TheCommandLineMayPrintAndExitButNotAssert) {
  EXPECT_TRUE(check_banned({"src/cli/a.cpp", "std::cout << std::getenv(\"V\");\nexit(2);\n"}).empty());
  EXPECT_EQ(check_banned({"src/cli/a.cpp", "assert(true);\n"}).size(), 1U);
}

TEST(Banned, WordsInCommentsStringsAndLongerNamesAreFine) {
  const std::string text =
      "// printf( and std::cout\nconst char* s = \"exit(1) assert(x)\";\n/* abort( */ static_assert(true);\n"
      "row.exit(1); on_exit(1); fmt::format(\"x\"); snprintf(b, 1, \"x\"); my::exit(1); abort(why);\n"
      "auto r = R\"(std::regex getenv( )\";\n";
  EXPECT_EQ(to_text(check_banned({"src/exec/a.cpp", text})), "");
}

TEST(Globals, MutableVariablesAreFound) {
  for (const char* code :
       {"int counter = 0;", "static int counter;", "std::vector<int> cache;", "thread_local int depth = 0;",
        "std::map<std::string, int> names{};", "namespace a { namespace { double x = 1.5; } }",
        "inline std::string name = \"x\";", "int table[3] = {1, 2, 3};", "Foo* instance = nullptr;",
        "long page = long{1} << 24;", "int f() {\n  static int calls = 0;\n  return ++calls;\n}",
        "void f() { thread_local std::string s; }",
        "void f() { if (true) { static std::map<int, int> m{}; } }"}) {
    EXPECT_EQ(check_globals({"src/exec/a.cpp", std::string(code) + "\n"}).size(), 1U) << code;
  }
}

TEST(Globals, ConstantsTypesFunctionsAndLocalsAreFine) {
  for (const char* code : {"constexpr int kMax = 3;",
                           "const std::string kName = \"x\";",
                           "inline constexpr double kPi{3.14};",
                           "using Words = std::vector<int>;",
                           "int f(int a = 1);",
                           "struct A { int x = 0; static int count(); };",
                           "enum class E : int { a, b };",
                           "template <class T> T twice(T x);",
                           "extern \"C\" int g(int);",
                           "int f() { int x = 0; static const int k = 3; return x + k; }",
                           "static_assert(1 < 2);",
                           "std::vector<int> f(const A& a) { return {}; }",
                           "A::A(int x) : x_(x), y_{x} {}",
                           "class B;",
                           "constexpr std::array<const char*, 2> kNames = {\"a\", \"b\"};",
                           "[[nodiscard]] int f();",
                           "__extension__ using u128 = unsigned __int128;",
                           "A operator+(A a, A b) { return a; }",
                           "#define X(a) \\\n  int a = 0;",
                           "constexpr long kPage = long{1} << 24;",
                           "const std::map<int, A> kTable = {{1, {2}}, {3, {4}}};",
                           "bool operator==(const A& a, const A& b) = default;"}) {
    EXPECT_EQ(to_text(check_globals({"src/exec/a.cpp", std::string(code) + "\n"})), "") << code;
  }
}

TEST(Size, ALineOfOneHundredAndElevenColumnsIsTooLong) {
  EXPECT_TRUE(check_size({"a.cpp", std::string(110, 'x') + "\n"}).empty());
  EXPECT_THAT(lines_of(check_size({"a.cpp", "\n" + std::string(111, 'x') + "\n"})), ElementsAre(2));
}

TEST(Size, RawStringsMayHaveLongLinesButNotWhatStandsAroundThem) {
  const std::string longer(111, 'x');
  EXPECT_TRUE(check_size({"a.cpp", "f(R\"(\n" + longer + "\n)\");\n"}).empty());
  EXPECT_THAT(lines_of(check_size({"a.cpp", "f(R\"(\n\n)\");  // " + longer + "\n"})), ElementsAre(3));
  EXPECT_THAT(lines_of(check_size({"a.cpp", "f(\"" + longer + "\");\n"})), ElementsAre(1));
}

TEST(Size, AFileOfMoreThanSixHundredLinesIsTooLong) {
  EXPECT_TRUE(check_size({"a.cpp", std::string(600, '\n')}).empty());
  EXPECT_EQ(check_size({"a.cpp", std::string(601, '\n')}).size(), 1U);
}

// A function of `lines` lines in all.
std::string function_of(std::string head, int lines) {
  for (int i = 0; i < lines - 2; ++i) head += "  f();\n";
  return head + "}\n";
}

TEST(Size, AFunctionOfMoreThanSeventyLinesIsFoundWhereverItStands) {
  EXPECT_TRUE(check_size({"a.cpp", function_of("void f() {\n", 70)}).empty());
  EXPECT_EQ(check_size({"a.cpp", function_of("void f() {\n", 71)}).size(), 1U);
  EXPECT_EQ(
      check_size({"a.cpp", "namespace a {\n" + function_of("void A::f(int x) const {\n", 71) + "}\n"}).size(),
      1U);
  EXPECT_EQ(check_size({"a.cpp", "struct A {\n" + function_of("  void f() {\n", 71) + "};\n"}).size(), 1U);
  EXPECT_EQ(check_size({"a.cpp", function_of("A::A(int x) : a_{x}, b_(x) {\n", 72)}).size(), 1U);
  EXPECT_EQ(check_size({"a.cpp", function_of("template <class T>\nT f(T x) {\n", 71)}).size(), 1U);
  EXPECT_EQ(check_size({"a.cpp", function_of("TEST(A, B) {\n", 71)}).size(), 1U);
}

TEST(Size, LongTypesTablesAndNamespacesAreNoFunctions) {
  for (const char* head :
       {"struct A {\n", "namespace a {\n", "enum class E {\n", "const int kTable[] = {\n"}) {
    EXPECT_EQ(to_text(check_size({"a.cpp", function_of(head, 90)})), "") << head;
  }
}

TEST(Ascii, UmlautsTabsAndCarriageReturnsAreFound) {
  EXPECT_TRUE(check_ascii({"a.cpp", "int x;\n"}).empty());
  EXPECT_THAT(lines_of(check_ascii({"a.cpp", "\n// \xC3\xA4\n"})), ElementsAre(2));
  EXPECT_EQ(check_ascii({"a.cpp", "\tint x;\n"}).size(), 1U);
  EXPECT_EQ(check_ascii({"a.cpp", "int x;\r\n"}).size(), 1U);
}

TEST(Markers, AreFoundAsWords) {
  EXPECT_THAT(lines_of(check_markers({"a.md", std::string("\n// TO") + "DO: later\n"})), ElementsAre(2));
  EXPECT_EQ(check_markers({"a.md", std::string("FIX") + "ME\n"}).size(), 1U);
  EXPECT_TRUE(check_markers({"a.md", "mastodon, prefixme\n"}).empty());
}

TEST(MachineTraces, PathsOfOneMachineAndRegistriesAreFound) {
  const std::string slash = "/";
  for (const std::string& text : {slash + "work/main", "see " + slash + "home/me", "\"" + slash + "root/x\"",
                                  slash + "tmp/t/x", std::string("deb.deb") + "ian.org"}) {
    EXPECT_EQ(check_machine_traces({"a.md", text + "\n"}).size(), 1U) << text;
  }
  const std::string inner = std::string("/wo") + "rk/";  // inside another path it is nobody's machine
  EXPECT_TRUE(check_machine_traces({"a.md", "src" + inner + "x, /usr/share, frame" + inner + "y\n"}).empty());
}

TEST(TestsExpect, ATestThatCannotFailIsFound) {
  const auto found = check_tests_expect({"a_test.cpp", "\nTEST(A, ExpectsNothing) {\n  int x = f();\n}\n"});
  EXPECT_THAT(lines_of(found), ElementsAre(2));
  EXPECT_EQ(check_tests_expect({"a_test.cpp", "TEST_P(A, B) { // EXPECT_EQ(1, 1)\n}\n"}).size(), 1U);
  EXPECT_EQ(check_tests_expect({"a_test.cpp", "TEST_F(A, B) { SUCCEED(); }\n"}).size(), 1U);
}

TEST(TestsExpect, MacrosHelpersAndCompileTimeChecksCount) {
  for (const char* body :
       {"EXPECT_EQ(1, 1);", "ASSERT_TRUE(x);", "FAIL() << 1;", "expect_equal(a, b);",
        "check_gradients<float>(a);", "static_assert(true);", "for (;;) { EXPECT_TRUE(x); }"}) {
    const std::string text = "TEST(A, B) {\n  " + std::string(body) + "\n}\nvoid helper() {}\n";
    EXPECT_TRUE(check_tests_expect({"a_test.cpp", text}).empty()) << body;
  }
}

TEST(TestsExpect, HelpersOfTheSameFileCountWhenTheyExpect) {
  const std::string helpers =
      "void agree(int a) {\n  EXPECT_EQ(a, 1);\n}\nvoid both() { agree(1); }\nvoid none() {}\n";
  EXPECT_TRUE(check_tests_expect({"a_test.cpp", helpers + "TEST(A, B) { both(); }\n"}).empty());
  EXPECT_TRUE(check_tests_expect({"a_test.cpp", "TEST(A, B) { both<int>(1); }\n" + helpers}).empty());
  EXPECT_EQ(check_tests_expect({"a_test.cpp", helpers + "TEST(A, B) { none(); }\n"}).size(), 1U);
  EXPECT_EQ(check_tests_expect({"a_test.cpp", helpers + "TEST(A, both) { none(); }\n"}).size(), 1U);
}

TEST(Links, ADeadLinkIsFoundRelativeToItsPage) {
  const std::set<std::string> paths = {"README.md", "docs", "docs/a.md", "docs/howto/b.md"};
  EXPECT_TRUE(
      check_links({"README.md", "[a](docs/a.md) [b](docs/a.md#part) [c](https://x.y) [d](#here)"}, paths)
          .empty());
  EXPECT_TRUE(check_links({"docs/howto/b.md", "[a](../a.md) [docs](../)"}, paths).empty());
  EXPECT_THAT(lines_of(check_links({"docs/a.md", "x\n[a](docs/a.md)\n"}, paths)), ElementsAre(2));
  EXPECT_EQ(check_links({"README.md", "![picture](docs/gone.svg)"}, paths).size(), 1U);
}

TEST(Snippets, MustEqualTheNamedPartOfTheirFile) {
  const std::vector<SourceFile> files = {{"a.cpp", "x;\n// [one]\nint y;\n// [/one]\n"}};
  const auto page = [](const std::string& name, const std::string& code) {
    return SourceFile{"docs/a.md", "text\n```cpp " + name + "\n" + code + "```\n"};
  };
  EXPECT_TRUE(check_snippets(page("a.cpp#one", "int y;\n"), files).empty());
  EXPECT_THAT(lines_of(check_snippets(page("a.cpp#one", "int z;\n"), files)), ElementsAre(2));
  EXPECT_THAT(to_text(check_snippets(page("a.cpp#two", "int y;\n"), files)), HasSubstr("has no part `two`"));
  EXPECT_EQ(check_snippets(page("b.cpp#one", "int y;\n"), files).size(), 1U);
  EXPECT_TRUE(check_snippets({"docs/a.md", "```cpp\nfree();\n```\n"}, files).empty());
}

TEST(Verbs, UnknownOnesAndOnesMissingInTheReadmeAreFound) {
  const std::set<std::string> verbs = verbs_of(
      "x() {\n case $1 in\n  --all) a ;;\n esac\n}\n case $verb in\n  demo) d ;;\n  help | -h) h ;;\n "
      "esac\n");
  EXPECT_THAT(verbs, ElementsAre("demo", "help"));
  EXPECT_TRUE(check_verbs({"README.md", "`./dev demo` and ./dev help\n"}, verbs).empty());
  EXPECT_THAT(lines_of(check_verbs({"docs/a.md", "\n./dev dance\n"}, verbs)), ElementsAre(2));
  EXPECT_THAT(lines_of(check_verbs({"README.md", "./dev demo\n"}, verbs)), ElementsAre(0));
  EXPECT_TRUE(check_verbs({"docs/a.md", "./dev demo\n"}, verbs).empty());
}

TEST(RoomsHaveTests, ARoomWithSourcesAndNoTestsIsFound) {
  const std::vector<SourceFile> files = {
      {"src/spec/a.cpp", ""}, {"src/base/a.cpp", ""}, {"tests/base/a_test.cpp", ""}};
  const auto found = check_rooms_have_tests(files, kTable, {});
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].path, "src/spec");
  EXPECT_TRUE(check_rooms_have_tests(files, kTable, {{"spec", "tested through exec"}}).empty());
}

TEST(RoomsAreKnown, FoldersOutsideTheTableAndRoomsOutsideThePageAreFound) {
  const SourceFile page = {"docs/architecture.md", "`base` `spec` `exec` `cli`"};
  EXPECT_TRUE(check_rooms_are_known({page, {"src/spec/a.cpp", ""}}, kTable).empty());
  EXPECT_EQ(check_rooms_are_known({page, {"src/attic/a.cpp", ""}}, kTable).size(), 1U);
  EXPECT_EQ(check_rooms_are_known({{"docs/architecture.md", "`base` `spec` `exec`"}}, kTable).size(), 1U);
}

TEST(CodeOnly, BlanksCommentsAndLiteralsAndKeepsLines) {
  EXPECT_EQ(code_only("a // b\nc"), "a     \nc");
  EXPECT_EQ(code_only("a /* b\nc */ d"), "a     \n     d");
  EXPECT_EQ(code_only("f(\"a\\\"b\")"), "f(\"    \")");
  EXPECT_EQ(code_only("1'000 + '\\''"), "1'000 + '  '");
  EXPECT_EQ(code_only("\"//\" x"), "\"  \" x");
  EXPECT_EQ(code_only("R\"(a \" b)\" c"), "           c");
}

}  // namespace
}  // namespace tessera::house
