// tessera place as a user meets it: the comparison, the files, what is held out, and wrong use named at once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "program.h"

namespace tessera::cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// 16 experts in 4 clusters, scattered: a token chooses 2 of one cluster, cluster 0 twice as often.
std::string clustered_tokens() {
  std::string text = "token,layer,expert0,expert1\n";
  for (std::uint64_t t = 0; t < 600; ++t) {
    for (std::uint64_t layer = 1; layer < 3; ++layer) {
      const std::uint64_t cluster = uniform_below(5, layer, t, 0) % 4;
      const std::uint64_t a = uniform_below(4, layer, t, 1), b = (a + 1 + uniform_below(3, layer, t, 2)) % 4;
      text += std::to_string(t) + "," + std::to_string(layer) + "," + std::to_string(a * 4 + cluster) + "," +
              std::to_string(b * 4 + cluster) + "\n";
    }
  }
  return text;
}

class Place : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    write("tokens.csv", clustered_tokens());
  }
};

const std::string kMachine = " --nodes 2 --gpus-per-node 2 --model mixtral-8x7b ";

TEST_F(Place, ShowsWhatAPlacementBringsAndWritesEveryFile) {
  const Outcome done = run(
      "place tokens.csv --slots-per-gpu 5 --hold-out 0.25 --by-layer --pareto --effort 0.1" + kMachine +
      "--output p.json --sglang s.json --vllm v.json --vllm-ascend a.json --tensorrt-llm t.yaml --svg p.svg");
  ASSERT_EQ(done.code, 0) << done.errors;
  EXPECT_THAT(done.output, AllOf(HasSubstr("tokens.csv: 2 MoE layers, 16 experts, top-2"),
                                 HasSubstr("20 slots, 4 of them spare"), HasSubstr("published-global"),
                                 HasSubstr("seconds"), HasSubstr("On what was held out:"),
                                 HasSubstr("Bounds: no placement is above"), HasSubstr("across nodes ("),
                                 HasSubstr("without de-duplication"), HasSubstr("Into each node: "),
                                 HasSubstr("on the Pareto front"), HasSubstr("written: p.svg")));
  EXPECT_THAT(done.output, Not(HasSubstr("nan")));
  const auto p = nlohmann::json::parse(read("p.json"));
  EXPECT_EQ(p["format"], "tessera-placement");
  EXPECT_EQ(p["layers"][0]["layer"], 1);
  EXPECT_EQ(p["layers"][0]["physical_to_logical"].size(), 20U);
  EXPECT_EQ(nlohmann::json::parse(read("s.json"))["physical_to_logical_map"].size(), 3U);  // layer 0 too
  EXPECT_EQ(nlohmann::json::parse(read("v.json"))[1], p["layers"][1]["physical_to_logical"]);
  EXPECT_THAT(read("t.yaml"), HasSubstr("num_slots: 20"));
  EXPECT_THAT(read("p.svg"), testing::StartsWith("<svg"));
}

TEST_F(Place, FindsTheClustersAndDoesNotDependOnThreads) {
  const std::string command = "place tokens.csv --method traffic --cap 0.5 --json" + kMachine;
  const Outcome one = run(command + "--threads 1"), two = run(command + "--threads 2");
  ASSERT_EQ(one.code, 0) << one.errors;
  auto a = nlohmann::json::parse(one.output), b = nlohmann::json::parse(two.output);
  a.erase("cpu_seconds");
  b.erase("cpu_seconds");
  EXPECT_EQ(a, b);
  const auto& result = a["placements"].back();
  EXPECT_EQ(result["name"], "traffic");
  EXPECT_DOUBLE_EQ(result["nodes_per_token"].get<double>(), 1.0);  // 16 experts: the optimum
  EXPECT_GT(a["placements"][0]["nodes_per_token"].get<double>(), 1.5);
  // Without de-duplication nothing is saved: 2 choices, half of them across.
  for (const auto& row : a["placements"]) {
    EXPECT_NEAR(row["across_bytes_per_token_no_dedup"].get<double>(),
                a["placements"][0]["across_bytes_per_token_no_dedup"].get<double>(), 1e-6);
  }
}

TEST_F(Place, FromACurrentPlacementMovesNoMoreThanAllowed) {
  ASSERT_EQ(
      run("place tokens.csv --slots-per-gpu 5 --method published-global --output now.json" + kMachine).code,
      0);
  const Outcome done =
      run("place tokens.csv --slots-per-gpu 5 --method balance --current now.json --most-moved 0.1 --json" +
          kMachine);
  ASSERT_EQ(done.code, 0) << done.errors;
  const auto j = nlohmann::json::parse(done.output);
  EXPECT_LE(j["placements"].back()["moved_slots"].get<double>(), 2 * 2);
  EXPECT_EQ(j["placements"][j["placements"].size() - 2]["name"], "current");
}

TEST_F(Place, WrongUseIsNamedAllAtOnce) {
  const Outcome faults =
      run("place tokens.csv --nodes 2 --gpus-per-node 2 --slots-per-gpu 3 --groups 3 --cap -1");
  EXPECT_EQ(faults.code, 2);
  EXPECT_THAT(faults.errors, AllOf(HasSubstr("3 problems"), HasSubstr("12 slots are fewer than 16 experts"),
                                   HasSubstr("use at least 16 slots, 4 for each GPU"),
                                   HasSubstr("3 groups do not divide 16 experts"),
                                   HasSubstr("the cap -1 on a node's load is below 0")));
  const Outcome method = run("place tokens.csv --method ballance");
  EXPECT_EQ(method.code, 2);
  EXPECT_THAT(method.errors, HasSubstr("did you mean balance?"));
  const Outcome dense = run("place tokens.csv --model llama-2-7b");
  EXPECT_EQ(dense.code, 2);
  EXPECT_THAT(dense.errors, HasSubstr("the model llama-2-7b has no experts"));
  write("counts.csv", "layer,expert,count\n0,0,5\n0,1,7\n");
  const Outcome counts = run("place counts.csv --nodes 2 --gpus-per-node 1 --method traffic");
  EXPECT_EQ(counts.code, 2);
  EXPECT_THAT(counts.errors, HasSubstr("counts alone do not say"));
  write("bad.csv", "layer,expert,count\n0,0,-5\n0,1,nan\n");
  EXPECT_THAT(run("place bad.csv").code, testing::Ne(0));
  write("old.json", "{\"physical_to_logical_map\": [[0, 1]]}");
  const Outcome old =
      run("place counts.csv --nodes 2 --gpus-per-node 2 --slots-per-gpu 1 --current old.json");
  EXPECT_EQ(old.code, 2);
  EXPECT_THAT(old.errors, HasSubstr("2 slots are listed, the machine has 4"));
}

// Expert 0 takes 9 of 16 choices; with a replica on each of four GPUs their loads are 3.75, 4.25, 4.25, 3.75.
TEST_F(Place, PlanPricesTheExpertsWhereTheyLive) {
  std::string layers;
  for (int l = 0; l < 32; ++l) {
    layers += (l == 0 ? "" : ",") + std::string("{\"layer\": ") + std::to_string(l) +
              ", \"physical_to_logical\": [0, 1, 2, 0, 3, 4, 0, 5, 6, 0, 7, 1]}";
  }
  write("p.json",
        "{\"format\": \"tessera-placement\", \"version\": 1, \"num_experts\": 8, \"nodes\": 1, \"gpus\": 4, "
        "\"slots\": 12, \"layers\": [" +
            layers + "]}");
  write("counts.txt", "9 1 1 1 1 1 1 1");
  const std::string plan = "plan mixtral-8x7b dgx-h100 --devices 16 --closed-form --pin ep=4 --top 1 ";
  const auto figure = [&](const std::string& flags) {
    const Outcome done = run(plan + flags + " --json");
    EXPECT_EQ(done.code, 0) << done.errors;
    return nlohmann::json::parse(done.output)["expert_load"]["slowest_rank_over_mean"].get<double>();
  };
  EXPECT_NEAR(figure("--routing counts.txt"), 2.5, 1e-9);
  EXPECT_NEAR(figure("--routing counts.txt --placement p.json"), 4.25 / 4.0, 1e-9);
  const Outcome shown = run(plan + "--routing counts.txt --placement p.json");
  EXPECT_THAT(shown.output,
              HasSubstr("experts: histogram of 8 experts in 32 layers, placed: the fullest of 4 "
                        "expert ranks takes 1.062 times the mean"));
  const Outcome law = run(plan + "--routing power:1.2 --placement p.json");
  EXPECT_EQ(law.code, 2);
  EXPECT_THAT(law.errors, AllOf(HasSubstr("a power law does not say which experts are hot"),
                                HasSubstr("give --routing a file of counts")));
  const Outcome dense = run("plan llama-3-8b dgx-h100 --placement p.json");
  EXPECT_EQ(dense.code, 2);
  EXPECT_THAT(dense.errors, HasSubstr("the model has no experts to place"));
}

}  // namespace
}  // namespace tessera::cli
