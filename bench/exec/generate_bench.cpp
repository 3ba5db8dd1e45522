// Generation, one sequence on one rank: tokens per second of prefill and decode, and the bytes that a token
// must read (active weights, cache) per second as a share of the read bandwidth measured in the same run. CPU
// seconds of the rank's thread; decode and bandwidth in turn, each the best of five, so that other work on
// the machine lowers neither alone.
//
//   124M: hidden 768, 12 layers, 12 heads, SwiGLU 2048, vocabulary 50257, tied.
//   MoE: 8 experts top-2, hidden 512, FFN 1024, 4 layers, 8 heads, vocabulary 8192, untied.
//   LatentMoe: deepseek_v2 with 16 experts top-4 and 2 shared, hidden 1024, 8 layers, 16 heads, latents of
//   256.
#include <benchmark/benchmark.h>

#include <algorithm>

#include "base/random.h"
#include "exec/generator.h"
#include "kernels/peak.h"

namespace tessera {
namespace {

// Small numbers by name and place.
class MadeUpWeights : public ckpt::WeightSource {
 public:
  void read(const ckpt::Piece& piece) const override {
    const bool norm = piece.num_dims == 1;
    std::uint64_t x = stream_of(piece.name) | 1U;
    for (float& v : piece.data.span<float>()) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      v = norm ? 1.0F : 0.04F * (static_cast<float>(x >> 40) / 16777216.0F - 0.5F);
    }
  }
  [[nodiscard]] std::vector<std::string> names() const override { return {}; }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& /*name*/) const override { return {}; }
};

spec::ModelSpec dense() {
  spec::ModelSpec m;
  m.num_hidden_layers = 12;
  m.hidden_size = 768;
  m.intermediate_size = 2048;
  m.num_attention_heads = 12;
  m.num_key_value_heads = 12;
  m.head_dim = 64;
  m.vocab_size = 50257;
  m.max_position_embeddings = 4096;
  m.tie_word_embeddings = true;
  return m;
}
spec::ModelSpec mixture() {
  spec::ModelSpec m = dense();
  m.family = spec::Family::mixtral;
  m.num_hidden_layers = 4;
  m.hidden_size = 512;
  m.intermediate_size = 1024;
  m.num_attention_heads = 8;
  m.num_key_value_heads = 8;
  m.vocab_size = 8192;
  m.tie_word_embeddings = false;
  m.moe = spec::MoeSpec{.num_experts = 8, .num_experts_per_tok = 2};
  return m;
}
spec::ModelSpec latent() {
  spec::ModelSpec m = mixture();
  m.family = spec::Family::deepseek_v2;
  m.num_hidden_layers = 8;
  m.hidden_size = 1024;
  m.num_attention_heads = 16;
  m.num_key_value_heads = 16;
  m.head_dim = 96;
  m.mla = spec::MlaSpec{.q_lora_rank = 0,
                        .kv_lora_rank = 256,
                        .qk_nope_head_dim = 64,
                        .qk_rope_head_dim = 32,
                        .v_head_dim = 64};
  m.rope_interleaved = true;
  m.moe = spec::MoeSpec{.num_experts = 16, .num_experts_per_tok = 4};
  m.moe->moe_intermediate_size = 512;
  m.moe->shared_intermediate_size = 1024;
  return m;
}

void generate(benchmark::State& state, const spec::ModelSpec& model, std::int64_t prompt_tokens) {
  constexpr std::int64_t kNew = 24;
  exec::Generator generator(model, MadeUpWeights(), {.context = prompt_tokens + kNew});
  exec::Request request{
      .prompt = {}, .sampling = {.max_new_tokens = kNew, .temperature = 0.0}, .stop_ids = {}};
  for (std::int64_t i = 0; i < prompt_tokens; ++i)
    request.prompt.push_back(static_cast<std::int32_t>(i * 7919 % model.vocab_size));
  for (auto _ : state) {
    double decode = 0.0, prefill = 0.0, bytes = 0.0, bandwidth = 0.0;
    for (int round = 0; round < 5; ++round) {
      const exec::GenerationSpeed before = generator.speed();
      (void)generator.run({&request, 1});
      const exec::GenerationSpeed& after = generator.speed();
      const double seconds = after.single_cpu.value - before.single_cpu.value;
      decode = std::max(decode, kNew / seconds);
      bytes = std::max(bytes, (after.single_bytes - before.single_bytes) / seconds);
      prefill = std::max(prefill, static_cast<double>(prompt_tokens - 1) /
                                      (after.prefill_cpu.value - before.prefill_cpu.value));
      bandwidth = std::max(bandwidth, kernels::measure_peaks(kernels::Bandwidth::measure).read.value);
    }
    state.SetIterationTime(1.0 / decode);
    state.counters["decode_tokens_per_s"] = decode;
    state.counters["prefill_tokens_per_s"] = prefill;
    state.counters["MB_per_token"] = generator.bytes_per_token(prompt_tokens + kNew / 2) * 1e-6;
    state.counters["read_GB_per_s"] = bytes * 1e-9;
    state.counters["bandwidth_GB_per_s"] = bandwidth * 1e-9;
    state.counters["share_of_bandwidth_percent"] = 100.0 * bytes / bandwidth;
  }
}

void Generate_dense_after_32(benchmark::State& s) {
  generate(s, dense(), 32);
}
void Generate_dense_after_1024(benchmark::State& s) {
  generate(s, dense(), 1024);
}
void Generate_moe_after_32(benchmark::State& s) {
  generate(s, mixture(), 32);
}
void Generate_latent_moe_after_1024(benchmark::State& s) {
  generate(s, latent(), 1024);
}

BENCHMARK(Generate_dense_after_32)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(Generate_dense_after_1024)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(Generate_moe_after_32)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(Generate_latent_moe_after_1024)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tessera
