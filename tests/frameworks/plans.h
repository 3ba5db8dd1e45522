// Plans to write and read: many layouts of many models, drawn from a counter.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/random.h"
#include "frameworks/files.h"
#include "graph/practice.h"
#include "spec/presets.h"

namespace tessera::frameworks {

inline spec::ModelSpec model_of(const std::string& name) {
  return spec::find_model(name);
}

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : seed_(seed) {}
  template <class T>
  T of(const std::vector<T>& values) {
    return values[uniform_below(values.size(), seed_, 7, next_++)];
  }
  bool coin() { return of<int>({0, 1}) == 1; }

 private:
  std::uint64_t seed_, next_ = 0;
};

// A plan that can be; nullopt: what was drawn does not divide.
inline std::optional<Launch> drawn_plan(const spec::ModelSpec& model, std::uint64_t seed) {
  Draw d(seed);
  spec::Job job;
  job.model = model;
  spec::Recipe& t = job.train;
  spec::ParallelSpec& p = job.parallel;
  const std::vector<std::int32_t> degrees = {1, 1, 2, 4, 8};
  p.tp = d.of(degrees);
  p.cp = d.of<std::int32_t>({1, 1, 2, 4});
  p.pp = d.of(degrees);
  p.dp = d.of<std::int32_t>({1, 2, 4, 8, 16});
  if (model.moe) {
    p.ep = d.of(degrees);
    p.etp = d.of<std::int32_t>({1, 1, 2, p.tp});
  }
  p.schedule = p.pp == 1
                   ? "1f1b"
                   : d.of<std::string>({"1f1b", "interleaved", "zb-h1", "zb-v", "gpipe", "combined-1f1b"});
  p.vpp = p.schedule == "interleaved" ? d.of<std::int32_t>({2, 4, 5}) : p.schedule == "zb-v" ? 2 : 1;
  const std::int32_t stages = p.pp * p.vpp, layers = model.num_hidden_layers;
  if (stages > 1 && (layers % stages != 0 || d.of<int>({0, 0, 1}) == 1) && layers / stages >= 2) {
    p.stage_layers.assign(static_cast<std::size_t>(stages), layers / stages);
    for (std::int32_t s = 0; s < layers % stages; ++s) ++p.stage_layers[static_cast<std::size_t>(s)];
    if (d.coin()) --p.stage_layers.back(), ++p.stage_layers.front();
  } else if (layers % stages != 0) {
    return std::nullopt;
  }
  p.order = d.of<std::string>({"tp-cp-ep-dp-pp", "tp-cp-ep-dp-pp", "tp-cp-ep-pp-dp"});
  t.steps = 1;
  t.sequence_length = d.of<std::int64_t>({2048, 4096, 8192});
  t.micro_batch_size = d.of<std::int64_t>({1, 2, 4});
  t.global_batch_size = t.micro_batch_size * p.dp * p.pp * d.of<std::int64_t>({2, 4, 12});
  using spec::Precision;
  t.precision = d.of<Precision>({Precision::bf16, Precision::bf16, Precision::fp16, Precision::fp8,
                                 Precision::fp8_block, Precision::mxfp8, Precision::nvfp4, Precision::f32});
  t.zero_stage = d.of<std::int32_t>({0, 1, 1, 2, 3});
  t.recompute =
      d.of<spec::Recompute>({spec::Recompute::none, spec::Recompute::full, spec::Recompute::selective});
  if (t.recompute == spec::Recompute::selective)
    t.recompute_modules =
        d.of<std::vector<std::string>>({{"core_attn"}, {"layernorm", "moe_act"}, {"layernorm"}});
  if (model.moe) {
    t.moe.aux_loss_coef = d.of<double>({0.0, model.moe->router_aux_loss_coef, 1e-2});
    t.moe.aux_loss_unit = d.of<spec::BalanceUnit>(
        {spec::BalanceUnit::micro_batch, spec::BalanceUnit::sequence, spec::BalanceUnit::global_batch});
    t.moe.capacity_factor = d.of<double>({0.0, 0.0, 1.25});
    t.moe.drop_policy = d.of<spec::DropPolicy>({spec::DropPolicy::position, spec::DropPolicy::probs});
    t.moe.pad_to_capacity = t.moe.capacity_factor > 0 && d.coin();
    t.moe.z_loss_coef = d.of<double>({0.0, 1e-3});
  }
  Problems problems;
  spec::validate(job, "drawn", problems);
  if (!problems.empty()) return std::nullopt;
  const std::string practice =
      d.of<std::string>({"megatron-bridge-2026", "megatron-core", "megatron-core-plain", "fsdp2-compile",
                         "deepspeed-zero3", "megatron-2021", "megatron-core+ulysses"});
  Machine machine{.devices_per_node = 8, .zero_group = 0};
  if (t.zero_stage > 0 && p.dp >= 4 && d.of<int>({0, 0, 0, 1}) == 1) machine.zero_group = p.cp * 2;
  return launch_of(job, graph::practice(practice), machine);
}

inline std::vector<Launch> drawn_plans(std::int32_t many) {
  std::vector<spec::ModelSpec> models;
  for (const char* name : {"llama-3-8b", "llama-3-70b", "mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b",
                           "gpt3-13b", "gpt-oss-20b", "llama-4-scout", "falcon-40b"})
    models.push_back(model_of(name));
  std::vector<Launch> out;
  for (std::uint64_t seed = 0; static_cast<std::int32_t>(out.size()) < many && seed < 100'000; ++seed) {
    if (auto plan = drawn_plan(models[seed % models.size()], seed)) out.push_back(std::move(*plan));
  }
  return out;
}

inline std::string file_of(Framework f) {
  return f == Framework::torchtitan ? "run.toml" : f == Framework::deepspeed ? "ds.json" : "run.sh";
}

}  // namespace tessera::frameworks
