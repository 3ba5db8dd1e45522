// The shipped models against published sizes: parameters in all and of one token, and model FLOPs.
#include <gtest/gtest.h>

#include <cmath>

#include "spec/presets.h"
#include "spec/support.h"

namespace tessera::spec {
namespace {

// Parameter counts that the safetensors headers of the published weights add up to (the model pages of
// Hugging Face print them), or that the authors print in full. A tied table counts once.
struct Exact {
  const char* preset;
  std::int64_t parameters;
  std::int64_t stored_twice = 0;  // of tied tables that the files hold twice
};
const Exact kExact[] = {
    {"llama-2-7b", 6'738'415'616},          // meta-llama/Llama-2-7b-hf
    {"llama-2-13b", 13'015'864'320},        // meta-llama/Llama-2-13b-hf
    {"llama-2-70b", 68'976'648'192},        // meta-llama/Llama-2-70b-hf
    {"llama-3-8b", 8'030'261'248},          // meta-llama/Meta-Llama-3-8B
    {"llama-3-70b", 70'553'706'496},        // meta-llama/Meta-Llama-3-70B
    {"llama-3.1-405b", 405'853'388'800},    // meta-llama/Llama-3.1-405B
    {"llama-3.2-1b", 1'235'814'400},        // meta-llama/Llama-3.2-1B
    {"llama-3.2-3b", 3'212'749'824},        // meta-llama/Llama-3.2-3B
    {"tinyllama-1.1b", 1'100'048'384},      // TinyLlama/TinyLlama-1.1B
    {"mistral-7b-v0.1", 7'241'732'096},     // mistralai/Mistral-7B-v0.1
    {"mistral-7b-v0.3", 7'248'023'552},     // mistralai/Mistral-7B-v0.3
    {"mistral-nemo-12b", 12'247'782'400},   // mistralai/Mistral-Nemo-Base-2407
    {"mistral-small-24b", 23'572'403'200},  // mistralai/Mistral-Small-24B-Base-2501
    {"mixtral-8x7b", 46'702'792'704},       // mistralai/Mixtral-8x7B-v0.1
    {"mixtral-8x22b", 140'620'634'112},     // mistralai/Mixtral-8x22B-v0.1
    {"qwen2-0.5b", 494'032'768},            // Qwen/Qwen2-0.5B
    {"qwen2-1.5b", 1'543'714'304},          // Qwen/Qwen2-1.5B
    {"qwen2-7b", 7'615'616'512},            // Qwen/Qwen2-7B
    {"qwen2-72b", 72'706'203'648},          // Qwen/Qwen2-72B
    {"qwen2.5-3b", 3'085'938'688},          // Qwen/Qwen2.5-3B
    {"qwen2.5-14b", 14'770'033'664},        // Qwen/Qwen2.5-14B
    {"qwen2.5-32b", 32'763'876'352},        // Qwen/Qwen2.5-32B
    {"qwen3-4b", 4'022'468'096},            // Qwen/Qwen3-4B
    {"qwen3-8b", 8'190'735'360},            // Qwen/Qwen3-8B
    {"qwen3-14b", 14'768'307'200},          // Qwen/Qwen3-14B
    {"qwen3-32b", 32'762'123'264},          // Qwen/Qwen3-32B
    {"qwen3-30b-a3b", 30'532'122'624},      // Qwen/Qwen3-30B-A3B
    {"qwen3-235b-a22b", 235'093'634'560},   // Qwen/Qwen3-235B-A22B
    {"qwen1.5-moe-a2.7b", 14'315'784'192},  // Qwen/Qwen1.5-MoE-A2.7B
    {"deepseek-v2-lite", 15'706'484'224},   // deepseek-ai/DeepSeek-V2-Lite
    {"deepseek-v2", 235'741'434'880},       // deepseek-ai/DeepSeek-V2
    {"olmoe-1b-7b", 6'919'161'856},         // allenai/OLMoE-1B-7B-0924
    {"gpt-oss-20b", 20'914'757'184},        // openai/gpt-oss-20b, unpacked
    {"gpt-oss-120b", 116'829'156'672},      // openai/gpt-oss-120b, unpacked
    {"gpt2", 124'439'808},                  // openai-community/gpt2
    {"gpt2-medium", 354'823'168},           // openai-community/gpt2-medium
    {"gpt2-large", 774'030'080},            // openai-community/gpt2-large
    {"gpt2-xl", 1'557'611'200},             // openai-community/gpt2-xl
    {"gpt-neox-20b", 20'554'567'680},       // printed in the card of EleutherAI/gpt-neox-20b
    {"pythia-70m", 70'426'624},             // the table of EleutherAI/pythia, as all of this suite
    {"pythia-160m", 162'322'944},
    {"pythia-410m", 405'334'016},
    {"pythia-1b", 1'011'781'632},
    {"pythia-1.4b", 1'414'647'808},
    {"pythia-2.8b", 2'775'208'960},
    {"pythia-6.9b", 6'857'302'016},
    {"pythia-12b", 11'846'072'320},
    {"mpt-7b", 6'649'286'656},    // mosaicml/mpt-7b
    {"bloom-560m", 559'214'592},  // printed in the cards of bigscience/bloom-*
    {"bloom-1b7", 1'722'408'960},
    {"bloom-3b", 3'002'557'440},
    {"bloom-7b1", 7'069'016'064},
    {"bloom-176b", 176'247'271'424},
    {"falcon-7b", 7'217'189'760, 65'024 * 4'544},       // tiiuae/falcon-7b
    {"falcon-180b", 179'522'565'120, 65'024 * 14'848},  // tiiuae/falcon-180B
};

TEST(PublishedSize, IsExactWhereTheWholeNumberIsPublished) {
  for (const Exact& e : kExact) {
    EXPECT_EQ(num_parameters(model_preset(e.preset)) + e.stored_twice, e.parameters) << e.preset;
  }
}

// What both files hold beside the text model is the same vision encoder and projector.
TEST(PublishedSize, OfLlama4IsThatOfTheFilesLessTheirVisionPart) {
  constexpr std::int64_t kScout = 108'641'793'536;     // meta-llama/Llama-4-Scout-17B-16E
  constexpr std::int64_t kMaverick = 401'583'781'376;  // meta-llama/Llama-4-Maverick-17B-128E
  EXPECT_EQ(kScout - num_parameters(model_preset("llama-4-scout")),
            kMaverick - num_parameters(model_preset("llama-4-maverick")));
}

// Printed in billions: `digit` is the last digit's worth; some authors round, some cut.
struct Printed {
  const char* preset;
  double billions;
  double digit;
};
const Printed kPrinted[] = {
    {"deepseek-v3", 671, 1},                                // arXiv 2412.19437, without the MTP module
    {"moonlight-16b-a3b", 16, 1},                           // arXiv 2502.16982
    {"kimi-k2", 1'000, 100},                                // arXiv 2507.20534
    {"qwen2-57b-a14b", 57, 1},                              // arXiv 2407.10671 table 1
    {"mpt-30b", 30, 1},                                     // mosaicml/mpt-30b
    {"falcon-40b", 41.3, 0.1},                              // arXiv 2311.16867
    {"gpt3-6.7b", 6.7, 0.1},                                // arXiv 2005.14165 table 2.1
    {"gpt3-175b", 175, 1},        {"megatron-22b", 22, 1},  // arXiv 2205.05198 table 3
    {"megatron-175b", 175, 1},    {"megatron-530b", 530, 1},
    {"megatron-1t", 1'000, 100},  {"llama-7b", 6.7, 0.1},  // arXiv 2302.13971 table 2
    {"llama-13b", 13.0, 0.1},     {"llama-30b", 32.5, 0.1},
    {"llama-65b", 65.2, 0.1},     {"qwen3-0.6b", 0.6, 0.1},  // arXiv 2505.09388 table 1
    {"qwen3-1.7b", 1.7, 0.1},
};

TEST(PublishedSize, IsWithinTheLastDigitWhereItIsRounded) {
  for (const Printed& p : kPrinted) {
    const double billions = static_cast<double>(num_parameters(model_preset(p.preset))) * 1e-9;
    EXPECT_TRUE(std::abs(billions - p.billions) <= p.digit) << p.preset << " " << billions;
  }
}

// What authors call active differs: all that a token meets, or without its row of the embedding table, or
// without the head as well.
enum class Counted { all, no_table, no_tables };
struct Active {
  const char* preset;
  double billions;
  double digit;
  Counted counted;
};
const Active kActive[] = {
    {"mixtral-8x7b", 12.9, 0.1, Counted::all},              // mistral.ai/news/mixtral-of-experts
    {"mixtral-8x22b", 39, 1, Counted::all},                 // mistral.ai/news/mixtral-8x22b
    {"qwen1.5-moe-a2.7b", 2.7, 0.1, Counted::all},          // its card
    {"qwen2-57b-a14b", 14, 1, Counted::all},                // arXiv 2407.10671
    {"qwen3-30b-a3b", 3.3, 0.1, Counted::all},              // its card
    {"qwen3-235b-a22b", 22, 1, Counted::all},               // its card
    {"deepseek-v2-lite", 2.4, 0.1, Counted::no_table},      // arXiv 2405.04434 appendix B
    {"deepseek-v2", 21, 1, Counted::all},                   // arXiv 2405.04434
    {"deepseek-v3", 37, 1, Counted::all},                   // arXiv 2412.19437
    {"moonlight-16b-a3b", 2.24, 0.01, Counted::no_tables},  // arXiv 2502.16982 table 3
    {"kimi-k2", 32, 1, Counted::all},                       // arXiv 2507.20534
    {"olmoe-1b-7b", 1.3, 0.1, Counted::all},                // arXiv 2409.02060
    {"gpt-oss-20b", 3.61, 0.01, Counted::no_table},         // arXiv 2508.10925 table 1
    {"gpt-oss-120b", 5.13, 0.01, Counted::no_table},
    {"llama-4-scout", 17, 1, Counted::all},  // ai.meta.com/blog/llama-4-multimodal-intelligence
    {"llama-4-maverick", 17, 1, Counted::all},
};

TEST(PublishedSize, OfWhatATokenUsesIsWithinTheLastDigit) {
  for (const Active& a : kActive) {
    const ModelSpec m = model_preset(a.preset);
    const std::int64_t table = m.vocab_size * m.hidden_size;
    std::int64_t count = num_active_parameters(m);
    if (a.counted != Counted::all) count -= table;
    if (a.counted == Counted::no_tables) count -= table;
    const double billions = static_cast<double>(count) * 1e-9;
    EXPECT_TRUE(std::abs(billions - a.billions) <= a.digit) << a.preset << " " << billions;
  }
  for (const PresetInfo& p : model_presets()) {
    const ModelSpec m = model_preset(p.name);
    if (m.moe) {
      EXPECT_LT(num_active_parameters(m), num_parameters(m)) << p.name;
    } else {
      EXPECT_EQ(num_active_parameters(m), num_parameters(m)) << p.name;
    }
  }
}

TEST(PublishedSize, OfTheMtpModuleIsWhatIsBesideTheMainModel) {
  // 14B with its copies of embedding and head (README of DeepSeek-V3); they are shared here.
  const ModelSpec m = model_preset("deepseek-v3");
  const double tables = 2.0 * 129'280 * 7'168;
  const double billions = (static_cast<double>(num_mtp_parameters(m)) + tables) * 1e-9;
  EXPECT_TRUE(std::abs(billions - 14.0) <= 1.0) << billions;
  // One MoE layer, projection of 2 hidden, three norms.
  EXPECT_EQ(num_mtp_parameters(m), layer_parameters(m, {.moe = true}) + 2 * 7'168 * 7'168 + 3 * 7'168);
  EXPECT_EQ(num_mtp_parameters(model_preset("moonlight-16b-a3b")), 0);
}

TEST(PublishedSize, IsTheSumOfLayersAndTables) {
  for (const PresetInfo& p : model_presets()) {
    const ModelSpec m = model_preset(p.name);
    std::int64_t sum = (m.tie_word_embeddings ? 1 : 2) * m.vocab_size * m.hidden_size;
    if (m.position == PositionKind::learned) sum += m.max_position_embeddings * m.hidden_size;
    const std::int64_t norm = m.norm == NormKind::layer ? 2 * m.hidden_size : m.hidden_size;
    sum += m.embedding_norm ? 2 * norm : norm;
    for (std::int32_t l = 0; l < m.num_hidden_layers; ++l) sum += layer_parameters(m, layer_class(m, l));
    EXPECT_EQ(sum, num_parameters(m)) << p.name;
  }
}

// Equation 3 of arXiv 2104.04473 without its recomputed forward: 72 l h^2 (1 + s/6h + V/12lh) a token, over
// all keys.
TEST(TrainFlops, AreThoseOfMegatronsEquation) {
  for (const char* name : {"megatron-22b", "megatron-175b", "megatron-530b", "megatron-1t"}) {
    const ModelSpec m = model_preset(name);
    const double l = m.num_hidden_layers;
    const auto h = static_cast<double>(m.hidden_size);
    const auto v = static_cast<double>(m.vocab_size);
    const double s = 2048;
    const double expected = 72 * l * h * h * (1 + s / (6 * h) + v / (12 * l * h));
    const double got = train_flops_per_token(m, 2048, AttentionFlops::full);
    EXPECT_TRUE(std::abs(got / expected - 1) <= 1e-12) << name << " " << got << " " << expected;
  }
}

// arXiv 2505.09343 table 4: 15360 sequences of 4096 tokens in 19.926 s on 2048 GPUs are 432 TFLOP/s over all
// keys and 385 causal; the MTP module is not counted there. The 0.3 % above it are not explained.
TEST(TrainFlops, OfDeepseekV3AreThoseOfItsPaper) {
  ModelSpec m = model_preset("deepseek-v3");
  m.num_nextn_predict_layers = 0;
  const double per_second = 15'360.0 * 4'096 / 19.926 / 2'048 * 1e-12;
  const double full = train_flops_per_token(m, 4'096, AttentionFlops::full) * per_second;
  const double causal = train_flops_per_token(m, 4'096, AttentionFlops::causal) * per_second;
  EXPECT_TRUE(std::abs(full / 432 - 1) <= 0.005) << full;
  EXPECT_TRUE(std::abs(causal / 385 - 1) <= 0.005) << causal;
}

// 3.8e25 FLOPs on 15.6e12 tokens at 8k (arXiv 2407.21783 sections 1 and 3.1): 2.44e12 a token.
TEST(TrainFlops, OfLlama405bAreThoseOfItsPaper) {
  const double got = train_flops_per_token(model_preset("llama-3.1-405b"), 8'192, AttentionFlops::causal);
  EXPECT_TRUE(std::abs(got * 15.6e12 / 3.8e25 - 1) <= 0.05) << got;
}

TEST(TrainFlops, CountTheKeysOfEveryKindOfLayer) {
  ModelSpec m = model_preset("gpt-oss-20b");
  m.attention_chunk = 100;
  for (const std::int64_t seq : {1, 7, 99, 100, 101, 128, 129, 250, 1000}) {
    std::int64_t sliding = 0;
    std::int64_t chunked = 0;
    for (std::int64_t i = 0; i < seq; ++i) {
      sliding += std::min<std::int64_t>(i + 1, 128);
      chunked += i % 100 + 1;
    }
    const auto mean = [&](AttentionSpan span) { return mean_keys(m, span, seq, AttentionFlops::causal); };
    const auto s = static_cast<double>(seq);
    EXPECT_DOUBLE_EQ(mean(AttentionSpan::full), (s + 1) / 2);
    EXPECT_DOUBLE_EQ(mean(AttentionSpan::sliding), static_cast<double>(sliding) / s) << seq;
    EXPECT_DOUBLE_EQ(mean(AttentionSpan::chunked), static_cast<double>(chunked) / s) << seq;
    EXPECT_DOUBLE_EQ(mean_keys(m, AttentionSpan::sliding, seq, AttentionFlops::full), std::min(s, 128.0));
  }
  // Half of the layers slide.
  const double both = mean_keys(m, AttentionSpan::full, 4096, AttentionFlops::causal) +
                      mean_keys(m, AttentionSpan::sliding, 4096, AttentionFlops::causal);
  ModelSpec none = m;
  none.layer_spans.clear();
  const double a = train_flops_per_token(m, 4096, AttentionFlops::causal);
  const double b = train_flops_per_token(none, 4096, AttentionFlops::causal);
  EXPECT_DOUBLE_EQ(b - a, 12.0 * 4096 * (24 * 4097 / 2.0 - 12 * both));
}

TEST(TrainFlops, OfLatentAttentionUseItsOwnHeadSizes) {
  ModelSpec m = model_preset("deepseek-v2-lite");
  const double at = train_flops_per_token(m, 4096, AttentionFlops::full);
  const double twice = train_flops_per_token(m, 8192, AttentionFlops::full);
  EXPECT_DOUBLE_EQ(twice - at, 3.0 * 2 * 27 * 4096 * 16 * (192 + 128));
  m.num_nextn_predict_layers = 1;
  const double mtp = train_flops_per_token(m, 4096, AttentionFlops::full) - at;
  const std::int64_t norms = 2 * 2048 + 512;
  const double weights = static_cast<double>(layer_active_parameters(m, {.moe = true}) - norms) +
                         2.0 * 2048 * 2048 + 102'400.0 * 2048;
  EXPECT_DOUBLE_EQ(mtp, 6 * weights + 3.0 * 2 * 4096 * 16 * (192 + 128));
}

}  // namespace
}  // namespace tessera::spec
