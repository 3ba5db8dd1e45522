// The studies of examples/moe run to their end, shortened, on a small text: what they print and draw is
// there.
#include <gmock/gmock.h>

#include <cstdlib>

#include "program.h"

namespace tessera::cli {
namespace {

struct Study {
  std::string name;
  std::string says;  // a head of its table
};

class Examples : public Program, public ::testing::WithParamInterface<Study> {};

TEST_P(Examples, RunShortened) {
  std::string text;
  for (int i = 0; i < 20; ++i) text += some_text();
  for (const char* page : {"README.md", "docs/numerics.md", "docs/cost-model.md", "docs/architecture.md"})
    text += text_of(fs::path(TESSERA_SOURCE_DIR) / page);
  write("text.txt", text);
  const std::string command = std::string("cd '") + folder_.string() +
                              "' && PYTHONDONTWRITEBYTECODE=1 python3 '" + TESSERA_SOURCE_DIR +
                              "/examples/moe/" + GetParam().name + ".py' --quick --program '" +
                              TESSERA_PROGRAM + "' --text '" + (folder_ / "text.txt").string() +
                              "' --folder '" + (folder_ / "out").string() + "' > log 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << read("log");
  EXPECT_THAT(read("log"), ::testing::HasSubstr(GetParam().says));
  const std::string picture = read("out/" + GetParam().name + ".svg");
  EXPECT_THAT(picture, ::testing::StartsWith("<svg"));
  EXPECT_THAT(picture, ::testing::Not(::testing::HasSubstr("nan")));
}

INSTANTIATE_TEST_SUITE_P(OfMoe, Examples,
                         ::testing::Values(Study{"collapse", "effective experts"},
                                           Study{"balance", "coefficient"}, Study{"capacity", "dropped"},
                                           Study{"straggler", "simulated step"},
                                           Study{"compute", "training FLOPs"},
                                           Study{"domains", "bits of the kind"}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::cli
