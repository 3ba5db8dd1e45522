// Plans: made from jobs, written and read back equal, foreign, damaged and newer files refused by name; the
// text pages.
#include "plan/plan.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/random.h"
#include "schedule/text.h"
#include "spec/presets.h"

namespace tessera::plan {
namespace {

spec::Job job(const std::vector<std::string>& flags = {}) {
  constexpr std::string_view kYaml = R"(
model: {model_type: mixtral, num_hidden_layers: 5, hidden_size: 32, intermediate_size: 48,
        num_attention_heads: 8, num_key_value_heads: 4, vocab_size: 96, num_local_experts: 8,
        num_experts_per_tok: 2}
train: {steps: 10, sequence_length: 16, global_batch_size: 16, micro_batch_size: 2}
parallel: {tp: 2, pp: 2, dp: 2, ep: 4}
output: {folder: "runs/a \"b\""}
)";
  return spec::parse_job(kYaml, ".", "job.yaml", flags);
}

std::string replaced(std::string text, std::string_view from, std::string_view to) {
  const auto at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST(Plan, HoldsLayoutScheduleAndProofOfItsJob) {
  const Plan plan = make_plan(job());
  EXPECT_EQ(plan.num_microbatches(), 4);
  EXPECT_EQ(plan.layout.world_size(), 8);
  EXPECT_EQ(plan.layout.stages.size(), 2);
  EXPECT_TRUE(plan.schedule.is_lowered());
  EXPECT_TRUE(plan.proof.ok());
  EXPECT_EQ(plan.proof.stages.size(), 2);
}

TEST(Plan, KeepsTheClusterAndPracticeItWasPlannedFor) {
  Plan plan = make_plan(job());
  EXPECT_EQ(to_json(plan).find("planned_for"), std::string::npos);
  plan.planned_for = {.cluster = spec::cluster_preset("dgx-h100"), .practice = "megatron-core"};
  EXPECT_EQ(from_json(to_json(plan), "plan.json"), plan);
  EXPECT_NE(plan, make_plan(job()));
  const auto refused = [&](std::string_view from, std::string_view to, const std::string& part) {
    try {
      (void)from_json(replaced(to_json(plan), from, to), "plan.json");
      FAIL() << "accepted";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), testing::HasSubstr(part));
    }
  };
  refused("\"practice\": \"megatron-core\"", "\"practice\": \"megatron-cor\"", "did you mean megatron-core?");
  refused("\"practice\": \"megatron-core\"", "\"practise\": \"megatron-core\"", "unknown key \"practise\"");
  refused("450 GB/s", "450 Gb/s", "planned_for.cluster");
}

TEST(Plan, RefusesAJobThatIsNotValidWithEveryProblem) {
  spec::Job bad = job();
  bad.parallel.tp = 3;
  bad.train.steps = 0;
  try {
    (void)make_plan(bad);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_THAT(e.what(), testing::HasSubstr("tp=3 does not divide num_attention_heads=8"));
    EXPECT_THAT(e.what(), testing::HasSubstr("use tp in {1, 2, 4, 8}"));
    EXPECT_THAT(e.what(), testing::HasSubstr("steps=0"));
  }
}

TEST(Plan, ReadsBackEqualForEverySchedule) {
  for (const std::string name : {"naive", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"}) {
    const bool two = name == "interleaved" || name == "zb-v";
    const Plan plan = make_plan(job({"parallel.schedule=" + name, two ? "parallel.vpp=2" : "parallel.vpp=1",
                                     "train.seed=18446744073709551615", "train.lr=0.00030000000000000003"}));
    const std::string text = to_json(plan);
    const Plan back = from_json(text, "plan.json");
    EXPECT_EQ(back, plan) << name;
    EXPECT_EQ(back.job, plan.job) << name;
    EXPECT_EQ(back.schedule, plan.schedule) << name;
    EXPECT_EQ(back.proof.stages, plan.proof.stages) << name;
    EXPECT_EQ(to_json(back), text) << name;
  }
}

TEST(Plan, ReadsBackFromItsFile) {
  const std::filesystem::path path = std::filesystem::path(TESSERA_BINARY_DIR) / "plan_test.json";
  const Plan plan = make_plan(job());
  write_plan(path, plan);
  EXPECT_EQ(read_plan(path), plan);
  EXPECT_THROW((void)read_plan(path.string() + ".none"), Error);
}

TEST(Plan, TakesAnEditedOrderOfActionsThatCanBeProven) {
  // One rank, two micro-batches: all forwards first is as good as one by one.
  const Plan plan = make_plan(
      job({"parallel.tp=1", "parallel.pp=1", "parallel.dp=1", "parallel.ep=1", "train.global_batch_size=4"}));
  const std::string text = to_json(plan);
  const std::string edited = replaced(text, "0F0 0B0 0F1 0B1", "0F0 0F1 0B0 0B1");
  const Plan back = from_json(edited, "plan.json");
  EXPECT_NE(back, plan);
  EXPECT_EQ(back.proof.stages[0].peak_live, 2);
  EXPECT_THROW((void)from_json(replaced(text, "0F0 0B0 0F1 0B1", "0B0 0F0 0F1 0B1"), "plan.json"), Error);
}

struct Refusal {
  const char* from;
  const char* to;
  ErrorKind kind;
  const char* what;
  const char* mend;
};

TEST(Plan, RefusesForeignNewerAndContradictoryFilesByName) {
  const std::string good = to_json(make_plan(job()));
  const Refusal cases[] = {
      {"tessera-plan", "other-plan", ErrorKind::config, "is not a plan", "plan.json that tessera wrote"},
      {"\"version\": 1", "\"version\": 2", ErrorKind::unsupported,
       "version 2, this build reads versions up to 1", "newer"},
      {"\"version\": 1", "\"version\": 0", ErrorKind::config, "version 0", "job file"},
      {"\"version\": 1", "\"version\": \"1\"", ErrorKind::config, "no version", "job file"},
      {"\"stages\"", "\"stagez\"", ErrorKind::config, "unknown key \"stagez\"", "did you mean stages?"},
      {"\"num_layers\": 3", "\"num_layers\": 4", ErrorKind::config, "stages are not those of the job",
       "job file"},
      {"\"tp\": 2", "\"tp\": 3", ErrorKind::config, "tp=3 does not divide", "use tp in {1, 2, 4, 8}"},
      {"\"global_batch_size\": 16", "\"global_batch_size\": 32", ErrorKind::config,
       "m=4, the job asks for 1f1b with pp=2 vpp=1 m=8", "job file"},
      {"\"schedule\": [", "\"schedule\": [1,", ErrorKind::config, "a line of the schedule", "job file"},
      {"0F0", "0F9", ErrorKind::config, "", ""},
  };
  for (const Refusal& c : cases) {
    try {
      (void)from_json(replaced(good, c.from, c.to), "plan.json");
      ADD_FAILURE() << "accepted " << c.to;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), c.kind) << c.to;
      EXPECT_THAT(e.what(), testing::HasSubstr(c.what));
      EXPECT_THAT(e.what(), testing::HasSubstr("plan.json"));
      bool mended = false;
      for (const Problem& p : e.problems()) mended = mended || p.mend.find(c.mend) != std::string::npos;
      EXPECT_TRUE(mended) << e.what();
    }
  }
  EXPECT_THROW((void)from_json("", "plan.json"), Error);
  EXPECT_THROW((void)from_json("[]", "plan.json"), Error);
  EXPECT_THROW((void)from_json("{\"format\": \"tessera-plan\", \"version\": 1}", "plan.json"), Error);
}

TEST(Plan, SurvivesEveryTruncationAndManyMutations) {
  const std::string good = to_json(make_plan(job()));
  const std::uint64_t stream = stream_of("plan mutations");
  std::int64_t refused = 0;
  for (std::uint64_t i = 0; i < 800; ++i) {
    std::string bad = good;
    if (i < 300) {
      bad.resize(good.size() * i / 300);
    } else {
      bad[uniform_below(bad.size(), i, stream, 0)] = "0{}[]\",:x9"[uniform_below(10, i, stream, 1)];
    }
    try {
      (void)from_json(bad, "plan.json");
    } catch (const Error& e) {
      EXPECT_NE(e.kind(), ErrorKind::internal) << e.what();
      ++refused;
    }
  }
  EXPECT_GE(refused, 300);
}

TEST(Plan, DescribesItselfOnOnePage) {
  EXPECT_EQ(describe(make_plan(job())),
            "model     mixtral, 207.5 k parameters, 69.2 k used by a token (top 2 of 8 experts)\n"
            "step      16 sequences of 16 tokens: 4 micro-batches of 2 on 2 replicas\n"
            "layout    8 ranks = tp 2 x cp 1 x dp 2 x pp 2; experts: etp 1 x ep 4 x edp 1 x pp 2\n"
            "schedule  1f1b, 2 stages, bubble 20.0 % of the step when F, I and W take equal times\n"
            "stage pp rank   parameters  live deferred  holds\n"
            "    0       0       34.8 k     2        0  embedding, layers 0-2\n"
            "    1       1       23.7 k     1        0  layers 3-4, head\n");
}

TEST(MemoryPlan, PrintsUsedPurposesAndJoinsEqualRanks) {
  MemoryPlan memory;
  memory.ranks.resize(4);
  for (RankMemory& r : memory.ranks) {
    r[MemoryKind::weights] = Bytes(1 << 20);
    r[MemoryKind::saved] = Bytes(3 << 19);
  }
  memory.ranks[3][MemoryKind::saved] = Bytes(1 << 10);
  EXPECT_EQ(memory.ranks[0].total(), Bytes((1 << 20) + (3 << 19)));
  EXPECT_EQ(describe(memory),
            "     rank     weights       saved       total\n"
            "      0-2    1.00 MiB    1.50 MiB    2.50 MiB <- largest\n"
            "        3    1.00 MiB    1.00 KiB    1.00 MiB\n");
}

}  // namespace
}  // namespace tessera::plan
