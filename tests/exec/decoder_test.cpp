// A model that runs token by token with a cache of keys and values gives the logits of the whole forward
// pass: all families, prompts cut into chunks, sequences side by side and of different age, on ranks over tp,
// dp, ep and etp. In f64.
#include "exec/decoder.h"

#include <mutex>

#include "exec/inference.h"

namespace tessera::testing {
namespace {

constexpr std::int64_t kSeq = 20;
constexpr double kBound = 1e-10;  // of the largest logit

struct Place {
  std::int32_t sequence, position;
};
struct Step {
  bool decode;
  std::vector<Place> rows;
};
using Walk = std::vector<Step>;

void add_rows(std::vector<Place>& rows, std::int32_t sequence, std::int32_t from, std::int32_t to) {
  for (std::int32_t p = from; p < to; ++p) rows.push_back({sequence, p});
}
// Both sequences grow by a token at a time: every position has logits.
Walk side_by_side() {
  Walk walk;
  for (std::int32_t p = 0; p < kSeq; ++p) walk.push_back({true, {{0, p}, {1, p}}});
  return walk;
}
// Chunks of one sequence, of both, in the wrong order; then one decodes, then the other joins.
Walk chunks() {
  Walk walk(4, Step{false, {}});
  add_rows(walk[0].rows, 0, 0, 5);
  add_rows(walk[1].rows, 1, 0, 3);
  add_rows(walk[1].rows, 0, 5, 8);
  add_rows(walk[2].rows, 1, 3, 4);
  add_rows(walk[3].rows, 1, 4, 12);
  for (std::int32_t p = 8; p < 11; ++p) walk.push_back({true, {{0, p}}});
  for (std::int32_t p = 12; p < kSeq; ++p) walk.push_back({true, {{1, p}, {0, p - 1}}});
  return walk;
}

using Sequences = std::vector<std::vector<std::int32_t>>;

// The largest difference to the whole forward pass in the share of the largest logit, over all decoded rows.
double worst(const GoldenModel& m, const Sequences& ids, const std::vector<std::vector<double>>& want,
             const spec::ParallelSpec& parallel, const Walk& walk) {
  const std::int64_t vocab = m.spec.vocab_size;
  double scale = 0.0, error = 0.0;
  for (const auto& sequence : want) {
    for (const double z : sequence) scale = std::max(scale, std::abs(z));
  }
  std::mutex mutex;
  comm::ThreadWorld world({.size = parallel.world_size()});
  world.run([&](Rank rank) {
    exec::Decoder decoder(
        {.forward = {.model = m.spec, .parallel = parallel, .dtype = tensor::DType::f64, .context = kSeq},
         .slots = 2 / std::min(2, parallel.dp),
         .chunk = 8},
        rank, factory_of(world, rank), *m.weights);
    const std::int32_t dp = parallel.dp, replica = decoder.model().comms().dp->rank();
    for (const Step& step : walk) {
      std::vector<exec::DecodeRow> rows;
      std::vector<Place> mine;
      std::vector<std::int64_t> counts(static_cast<std::size_t>(dp), 0);
      for (const Place& p : step.rows) {
        ++counts[static_cast<std::size_t>(p.sequence % dp)];
        if (p.sequence % dp != replica) continue;
        rows.push_back({.id = ids[p.sequence][p.position], .slot = p.sequence / dp, .position = p.position});
        mine.push_back(p);
      }
      const std::int64_t most = std::ranges::max(counts);
      if (!step.decode) {
        decoder.prefill(rows, most);
        continue;
      }
      const tensor::Tensor logits = decoder.decode(rows, most);
      const std::lock_guard lock(mutex);
      for (std::size_t i = 0; i < mine.size(); ++i) {
        for (std::int64_t v = 0; v < vocab; ++v) {
          const double d = logits.as<double>()[static_cast<std::int64_t>(i) * vocab + v] -
                           want[mine[i].sequence][mine[i].position * vocab + v];
          if (!(std::abs(d) <= error)) error = std::isnan(d) ? HUGE_VAL : std::abs(d);
        }
      }
    }
  });
  return error / scale;
}

class DecoderOfFamily : public ::testing::TestWithParam<std::string> {};

TEST_P(DecoderOfFamily, EqualsTheWholeForwardPassOnEveryLayout) {
  const GoldenModel m(GetParam());
  const ckpt::SafetensorsFile expected(m.folder + "/expected.safetensors");
  const std::vector<std::int64_t> all = ckpt::to_i64(expected.at("input_ids"));
  Sequences ids;
  for (std::int64_t b = 0; b < 2; ++b) ids.emplace_back(all.begin() + b * kSeq, all.begin() + (b + 1) * kSeq);
  const auto want = full_logits(m, ids);
  const std::vector<spec::ParallelSpec> layouts = layouts_for(m.spec, kSeq);
  EXPECT_GE(layouts.size(), 4U);
  for (const spec::ParallelSpec& p : layouts) {
    for (const Walk& walk : {side_by_side(), chunks()}) {
      const double error = worst(m, ids, want, p, walk);
      EXPECT_TRUE(error < kBound) << text_of(p) << " off by " << error;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, DecoderOfFamily, ::testing::ValuesIn(golden_families()),
                         [](const auto& info) { return info.param; });

TEST(Decoder, RowsOfACallArePaddedLittle) {
  const GoldenModel m("llama");
  const exec::Decoder decoder(
      {.forward = {.model = m.spec, .context = 64}, .slots = 1, .chunk = 40}, Rank(0),
      [](std::span<const Rank>, std::string_view l) { return comm::make_self(l); }, *m.weights);
  EXPECT_EQ(decoder.prefill_rows(1), 1);
  EXPECT_EQ(decoder.prefill_rows(3), 3);  // of 4
  EXPECT_EQ(decoder.prefill_rows(5), 4);  // then 1
  EXPECT_EQ(decoder.prefill_rows(17), 16);
  EXPECT_EQ(decoder.prefill_rows(31), 31);  // of 32
  EXPECT_EQ(decoder.prefill_rows(1000), 40);
}

TEST(Decoder, CacheOfLatentAttentionHoldsOneLatentAndOneKeyForAllHeads) {
  const GoldenModel m("deepseek_v2");
  const exec::Decoder decoder(
      {.forward = {.model = m.spec, .context = 64}, .slots = 1, .chunk = 4}, Rank(0),
      [](std::span<const Rank>, std::string_view l) { return comm::make_self(l); }, *m.weights);
  const std::int64_t row = m.spec.mla->kv_lora_rank + m.spec.mla->qk_rope_head_dim;
  EXPECT_EQ(decoder.cache().bytes_read(9).value, 10 * row * 4 * m.spec.num_hidden_layers);
}

TEST(Decoder, CacheOfAWindowHoldsTheWindow) {
  const GoldenModel m("mistral");  // window 8
  const exec::Decoder decoder(
      {.forward = {.model = m.spec, .context = 256}, .slots = 1, .chunk = 16}, Rank(0),
      [](std::span<const Rank>, std::string_view l) { return comm::make_self(l); }, *m.weights);
  EXPECT_EQ(decoder.cache().layer(0).keys_SGCK.dim(2), 64);  // 8 + 16, whole blocks
  EXPECT_EQ(decoder.cache().bytes_read(200).value,
            8 * 2 * m.spec.num_key_value_heads * m.spec.head_dim * 4 * m.spec.num_hidden_layers);
}

}  // namespace
}  // namespace tessera::testing
