// Damaged launch files are read or refused, never anything else.
#include <gtest/gtest.h>

#include "frameworks/plans.h"
#include "frameworks/shell.h"

namespace tessera::frameworks {
namespace {

// Bytes changed, cut out, doubled and words of the language strewn in.
std::string damaged(std::string text, std::uint64_t seed) {
  const std::vector<std::string> words = {
      "$",    "${", "$((", "}",        ")", "(",  "\"", "'", "\\\n",
      "`",    "#",  "=",   "+=",       ";", "|",  "<<", "[", "]",
      "{",    "{{", ",",   ":",        "*", "--", "-1", "0", "99999999999999999999",
      "\xff", "\n", " = ", "|)*99999", "t*"};
  Draw d(seed);
  for (int i = d.of<int>({1, 2, 4, 8}); i > 0 && !text.empty(); --i) {
    const std::size_t at = uniform_below(text.size(), seed, 9, static_cast<std::uint64_t>(i));
    switch (d.of<int>({0, 1, 2, 3})) {
      case 0:
        text.insert(at, d.of(words));
        break;
      case 1:
        text.erase(at, d.of<std::size_t>({1, 3, 40}));
        break;
      case 2:
        text.replace(at, 1, d.of(words));
        break;
      default:
        text.insert(at, text.substr(at / 2, 60));
        break;
    }
  }
  return text;
}

TEST(Fuzz, DamagedFilesOfEveryFrameworkAreReadOrRefused) {
  const std::vector<Launch> plans = drawn_plans(12);
  std::int32_t read_whole = 0, refused = 0;
  for (const Framework f : {Framework::megatron, Framework::torchtitan, Framework::deepspeed}) {
    for (std::size_t i = 0; i < plans.size(); ++i) {
      const std::string text = write(f, plans[i], {}).text;
      for (std::uint64_t seed = 0; seed < 60; ++seed) {
        const std::string bad = damaged(text, seed * 1000 + i);
        try {
          (void)read(bad, file_of(f), {.model = &plans[i].job.model, .devices_otherwise = 64});
          ++read_whole;
        } catch (const Error& e) {
          EXPECT_NE(e.kind(), ErrorKind::internal) << e.what() << "\n" << bad;
          ++refused;
        }
      }
    }
  }
  EXPECT_GT(read_whole, 200);
  EXPECT_GT(refused, 200);
}

TEST(Fuzz, ScriptsThatGrowWithoutEndStayBounded) {
  std::string text = "A=(x y)\nB=xyxyxyxy\n";
  for (int i = 0; i < 60; ++i)
    text += "A=(\"${A[@]}\" \"${A[@]}\")\nB=$B$B$B\nC=${C:-${B:-$B}}\nD=$((D + 9 * 9))\n";
  text += "python x.py --a ${A[@]} --b $B\n";
  Problems problems;
  const ShellScript script = parse_shell(text, "run.sh", problems);
  EXPECT_FALSE(script.commands.empty());
}

TEST(Fuzz, DeepNestingIsRefused) {
  std::string json = "{\"a\": ", toml = "a = ";
  for (int i = 0; i < 3000; ++i) json += "[", toml += "[";
  const spec::ModelSpec m = model_of("llama-3-8b");
  EXPECT_THROW((void)read(json, "a.json", {.model = &m, .devices = 8}), Error);
  EXPECT_THROW((void)read(toml, "a.toml", {.model = &m, .devices = 8}), Error);
  std::string shell = "A=";
  for (int i = 0; i < 3000; ++i) shell += "${A:-";
  Problems problems;
  (void)parse_shell(shell + "\npython x.py --a 1 --b 2", "run.sh", problems);
  std::string layout =
      "python x.py --micro-batch-size 1 --seq-length 1024 --pipeline-model-parallel-layout '";
  for (int i = 0; i < 3000; ++i) layout += "(";
  EXPECT_THROW((void)read(layout + "'", "a.sh", {.model = &m, .devices = 8}), Error);
}

}  // namespace
}  // namespace tessera::frameworks
