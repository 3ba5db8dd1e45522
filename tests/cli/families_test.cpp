// Models of special families through the program: a DeepSeek-V3 with an MTP layer on two nodes, and a dense
// model made into a mixture.
#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

json last_line(const std::string& metrics) {
  std::istringstream lines(metrics);
  std::string last;
  for (std::string line; std::getline(lines, line);) last = line;
  return json::parse(last);
}

constexpr const char* kDeepseekConfig = R"({
"model_type": "deepseek_v3", "num_hidden_layers": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1,
"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 8, "num_attention_heads": 4,
"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
"v_head_dim": 8, "vocab_size": 320, "max_position_embeddings": 64, "n_routed_experts": 8, "num_experts_per_tok": 4,
"n_shared_experts": 1, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": true,
"scoring_func": "sigmoid", "topk_method": "noaux_tc", "rope_theta": 10000.0, "rms_norm_eps": 1e-5})";

constexpr const char* kDeepseekJob = R"(
model: {config: model}
train: {steps: 4, sequence_length: 16, global_batch_size: 16, micro_batch_size: 2, lr: 3.0e-3, mtp_loss_coef: 0.3}
parallel: {dp: 4, ep: 4, ranks_per_node: 2, schedule: combined-1f1b}
data: {text: text.txt, vocab_size: 320}
checkpoint: {folder: run/checkpoints}
output: {folder: run}
)";

class Deepseek : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    fs::create_directories(folder_ / "model");
    write("model/config.json", kDeepseekConfig);
    write("job.yaml", kDeepseekJob);
    write("text.txt", some_text());
  }
};

TEST_F(Deepseek, MtpLayersTrainAndTravelToAHuggingFaceFolderAndBack) {
  const Outcome trained = run("train job.yaml");
  ASSERT_EQ(trained.code, 0) << trained.errors;
  const json last = last_line(read("run/metrics.jsonl"));
  EXPECT_GT(last["mtp_loss"].get<double>(), 0.0);
  EXPECT_GT(last["axes"]["ep_inter"]["sent_bytes"].get<double>(), 0.0);
  EXPECT_GT(last["axes"]["ep_intra"]["sent_bytes"].get<double>(), 0.0);
  EXPECT_LT(last["axes"]["ep_inter"]["exposed_s"].get<double>(),
            last["axes"]["ep_inter"]["total_s"].get<double>())
      << "rows of one micro-batch travel while another computes";
  EXPECT_FALSE(last["axes"].contains("ep"));
  for (const json& layer : last["layers"]) {
    EXPECT_LE(layer["router_bias_min"].get<double>(), layer["router_bias_max"].get<double>());
    EXPECT_GT(layer["router_bias_max"].get<double>(), 0.0) << "moved by the balancing of this family";
  }

  ASSERT_EQ(run("convert run/checkpoints hf").code, 0);
  EXPECT_THAT(read("hf/model.safetensors"), HasSubstr("model.layers.2.eh_proj.weight"));
  ASSERT_EQ(run("convert hf back").code, 0);
  ASSERT_EQ(run("convert back hf2").code, 0);
  EXPECT_EQ(read("hf/model.safetensors"), read("hf2/model.safetensors"));
  const Outcome more =
      run("train job.yaml --start-from hf --set output.folder=more --set checkpoint.folder=more/c --set "
          "data.tokenizer=run/tokenizer.model --set train.steps=1");
  ASSERT_EQ(more.code, 0) << more.errors;
  EXPECT_LT(last_line(read("more/metrics.jsonl"))["loss"].get<double>(),
            json::parse(read("run/metrics.jsonl").substr(0, read("run/metrics.jsonl").find('\n')))["loss"]
                .get<double>());
  const Outcome scored = run("eval hf text.txt --tokenizer run/tokenizer.model --json");
  EXPECT_EQ(scored.code, 0) << scored.errors;
}

TEST_F(Deepseek, WithoutACoefficientItsMtpLayersAreNotLeftOutInSilence) {
  const Outcome refused = run("train job.yaml --set train.mtp_loss_coef=0");
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.errors, AllOf(HasSubstr("does not train MTP layers (num_nextn_predict_layers=1)"),
                                    HasSubstr("set train.mtp_loss_coef")));
  EXPECT_FALSE(exists("run"));
}

TEST_F(Deepseek, ExpertsLiveWhereAPlacementOfTheSameRoutingPutsThem) {
  const std::string still =
      "train job.yaml --set train.lr=1.0e-12 --set train.steps=2 --set checkpoint.folder= ";
  const Outcome dumped = run(still + "--dump-routing routing.bin --dump-routing-tokens 1000");
  ASSERT_EQ(dumped.code, 0) << dumped.errors;
  const Outcome placed =
      run("place routing.bin --nodes 2 --gpus-per-node 2 --method balance --output p.json");
  ASSERT_EQ(placed.code, 0) << placed.errors;
  const Outcome trained =
      run(still + "--placement p.json --set output.folder=b --set data.tokenizer=run/tokenizer.model");
  ASSERT_EQ(trained.code, 0) << trained.errors;
  const json before = last_line(read("run/metrics.jsonl")), after = last_line(read("b/metrics.jsonl"));
  EXPECT_NEAR(before["loss"].get<double>(), after["loss"].get<double>(), 1e-5);
  EXPECT_EQ(before["layers"][0]["load"], after["layers"][0]["load"]) << "what tokens choose does not change";
  const auto slots = json::parse(read("b/plan.json"))["job"]["parallel"]["expert_slots"];
  const auto maps = json::parse(read("p.json"))["layers"];
  json wanted = json::array();
  for (const json& layer : maps)
    for (const json& expert : layer["physical_to_logical"]) wanted.push_back(expert);
  EXPECT_EQ(slots, wanted);

  const Outcome other = run("train job.yaml --placement p.json --set parallel.ranks_per_node=1");
  EXPECT_EQ(other.code, 2);
  EXPECT_THAT(other.errors,
              AllOf(HasSubstr("the file is of 2 nodes, 4 GPUs and 8 slots, asked are 4, 4 and 8"),
                    HasSubstr("p.json")));
}

TEST_F(Deepseek, ExpertsMoveBetweenRanksWhileItTrains) {
  const std::string steps = "train job.yaml --set train.steps=7 --set checkpoint.folder= ";
  const Outcome still = run(steps + "--set output.folder=a");
  ASSERT_EQ(still.code, 0) << still.errors;
  const Outcome moved =
      run(steps + "--set output.folder=b --set data.tokenizer=a/tokenizer.model --rebalance 3");
  ASSERT_EQ(moved.code, 0) << moved.errors;
  EXPECT_THAT(moved.output, AllOf(HasSubstr("after step 3: "), HasSubstr("went to another rank in"),
                                  HasSubstr("Experts moved")));
  const json a = last_line(read("a/metrics.jsonl")), b = last_line(read("b/metrics.jsonl"));
  EXPECT_NEAR(a["loss"].get<double>(), b["loss"].get<double>(), 1e-4);
  std::int64_t moves = 0;
  std::istringstream lines(read("b/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const json j = json::parse(line);
    if (!j.contains("moved_experts")) continue;
    ++moves;
    EXPECT_EQ((j["step"].get<std::int64_t>() + 1) % 3, 0);
    EXPECT_GT(j["moved_experts"]["slots"], 0);
    EXPECT_LE(j["moved_experts"]["fullest_rank_after"], j["moved_experts"]["fullest_rank_before"]);
  }
  EXPECT_GT(moves, 0);
}

TEST_F(Deepseek, MovesThatCannotBeAreRefused) {
  const Outcome alone = run("train job.yaml --rebalance 3 --set parallel.ep=1");
  EXPECT_EQ(alone.code, 2);
  EXPECT_THAT(alone.errors, AllOf(HasSubstr("every rank has all experts, nothing can move"),
                                  HasSubstr("--rebalance 3"), HasSubstr("set parallel.ep")));
  const Outcome never = run("train job.yaml --most-moved 0.5");
  EXPECT_EQ(never.code, 2);
  EXPECT_THAT(never.errors, AllOf(HasSubstr("nothing moves"), HasSubstr("--rebalance 100")));
}

TEST_F(Deepseek, NodesThatCannotShareTheExpertsAreRefused) {
  const Outcome uneven = run("train job.yaml --set parallel.ranks_per_node=3");
  EXPECT_EQ(uneven.code, 2);
  EXPECT_THAT(uneven.errors, AllOf(HasSubstr("nodes of 3 ranks do not share etp=1 * ep=4 = 4 ranks evenly"),
                                   HasSubstr("{1, 2, 4}")));
  const Outcome one = run("train job.yaml --set parallel.ranks_per_node=0 --set moe.dispatch=hierarchical");
  EXPECT_EQ(one.code, 2);
  EXPECT_THAT(one.errors, HasSubstr("parallel.ranks_per_node is not set"));
}

class Dense : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    write("text.txt", some_text());
    write("job.yaml", R"(
model: {model_type: llama, num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64, num_attention_heads: 4,
  num_key_value_heads: 4, vocab_size: 320, max_position_embeddings: 64, rope_theta: 10000.0, rms_norm_eps: 1.0e-5}
train: {steps: 3, sequence_length: 32, global_batch_size: 4, micro_batch_size: 2, lr: 3.0e-3}
data: {text: text.txt, vocab_size: 320}
checkpoint: {folder: run/checkpoints}
output: {folder: run}
)");
  }
};

TEST_F(Dense, UpcycledItSaysTheSameAndTrainsOnAsAMixture) {
  ASSERT_EQ(run("train job.yaml").code, 0);
  const Outcome made = run("convert run/checkpoints moe --upcycle experts=4,top_k=2");
  ASSERT_EQ(made.code, 0) << made.errors;
  EXPECT_EQ(json::parse(read("moe/config.json"))["model_type"], "mixtral");
  const auto loss_of = [&](const std::string& weights) {
    const Outcome o =
        run("eval " + weights + " text.txt --tokenizer run/tokenizer.model --context 32 --json");
    EXPECT_EQ(o.code, 0) << o.errors;
    return json::parse(o.output)["nats_per_token"].get<double>();
  };
  const double dense = loss_of("run/checkpoints");
  EXPECT_TRUE(std::abs(loss_of("moe") - dense) <= 1e-5 * dense);
  std::string job = read("job.yaml");
  const std::size_t model = job.find("model: {");
  job.replace(model, job.find('}') + 1 - model, "model: {config: moe}");
  write("moe.yaml", job);
  const Outcome trained =
      run("train moe.yaml --start-from moe --set output.folder=more --set checkpoint.folder=more/c --set "
          "data.tokenizer=run/tokenizer.model");
  ASSERT_EQ(trained.code, 0) << trained.errors;
  EXPECT_LT(loss_of("more/c"), dense);
}

TEST_F(Dense, UpcyclingNamesEveryWrongWord) {
  ASSERT_EQ(run("train job.yaml").code, 0);
  const Outcome bad = run("convert run/checkpoints moe --upcycle expert=4,top_k=two,noise=0.1,noise=0.2");
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.errors, AllOf(HasSubstr("did you mean experts=?"), HasSubstr("top_k=two is not a number"),
                                HasSubstr("noise is given twice")));
  EXPECT_FALSE(exists("moe"));
}

}  // namespace
}  // namespace tessera::cli
