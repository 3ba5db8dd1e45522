// Large worlds on paper: what each of 16,384 ranks would set up - its groups, its parameters and their ZeRO
// shards, its actions, its pieces of a checkpoint, its memory - in seconds and little memory, without a
// single communicator.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <map>

#include "ckpt/checkpoint.h"
#include "comm/planned.h"
#include "exec/param_store.h"
#include "exec/rank_engine.h"
#include "graph/dispatch_form.h"
#include "run.h"
#include "spec/model_size.h"
#include "spec/presets.h"

namespace tessera::testing {
namespace {

// DeepSeek-V3 on 16,384 ranks: tp 8, pp 16, dp 128, ep 64 folded over tp and dp, ZeRO-1.
spec::Job large_job() {
  spec::Job job;
  job.model = spec::model_preset("deepseek-v3");
  job.model.num_nextn_predict_layers = 0;
  job.train.steps = 1;
  job.train.sequence_length = 4096;
  job.train.micro_batch_size = 1;
  job.train.global_batch_size = 128 * 32;
  job.train.zero_stage = 1;
  job.train.moe.balancing = spec::Balancing::bias;
  job.train.moe.bias_update_rate = 0.001;
  job.parallel = {.tp = 8, .dp = 128, .pp = 16, .ep = 64};
  return job;
}

struct Figures {
  std::int64_t ranks = 0, group_members = 0, actions = 0, pieces = 0, index_bytes = 0;
  std::int64_t values = 0;           // elements that a checkpoint's pieces hold, all ranks together
  std::int64_t least = 0, most = 0;  // bytes of a rank
};

void add_rank(const plan::Plan& plan, Rank rank, const kernels::Kernels& kernels, Figures& f) {
  const spec::Job& job = plan.job;
  const auto place = [&](std::span<const Rank> members, std::string_view label) {
    f.group_members += std::ssize(members);
    const auto at = std::ranges::find(members, rank) - members.begin();
    return comm::make_planned(static_cast<std::int32_t>(at), static_cast<std::int32_t>(members.size()),
                              label);
  };
  const exec::Communicators comms =
      exec::make_communicators(plan.layout, rank, layout::shares_embedding(job.model),
                               graph::dispatch_nodes(job), place, {.memory = kernels.memory()});
  tensor::Arena counting;
  exec::ParamStore store(
      layout::parameters(job.model, plan.layout, rank),
      {.bucket_bytes = job.train.bucket_bytes, .zero_stage = 1, .num_layers = job.model.num_hidden_layers},
      comms, kernels, counting);
  for (const exec::StoredParam& p : store.params()) {
    const auto add = [&](const layout::Slice& slice) {
      ++f.pieces;
      f.values += slice.size[0] * slice.size[1];
      f.index_bytes += fmt::formatted_size(
          R"({{"file": "rank-{:05}.safetensors", "begin": [{}, {}], "size": [{}, {}]}}, )", rank.value,
          slice.begin[0], slice.begin[1], slice.size[0], slice.size[1]);
    };
    if (p.spec.buffer) {
      if (p.spec.owner) add(p.spec.slice);
      continue;
    }
    const optim::Bucket& b = store.buckets()[static_cast<std::size_t>(p.bucket)];
    if (p.spec.tied_copy || p.spec.duplicate || (!b.sharded && b.group->rank() != 0)) continue;
    const std::int64_t begin = std::max(p.offset, b.owned_begin());
    const std::int64_t end = std::min(p.offset + p.spec.num_elements(), b.owned_begin() + b.owned_size());
    if (begin >= end) continue;
    const ckpt::Piece whole{
        .name = p.spec.name, .num_dims = p.spec.num_dims, .global = p.spec.global, .slice = p.spec.slice};
    for (const ckpt::Piece& piece : ckpt::flat_pieces(
             whole, begin - p.offset, tensor::Tensor(nullptr, tensor::DType::f32, {end - begin})))
      add(piece.slice);
  }
  ++f.ranks;
  f.actions += std::ssize(
      plan.schedule.ranks.at(static_cast<std::size_t>(plan.layout.dense.coordinate(rank, layout::Axis::pp))));
}

// In a process of its own, for its memory.
TEST(Scale, DISABLED_Child) {
  const plan::Plan plan = plan::make_plan(large_job());
  const auto kernels = kernels::make_cpu();
  Figures f;
  for (std::int32_t r = 0; r < plan.layout.world_size(); ++r) add_rank(plan, Rank(r), *kernels, f);
  const plan::MemoryPlan memory = exec::plan_memory(plan);
  ASSERT_EQ(memory.ranks.size(), 16384U);
  f.least = f.most = memory.ranks[0].total().value;
  for (const plan::RankMemory& m : memory.ranks) {
    f.least = std::min(f.least, m.total().value);
    f.most = std::max(f.most, m.total().value);
  }
  EXPECT_EQ(f.ranks, 16384);
  // Each element once.
  EXPECT_EQ(f.values, spec::num_parameters(plan.job.model));
  rusage use{};
  ::getrusage(RUSAGE_SELF, &use);
  const double cpu = static_cast<double>(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
                     static_cast<double>(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
  fmt::print(
      "{} ranks in {:.1f} s of one core and {:.0f} MiB: {:.3g} members of groups, {:.3g} actions, {:.3g} "
      "pieces "
      "of a checkpoint ({:.0f} MiB of index), {:.1f} to {:.1f} GiB a rank\n",
      f.ranks, cpu, static_cast<double>(use.ru_maxrss) / 1024, static_cast<double>(f.group_members),
      static_cast<double>(f.actions), static_cast<double>(f.pieces),
      static_cast<double>(f.index_bytes) / 1048576, static_cast<double>(f.least) / 1073741824,
      static_cast<double>(f.most) / 1073741824);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(cpu, 10.0);
  EXPECT_LT(use.ru_maxrss, 200 * 1024);
#endif
}

TEST(Scale, SixteenThousandRanksAreSetUpOnPaperInSecondsAndLittleMemory) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::execl("/proc/self/exe", "test_exec", "--gtest_also_run_disabled_tests",
            "--gtest_filter=Scale.DISABLED_Child", "--gtest_brief=1", nullptr);
    ::_exit(127);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// Ranks that are taken for alike are.
TEST(Scale, MemoryOfEveryRankIsThatOfItsOwnDryRun) {
  spec::Job job = small_job({.moe = true});
  job.model.vocab_size = 43;  // not even over tp
  job.train.zero_stage = 1;
  for (const spec::ParallelSpec& parallel :
       {spec::ParallelSpec{.tp = 2, .dp = 2, .pp = 2, .ep = 2}, spec::ParallelSpec{.dp = 4, .pp = 2, .ep = 2},
        spec::ParallelSpec{.tp = 4, .dp = 2, .ep = 2, .etp = 2}}) {
    job.parallel = parallel;
    const plan::Plan plan = plan::make_plan(job);
    const plan::MemoryPlan all = exec::plan_memory(plan);
    ASSERT_EQ(all.ranks.size(), static_cast<std::size_t>(parallel.world_size()));
    for (std::int32_t r = 0; r < parallel.world_size(); ++r)
      EXPECT_EQ(all.ranks[r], exec::plan_memory(plan, Rank(r))) << "rank " << r;
  }
}

}  // namespace
}  // namespace tessera::testing
