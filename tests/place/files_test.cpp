// Placement files both ways, what other engines get, and readers that survive every damage.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/random.h"
#include "place/formats.h"
#include "place/picture.h"

namespace tessera::place {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

Placement small() {
  return {.source = "balance",
          .machine = {.nodes = 2, .gpus = 4, .slots = 8},
          .num_experts = 6,
          .layers = {1, 3},
          .maps = {{0, 1, 2, 3, 4, 5, 0, 1}, {5, 4, 3, 2, 1, 0, 5, 4}}};
}

ReadHints hints_of(const Placement& p) {
  return {.machine = p.machine, .num_experts = p.num_experts, .layers = p.layers};
}

TEST(PlacementFile, ComesBackAsItWasWritten) {
  const Placement p = small();
  EXPECT_EQ(parse_placement(to_json(p), "p.json", hints_of(p)), p);
  const auto j = nlohmann::json::parse(to_json(p));
  EXPECT_EQ(j["format"], "tessera-placement");
  EXPECT_EQ(j["layers"][1]["counts"], (std::vector<int>{1, 1, 1, 1, 2, 2}));
}

TEST(PlacementFile, OfOtherEnginesComesBackWithTheSameMaps) {
  const Placement p = small();
  for (const std::string& text : {to_sglang(p, 0), to_sglang(p, 9), to_vllm(p), to_vllm_ascend(p)}) {
    EXPECT_EQ(parse_placement(text, "p.json", hints_of(p)).maps, p.maps) << text;
  }
}

TEST(PlacementFile, OfEachEngineIsInItsForm) {
  const Placement p = small();
  const auto sglang = nlohmann::json::parse(to_sglang(p, 5));
  ASSERT_EQ(sglang["physical_to_logical_map"].size(), 5U);
  EXPECT_EQ(sglang["physical_to_logical_map"][3], p.maps[1]);
  EXPECT_EQ(sglang["physical_to_logical_map"][0], (std::vector<int>{0, 1, 2, 3, 4, 5, 0, 1}));
  const auto ascend = nlohmann::json::parse(to_vllm_ascend(p));
  EXPECT_EQ(ascend["moe_layer_count"], 2);
  EXPECT_EQ(ascend["layer_list"][1]["layer_id"], 1);
  EXPECT_EQ(ascend["layer_list"][1]["device_count"], 4);
  EXPECT_EQ(ascend["layer_list"][1]["device_list"][2]["device_expert"], (std::vector<int>{1, 0}));
  EXPECT_THAT(to_tensorrt_llm(p), AllOf(HasSubstr("num_slots: 8\n"), HasSubstr("layer_updates_per_iter: 0\n"),
                                        HasSubstr("\n  3: [5, 4, 3, 2, 1, 0, 5, 4]\n")));
}

TEST(PlacementFile, OfRanksNeedsOneMapWithoutReplicas) {
  Placement p = small();
  EXPECT_THROW((void)to_vllm_ranks(p), Error);
  p.machine.slots = 8;
  p.num_experts = 8;
  p.maps = {{7, 6, 5, 4, 3, 2, 1, 0}, {7, 6, 5, 4, 3, 2, 1, 0}};
  EXPECT_EQ(nlohmann::json::parse(to_vllm_ranks(p))["expert_to_ep_rank"],
            (std::vector<int>{3, 3, 2, 2, 1, 1, 0, 0}));
}

std::string refused(const std::string& text) {
  try {
    (void)parse_placement(text, "p.json", hints_of(small()));
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("p.json"));
    return e.what();
  }
  ADD_FAILURE() << "taken: " << text;
  return "";
}

TEST(PlacementFile, SaysWhatIsWrongAllAtOnce) {
  EXPECT_THAT(refused("[[0, 1, 2, 3, 4, 5, 0, 9], [0, 1, 2, 3, 4, 4, 4, 4]]"),
              AllOf(HasSubstr("slot 7 holds expert 9, there are 6"), HasSubstr("use experts 0 to 5"),
                    HasSubstr("expert 5 is in no slot")));
  EXPECT_THAT(refused("{\"a\": 1}"), AllOf(HasSubstr("the file is no placement"), HasSubstr("placement.md")));
  EXPECT_THAT(refused("{"), HasSubstr("no JSON"));
  EXPECT_THAT(refused("[[0, 1.5], [0]]"), HasSubstr("1.5 is no expert id"));
  EXPECT_THAT(refused("[[0, -1], [0]]"), HasSubstr("-1 is no expert id"));
  EXPECT_THAT(refused("[[0, 1, 2, 3, 4, 5, 0, 1]]"),
              HasSubstr("there are 1 layers, the statistics have layer 1"));
  Placement other = small();
  other.machine.nodes = 1;
  other.layers = {1, 2};
  EXPECT_THAT(refused(to_json(other)),
              AllOf(HasSubstr("the file is of 1 nodes, 4 GPUs and 8 slots, asked are 2"),
                    HasSubstr("layer 3 is not in the file")));
}

TEST(PlacementFile, EveryDamageIsAnErrorOrAPlacement) {
  const Placement p = small();
  std::int32_t taken = 0;
  for (const std::string& whole : {to_json(p), to_sglang(p, 0), to_vllm(p), to_vllm_ascend(p)}) {
    for (std::uint64_t n = 0; n < 1500; ++n) {
      std::string text = whole;
      const auto words = philox(7, whole.size(), n);
      const std::string letters = "0123456789[]{},:\"-.e\\ \nnull";
      if (n % 5 == 0) text.resize(words[0] % text.size());
      for (std::uint32_t i = 0; i <= words[1] % 3 && !text.empty(); ++i) {
        text[words[2 + i % 2] * (i + 1) % text.size()] = letters[(words[3] >> (i * 5)) % letters.size()];
      }
      try {
        const Placement q = parse_placement(text, "p.json", hints_of(p));
        Problems problems;
        check_placement(q, "p.json", problems);
        EXPECT_TRUE(problems.empty());
        ++taken;
      } catch (const Error&) {
      }
    }
  }
  EXPECT_GT(taken, 0);
}

TEST(Machine, SaysEveryFaultWithItsMend) {
  const auto said = [](const Machine& machine, std::int32_t experts) {
    Problems problems;
    check_machine(machine, experts, "machine", problems);
    std::string all;
    for (const Problem& p : problems.list()) all += p.what + "; " + p.mend + "\n";
    return all;
  };
  EXPECT_EQ(said({.nodes = 2, .gpus = 4, .slots = 8}, 6), "");
  EXPECT_THAT(said({.nodes = 3, .gpus = 8, .slots = 60}, 64),
              AllOf(HasSubstr("8 GPUs do not divide over 3 nodes; use a number of nodes in {1, 2, 4, 8}"),
                    HasSubstr("60 slots do not divide over 8 GPUs; use 56 or 64 slots"),
                    HasSubstr("60 slots are fewer than 64 experts; use at least 64 slots, 8 for each GPU")));
  EXPECT_THAT(said({.nodes = 1, .gpus = 2, .slots = 16}, 4),
              HasSubstr("8 slots of one GPU are more than 4 experts"));
  EXPECT_THAT(said({.nodes = 0, .gpus = -1, .slots = 0}, 4),
              AllOf(HasSubstr("nodes=0"), HasSubstr("gpus=-1"), HasSubstr("slots=0")));
}

TEST(Moves, CountExpertsThatAGpuDidNotHoldAndIgnoreTheOrderOfSlots) {
  const Machine machine{.nodes = 2, .gpus = 4, .slots = 8};
  const LayerMap before = {0, 1, 2, 3, 4, 5, 6, 7};
  EXPECT_EQ(moved_slots(before, {1, 0, 3, 2, 5, 4, 7, 6}, machine), 0);
  EXPECT_EQ(moved_slots(before, {2, 1, 0, 3, 4, 5, 6, 7}, machine), 2);
  EXPECT_THAT(keep_positions(before, {1, 0, 2, 4, 3, 5, 6, 7}, machine), ElementsAre(0, 1, 2, 4, 3, 5, 6, 7));
  // Whole nodes and GPUs may change names.
  EXPECT_EQ(rename_devices(before, {7, 6, 4, 5, 3, 2, 1, 0}, machine), before);
}

TEST(Picture, IsOneWholeSvgWithEveryGpu) {
  LoadPicture picture{.before_name = "a < b", .after_name = "after", .gpus_per_node = 2, .layers = {3}};
  picture.before = {{2.0, 1.0, 0.5, 0.5}};
  picture.after = {{1.0, 1.0, 1.0, 1.0}};
  const std::string svg = to_svg(picture);
  EXPECT_THAT(svg, AllOf(testing::StartsWith("<svg"), testing::EndsWith("</svg>\n"), HasSubstr("a &lt; b"),
                         HasSubstr("layer 3"), HasSubstr("max 2.00")));
  std::size_t bars = 0;
  for (std::size_t i = svg.find("<rect x"); i != std::string::npos; i = svg.find("<rect x", i + 1)) ++bars;
  EXPECT_EQ(bars, 8U);
}

}  // namespace
}  // namespace tessera::place
