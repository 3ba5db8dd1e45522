// The parameter lists of all families that the engine trains: order, cuts, groups, owners.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "base/text.h"
#include "layout/layout.h"

namespace tessera::layout {
namespace {

using spec::ModelSpec;
using spec::ParallelSpec;

// The small published form of a family, with sizes that two ranks can share.
ModelSpec small_model(const std::string& family) {
  ModelSpec m = spec::read_hf_config(std::filesystem::path(TESSERA_SOURCE_DIR) / "tests/golden/hf" / family);
  m.vocab_size = 24;
  if (m.moe) m.moe->num_experts = 8;
  return m;
}

std::vector<ParamSpec> alone(const ModelSpec& m) {
  return parameters(m, make_layout(m, {}, Placement::loop), Rank(0));
}

// The names of one layer without "model.layers.0.", of experts the first only, as one text.
std::string layer_names(const ModelSpec& m, std::int32_t layer) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  std::vector<std::string> names;
  for (const ParamSpec& p : alone(m)) {
    if (p.layer != layer || p.expert > 0) continue;
    EXPECT_TRUE(p.name.starts_with(prefix)) << p.name;
    names.push_back(p.name.substr(prefix.size()));
  }
  return join(names, " ");
}

constexpr const char* kNorms[] = {"input_layernorm.weight ", " post_attention_layernorm.weight "};
const std::string kQkvo =
    "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight";
const std::string kQkv = "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight ";
const std::string kQkvBias = "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias ";
const std::string kMlp = "mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight";
const std::string kExpert =
    "mlp.experts.0.gate_proj.weight mlp.experts.0.up_proj.weight mlp.experts.0.down_proj.weight";

std::string layer_text(const std::string& attention, const std::string& feed_forward) {
  return kNorms[0] + attention + kNorms[1] + feed_forward;
}

TEST(FamilyParameters, OfTheDenseLineStandInOrder) {
  EXPECT_EQ(layer_names(small_model("llama"), 1), layer_text(kQkvo, kMlp));
  EXPECT_EQ(layer_names(small_model("mistral"), 0), layer_text(kQkvo, kMlp));
  EXPECT_EQ(layer_names(small_model("qwen2"), 0),
            layer_text(kQkv + kQkvBias + "self_attn.o_proj.weight", kMlp));
  EXPECT_EQ(
      layer_names(small_model("qwen3"), 0),
      layer_text(kQkv + "self_attn.q_norm.weight self_attn.k_norm.weight self_attn.o_proj.weight", kMlp));
  ModelSpec biased = small_model("llama");
  biased.attention_qkv_bias = biased.attention_out_bias = biased.mlp_bias = true;
  EXPECT_EQ(layer_names(biased, 0),
            layer_text(kQkv + kQkvBias + "self_attn.o_proj.weight self_attn.o_proj.bias",
                       kMlp + " mlp.gate_proj.bias mlp.up_proj.bias mlp.down_proj.bias"));
}

TEST(FamilyParameters, OfGpt2HaveNormBiasesPositionsAndOneMatrixUp) {
  const ModelSpec m = small_model("gpt2");
  EXPECT_EQ(layer_names(m, 1),
            "input_layernorm.weight input_layernorm.bias " + kQkv + kQkvBias +
                "self_attn.o_proj.weight self_attn.o_proj.bias post_attention_layernorm.weight "
                "post_attention_layernorm.bias mlp.up_proj.weight mlp.down_proj.weight mlp.up_proj.bias "
                "mlp.down_proj.bias");
  const auto list = alone(m);
  EXPECT_EQ(list[0].kind, ParamKind::embedding);
  EXPECT_EQ(list[1].kind, ParamKind::position);
  EXPECT_EQ(list[1].name, "model.embed_positions.weight");
  EXPECT_EQ(list[1].global, (std::array<std::int64_t, 2>{32, 32}));
  EXPECT_TRUE(list[1].weight_decay);
  EXPECT_EQ(list[list.size() - 2].name, "model.norm.bias");
  EXPECT_EQ(list[list.size() - 2].kind, ParamKind::norm_bias);
  EXPECT_TRUE(list.back().tied_copy);
}

TEST(FamilyParameters, OfMoeFamiliesStandInOrderUnderTheirOwnNames) {
  EXPECT_EQ(layer_names(small_model("mixtral"), 0),
            layer_text(kQkvo,
                       "block_sparse_moe.gate.weight block_sparse_moe.experts.0.w1.weight "
                       "block_sparse_moe.experts.0.w3.weight block_sparse_moe.experts.0.w2.weight"));
  const std::string normed = kQkv + "self_attn.q_norm.weight self_attn.k_norm.weight self_attn.o_proj.weight";
  EXPECT_EQ(layer_names(small_model("qwen3_moe"), 0), layer_text(normed, "mlp.gate.weight " + kExpert));
  EXPECT_EQ(layer_names(small_model("olmoe"), 0), layer_text(normed, "mlp.gate.weight " + kExpert));
  const ModelSpec qwen = small_model("qwen2_moe");
  const std::string biased = kQkv + kQkvBias + "self_attn.o_proj.weight";
  EXPECT_EQ(layer_names(qwen, 0), layer_text(biased, kMlp));
  EXPECT_EQ(layer_names(qwen, 1),
            layer_text(biased,
                       "mlp.gate.weight mlp.shared_expert.gate_proj.weight "
                       "mlp.shared_expert.up_proj.weight mlp.shared_expert.down_proj.weight "
                       "mlp.shared_expert_gate.weight " +
                           kExpert));
  EXPECT_EQ(layer_names(small_model("gpt_oss"), 0),
            layer_text(kQkv + kQkvBias + "self_attn.sinks self_attn.o_proj.weight self_attn.o_proj.bias",
                       "mlp.router.weight mlp.router.bias mlp.experts.0.gate_proj.weight "
                       "mlp.experts.0.up_proj.weight mlp.experts.0.gate_proj.bias "
                       "mlp.experts.0.up_proj.bias mlp.experts.0.down_proj.weight "
                       "mlp.experts.0.down_proj.bias"));
}

TEST(FamilyParameters, OfDeepseekHaveLatentsSharedExpertsAndTheCorrection) {
  const std::string kv =
      "self_attn.kv_a_proj_with_mqa.weight self_attn.kv_a_layernorm.weight self_attn.kv_b_proj.weight "
      "self_attn.o_proj.weight";
  const std::string shared =
      "mlp.shared_experts.gate_proj.weight mlp.shared_experts.up_proj.weight "
      "mlp.shared_experts.down_proj.weight ";
  const ModelSpec v2 = small_model("deepseek_v2");
  EXPECT_EQ(layer_names(v2, 0), layer_text("self_attn.q_proj.weight " + kv, kMlp));
  EXPECT_EQ(layer_names(v2, 1),
            layer_text("self_attn.q_proj.weight " + kv, "mlp.gate.weight " + shared + kExpert));
  ModelSpec v3 = small_model("deepseek_v3");
  const std::string q = "self_attn.q_a_proj.weight self_attn.q_a_layernorm.weight self_attn.q_b_proj.weight ";
  EXPECT_EQ(layer_names(v3, 2),
            layer_text(q + kv, "mlp.gate.weight mlp.gate.e_score_correction_bias " + shared + kExpert));
  v3.attention_qkv_bias = v3.attention_out_bias = true;
  EXPECT_EQ(layer_names(v3, 0),
            layer_text("self_attn.q_a_proj.weight self_attn.q_a_proj.bias self_attn.q_a_layernorm.weight "
                       "self_attn.q_b_proj.weight self_attn.kv_a_proj_with_mqa.weight "
                       "self_attn.kv_a_proj_with_mqa.bias self_attn.kv_a_layernorm.weight "
                       "self_attn.kv_b_proj.weight self_attn.o_proj.weight self_attn.o_proj.bias",
                       kMlp));
}

TEST(FamilyParameters, OfMtpLayersStandBehindTheHead) {
  for (const bool tied : {false, true}) {
    ModelSpec m = small_model("deepseek_v3");
    m.tie_word_embeddings = tied;
    const std::size_t without = alone(m).size();
    m.num_nextn_predict_layers = 2;
    const std::vector<ParamSpec> list = alone(m);
    std::size_t at = without;
    if (!tied) {
      EXPECT_EQ(list[at].kind, ParamKind::mtp_embedding);
      EXPECT_EQ(list[at].name, "model.embed_tokens.weight");
      EXPECT_TRUE(list[at].tied_copy);
      EXPECT_FALSE(list[at].owner);
      EXPECT_EQ(list[at].layer, -1);
      ++at;
    }
    EXPECT_EQ(list[at].name, "model.layers.3.enorm.weight");
    EXPECT_EQ(list[at + 1].name, "model.layers.3.hnorm.weight");
    EXPECT_EQ(list[at + 2].name, "model.layers.3.eh_proj.weight");
    EXPECT_EQ(list[at + 2].kind, ParamKind::mtp_proj);
    EXPECT_EQ(list[at + 2].global, (std::array<std::int64_t, 2>{m.hidden_size, 2 * m.hidden_size}));
    EXPECT_EQ(list.back().name, "model.layers.4.shared_head.norm.weight");
    EXPECT_EQ(list.back().layer, 4);
    std::int64_t sum = 0;
    for (std::size_t i = without; i < list.size(); ++i) {
      if (!list[i].tied_copy) sum += list[i].num_elements();
    }
    EXPECT_EQ(sum, spec::num_mtp_parameters(m));
    const Layout two = make_layout(m, {.tp = 2, .pp = 2, .ep = 2}, Placement::loop);
    for (std::int32_t r = 0; r < 2; ++r) {
      for (const ParamSpec& p : parameters(m, two, Rank(r)))
        EXPECT_TRUE(p.layer < m.num_hidden_layers && p.kind != ParamKind::mtp_embedding) << p.name;
    }
    for (const ParamSpec& p : parameters(m, two, Rank(3))) {
      if (p.kind == ParamKind::mtp_embedding) {
        EXPECT_EQ(p.slice.begin[0], m.vocab_size / 2);
      }
      if (p.kind == ParamKind::mtp_proj) {
        EXPECT_EQ(p.group, GradGroup::tp_dp);
        EXPECT_EQ(p.slice.size, p.global);
        EXPECT_FALSE(p.owner);
      }
    }
  }
}

TEST(FamilyParameters, LayersNamedDenseHaveNoExperts) {
  ModelSpec m = small_model("qwen3_moe");
  m.num_hidden_layers = 4;
  m.moe->mlp_only_layers = {1, 3};
  for (const ParamSpec& p : alone(m)) {
    if (p.layer < 0) continue;
    EXPECT_EQ(p.kind == ParamKind::gate, p.name.ends_with("mlp.gate_proj.weight"));
    if (p.kind == ParamKind::gate) {
      EXPECT_EQ(p.layer % 2, 1);
    }
    if (p.kind == ParamKind::router) {
      EXPECT_EQ(p.layer % 2, 0);
    }
  }
}

TEST(FamilyParameters, FollowOneAnotherExactlyWhereTheyAreOneFusedWeight) {
  for (const char* family :
       {"llama", "qwen2", "gpt2", "qwen2_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"}) {
    const auto list = alone(small_model(family));
    std::map<ParamKind, ParamKind> before;
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (!list[i].follows) continue;
      ASSERT_GE(i, 1u);
      EXPECT_EQ(list[i - 1].global[1], list[i].global[1]) << list[i].name;  // same columns
      before[list[i].kind] = list[i - 1].kind;
    }
    for (const auto& [kind, previous] : before) {
      const std::map<ParamKind, ParamKind> fused = {{ParamKind::k, ParamKind::q},
                                                    {ParamKind::v, ParamKind::k},
                                                    {ParamKind::k_bias, ParamKind::q_bias},
                                                    {ParamKind::v_bias, ParamKind::k_bias},
                                                    {ParamKind::up, ParamKind::gate},
                                                    {ParamKind::up_bias, ParamKind::gate_bias},
                                                    {ParamKind::shared_up, ParamKind::shared_gate},
                                                    {ParamKind::expert_up, ParamKind::expert_gate},
                                                    {ParamKind::expert_up_bias, ParamKind::expert_gate_bias}};
      ASSERT_TRUE(fused.contains(kind));
      EXPECT_EQ(fused.at(kind), previous);
    }
    // gpt2 has no gate, gpt_oss no dense layer.
    const bool gpt = std::string_view(family).starts_with("gpt");
    EXPECT_EQ(before.contains(ParamKind::up), !gpt) << family;
    EXPECT_EQ(before.contains(ParamKind::k), !std::string(family).starts_with("deepseek")) << family;
  }
}

// Rank 3 of tp 2 x dp 2 = etp 2 x ep 2: the second of each.
std::map<std::string, ParamSpec> on_second_ranks(const ModelSpec& m) {
  const ParallelSpec p{.tp = 2, .dp = 2, .ep = m.moe ? 2 : 1, .etp = m.moe ? 2 : 1};
  std::map<std::string, ParamSpec> out;
  for (ParamSpec& s : parameters(m, make_layout(m, p, Placement::loop), Rank(3))) {
    const std::string name = s.name;
    if (!s.tied_copy) out[name] = std::move(s);
  }
  return out;
}

void expect_cut(const ParamSpec& p, const Slice& slice, GradGroup group, Init init) {
  EXPECT_EQ(p.slice, slice) << p.name;
  EXPECT_EQ(p.group, group) << p.name;
  EXPECT_EQ(p.init, init) << p.name;
  EXPECT_EQ(p.weight_decay, p.num_dims == 2) << p.name;
  EXPECT_EQ(p.buffer, p.kind == ParamKind::router_correction) << p.name;
}

TEST(FamilyParameters, OfAttentionAreCutWithTheHeads) {
  const std::string a = "model.layers.0.self_attn.";
  auto oss = on_second_ranks(small_model("gpt_oss"));  // 4 and 2 heads of 16
  expect_cut(oss.at(a + "q_proj.bias"), {{32, 0}, {32, 1}}, GradGroup::dp, Init::zeros);
  expect_cut(oss.at(a + "k_proj.bias"), {{16, 0}, {16, 1}}, GradGroup::dp, Init::zeros);
  expect_cut(oss.at(a + "sinks"), {{2, 0}, {2, 1}}, GradGroup::dp, Init::normal);
  expect_cut(oss.at(a + "o_proj.bias"), {{0, 0}, {32, 1}}, GradGroup::tp_dp, Init::zeros);
  auto olmoe = on_second_ranks(small_model("olmoe"));  // 4 heads of 8, normed as a whole
  expect_cut(olmoe.at(a + "q_norm.weight"), {{16, 0}, {16, 1}}, GradGroup::dp, Init::ones);
  auto qwen3 = on_second_ranks(small_model("qwen3"));
  expect_cut(qwen3.at(a + "k_norm.weight"), {{0, 0}, {16, 1}}, GradGroup::tp_dp, Init::ones);
  auto v3 = on_second_ranks(small_model("deepseek_v3"));  // 4 heads of 8 + 8, values 8, latents 16 and 12 + 8
  expect_cut(v3.at(a + "q_a_proj.weight"), {{0, 0}, {16, 32}}, GradGroup::tp_dp, Init::normal);
  expect_cut(v3.at(a + "q_a_layernorm.weight"), {{0, 0}, {16, 1}}, GradGroup::tp_dp, Init::ones);
  expect_cut(v3.at(a + "q_b_proj.weight"), {{32, 0}, {32, 16}}, GradGroup::dp, Init::normal);
  expect_cut(v3.at(a + "kv_a_proj_with_mqa.weight"), {{0, 0}, {20, 32}}, GradGroup::tp_dp, Init::normal);
  expect_cut(v3.at(a + "kv_b_proj.weight"), {{32, 0}, {32, 12}}, GradGroup::dp, Init::normal);
  expect_cut(v3.at(a + "o_proj.weight"), {{0, 16}, {32, 16}}, GradGroup::dp, Init::normal);
}

TEST(FamilyParameters, OfFeedForwardPartsAreCutAlongTheirWidth) {
  const std::string f = "model.layers.1.mlp.";
  auto gpt2 = on_second_ranks(small_model("gpt2"));
  expect_cut(gpt2.at(f + "up_proj.bias"), {{64, 0}, {64, 1}}, GradGroup::dp, Init::zeros);
  expect_cut(gpt2.at(f + "down_proj.bias"), {{0, 0}, {32, 1}}, GradGroup::tp_dp, Init::zeros);
  expect_cut(gpt2.at("model.embed_positions.weight"), {{0, 0}, {32, 32}}, GradGroup::tp_dp, Init::normal);
  expect_cut(gpt2.at("model.norm.bias"), {{0, 0}, {32, 1}}, GradGroup::tp_dp, Init::zeros);
  auto qwen = on_second_ranks(small_model("qwen2_moe"));  // shared width 16
  expect_cut(qwen.at(f + "shared_expert.up_proj.weight"), {{8, 0}, {8, 32}}, GradGroup::dp, Init::normal);
  expect_cut(qwen.at(f + "shared_expert.down_proj.weight"), {{0, 8}, {32, 8}}, GradGroup::dp, Init::normal);
  expect_cut(qwen.at(f + "shared_expert_gate.weight"), {{0, 0}, {1, 32}}, GradGroup::tp_dp, Init::normal);
  auto v3 = on_second_ranks(small_model("deepseek_v3"));
  expect_cut(v3.at(f + "gate.e_score_correction_bias"), {{0, 0}, {8, 1}}, GradGroup::tp_dp, Init::zeros);
  auto oss = on_second_ranks(small_model("gpt_oss"));  // width 12
  expect_cut(oss.at(f + "router.bias"), {{0, 0}, {8, 1}}, GradGroup::tp_dp, Init::zeros);
  expect_cut(oss.at(f + "experts.4.gate_proj.bias"), {{6, 0}, {6, 1}}, GradGroup::edp, Init::zeros);
  expect_cut(oss.at(f + "experts.4.down_proj.bias"), {{0, 0}, {32, 1}}, GradGroup::edp, Init::zeros);
  EXPECT_FALSE(oss.at(f + "experts.4.down_proj.bias").owner);  // the first rank of etp is
  EXPECT_FALSE(oss.contains(f + "experts.3.gate_proj.bias"));
}

std::size_t group_size(const Layout& layout, const ParamSpec& p) {
  switch (p.group) {
    case GradGroup::dp:
      return layout.dense.group(Rank(0), {Axis::cp, Axis::dp}).size();
    case GradGroup::tp_dp:
      return layout.dense.group(Rank(0), {Axis::tp, Axis::cp, Axis::dp}).size();
    case GradGroup::edp:
      return layout.expert.group(Rank(0), {Axis::edp}).size();
  }
  return 0;
}

// Every element has one owner and as many holders as its gradient group has ranks.
void expect_tiling(const ModelSpec& model, const ParallelSpec& parallel) {
  struct Tally {
    std::vector<std::size_t> holders, owners;
    std::size_t wanted = 0;
  };
  const Layout layout = make_layout(model, parallel, Placement::loop);
  std::map<std::string, Tally> tallies;
  for (std::int32_t r = 0; r < layout.world_size(); ++r) {
    for (const ParamSpec& p : parameters(model, layout, Rank(r))) {
      if (p.tied_copy) continue;
      Tally& t = tallies[p.name];
      t.holders.resize(static_cast<std::size_t>(p.global[0] * p.global[1]));
      t.owners.resize(t.holders.size());
      t.wanted = group_size(layout, p);
      if (p.kind == ParamKind::expert_down_bias) t.wanted *= static_cast<std::size_t>(parallel.etp);
      for (std::int64_t i = 0; i < p.slice.size[0]; ++i) {
        for (std::int64_t j = 0; j < p.slice.size[1]; ++j) {
          const auto at =
              static_cast<std::size_t>((p.slice.begin[0] + i) * p.global[1] + p.slice.begin[1] + j);
          ++t.holders.at(at);
          t.owners.at(at) += p.owner ? 1 : 0;
        }
      }
    }
  }
  std::int64_t total = 0;
  for (const auto& [name, t] : tallies) {
    EXPECT_EQ(std::ranges::count(t.owners, std::size_t{1}), std::ssize(t.owners)) << name;
    EXPECT_EQ(std::ranges::count(t.holders, t.wanted), std::ssize(t.holders)) << name;
    total += std::ssize(t.owners);
  }
  EXPECT_EQ(total, spec::num_parameters(model));
}

TEST(FamilyParameters, TileEveryTensorOfEveryFamilyOnManyLayouts) {
  const std::vector<ParallelSpec> dense = {
      {}, {.tp = 2}, {.dp = 2, .pp = 2}, {.tp = 2, .cp = 2, .dp = 1, .pp = 2}};
  const std::vector<ParallelSpec> moe = {{.dp = 2, .ep = 2},
                                         {.tp = 2, .dp = 2, .ep = 2, .etp = 2},
                                         {.tp = 2, .dp = 2, .pp = 2, .ep = 4},
                                         {.dp = 4, .etp = 2}};
  for (const char* family : {"llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral", "qwen2_moe",
                             "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss"}) {
    const ModelSpec model = small_model(family);
    SCOPED_TRACE(family);
    for (const ParallelSpec& p : dense) expect_tiling(model, p);
    if (!model.moe) continue;
    for (const ParallelSpec& p : moe) expect_tiling(model, p);
  }
}

}  // namespace
}  // namespace tessera::layout
