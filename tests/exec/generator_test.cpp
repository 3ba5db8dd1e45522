// Text from a model: the greedy text is that of whole forward passes, samples depend on prompt and seed
// alone, and every way to end says so.
#include "exec/generator.h"

#include <gmock/gmock.h>

#include <cmath>

#include "exec/inference.h"
#include "exec/scorer.h"
#include "slots.h"
#include "support/emulated_place.h"

namespace tessera::testing {
namespace {

using exec::Completion;
using exec::Finish;
using exec::Generator;
using exec::GeneratorOptions;
using exec::Request;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr exec::SampleOptions kGreedy = {.max_new_tokens = 9, .temperature = 0.0};

std::vector<Request> requests(const exec::SampleOptions& o) {
  std::vector<Request> out;
  for (const std::vector<std::int32_t>& prompt : std::vector<std::vector<std::int32_t>>{
           {5, 6, 7}, {90}, {8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18}, {5, 6, 7}, {44, 4}})
    out.push_back({.prompt = prompt, .sampling = o, .stop_ids = {}});
  return out;
}
std::vector<std::vector<std::int32_t>> tokens_of(const std::vector<Completion>& completions) {
  std::vector<std::vector<std::int32_t>> out;
  for (const Completion& c : completions) out.push_back(c.tokens);
  return out;
}
GeneratorOptions options(const spec::ParallelSpec& p = {}, std::int32_t batch = 1) {
  return {.parallel = p, .dtype = tensor::DType::f64, .context = 32, .batch = batch, .chunk = 4};
}

TEST(Generator, GreedyTextIsThatOfWholeForwardPassesWhateverTheBatchAndTheRanks) {
  for (const char* family : {"llama", "mixtral"}) {
    const GoldenModel m(family);
    std::vector<std::vector<std::int32_t>> want;
    for (const Request& r : requests(kGreedy)) want.push_back(greedy(m, r.prompt, 9));
    for (const spec::ParallelSpec& p : layouts_for(m.spec, 32)) {
      for (const std::int32_t batch : {1, 3}) {
        Generator generator(m.spec, *m.weights, options(p, batch));
        EXPECT_EQ(tokens_of(generator.run(requests(kGreedy))), want)
            << family << " " << text_of(p) << " " << batch;
      }
    }
  }
}

// On the kernels of the CUDA backend, compiled for the host, with tensors in a memory that the host cannot
// touch (docs/gpu.md).
exec::Compute emulated_gpu() {
  return {.kernels = [](Rank) { return kernels::emulated::make_device(); },
          .network = nullptr,
          .on = spec::EngineOn::gpu};
}

TEST(GeneratorOnDevice, GivesTheTextOfTheCpu) {
  for (const char* family : {"llama", "gpt2", "mixtral", "deepseek_v3", "gpt_oss"}) {
    const GoldenModel m(family);
    for (const spec::ParallelSpec& p : {spec::ParallelSpec{}, spec::ParallelSpec{.tp = 2}}) {
      Generator cpu(m.spec, *m.weights, options(p, 3));
      GeneratorOptions on_device = options(p, 3);
      on_device.compute = emulated_gpu();
      Generator gpu(m.spec, *m.weights, on_device);
      EXPECT_EQ(tokens_of(gpu.run(requests(kGreedy))), tokens_of(cpu.run(requests(kGreedy))))
          << family << " " << text_of(p);
    }
  }
}

TEST(GeneratorOnDevice, LogitsInBf16AreNearThoseInF64) {
  const std::vector<std::int32_t> tokens = {5, 6, 7, 90, 8, 9, 10, 11};
  for (const char* family : {"llama", "qwen3", "mixtral"}) {
    const GoldenModel m(family);
    Generator exact(m.spec, *m.weights, options());
    GeneratorOptions narrow = options();
    narrow.dtype = tensor::DType::bf16;
    narrow.compute = emulated_gpu();
    Generator bf16(m.spec, *m.weights, narrow);
    const std::vector<float> want = exact.next_logits(tokens), got = bf16.next_logits(tokens);
    ASSERT_EQ(got.size(), want.size());
    double length = 0.0, away = 0.0;
    for (std::size_t i = 0; i < want.size(); ++i) {
      length += want[i] * want[i];
      away += (got[i] - want[i]) * (got[i] - want[i]);
    }
    EXPECT_LT(std::sqrt(away / length), 0.05) << family;
    EXPECT_GT(away, 0.0) << family << ": this was not bf16";
  }
}

TEST(GeneratorOnDevice, ScoresATextAsTheCpuDoes) {
  std::vector<std::int32_t> text;
  for (std::int32_t i = 0; i < 90; ++i) text.push_back(i * 7 % 90);
  for (const char* family : {"llama", "mixtral"}) {
    const GoldenModel m(family);
    exec::ScoreOptions o{.dtype = tensor::DType::f64, .context = 16, .stride = 8, .batch = 2};
    const exec::Score cpu = exec::score_tokens(m.spec, *m.weights, text, o);
    o.compute = emulated_gpu();
    const exec::Score gpu = exec::score_tokens(m.spec, *m.weights, text, o);
    EXPECT_EQ(gpu.scored, cpu.scored);
    EXPECT_NEAR(gpu.nats, cpu.nats, 1e-9 * cpu.nats) << family;
  }
}

// Shuffled, and every third expert a second time, in every layer otherwise.
std::vector<std::vector<std::int32_t>> replicated_slots(const spec::ModelSpec& model, std::int32_t ep) {
  const std::int32_t experts = model.moe->num_experts;
  const std::vector<std::int32_t> order = shuffled_slots(model, 5);
  std::vector<std::vector<std::int32_t>> layers;
  for (auto first = order.begin(); first != order.end(); first += experts) {
    std::vector<std::int32_t> slots(first, first + experts);
    for (std::int32_t i = 0; i < experts / 2 || std::ssize(slots) % ep != 0; ++i)
      slots.push_back(first[i % experts]);
    layers.push_back(std::move(slots));
  }
  return layers;
}

TEST(Generator, AnyPlacementWithReplicasGivesTheLogitsOfExpertsInOrder) {
  for (const char* family : {"qwen3_moe", "olmoe", "deepseek_v3"}) {
    const GoldenModel m(family);
    for (const spec::ParallelSpec& p :
         std::vector<spec::ParallelSpec>{{}, {.dp = 2, .ep = 2}, {.tp = 2, .dp = 2, .ep = 4}}) {
      GeneratorOptions o = options(p, 3);
      Generator in_order(m.spec, *m.weights, o);
      o.expert_of_slot = replicated_slots(m.spec, p.ep);
      Generator placed(m.spec, *m.weights, o);
      const std::vector<std::int32_t> prompt = {5, 6, 7, 8, 9, 10, 11, 12, 13};
      EXPECT_EQ(placed.next_logits(prompt), in_order.next_logits(prompt)) << family << " " << text_of(p);
      EXPECT_EQ(tokens_of(placed.run(requests(kGreedy))), tokens_of(in_order.run(requests(kGreedy))))
          << family << " " << text_of(p);
    }
  }
}

TEST(Generator, RefusesPlacementsThatDoNotFit) {
  const GoldenModel m("qwen3_moe");
  const auto refused = [&](const std::function<void(std::vector<std::vector<std::int32_t>>&)>& change) {
    GeneratorOptions o = options({.dp = 2, .ep = 2});
    o.expert_of_slot = replicated_slots(m.spec, 2);
    change(o.expert_of_slot);
    try {
      const Generator generator(m.spec, *m.weights, o);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("taken");
  };
  EXPECT_THAT(refused([](auto& slots) { slots.pop_back(); }),
              HasSubstr("slots of 1 layers for a model of 2"));
  EXPECT_THAT(refused([](auto& slots) { std::ranges::fill(slots[1], 3); }),
              HasSubstr("MoE layer 1 does not have"));
  EXPECT_THAT(refused([](auto& slots) {
                for (auto& layer : slots) layer.pop_back();
              }),
              HasSubstr("slots are not shared evenly by ep=2 ranks"));
}

TEST(Generator, SamplesDependOnPromptAndSeedAlone) {
  const GoldenModel m("qwen3_moe");
  exec::SampleOptions o = {.max_new_tokens = 12, .temperature = 1.0, .top_k = 0, .seed = 7};
  Generator one(m.spec, *m.weights, options());
  const auto want = tokens_of(one.run(requests(o)));
  EXPECT_EQ(tokens_of(one.run(requests(o))), want) << "again";
  EXPECT_NE(want[0], want[3]) << "the same prompt twice in one run";
  Generator ranks(m.spec, *m.weights, options({.tp = 2, .ep = 2}, 4));
  EXPECT_EQ(tokens_of(ranks.run(requests(o))), want);
  auto alone = requests(o);
  alone = {alone[2]};
  EXPECT_EQ(tokens_of(one.run(alone))[0], want[2]);
  o.seed = 8;
  EXPECT_NE(tokens_of(one.run(requests(o))), want);
}

TEST(Generator, SaysWhyATextEnds) {
  const GoldenModel m("llama");
  const std::vector<std::int32_t> text = greedy(m, {5, 6, 7}, 9);
  Generator generator(m.spec, *m.weights, options({}, 2));
  std::vector<Request> r(5, {.prompt = {5, 6, 7}, .sampling = kGreedy, .stop_ids = {}});
  r[1].stop_ids = {text[4]};
  r[2].sampling.max_new_tokens = 0;
  r[3].sampling.max_new_tokens = 1000;
  const auto first = static_cast<std::size_t>(std::ranges::find(text, text[4]) - text.begin());
  std::vector<std::int32_t> seen;
  const auto done = generator.run(r, [&](std::size_t request, std::int32_t token) {
    if (request != 4) return true;
    seen.push_back(token);
    return seen.size() < 3;
  });
  EXPECT_EQ(done[0].finish, Finish::length);
  EXPECT_EQ(done[0].tokens, text);
  EXPECT_EQ(done[1].finish, Finish::stop_id);
  EXPECT_EQ(done[1].tokens, std::vector<std::int32_t>(text.begin(), text.begin() + first))
      << "without the stop id";
  EXPECT_TRUE(done[2].tokens.empty());
  EXPECT_EQ(done[3].finish, Finish::context);
  EXPECT_EQ(done[3].tokens.size(), 29U) << "32 with the prompt";
  EXPECT_EQ(done[4].finish, Finish::told_to_stop);
  EXPECT_THAT(done[4].tokens, ElementsAre(text[0], text[1], text[2]));
  EXPECT_EQ(seen, done[4].tokens);
}

TEST(Generator, SlidesOverAFullContextWhereAsked) {
  const GoldenModel m("llama");
  GeneratorOptions o = options();
  o.context = 12;
  o.when_full = exec::WhenFull::slide;
  Generator generator(m.spec, *m.weights, o);
  std::vector<std::int32_t> prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  const auto text = generator.generate(prompt, {.max_new_tokens = 8, .temperature = 0.0});
  ASSERT_EQ(text.size(), 8U);
  prompt.insert(prompt.end(), text.begin(), text.begin() + 3);
  EXPECT_EQ(greedy(m, {prompt.end() - 6, prompt.end()}, 1)[0], text[3])
      << "13 tokens: the older half is gone";
}

TEST(Generator, RefusesWhatItCannotContinueAllAtOnce) {
  const GoldenModel m("llama");
  Generator generator(m.spec, *m.weights, options());
  std::vector<Request> bad(4, {.prompt = {5}, .sampling = kGreedy, .stop_ids = {}});
  bad[0].prompt = {};
  bad[1].prompt.assign(32, 5);
  bad[2].prompt = {101};
  bad[3].sampling.top_p = 0.0;
  try {
    (void)generator.run(bad);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.problems().size(), 4U);
    for (const char* text :
         {"prompt 1", "holds no token", "has 32 tokens, and prompt and text together may have 32",
          "token id 101 is outside of the vocabulary of 101", "top_p 0 is not in (0, 1]"})
      EXPECT_THAT(e.what(), HasSubstr(text));
  }
  EXPECT_EQ(generator.generate(std::vector<std::int32_t>{5}, kGreedy).size(), 9U) << "it still works";
}

TEST(Generator, RefusesLayoutsAndContextsThatTheModelDoesNotHave) {
  const GoldenModel m("gpt2");  // 32 learned positions, 4 heads
  GeneratorOptions o = options({.tp = 3});
  o.context = 40;
  try {
    const Generator generator(m.spec, *m.weights, o);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("tp=3"));
    EXPECT_THAT(e.what(), HasSubstr("40"));
    EXPECT_THAT(e.what(), HasSubstr("32"));
  }
}

TEST(Generator, RefusesDynamicRotaryScalingBeyondThePositions) {
  GoldenModel m("llama");
  m.spec.rope_scaling = {.kind = spec::RopeKind::dynamic, .factor = 2.0};
  GeneratorOptions o = options();
  o.context = m.spec.max_position_embeddings + 1;
  try {
    const Generator generator(m.spec, *m.weights, o);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("beyond 256 positions dynamic rotary scaling"));
    EXPECT_THAT(e.what(), HasSubstr("use up to 256"));
  }
}

TEST(Generator, CountsTheBytesOfATokenOnceHoweverManyRanksHoldThem) {
  const GoldenModel m("mixtral");
  const Generator one(m.spec, *m.weights, options());
  const Generator ranks(m.spec, *m.weights, options({.tp = 2, .etp = 2}));
  // Norms and router are on every tp rank.
  EXPECT_NEAR(ranks.bytes_per_token(10) / one.bytes_per_token(10), 1.0, 0.1);
  double all = 0.0, expected = 0.0;
  for (const auto& name : m.weights->names()) {
    double size = 8.0;
    for (const std::int64_t d : m.weights->shape(name)) size *= static_cast<double>(d);
    if (name.find("embed") != std::string::npos) continue;
    expected += name.find("experts") != std::string::npos ? size * 2 / 5 : size;
  }
  all = one.bytes_per_token(-1);
  EXPECT_NEAR(all, expected, 1e-6 * expected);
}

TEST(Generator, CountsTokensAndTime) {
  const GoldenModel m("llama");
  Generator generator(m.spec, *m.weights, options({}, 2));
  (void)generator.run(requests(kGreedy));
  EXPECT_EQ(generator.speed().prefill_tokens, 2 + 0 + 10 + 2 + 1);
  EXPECT_EQ(generator.speed().decode_tokens, 5 * 9);
  EXPECT_GT(generator.speed().prefill.value, 0.0);
  EXPECT_GT(generator.speed().decode.value, 0.0);
}

// --- scoring

double nats_of(const std::vector<double>& logits, std::int64_t vocab, std::int64_t position,
               std::int32_t target) {
  double sum = 0.0;
  const double* z = logits.data() + position * vocab;
  for (std::int64_t v = 0; v < vocab; ++v) sum += std::exp(z[v]);
  return std::log(sum) - z[target];
}

TEST(Scorer, SumsTheLossOfEveryTokenButTheFirstOnceForAnyStrideAndRanks) {
  const GoldenModel m("qwen2_moe");
  std::vector<std::int32_t> text;
  for (std::int32_t i = 0; i < 30; ++i) text.push_back(4 + i * 37 % 90);
  for (const std::int64_t stride : {8, 3, 1}) {
    double want = 0.0;
    for (std::int64_t begin = 0, done = 1; done < 30; begin += stride) {
      std::vector<std::int32_t> window(text.begin() + begin,
                                       text.begin() + std::min<std::int64_t>(30, begin + 8));
      const std::vector<double> logits = full_logits(m, {window})[0];
      for (; done <= begin + 8 && done < 30; ++done)
        want += nats_of(logits, m.spec.vocab_size, done - 1 - begin, text[done]);
    }
    for (const spec::ParallelSpec& p : std::vector<spec::ParallelSpec>{{}, {.tp = 2}, {.tp = 2, .dp = 2}}) {
      const exec::Score s = exec::score_tokens(
          m.spec, *m.weights, text,
          {.parallel = p, .dtype = tensor::DType::f64, .context = 8, .stride = stride, .batch = 3});
      EXPECT_EQ(s.scored, 29);
      EXPECT_TRUE(std::abs(s.nats - want) <= 1e-9 * want) << "stride " << stride << " " << text_of(p);
    }
  }
}

TEST(Scorer, RefusesStridesThatLeaveTokensOutAndTextsWithNothingToPredict) {
  const GoldenModel m("llama");
  const std::vector<std::int32_t> text = {5};
  try {
    (void)exec::score_tokens(m.spec, *m.weights, text, {.context = 8, .stride = 9});
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("stride=9 is not between 1 and the context of 8"));
    EXPECT_THAT(e.what(), HasSubstr("the text has 1 tokens"));
  }
}

}  // namespace
}  // namespace tessera::testing
