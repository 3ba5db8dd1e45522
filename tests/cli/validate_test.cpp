// `tessera validate` from the outside: the tables, the files it writes, and what it says to a bad file.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kRuns =
    "id,model,layers,hidden,ffn_hidden,heads,kv_heads,vocab,seq_len,gpu,gpus,precision,gbs,mbs,tp,sp,pp,vpp,"
    "cp,dp,zero,"
    "recompute,framework,step_time_s,quality,status\n"
    "own-1,Llama3-70B,80,8192,28672,64,8,128256,8192,H100,64,BF16,128,1,4,y,4,5,1,4,ZeRO-1,none,NeMo/"
    "Megatron-Core,"
    "14.66,A,ok\n"
    "own-2,Llama3-70B,80,8192,28672,64,8,128256,8192,H100,64,BF16,128,1,8,y,4,5,1,2,ZeRO-1,none,NeMo/"
    "Megatron-Core,"
    "16.0,A,ok\n"
    "own-3,Llama3-70B,80,8192,28672,64,8,128256,8192,H100,8,BF16,64,8,1,n,1,1,1,8,none,none,NeMo/"
    "Megatron-Core,,A,OOM\n"
    "own-4,\"Llama3, on TPU\",80,8192,28672,64,8,128256,8192,TPU "
    "v5p,64,BF16,128,1,1,n,1,1,1,64,ZeRO-3,none,MaxText,"
    "9,A,ok\n";

TEST_F(Program, ValidatePrintsErrorsVerdictsAndReasons) {
  write("runs.csv", kRuns);
  const Outcome o = run("validate runs.csv --csv rows.csv --svg plot.svg --threads 1");
  EXPECT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, AllOf(HasSubstr("dense, A100 and H100"), HasSubstr("Fits or does not fit"),
                              HasSubstr("no calibration of this accelerator"), HasSubstr("own-4")));
  EXPECT_THAT(read("rows.csv"),
              AllOf(HasSubstr("own-1,own,Llama3-70B,h100-sxm,A,ok,14.66,"), HasSubstr("\"Llama3, on TPU\"")));
  EXPECT_THAT(read("plot.svg"), AllOf(HasSubstr("<svg"), HasSubstr("own (2)")));
}

TEST_F(Program, ValidateSpeaksJsonWithNumbers) {
  write("runs.csv", kRuns);
  const Outcome o = run("validate runs.csv --json");
  ASSERT_EQ(o.code, 0) << o.errors;
  const json j = json::parse(o.output);
  ASSERT_EQ(j.at("rows").size(), 4U);
  EXPECT_GT(j.at("rows").at(0).at("predicted_s").get<double>(), 1.0);
  EXPECT_EQ(j.at("rows").at(2).at("fits"), false);  // 70B in one H100
  EXPECT_EQ(j.at("verdicts").at("out_of_memory_right"), 1);
  EXPECT_EQ(j.at("step_time").at(0).at("model").at("rows"), 2);
}

TEST_F(Program, ValidateNamesTheFaultsOfTheFile) {
  write("runs.csv", "id,model,gpu,layers\na-1,m,H100,many\na-1,m,H100,3\nb,c\n");
  const Outcome o = run("validate runs.csv");
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.errors, AllOf(HasSubstr("runs.csv:2: column layers"), HasSubstr("occurs twice"),
                              HasSubstr("2 cells where the header has 4"), HasSubstr("mend: ")));
  EXPECT_EQ(run("validate none.csv").code, 1);
  EXPECT_EQ(run("validate runs.csv --folds moon").code, 2);
}

}  // namespace
}  // namespace tessera::cli
