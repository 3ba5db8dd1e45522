// Sizes of blocks: held to the published forms of activation memory (arXiv 2205.05198 Table 2), to the
// layout's parameters on every rank where the families meet, and to the number of parameters of whole models.
#include "graph/block_size.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "layout/layout.h"
#include "spec/presets.h"

namespace tessera::graph {
namespace {

using spec::Recompute;

constexpr std::int64_t kSeq = 2048, kBatch = 3, kHidden = 6144, kHeads = 48;

spec::ModelSpec gpt() {
  spec::ModelSpec m;
  m.family = spec::Family::gpt2;
  m.num_hidden_layers = 8;
  m.hidden_size = kHidden;
  m.intermediate_size = 4 * kHidden;
  m.num_attention_heads = m.num_key_value_heads = static_cast<std::int32_t>(kHeads);
  m.head_dim = kHidden / kHeads;
  m.vocab_size = 51200;
  m.max_position_embeddings = kSeq;
  m.norm = spec::NormKind::layer;
  m.position = spec::PositionKind::learned;
  m.gated_mlp = false;
  m.attention_qkv_bias = m.attention_out_bias = m.mlp_bias = true;
  m.tie_word_embeddings = true;
  return m;
}

// LLaMA 3 8B and Mixtral 8x7B in their proportions.
spec::ModelSpec llama() {
  spec::ModelSpec m;
  m.num_hidden_layers = 6;
  m.hidden_size = 512;
  m.intermediate_size = 1792;
  m.num_attention_heads = 8;
  m.num_key_value_heads = 4;
  m.head_dim = 64;
  m.vocab_size = 4096;
  m.max_position_embeddings = kSeq;
  return m;
}
spec::ModelSpec mixtral() {
  spec::ModelSpec m = llama();
  m.family = spec::Family::mixtral;
  m.moe = spec::MoeSpec{.num_experts = 8, .num_experts_per_tok = 2};
  return m;
}
spec::ModelSpec deepseek() {
  spec::ModelSpec m;
  m.family = spec::Family::deepseek_v3;
  m.num_hidden_layers = 4;
  m.hidden_size = 7168;
  m.intermediate_size = 18432;
  m.num_attention_heads = m.num_key_value_heads = 128;
  m.head_dim = 192;
  m.vocab_size = 129280;
  m.max_position_embeddings = 4096;
  m.mla = spec::MlaSpec{.q_lora_rank = 1536,
                        .kv_lora_rank = 512,
                        .qk_nope_head_dim = 128,
                        .qk_rope_head_dim = 64,
                        .v_head_dim = 128};
  m.moe = spec::MoeSpec{.num_experts = 256,
                        .num_experts_per_tok = 8,
                        .moe_intermediate_size = 2048,
                        .shared_intermediate_size = 2048,
                        .first_k_dense_replace = 1};
  return m;
}

Practice classic() {  // of the paper: scores written out, dropout
  Practice p;
  p.flash_attention = false;
  p.dropout = true;
  p.separate_sequence_gather = true;
  return p;
}

// Inputs that are gathered over tp are gathered again in backward, as Megatron does.
Practice flash() {
  Practice p;
  p.separate_sequence_gather = true;
  return p;
}

Cut classic_cut(std::int32_t tp, bool sequence_parallel) {
  return {
      .micro_batch_size = kBatch, .sequence_length = kSeq, .tp = tp, .sequence_parallel = sequence_parallel};
}
constexpr std::int64_t kSbh = kSeq * kBatch * kHidden;
constexpr std::int64_t kScores = 5 * kHeads * kSeq / kHidden;  // 5 a s / h, a whole number here
static_assert(5 * kHeads * kSeq % kHidden == 0);
constexpr spec::LayerClass kDense{};
constexpr spec::LayerClass kMoe{.moe = true};

TEST(LayerSaved, IsThePublishedFormWithoutParallelism) {
  const SavedBytes saved = layer_saved(gpt(), kDense, classic_cut(1, false), classic());
  EXPECT_EQ(saved.total().value, kSbh * (34 + kScores));
  EXPECT_EQ(saved.core.value, kSbh * kScores);
}

TEST(LayerSaved, IsThePublishedFormWithTensorParallelism) {
  for (const std::int32_t t : {2, 4, 8, 16}) {
    const SavedBytes saved = layer_saved(gpt(), kDense, classic_cut(t, false), classic());
    EXPECT_EQ(saved.total().value, kSbh * 10 + kSbh / t * (24 + kScores)) << t;
  }
}

TEST(LayerSaved, IsThePublishedFormWithSequenceParallelism) {
  for (const std::int32_t t : {2, 4, 8, 16}) {
    const SavedBytes saved = layer_saved(gpt(), kDense, classic_cut(t, true), classic());
    EXPECT_EQ(saved.total().value, kSbh / t * (34 + kScores)) << t;
    const std::uint32_t core = module_bits({"core_attn"});
    EXPECT_EQ(saved.kept(Recompute::selective, core).value, kSbh / t * 34) << t;
    EXPECT_EQ(saved.kept(Recompute::full, 0).value, kSbh / t * 2) << t;
  }
  // The paper keeps whole inputs with full recomputation and no sequence parallelism.
  const SavedBytes whole = layer_saved(gpt(), kDense, classic_cut(8, false), classic());
  EXPECT_EQ(whole.kept(Recompute::full, 0).value, kSbh * 2);
}

TEST(LayerSaved, IsTheFlashAttentionFormOfALlamaLayer) {
  const spec::ModelSpec m = llama();
  const Cut cut{.micro_batch_size = 2, .sequence_length = kSeq, .tp = 2, .cp = 2};
  const std::int64_t tokens = 2 * kSeq / 2;
  const SavedBytes saved = layer_saved(m, kDense, cut, flash());
  const std::int64_t kv = m.kv_dim();
  const std::int64_t a_token =
      12 * m.hidden_size + 4 * kv + 4 * m.num_attention_heads + 6 * m.intermediate_size;
  EXPECT_EQ(saved.total().value, tokens / 2 * a_token);
}

TEST(LayerSaved, KeepsGatheredInputsWhereTheyAreNotGatheredAgain) {
  const spec::ModelSpec m = llama();
  const Cut cut{.sequence_length = kSeq, .tp = 4};
  const SavedBytes again = layer_saved(m, kDense, cut, flash());
  const SavedBytes stored = layer_saved(m, kDense, cut, Practice{});
  EXPECT_EQ(stored.norm.value, 4 * again.norm.value);
  EXPECT_EQ(stored.input, again.input);
}

TEST(LayerSaved, IsTheFormOfMlaAndOfExperts) {
  const spec::ModelSpec m = deepseek();
  const spec::MlaSpec& a = *m.mla;
  const std::int64_t tokens = 4096, heads = m.num_attention_heads, h = m.hidden_size;
  const std::int64_t qk = a.qk_nope_head_dim + a.qk_rope_head_dim;
  const std::int64_t attention = 4 * h + 4 * a.q_lora_rank + 2 * (a.kv_lora_rank + a.qk_rope_head_dim) +
                                 2 * a.kv_lora_rank + 2 * heads * (2 * qk + a.v_head_dim) +
                                 2 * heads * a.v_head_dim + 4 * heads;
  const Cut cut{.sequence_length = tokens, .ep = 8};
  EXPECT_EQ(layer_saved(m, kDense, cut, flash()).total().value,
            tokens * (attention + 4 * h + 6 * m.intermediate_size));
  const std::int64_t experts = 8 * (2 * h + 6 * 2048) + 6 * 2048 + 4 * 256;
  const SavedBytes saved = layer_saved(m, kMoe, cut, flash());
  EXPECT_EQ(saved.total().value, tokens * (attention + 4 * h + experts));
  EXPECT_EQ(saved.experts.value, tokens * 8 * (2 * h + 4 * 2048));
}

TEST(LayerSaved, KeepsTheInputsOfProductsNarrowWithAnFp8Recipe) {
  const spec::ModelSpec m = llama();
  Cut cut{.sequence_length = kSeq};
  const SavedBytes wide = layer_saved(m, kDense, cut, flash());
  cut.precision = spec::Precision::fp8;
  const SavedBytes narrow = layer_saved(m, kDense, cut, flash());
  EXPECT_EQ(2 * narrow.norm.value, wide.norm.value);
  EXPECT_EQ(2 * narrow.activation.value, wide.activation.value);
  EXPECT_EQ(narrow.mlp, wide.mlp);
  EXPECT_EQ(narrow.input, wide.input);
  EXPECT_LT(narrow.total(), wide.total());
}

TEST(SavedBytes, RecomputesTheModulesOfMegatronCore) {
  const SavedBytes dense = layer_saved(llama(), kDense, Cut{.sequence_length = kSeq}, flash());
  const SavedBytes moe = layer_saved(deepseek(), kMoe, Cut{.sequence_length = kSeq, .ep = 8}, flash());
  const auto less = [](const SavedBytes& s, const std::vector<std::string>& modules) {
    return s.total() - s.kept(Recompute::selective, module_bits(modules));
  };
  EXPECT_EQ(less(dense, {"core_attn"}), dense.core);
  EXPECT_EQ(less(dense, {"layernorm"}), dense.norm);
  EXPECT_EQ(less(dense, {"mlp"}), dense.mlp + dense.activation);
  EXPECT_EQ(less(dense, {"moe", "moe_act", "shared_experts"}), Bytes(0));
  EXPECT_EQ(less(moe, {"mlp"}), Bytes(0));
  EXPECT_EQ(less(moe, {"moe_act"}), moe.activation);
  EXPECT_EQ(less(moe, {"shared_experts"}), moe.mlp);
  EXPECT_EQ(less(moe, {"mla_up_proj"}), moe.up_proj);
  EXPECT_EQ(less(moe, {"moe"}), moe.mlp + moe.activation + moe.experts + moe.router);
  EXPECT_EQ(less(moe, {"layernorm", "moe_act"}), moe.norm + moe.activation);
  // The engine's own recomputation, named by no module.
  EXPECT_EQ(dense.total() - dense.kept(Recompute::selective, 0), dense.norm + dense.activation);
  EXPECT_EQ(dense.kept(Recompute::none, 0), dense.total());
}

TEST(SavedBytes, RefusesAModuleOfAnotherName) {
  try {
    (void)module_bits({"layernorm", "attention"});
    FAIL() << "no error";
  } catch (const Error& e) {
    ASSERT_EQ(e.problems().size(), 1U);
    EXPECT_NE(e.problems()[0].what.find("'attention'"), std::string::npos);
    EXPECT_NE(e.problems()[0].mend.find("core_attn"), std::string::npos);
  }
}

TEST(HeadLogits, TakeWhatTheLossOfThePracticeTakes) {
  const spec::ModelSpec m = llama();
  const Cut cut{.sequence_length = kSeq, .tp = 2};
  const std::int64_t logits = kSeq * m.vocab_size / 2;
  const auto peak = [&](const Practice& p) {
    const Bytes gathered(2 * kSeq * m.hidden_size);
    return (head_logits(m, cut, p) + head_transients(m, cut, p).backward - gathered).value;
  };
  Practice p;
  EXPECT_EQ(head_logits(m, cut, p).value, 4 * logits);  // the softmax in f32
  EXPECT_EQ(peak(p), 6 * logits);
  p.loss_bytes = 10;
  EXPECT_EQ(peak(p), 10 * logits);
  p.gathered_logits = true;
  EXPECT_EQ(peak(p), 2 * 10 * logits);
  p = Practice{};
  p.fused_cross_entropy = true;
  EXPECT_EQ(head_logits(m, cut, p).value, 2 * logits);
  EXPECT_EQ(peak(p), 4 * logits);
}

// What a rank holds by this room's sizes, stage by stage.
BlockParams by_blocks(const spec::ModelSpec& m, const layout::Layout& layout, Rank rank, const Cut& cut) {
  BlockParams sum;
  const auto add = [&](const BlockParams& p) {
    sum.dense += p.dense;
    sum.replicated += p.replicated;
    sum.expert += p.expert;
  };
  for (const StageId id : layout.stages_of(rank)) {
    const layout::StageCut& stage = layout.stages[static_cast<std::size_t>(id.value)];
    for (std::int32_t i = 0; i < stage.num_layers; ++i)
      add(layer_params(m, spec::layer_class(m, stage.first_layer + i), cut));
    if (stage.has_embedding) add(embedding_params(m, cut));
    if (stage.has_head)
      add(head_params(m, cut, stage.has_embedding ? TiedHead::shares_table : TiedHead::own_copy));
  }
  return sum;
}

void expect_layout_agrees(const spec::ModelSpec& m, const spec::ParallelSpec& p) {
  const layout::Layout layout = layout::make_layout(m, p, layout::Placement::loop);
  const Cut cut{.sequence_length = kSeq, .tp = p.tp, .cp = p.cp, .ep = p.ep, .etp = p.etp};
  for (std::int32_t r = 0; r < layout.world_size(); ++r) {
    std::int64_t dp = 0, tp_dp = 0, edp = 0;
    for (const layout::ParamSpec& param : layout::parameters(m, layout, Rank(r))) {
      if (param.tied_copy && p.pp == 1) continue;  // beside the embedding it has no memory of its own
      switch (param.group) {
        case layout::GradGroup::dp:
          dp += param.num_elements();
          break;
        case layout::GradGroup::tp_dp:
          tp_dp += param.num_elements();
          break;
        case layout::GradGroup::edp:
          edp += param.num_elements();
          break;
      }
    }
    const BlockParams own = by_blocks(m, layout, Rank(r), cut);
    EXPECT_EQ(own.dense, dp + tp_dp) << "rank " << r;
    EXPECT_EQ(own.expert, edp) << "rank " << r;
    if (p.tp > 1) {
      EXPECT_EQ(own.replicated, tp_dp) << "rank " << r;
    }
  }
}

TEST(BlockParams, AreThoseOfTheLayoutOnEveryRank) {
  for (const bool tied : {false, true}) {
    for (spec::ModelSpec m : {llama(), mixtral()}) {
      m.tie_word_embeddings = tied;
      expect_layout_agrees(m, {});
      expect_layout_agrees(m, {.tp = 4, .dp = 2});
      expect_layout_agrees(m, {.tp = 2, .dp = 2, .pp = 2});
      expect_layout_agrees(m, {.dp = 2, .pp = 3, .vpp = 2, .schedule = "interleaved"});
      if (!m.moe) continue;
      expect_layout_agrees(m, {.tp = 2, .dp = 4, .ep = 4, .etp = 2});
      expect_layout_agrees(m, {.dp = 8, .ep = 8});
      expect_layout_agrees(m, {.tp = 4, .dp = 2, .pp = 2, .ep = 8});
    }
  }
}

TEST(BlockParams, AddUpToTheWholeModel) {
  const auto whole = [](const spec::ModelSpec& m) {
    const Cut cut{.sequence_length = 1};
    std::int64_t sum = embedding_params(m, cut).total() + head_params(m, cut, TiedHead::shares_table).total();
    for (std::int32_t i = 0; i < m.num_hidden_layers; ++i)
      sum += layer_params(m, spec::layer_class(m, i), cut).total();
    return sum;
  };
  for (const spec::PresetInfo& preset : spec::model_presets()) {
    const spec::ModelSpec m = spec::model_preset(preset.name);
    EXPECT_EQ(whole(m), spec::num_parameters(m)) << preset.name;
  }
}

TEST(MtpParams, AreOneLayerWithItsProjectionAndNorms) {
  const spec::ModelSpec m = deepseek();
  const Cut cut{.sequence_length = 1, .tp = 2, .ep = 4};
  const BlockParams layer = layer_params(m, kMoe, cut);
  const BlockParams mtp = mtp_params(m, cut);
  EXPECT_EQ(mtp.expert, layer.expert);
  EXPECT_EQ(mtp.dense - layer.dense, 3 * m.hidden_size + m.hidden_size * m.hidden_size);
}

TEST(LayerTransients, GrowWithTheGradientsOfTheMlp) {
  const spec::ModelSpec m = llama();
  const Cut cut{.sequence_length = kSeq, .tp = 2};
  const Transients t = layer_transients(m, kDense, cut, flash());
  EXPECT_EQ(t.backward.value, kSeq * (4 * m.hidden_size + 6 * m.intermediate_size / 2));
  EXPECT_LT(t.forward, t.backward);
}

}  // namespace
}  // namespace tessera::graph
