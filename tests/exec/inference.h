// Support of the tests of generation: golden checkpoints, whole forward passes without a cache, layouts.
#pragma once
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "ckpt/safetensors.h"
#include "comm/thread_world.h"
#include "exec/forward_model.h"

namespace tessera::testing {

inline std::vector<std::string> golden_families() {
  return {"llama",     "mistral",   "qwen2", "qwen3",       "gpt2",        "mixtral",
          "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss"};
}

struct GoldenModel {
  explicit GoldenModel(const std::string& family)
      : folder(fmt::format("{}/tests/golden/hf/{}", TESSERA_SOURCE_DIR, family)),
        spec(spec::read_hf_config(folder)),
        weights(ckpt::open_hf_folder(folder)) {}
  std::string folder;
  spec::ModelSpec spec;
  std::unique_ptr<ckpt::WeightSource> weights;
};

inline exec::CommFactory factory_of(comm::ThreadWorld& world, Rank rank) {
  return [&world, rank](std::span<const Rank> members, std::string_view label) {
    return world.communicator(rank, members, label);
  };
}

// Logits [sequence][position * vocabulary] of whole sequences of equal length in f64, on one rank, without a
// cache.
inline std::vector<std::vector<double>> full_logits(const GoldenModel& m,
                                                    const std::vector<std::vector<std::int32_t>>& sequences) {
  const auto batch = std::ssize(sequences), seq = std::ssize(sequences.at(0));
  exec::ForwardModel model(
      {.model = m.spec, .dtype = tensor::DType::f64, .context = seq}, Rank(0),
      [](std::span<const Rank>, std::string_view label) { return comm::make_self(label); });
  std::unique_ptr<exec::Stage> stage;
  tensor::Tensor ids, targets;
  model.set_up([&](tensor::Arena& arena) {
    stage = model.make_stage(batch, seq, exec::ForwardModel::Parts::all, false);
    stage->reserve_live({.live = 1, .deferred = 0, .gradient = 0}, arena);
    for (tensor::Tensor* t : {&ids, &targets}) *t = arena.take(tensor::DType::i32, {batch * seq});
    return stage->scratch_size();
  });
  model.load(*m.weights);
  for (std::int64_t i = 0; i < batch * seq; ++i) {
    ids.as<std::int32_t>()[i] = sequences[i / seq].at(i % seq);
    targets.as<std::int32_t>()[i] = -1;
  }
  nn::Context ctx = model.context();
  stage->forward(ctx, {.live = 0, .deferred = 0, .gradient = 0}, {.ids_T = ids, .targets_T = targets});
  std::vector<std::vector<double>> out;
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto rows = stage->head().logits(0).narrow_rows(b * seq, seq).span<double>();
    out.emplace_back(rows.begin(), rows.end());
  }
  return out;
}

inline std::vector<std::int32_t> greedy(const GoldenModel& m, std::vector<std::int32_t> tokens, int count) {
  std::vector<std::int32_t> made;
  for (int i = 0; i < count; ++i) {
    const std::vector<double> logits = full_logits(m, {tokens})[0];
    const auto last = logits.end() - m.spec.vocab_size;
    made.push_back(static_cast<std::int32_t>(std::max_element(last, logits.end()) - last));
    tokens.push_back(made.back());
  }
  return made;
}

// Those of these layouts that a model can be cut into.
inline std::vector<spec::ParallelSpec> layouts_for(const spec::ModelSpec& model, std::int64_t context) {
  std::vector<spec::ParallelSpec> out;
  for (const spec::ParallelSpec& p : std::vector<spec::ParallelSpec>{{},
                                                                     {.tp = 2},
                                                                     {.dp = 2},
                                                                     {.tp = 2, .dp = 2},
                                                                     {.tp = 4},
                                                                     {.dp = 2, .ep = 2},
                                                                     {.tp = 2, .ep = 2},
                                                                     {.tp = 2, .dp = 2, .ep = 4},
                                                                     {.tp = 2, .etp = 2},
                                                                     {.tp = 2, .dp = 2, .ep = 2, .etp = 2}}) {
    Problems problems;
    exec::check_forward({.model = model, .parallel = p, .context = context}, problems);
    if (problems.empty()) out.push_back(p);
  }
  return out;
}

inline std::string text_of(const spec::ParallelSpec& p) {
  return fmt::format("tp {} dp {} ep {} etp {}", p.tp, p.dp, p.ep, p.etp);
}

}  // namespace tessera::testing
