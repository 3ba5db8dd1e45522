// Whole training steps (forward, backward, gradient norm, AdamW, packing), each rank single-threaded, as a
// share of the f32 FMA peak measured in the same run. MFU counts model FLOPs with causal attention at half
// the square; CPU seconds of the rank's thread, so other work on the machine does not lower it. dp2 compares
// the wall clock of two ranks on two cores with one rank on half the work.
//
//   124M: hidden 768, 12 layers, 12 heads, SwiGLU 2048 (as many weights as GPT-2's two matrices of 3072),
//   vocabulary 50257, tied.
//   MoE: 8 experts top-2, hidden 512, FFN 1024, 4 layers, 8 heads, vocabulary 8192, 2,048 tokens, untied.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "base/clock.h"
#include "base/random.h"
#include "comm/thread_world.h"
#include "exec/rank_engine.h"
#include "kernels/peak.h"

namespace tessera {
namespace {

class RandomTokens : public exec::BatchSource {
 public:
  RandomTokens(std::int64_t vocab, std::int64_t seq) : vocab_(vocab), seq_(seq) {}
  void fill(std::int64_t index, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const override {
    for (std::int64_t t = 0; t < seq_; ++t) {
      ids[t] = token(index * (seq_ + 1) + t);
      targets[t] = token(index * (seq_ + 1) + t + 1);
    }
  }
  [[nodiscard]] std::int64_t num_targets(std::int64_t, std::int64_t count) const override {
    return count * seq_;
  }

 private:
  [[nodiscard]] std::int32_t token(std::int64_t i) const {
    return static_cast<std::int32_t>(
        uniform_below(static_cast<std::uint64_t>(vocab_), 1, 2, static_cast<std::uint64_t>(i)));
  }
  std::int64_t vocab_, seq_;
};

spec::Job dense_job(std::int64_t batch, std::int64_t seq) {
  spec::Job job;
  job.model.num_hidden_layers = 12;
  job.model.hidden_size = 768;
  job.model.intermediate_size = 2048;
  job.model.num_attention_heads = 12;
  job.model.num_key_value_heads = 12;
  job.model.head_dim = 64;
  job.model.vocab_size = 50257;
  job.model.max_position_embeddings = 1024;
  job.model.tie_word_embeddings = true;
  job.train.steps = 1000;
  job.train.sequence_length = seq;
  job.train.global_batch_size = batch;
  job.train.micro_batch_size = batch;
  return job;
}

spec::Job moe_job() {
  spec::Job job = dense_job(8, 256);
  job.model.family = spec::Family::mixtral;
  job.model.num_hidden_layers = 4;
  job.model.hidden_size = 512;
  job.model.intermediate_size = 1024;
  job.model.num_attention_heads = 8;
  job.model.num_key_value_heads = 8;
  job.model.vocab_size = 8192;
  job.model.tie_word_embeddings = false;
  job.model.moe = spec::MoeSpec{.num_experts = 8, .num_experts_per_tok = 2};
  job.train.moe.aux_loss_coef = 0.01;
  return job;
}

struct Times {
  std::vector<double> wall, cpu;  // of rank 0, per step after the first
  std::map<std::string, double> phases;
};

class Phases : public exec::Observer {
 public:
  explicit Phases(std::map<std::string, double>& sums) : sums_(sums) {}
  void action(const schedule::Action& a, const exec::ActionTime& t) override {
    sums_[std::string(schedule::name(a.kind))] += static_cast<double>(t.cpu_ns) * 1e-9;
  }
  void phase(const char* name, const exec::ActionTime& t) override {
    sums_[name] += static_cast<double>(t.cpu_ns) * 1e-9;
  }

 private:
  std::map<std::string, double>& sums_;
};

Times run(const spec::Job& job, std::int64_t steps) {
  const plan::Plan plan = plan::make_plan(job);
  const RandomTokens data(job.model.vocab_size, job.train.sequence_length);
  comm::ThreadWorld world({.size = plan.layout.world_size()});
  Times times;
  world.run([&](Rank rank) {
    comm::CommWorker worker({.on_unwind = [&] { world.abort(rank, "left"); }});
    exec::RankEngine engine(
        {.plan = &plan,
         .data = &data,
         .rank = rank,
         .kernels = kernels::make_cpu(),
         .communicators = [&](std::span<const Rank> members,
                              std::string_view label) { return world.communicator(rank, members, label); },
         .worker = plan.layout.world_size() > 1 ? &worker : nullptr});
    engine.initialise();
    engine.train_step(0);
    Phases phases(times.phases);
    if (rank.value == 0) engine.set_observer(&phases);
    for (std::int64_t s = 1; s <= steps; ++s) {
      const std::int64_t wall = wall_ns();
      const std::int64_t cpu = thread_cpu_ns();
      engine.train_step(s);
      if (rank.value != 0) continue;
      times.wall.push_back(static_cast<double>(wall_ns() - wall) * 1e-9);
      times.cpu.push_back(static_cast<double>(thread_cpu_ns() - cpu) * 1e-9);
    }
  });
  return times;
}

double median(std::vector<double> v) {
  std::ranges::sort(v);
  return v[v.size() / 2];
}

void report_mfu(benchmark::State& state, const spec::Job& job, std::int64_t steps) {
  const double before = kernels::measure_peaks().fma_f32.value;
  for (auto _ : state) {
    const Times t = run(job, steps);
    const double peak = std::max(before, kernels::measure_peaks().fma_f32.value);
    const auto tokens = static_cast<double>(job.train.global_batch_size * job.train.sequence_length);
    const double seconds = median(t.cpu);
    state.SetIterationTime(seconds);
    state.counters["MFU_percent"] =
        100.0 * tokens *
        spec::train_flops_per_token(job.model, job.train.sequence_length, spec::AttentionFlops::causal) /
        seconds / peak;
    state.counters["MFU_full_square"] =
        100.0 * tokens *
        spec::train_flops_per_token(job.model, job.train.sequence_length, spec::AttentionFlops::full) /
        seconds / peak;
    state.counters["tokens_per_s"] = tokens / seconds;
    state.counters["peak_GFLOPs"] = peak * 1e-9;
    for (const auto& [name, sum] : t.phases) {
      state.counters["ms_" + name] = 1e3 * sum / static_cast<double>(steps);
    }
  }
}

void Dense124M_4x64(benchmark::State& s) {
  report_mfu(s, dense_job(4, 64), 5);
}
void Dense124M_1x1024(benchmark::State& s) {
  report_mfu(s, dense_job(1, 1024), 3);
}
void SmallMoe_2048(benchmark::State& s) {
  report_mfu(s, moe_job(), 5);
}

// Wall clock: one rank on a global batch of n and two ranks on 2 n in turn; the rate must double.
void two_ranks(benchmark::State& state, const spec::ParallelSpec& parallel, std::int64_t batch_factor) {
  const spec::Job one = moe_job();
  spec::Job two = moe_job();
  two.train.global_batch_size *= batch_factor;
  two.parallel = parallel;
  for (auto _ : state) {
    std::vector<double> a, b, speedups;
    for (int round = 0; round < 5; ++round) {
      const std::vector<double> x = run(one, 2).wall;
      const std::vector<double> y = run(two, 2).wall;
      a.insert(a.end(), x.begin(), x.end());
      b.insert(b.end(), y.begin(), y.end());
      speedups.push_back(static_cast<double>(batch_factor) * std::ranges::min(x) / std::ranges::min(y));
    }
    state.SetIterationTime(median(b));
    state.counters["speedup"] = median(speedups);
    state.counters["speedup_of_minima"] =
        static_cast<double>(batch_factor) * std::ranges::min(a) / std::ranges::min(b);
  }
}

void SmallMoe_dp2_speedup(benchmark::State& state) {
  two_ranks(state, {.dp = 2}, 2);
}
void SmallMoe_ep2_speedup(benchmark::State& state) {
  two_ranks(state, {.dp = 2, .ep = 2}, 2);
}
void SmallMoe_etp2_speedup(benchmark::State& state) {
  two_ranks(state, {.dp = 2, .etp = 2}, 2);
}
void SmallMoe_tp2_ep2_speedup(benchmark::State& state) {
  two_ranks(state, {.tp = 2, .ep = 2}, 1);
}

// 64 experts of FFN 128, top-8, against the dense step with the FFN of 8 of them, in turn. CPU time a model
// FLOP, the router's FLOPs counted.
void FineGrained_64_top8_against_dense(benchmark::State& state) {
  spec::Job dense = moe_job();
  dense.model.family = spec::Family::llama;
  dense.model.moe.reset();
  dense.train.moe.aux_loss_coef = 0.0;
  dense.model.intermediate_size = 1024;
  spec::Job fine = moe_job();
  fine.model.intermediate_size = 128;
  fine.model.moe->num_experts = 64;
  fine.model.moe->num_experts_per_tok = 8;
  const auto flops = [](const spec::Job& job) {
    return spec::train_flops_per_token(job.model, job.train.sequence_length, spec::AttentionFlops::causal);
  };
  for (auto _ : state) {
    std::vector<double> times, ratios, phases;
    std::map<std::string, double> of_dense, of_fine;
    for (int round = 0; round < 3; ++round) {
      const Times d = run(dense, 2);
      const Times f = run(fine, 2);
      times.push_back(median(f.cpu));
      ratios.push_back((median(f.cpu) / flops(fine)) / (median(d.cpu) / flops(dense)));
      for (const auto& [name, sum] : d.phases) of_dense[name] += 1e3 * sum / 6.0;
      for (const auto& [name, sum] : f.phases) of_fine[name] += 1e3 * sum / 6.0;
    }
    state.SetIterationTime(median(times));
    state.counters["time_per_flop_of_dense"] = median(ratios);
    state.counters["flops_of_dense"] = flops(fine) / flops(dense);
    for (const auto& [name, ms] : of_dense) state.counters["dense_ms_" + name] = ms;
    for (const auto& [name, ms] : of_fine) state.counters["moe_ms_" + name] = ms;
  }
}

BENCHMARK(Dense124M_4x64)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(Dense124M_1x1024)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(SmallMoe_2048)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(SmallMoe_dp2_speedup)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(SmallMoe_ep2_speedup)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(SmallMoe_etp2_speedup)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(SmallMoe_tp2_ep2_speedup)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(FineGrained_64_top8_against_dense)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tessera
