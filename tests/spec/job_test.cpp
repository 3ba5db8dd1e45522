// The job file: fields, flags, every cross-check with its numbers and its mend line, round trips, and mutated
// files.
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "schedule/schedule.h"
#include "spec/schedule_names.h"
#include "spec/support.h"

namespace tessera::spec {
namespace {

using test::job_problems;
using test::replaced;
using test::reports;

constexpr std::string_view kDense = R"(model:
  model_type: llama
  num_hidden_layers: 4
  hidden_size: 32
  intermediate_size: 48
  num_attention_heads: 8
  num_key_value_heads: 4
  vocab_size: 96
  max_position_embeddings: 64
train:
  steps: 10
  sequence_length: 16
  global_batch_size: 8
  micro_batch_size: 2
  lr: 1.0e-3
parallel: {tp: 2, pp: 2, dp: 2}
data: {train: tokens.bin}
)";

std::string moe_job() {
  return replaced(std::string(kDense), "model_type: llama",
                  "model_type: mixtral\n  num_local_experts: 8\n  num_experts_per_tok: 2");
}

Job parsed(std::string_view yaml, const std::vector<std::string>& flags = {}) {
  return parse_job(yaml, ".", "job.yaml", flags);
}

TEST(Job, ReadsFieldsAndKeepsDefaults) {
  const Job job = parsed(kDense);
  EXPECT_EQ(job.train.steps, 10);
  EXPECT_EQ(job.train.optimizer.lr, 1e-3);
  EXPECT_EQ(job.train.optimizer.beta2, 0.95);
  EXPECT_EQ(job.parallel.world_size(), 8);
  EXPECT_EQ(job.parallel.schedule, "1f1b");
  EXPECT_EQ(job.data.train, "tokens.bin");
  EXPECT_EQ(job.model.num_hidden_layers, 4);
  EXPECT_EQ(job.model.head_dim, 4);
  EXPECT_TRUE(job.checkpoint.resume);
}

TEST(Job, ReadsTheModelFromItsFile) {
  const std::filesystem::path folder = std::filesystem::path(TESSERA_BINARY_DIR) / "spec_job";
  std::filesystem::create_directories(folder / "model");
  write_atomically(folder / "model" / "config.json", test::data_file("mixtral_config.json"));
  const std::string yaml =
      "model: {config: model}\ntrain: {steps: 1, sequence_length: 8, global_batch_size: 1, micro_batch_size: "
      "1}\n";
  write_atomically(folder / "job.yaml", yaml);
  const Job job = read_job(folder / "job.yaml", {});
  EXPECT_EQ(job.model_config, "model");
  EXPECT_EQ(job.model.moe->num_experts, 5);
  EXPECT_EQ(job.train.moe.aux_loss_coef, 0.02);  // the config's, as the job says nothing
  const std::vector<std::string> flags = {"moe.aux_loss_coef=0.5"};
  EXPECT_EQ(read_job(folder / "job.yaml", flags).train.moe.aux_loss_coef, 0.5);
  EXPECT_TRUE(reports(job_problems("model: {config: nowhere.json}\n"), "cannot open", "nowhere.json",
                      "check the path"));
  EXPECT_TRUE(reports(job_problems("model: {config: a.json, vocab_size: 5}\n"),
                      "model.vocab_size stands beside config", "job.yaml:1: model.vocab_size", "not both"));
  EXPECT_THROW((void)read_job(folder / "other.yaml", {}), Error);
}

TEST(Job, FlagsReplaceAndAddKeys) {
  const Job job = parsed(kDense, {"train.steps=50", "parallel.stage_layers=[3, 1]", "output.folder=runs/a b",
                                  "train.precision=f64", "checkpoint.resume=false"});
  EXPECT_EQ(job.train.steps, 50);
  EXPECT_EQ(job.parallel.stage_layers, (std::vector<std::int32_t>{3, 1}));
  EXPECT_EQ(job.output.folder, "runs/a b");
  EXPECT_EQ(job.train.precision, Precision::f64);
  EXPECT_FALSE(job.checkpoint.resume);
  EXPECT_EQ(parsed(kDense, {"model.vocab_size=100"}).model.vocab_size, 100);
}

TEST(Job, FaultsOfFlagsNameTheFlag) {
  EXPECT_TRUE(reports(job_problems(kDense, {"train.stepz=5"}), "unknown key \"stepz\"", "flag train.stepz=5",
                      "did you mean train.steps?"));
  EXPECT_TRUE(reports(job_problems(kDense, {"train.steps=many"}), "steps=\"many\" is not a whole number",
                      "flag train.steps=many", "whole number"));
  EXPECT_TRUE(reports(job_problems(kDense, {"parallel.tp=3"}), "tp=3 does not divide num_attention_heads=8",
                      "flag parallel.tp=3", "use tp in {1, 2, 4}"));
  EXPECT_TRUE(reports(job_problems(kDense, {"steps"}), "\"steps\" is not of the form key=value", "flag steps",
                      "train.steps=50"));
  EXPECT_TRUE(reports(job_problems(kDense, {"train.steps.x=1"}), "steps is not a section",
                      "flag train.steps.x=1", ""));
  EXPECT_TRUE(reports(job_problems(kDense, {"train..x=1"}), "is not of the form key=value", "", ""));
}

TEST(Job, FaultsNameFileLineAndKey) {
  const auto at = [](std::string_view from, std::string_view to) {
    return job_problems(replaced(std::string(kDense), from, to));
  };
  EXPECT_TRUE(reports(at("  steps: 10", "  steps: 1.5"), "steps=1.5 is not a whole number",
                      "job.yaml:11: train.steps", ""));
  EXPECT_TRUE(reports(at("lr: 1.0e-3", "lr: fast"), "lr=\"fast\" is not a number", "job.yaml:15: train.lr",
                      "1.0e-3"));
  EXPECT_TRUE(
      reports(at("  steps: 10\n", ""), "train.steps is missing", "job.yaml: train.steps", "add steps"));
  EXPECT_TRUE(
      reports(at("steps: 10", "step: 10"), "unknown key \"step\"", "job.yaml:11: train.step", "train.steps"));
  EXPECT_TRUE(
      reports(at("data:", "dataa:"), "unknown key \"dataa\"", "job.yaml:17: dataa", "did you mean data?"));
  EXPECT_TRUE(reports(at("data:", "tp: 2\ndata:"), "\"tp\" stands outside its section", "job.yaml:17: tp",
                      "did you mean parallel.tp?"));
  EXPECT_TRUE(reports(at("  steps: 10", "  steps: 10\n  steps: 11"), "\"steps\" is given twice",
                      "job.yaml:12", "keep one"));
  EXPECT_TRUE(reports(at("{tp: 2, pp: 2, dp: 2}", "7"), "parallel is not a section", "job.yaml:16: parallel",
                      "indented"));
  EXPECT_TRUE(reports(at("tp: 2", "tp: [2"), "not valid YAML", "job.yaml:1", "syntax"));
  EXPECT_TRUE(reports(at("vocab_size: 96", "vocab_size: 0"), "vocab_size=0", "job.yaml:8: model.vocab_size",
                      "from 1"));
  EXPECT_TRUE(reports(at("lr:", "precision: f16\n  lr:"), "precision=f16 is not known", "train.precision",
                      "f32, f64"));
  EXPECT_TRUE(
      reports(at("lr:", "recompute: selectiv\n  lr:"), "recompute=selectiv", "", "did you mean selective?"));
  EXPECT_TRUE(reports(at("lr:", "lr_decay: yes\n  lr:"), "lr_decay=yes", "", "constant, cosine, wsd"));
  EXPECT_TRUE(
      reports(at("{train: tokens.bin}", "{train: 5}"), "train=5 is not a text", "data.train", "\"5\""));
  EXPECT_TRUE(reports(at("{train: tokens.bin}", "{train: [a]}"), "train is a list", "data.train", ""));
  EXPECT_TRUE(reports(at("data:", "checkpoint: {resume: yes}\ndata:"), "resume=\"yes\" is not a boolean",
                      "checkpoint.resume", "true or false"));
  EXPECT_TRUE(reports(at("data:", "x: &a 1\ny: *a\ndata:"), "aliases", "job.yaml:18", "write the value out"));
  EXPECT_TRUE(reports(at("data:", "---\ndata:"), "more than one YAML document", "job.yaml", "one document"));
  EXPECT_TRUE(reports(job_problems("- a\n"), "not a map of sections", "job.yaml", ""));
  EXPECT_TRUE(reports(job_problems(""), "model is missing", "job.yaml", "config"));
}

struct BadCase {
  const char* from;
  const char* to;
  const char* what;
  const char* where;
  const char* mend;
};

class CrossCheck : public testing::TestWithParam<BadCase> {};

TEST_P(CrossCheck, SaysWhatWhereAndHowToMend) {
  const BadCase& c = GetParam();
  const std::string text = std::string(c.from).starts_with("moe|") ? moe_job() : std::string(kDense);
  const std::string from = std::string(c.from).starts_with("moe|") ? c.from + 4 : c.from;
  const auto problems = job_problems(replaced(text, from, c.to));
  EXPECT_TRUE(reports(problems, c.what, c.where, c.mend));
  EXPECT_EQ(problems.size(), 1) << test::listed(problems);
}

INSTANTIATE_TEST_SUITE_P(
    Jobs, CrossCheck,
    testing::Values(
        BadCase{"intermediate_size: 48", "intermediate_size: 49", "tp=2 does not divide intermediate_size=49",
                "parallel.tp", "{1}"},
        BadCase{"sequence_length: 16\n  global_batch_size: 8\n  micro_batch_size: 2",
                "sequence_length: 15\n  global_batch_size: 8\n  micro_batch_size: 1",
                "tp=2 does not divide micro_batch_size * sequence_length=15", "parallel.tp", "{1}"},
        BadCase{"dp: 2", "dp: 3", "dp=3 * micro_batch_size=2 = 6 does not divide global_batch_size=8",
                "train.global_batch_size", "6 or 12"},
        BadCase{"pp: 2", "pp: 8", "pp=8 * vpp=1 = 8 stages, and the model has num_hidden_layers=4",
                "parallel.pp", "1 to 4"},
        BadCase{"dp: 2", "dp: 2, stage_layers: [1, 2]", "stage_layers=[1, 2] sum to 3",
                "parallel.stage_layers", "sum to 4"},
        BadCase{"dp: 2", "dp: 2, stage_layers: [4]", "stage_layers has 1 entries for pp=2 * vpp=1 = 2 stages",
                "stage_layers", "give 2"},
        BadCase{"dp: 2", "dp: 2, stage_layers: [5, -1]", "stage_layers=[5, -1] has a stage without a layer",
                "stage_layers", "at least 1"},
        BadCase{"dp: 2", "dp: 2, schedule: 1f1bb", "schedule=1f1bb is not known", "parallel.schedule",
                "did you mean 1f1b?"},
        BadCase{"dp: 2", "dp: 2, schedule: zb-v", "schedule zb-v has vpp=1, and needs vpp=2", "parallel.vpp",
                "vpp=2"},
        BadCase{"dp: 2", "dp: 2, schedule: interleaved",
                "schedule interleaved has vpp=1, and needs 2 or more", "parallel.vpp", "vpp=2"},
        BadCase{"dp: 2", "dp: 2, vpp: 2", "schedule 1f1b has vpp=2, and needs vpp=1", "parallel.vpp",
                "schedule interleaved"},
        BadCase{"tp: 2", "tp: 0", "tp=0 is not between 1", "parallel.tp", "from 1"},
        BadCase{"dp: 2", "dp: 2, ep: 2", "ep=2 needs a model with experts", "parallel.ep", "mixtral"},
        BadCase{"dp: 2", "dp: 2, etp: 2", "etp=2 needs a model with experts", "parallel.etp", "mixtral"},
        BadCase{"data:", "moe: {aux_loss_coef: 0.01}\ndata:", "aux_loss_coef=0.01 needs a model with experts",
                "job.yaml:17: moe.aux_loss_coef", "mixtral"},
        BadCase{"data:", "moe: {capacity_factor: 1.5}\ndata:",
                "capacity_factor=1.5 needs a model with experts", "moe.capacity_factor", "mixtral"},
        BadCase{"data:", "moe: {z_loss_coef: 0.1}\ndata:", "z_loss_coef=0.1 needs a model with experts",
                "moe.z_loss_coef", "mixtral"},
        BadCase{"moe|dp: 2", "dp: 2, ep: 3", "ep=3 does not divide num_local_experts=8", "parallel.ep",
                "{1, 2, 4}"},
        BadCase{"moe|dp: 2", "dp: 2, ep: 8", "etp=1 * ep=8 = 8 does not divide tp * cp * dp = 4",
                "parallel.ep", "{1, 2, 4}"},
        BadCase{"moe|dp: 2", "dp: 2, etp: 5", "etp=5 does not divide the expert width intermediate_size=48",
                "parallel.etp", "{1, 2, 4}"},
        BadCase{"moe|data:", "moe: {capacity_factor: -1}\ndata:", "capacity_factor=-1 is below 0",
                "moe.capacity_factor", "0 or more"},
        BadCase{"data:", "moe: {router: hash, balancing: none}\ndata:",
                "router=hash needs a model with experts", "moe.router", "mixtral"},
        BadCase{"data:", "moe: {pad_to_capacity: true}\ndata:", "pad_to_capacity=true needs a model",
                "moe.pad_to_capacity", "mixtral"},
        BadCase{"moe|data:", "moe: {router_jitter: 1}\ndata:", "router_jitter=1 is not in [0, 1)",
                "moe.router_jitter", "less than 1"},
        BadCase{"moe|data:", "moe: {router: hash, balancing: loss}\ndata:",
                "balancing has nothing to move with router: hash", "moe.balancing", "router: model"},
        BadCase{"moe|data:", "moe: {router: expert_choice, balancing: bias}\ndata:",
                "balancing has nothing to move with router: expert_choice", "moe.balancing", "none"},
        BadCase{"moe|data:", "moe: {balancing: none, aux_loss_coef: 0.01}\ndata:",
                "aux_loss_coef=0.01 has no effect with balancing: none", "moe.aux_loss_coef",
                "balancing: loss"},
        BadCase{"moe|data:", "moe: {balancing: bias, bias_update_rate: 0}\ndata:",
                "bias_update_rate=0 is not above 0", "moe.bias_update_rate", "0.001"},
        BadCase{"moe|data:", "moe: {bias_update_rate: 0.01}\ndata:",
                "bias_update_rate=0.01 has no effect without balancing: bias", "moe.bias_update_rate",
                "balancing: bias"},
        BadCase{"moe|data:", "moe: {bias_update_centred: true}\ndata:",
                "bias_update_centred=true has no effect", "moe.bias_update_centred", "balancing: bias"},
        BadCase{"moe|data:", "moe: {aux_loss_coef: 0.1, aux_loss_normalisation: huggingface}\ndata:",
                "pp=2 * vpp=1 stages do not see them all", "moe.aux_loss_normalisation", "global_batch"},
        BadCase{"moe|data:", "moe: {pad_to_capacity: true}\ndata:", "capacity_factor=0: there is no capacity",
                "moe.pad_to_capacity", "1.25"},
        BadCase{"steps: 10", "steps: 0", "steps=0 is not between 1", "train.steps", "from 1"},
        BadCase{"lr:", "zero_stage: 4\n  lr:", "zero_stage=4 is not between 0 and 3", "train.zero_stage",
                "0 to 3"},
        BadCase{"lr:", "recompute: selective\n  recompute_modules: [layernorm, moe_akt]\n  lr:",
                "recompute_modules has \"moe_akt\"", "train.recompute_modules", "did you mean moe_act?"},
        BadCase{"lr:", "recompute: selective\n  recompute_modules: [layernorm, moe_act, moe_act]\n  lr:",
                "recompute_modules has moe_act twice", "train.recompute_modules", "once"},
        BadCase{"lr:", "recompute_modules: [layernorm, moe_act]\n  lr:",
                "recompute_modules=[layernorm, moe_act] has no effect", "train.recompute_modules",
                "recompute: selective"},
        BadCase{"dp: 2", "dp: 2, order: tp-cp-dp-pp", "order=tp-cp-dp-pp does not name each",
                "parallel.order", "tp-cp-ep-dp-pp"},
        BadCase{"lr:", "beta1: 1.0\n  lr:", "beta1=1 is not in [0, 1)", "train.beta1", "less than 1"},
        BadCase{"lr:", "eps: 0\n  lr:", "eps=0 is not above 0", "train.eps", "1e-8"},
        BadCase{"lr:", "min_lr: 1\n  lr:", "min_lr=1 is above lr=0.001", "train.min_lr", "0 to 0.001"},
        BadCase{"lr:", "clip_grad: -1\n  lr:", "clip_grad=-1 is below 0", "train.clip_grad", "0 or more"},
        BadCase{"lr:", "lr_wsd_decay_steps: 3\n  lr:", "lr_wsd_decay_steps=3 has no effect",
                "train.lr_wsd_decay_steps", "lr_decay: wsd"},
        BadCase{"lr:", "lr_warmup_steps: 11\n  lr:", "lr_warmup_steps=11", "train.lr_warmup_steps",
                "at most 10"},
        BadCase{"lr:", "max_loss_ratio: 0.5\n  lr:", "max_loss_ratio=0.5 is neither 0 nor above 1",
                "train.max_loss_ratio", "2.0"},
        BadCase{"lr:", "max_grad_norm_ratio: -1\n  lr:", "max_grad_norm_ratio=-1 is neither",
                "train.max_grad_norm_ratio", "or 0 for steps that are not finite"},
        BadCase{"lr:", "divergence_window: 1\n  lr:", "divergence_window=1 is not between 2 and 4096",
                "train.divergence_window", "2 to 4096"},
        BadCase{"lr:", "max_divergences: 0\n  lr:", "max_divergences=0", "train.max_divergences", "from 1"},
        BadCase{"lr:", "on_divergence: rollback\n  lr:", "no checkpoint to go back to", "train.on_divergence",
                "on_divergence: skip"},
        BadCase{"lr:", "on_divergence: skipp\n  lr:", "on_divergence=skipp is not known", "on_divergence",
                "did you mean skip?"},
        BadCase{"{train: tokens.bin}", "{train: a, text: b}", "data.train and data.text are both given",
                "data.text", "keep train"},
        BadCase{"{train: tokens.bin}", "{text: b, vocab_size: 97}", "vocab_size=97", "data.vocab_size",
                "vocab_size"},
        BadCase{"{train: tokens.bin}", "{text: b, validation_fraction: 1}", "validation_fraction=1",
                "data.validation_fraction", "less than 1"},
        BadCase{"data:", "checkpoint: {every: 5}\ndata:", "every=5 and no folder", "checkpoint.every",
                "checkpoint.folder"},
        BadCase{"data:", "checkpoint: {folder: x, keep: 0}\ndata:", "keep=0", "checkpoint.keep", "from 1"},
        BadCase{"data:", "output: {trace_steps: -1}\ndata:", "trace_steps=-1", "output.trace_steps",
                "from 0"}));

class EngineLimit : public testing::TestWithParam<BadCase> {};

TEST_P(EngineLimit, IsRefusedForTrainingAndPlannedAllTheSame) {
  const BadCase& c = GetParam();
  const std::string text = replaced(std::string(kDense), c.from, c.to);
  const auto problems = job_problems(text);
  EXPECT_TRUE(reports(problems, c.what, c.where, c.mend));
  EXPECT_EQ(problems.size(), 1) << test::listed(problems);
  EXPECT_TRUE(job_problems(text, {}, JobUse::plan).empty());
  const Job job = parsed(text);
  Problems engine;
  check_engine_runs(job, "here", engine);
  EXPECT_EQ(engine.list().size(), 1) << test::listed(engine.list());
  EXPECT_TRUE(reports(engine.list(), c.what, "here: ", c.mend));
  EXPECT_THROW(require_engine_runs(job, "here"), Error);
  EXPECT_EQ(parsed(to_yaml(job)), job);
}

INSTANTIATE_TEST_SUITE_P(
    Jobs, EngineLimit,
    testing::Values(BadCase{"num_key_value_heads: 4", "num_key_value_heads: 1",
                            "tp=2 does not divide num_key_value_heads=1", "parallel.tp", "{1}"},
                    BadCase{"sequence_length: 16", "sequence_length: 128",
                            "sequence_length=128 is above the model's max_position_embeddings=64",
                            "train.sequence_length", "1 to 64"},
                    BadCase{"model_type: llama",
                            "model_type: llama4_text\n  intermediate_size_mlp: 48\n  num_local_experts: 8\n  "
                            "num_experts_per_tok: 1",
                            "the engine does not train model_type=llama4 (chunked attention)",
                            "job.yaml:1: model", "one of llama, mistral"},
                    BadCase{
                        "lr:", "precision: bf16\n  lr:", "precision=bf16: the engine computes in f32 and f64",
                        "job.yaml:15: train.precision", "f32"},
                    BadCase{"lr:", "recompute: selective\n  recompute_modules: [core_attn]\n  lr:",
                            "recompute_modules=[core_attn]: the engine", "train.recompute_modules",
                            "[layernorm, moe_act]"},
                    BadCase{"dp: 2", "dp: 2, sequence_parallel: false", "sequence_parallel=false with tp=2",
                            "parallel.sequence_parallel", "tp=1"},
                    BadCase{"dp: 2", "dp: 2, order: tp-cp-ep-pp-dp", "order=tp-cp-ep-pp-dp", "parallel.order",
                            "tp-cp-ep-dp-pp"}));

TEST(Job, RunsWithTheModulesThatTheEngineMakesAgain) {
  const Job job =
      parsed(kDense, {"train.recompute=selective", "train.recompute_modules=[moe_act, layernorm]"});
  Problems problems;
  check_engine_runs(job, "here", problems);
  EXPECT_TRUE(problems.empty()) << test::listed(problems.list());
  require_engine_runs(parsed(kDense, {"parallel.tp=1", "parallel.sequence_parallel=false"}), "here");
}

TEST(Job, PlansWhatFrameworksPadOrRepeat) {
  const auto plan = [](const std::vector<std::string>& flags) {
    return job_problems(kDense, flags, JobUse::plan);
  };
  EXPECT_TRUE(plan({"parallel.tp=8"}).empty());  // key-value heads on two ranks each
  EXPECT_TRUE(reports(plan({"model.num_key_value_heads=8", "model.num_attention_heads=24", "model.head_dim=4",
                            "parallel.tp=12"}),
                      "neither of tp=12 and num_key_value_heads=8 divides the other", "parallel.tp",
                      "{1, 2, 4, 8}"));
  EXPECT_TRUE(
      plan({"train.sequence_length=15", "train.micro_batch_size=1", "parallel.sequence_parallel=false"})
          .empty());
  EXPECT_TRUE(plan({"parallel.cp=8"}).empty());
  EXPECT_TRUE(reports(plan({"parallel.cp=3"}), "2 * cp=6 does not divide sequence_length=16", "parallel.cp",
                      "{1, 2, 4, 8}"));
  EXPECT_TRUE(reports(plan({"parallel.cp=8", "parallel.tp=8"}),
                      "tp=8 does not divide micro_batch_size * sequence_length / cp=4", "parallel.tp",
                      "{1, 2, 4}"));
  // A table of positions ends, rope does not.
  constexpr std::string_view kGpt2 = R"(
model: {model_type: gpt2, n_layer: 4, n_embd: 32, n_head: 8, n_positions: 64, vocab_size: 96}
train: {steps: 1, sequence_length: 128, global_batch_size: 8, micro_batch_size: 2}
)";
  EXPECT_TRUE(reports(job_problems(kGpt2, {}, JobUse::plan),
                      "sequence_length=128 is above the model's max_position_embeddings=64",
                      "train.sequence_length", "1 to 64"));
  for (const char* module : {"moe", "mla_up_proj", "shared_experts"}) {
    EXPECT_TRUE(
        reports(plan({"train.recompute=selective", fmt::format("train.recompute_modules=[{}]", module)}),
                fmt::format("recompute_modules has {}, and the model has no", module),
                "train.recompute_modules", "remove it"));
  }
}

TEST(Job, AcceptsExpertParallelismBeyondDataParallelism) {
  const Job job = parsed(replaced(moe_job(), "dp: 2", "dp: 2, ep: 4"));
  EXPECT_EQ(job.parallel.edp(), 1);
}

TEST(Job, ReportsEveryFaultAtOnce) {
  std::string text = replaced(moe_job(), "{tp: 2, pp: 2, dp: 2}", "{tp: 8, pp: 3, dp: 5, ep: 3, vpp: 3}");
  text = replaced(text, "steps: 10", "stepz: 10");
  text = replaced(text, "lr: 1.0e-3", "lr: -1");
  const auto problems = job_problems(text);
  EXPECT_TRUE(reports(problems, "tp=8 does not divide num_key_value_heads=4", "parallel.tp", "{1, 2, 4}"));
  EXPECT_TRUE(reports(problems, "ep=3 does not divide num_local_experts=8", "parallel.ep", "{1, 2, 4, 8}"));
  EXPECT_TRUE(reports(problems, "dp=5 * micro_batch_size=2 = 10", "global_batch_size", "10"));
  EXPECT_TRUE(reports(problems, "vpp=3", "parallel.vpp", ""));
  EXPECT_TRUE(reports(problems, "pp=3 * vpp=3 = 9 stages", "parallel.pp", "1 to 4"));
  EXPECT_TRUE(reports(problems, "unknown key \"stepz\"", "train.stepz", "train.steps"));
  EXPECT_TRUE(reports(problems, "train.steps is missing", "train.steps", ""));
  EXPECT_TRUE(reports(problems, "lr=-1 is below 0", "train.lr", ""));
  EXPECT_EQ(problems.size(), 8) << test::listed(problems);
}

TEST(Precision, HasTheWordOfItsFileInEveryCase) {
  for (const char* word : {"f32", "f64", "bf16", "fp16", "fp8", "fp8_block", "mxfp8", "nvfp4"}) {
    const Job job = parsed(kDense, {std::string("train.precision=") + word});
    EXPECT_EQ(name(job.train.precision), word);
  }
}

TEST(Job, ValidateOfAPlainValueNamesThePlace) {
  Job job = parsed(kDense);
  job.parallel.tp = 3;
  job.model.vocab_size = 99;
  Problems problems;
  validate(job, "here", problems);
  EXPECT_TRUE(reports(problems.list(), "tp=3 does not divide num_attention_heads=8", "here: parallel.tp",
                      "{1, 2, 4, 8}"));
  Problems engine;  // which repeats no kv heads
  check_engine_runs(job, "here", engine);
  EXPECT_TRUE(
      reports(engine.list(), "tp=3 does not divide num_attention_heads=8", "here: parallel.tp", "{1, 2, 4}"));
  job.model.num_key_value_heads = 3;
  Problems model;
  validate(job, "here", model);
  EXPECT_TRUE(
      reports(model.list(), "num_key_value_heads=3", "here: model: num_key_value_heads", "{1, 2, 4, 8}"));
  EXPECT_EQ(model.list().size(), 1) << test::listed(model.list());
}

TEST(Job, AbsentKeysOfBalancingFollowFromTheModelAndOneAnother) {
  const auto recipe = [](const std::string& moe) { return parsed(moe_job() + "moe: {" + moe + "}\n"); };
  EXPECT_EQ(recipe("").train.moe.balancing, Balancing::loss);
  EXPECT_EQ(recipe("").train.moe.aux_loss_coef, 0.001);
  EXPECT_EQ(recipe("").train.moe.bias_update_rate, 0.0);
  EXPECT_EQ(recipe("balancing: none").train.moe.aux_loss_coef, 0.0);
  EXPECT_EQ(recipe("router: hash").train.moe.balancing, Balancing::none);
  EXPECT_EQ(recipe("router: expert_choice").train.moe.aux_loss_coef, 0.0);
  const Job bias = recipe("balancing: bias");
  EXPECT_EQ(bias.train.moe.aux_loss_coef, 0.0);
  EXPECT_EQ(bias.train.moe.bias_update_rate, 0.001);
  EXPECT_TRUE(bias.model.moe->score_correction_bias) << "a mixtral model has none of its own";
  Problems problems;
  EXPECT_EQ(parse_hf_config(to_hf_config(bias.model), "config.json", problems), bias.model)
      << "checkpoints say so";
  EXPECT_TRUE(problems.empty());
  const Job both = recipe("balancing: bias, bias_update_rate: 0.01, aux_loss_coef: 0.0001");
  EXPECT_EQ(both.train.moe.aux_loss_coef, 0.0001) << "DeepSeek-V3 uses both";
  EXPECT_EQ(both.train.moe.bias_update_rate, 0.01);
  for (const Job& job : {bias, both, recipe("router: expert_choice"), recipe("balancing: none")}) {
    EXPECT_EQ(parsed(to_yaml(job)), job) << to_yaml(job);
    EXPECT_EQ(parsed(to_json(job)), job) << to_json(job);
  }
}

TEST(Job, WritesYamlThatReadsBackEqual) {
  Job job = parsed(moe_job());
  EXPECT_EQ(parsed(to_yaml(job)), job) << to_yaml(job);
  job.model_config = "models/\"odd\" name: #1\n.json";
  job.train.seed = 18'446'744'073'709'551'615U;
  job.train.optimizer.lr = 0.1 + 0.2;
  job.train.optimizer.lr_decay = LrDecay::wsd;
  job.train.optimizer.lr_wsd_decay_steps = 2;
  job.train.divergence = {.action = OnDivergence::rollback,
                          .max_loss_ratio = 2.5,
                          .max_grad_norm_ratio = 20.0,
                          .window = 64,
                          .most = 3};
  job.train.precision = Precision::f64;
  job.train.recompute = Recompute::full;
  job.train.moe = {.router_jitter = 0.01,
                   .balancing = Balancing::bias,
                   .aux_loss_coef = 1e-2,
                   .aux_loss_unit = BalanceUnit::global_batch,
                   .aux_loss_normalisation = AuxNormalisation::huggingface,
                   .bias_update_rate = 0.002,
                   .bias_update_centred = true,
                   .z_loss_coef = 1e-3,
                   .capacity_factor = 1.25,
                   .drop_policy = DropPolicy::probs,
                   .pad_to_capacity = true,
                   .dispatch = DispatchForm::all_gather,
                   .overlap_dispatch = false};
  job.model.moe->score_correction_bias = true;
  job.parallel.ep = 2;
  job.parallel.stage_layers = {3, 1};
  job.data = {.train = "", .text = "null", .tokenizer = "true", .vocab_size = 64, .validation_fraction = 0.1};
  job.checkpoint = {.folder = "1.5", .every = 3, .keep = 5, .resume = false};
  job.output = {
      .folder = "runs/\tx", .trace_steps = 0, .sample_prompt = "It is a \\ truth\n", .sample_tokens = 7};
  const std::string yaml = to_yaml(job);
  EXPECT_EQ(parsed(yaml), job) << yaml;
  EXPECT_EQ(to_yaml(parsed(yaml)), yaml);
}

TEST(Job, ListsEveryKeyThatItReadsAndWrites) {
  const std::vector<std::string> keys = job_keys();
  const std::set<std::string> unique(keys.begin(), keys.end());
  EXPECT_EQ(unique.size(), keys.size());
  EXPECT_TRUE(unique.contains("train.steps"));
  EXPECT_TRUE(unique.contains("model.config"));
  EXPECT_TRUE(unique.contains("moe.drop_policy"));
  // Each key is written, and a flag on each with a value of no type is a fault of that key: so it is read.
  const std::string yaml = to_yaml(parsed(kDense));
  for (const std::string& key : keys) {
    if (key == "model.config") continue;
    EXPECT_NE(yaml.find("  " + key.substr(key.find('.') + 1) + ":"), std::string::npos) << key;
    EXPECT_TRUE(reports(job_problems(kDense, {key + "={a: 1}"}), "", "flag " + key, "")) << key;
  }
}

TEST(ScheduleNames, AreThoseOfTheScheduleRoom) {
  std::vector<std::string> names;
  for (const ScheduleName& s : kScheduleNames) {
    names.emplace_back(s.name);
    EXPECT_EQ(s.vpp, schedule::required_vpp(schedule::parse_kind(s.name))) << s.name;
  }
  EXPECT_EQ(names, schedule::kind_names());
}

TEST(Job, SurvivesEveryMutationAndTruncation) {
  const std::string texts[] = {moe_job(), to_yaml(parsed(kDense))};
  std::int64_t refused = 0;
  std::int64_t read = 0;
  for (const std::string& text : texts) {
    for (std::uint64_t seed = 0; seed < 2500; ++seed) {
      const std::string bad =
          seed < 500 ? text.substr(0, text.size() * seed / 500) : test::mutated(text, seed);
      try {
        const Job job = parsed(bad);
        EXPECT_EQ(parsed(to_yaml(job)), job) << bad;
        ++read;
      } catch (const Error& e) {
        EXPECT_EQ(e.kind(), ErrorKind::config) << bad;
        EXPECT_FALSE(e.problems().empty());
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(read, 10);
  EXPECT_TRUE(reports(job_problems("a: " + std::string(1'000, '[') + std::string(1'000, ']')),
                      "nested deeper", "job.yaml:1", ""));
}

// The jobs that measure a GPU run there as they are, and fit 80 GB with what bf16 keeps of each parameter.
TEST(Job, TheExamplesForGpusRunThere) {
  const std::filesystem::path folder = std::filesystem::path(TESSERA_SOURCE_DIR) / "examples/gpu";
  std::size_t jobs = 0;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    const Job job = read_job(file.path(), {}, JobUse::train_on_gpu);
    EXPECT_EQ(job.train.precision, Precision::bf16) << file.path();
    EXPECT_LT(18.0 * static_cast<double>(num_parameters(job.model)), 70e9) << file.path();
    ++jobs;
  }
  EXPECT_EQ(jobs, 4U);
}

}  // namespace
}  // namespace tessera::spec
