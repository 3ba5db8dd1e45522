// Layout against its definition: groups by brute force for every layout up to 64 ranks; slices of all ranks
// must tile each global tensor with one owner an element and as many replicas as its group has ranks; stage
// cuts and placements by hand.
#include "layout/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

namespace tessera::layout {
namespace {

using spec::ModelSpec;
using spec::ParallelSpec;

ModelSpec dense_model() {
  return {.num_hidden_layers = 6,
          .hidden_size = 12,
          .intermediate_size = 16,
          .num_attention_heads = 8,
          .num_key_value_heads = 4,
          .head_dim = 2,
          .vocab_size = 24,
          .max_position_embeddings = 64};
}
ModelSpec moe_model() {
  ModelSpec m = dense_model();
  m.family = spec::Family::mixtral;
  m.moe = spec::MoeSpec{.num_experts = 8, .num_experts_per_tok = 2};
  return m;
}

struct Degrees {
  std::int32_t tp, cp, dp, pp, etp, ep;
};

// Every (tp, cp, dp, pp, etp, ep) with a world of at most `largest` ranks.
std::vector<Degrees> all_degrees(std::int32_t largest) {
  std::vector<Degrees> all;
  for (std::int32_t tp = 1; tp <= largest; ++tp)
    for (std::int32_t cp = 1; tp * cp <= largest; ++cp)
      for (std::int32_t dp = 1; tp * cp * dp <= largest; ++dp)
        for (std::int32_t pp = 1; tp * cp * dp * pp <= largest; ++pp) {
          const std::int32_t replica = tp * cp * dp;
          for (std::int32_t etp = 1; etp <= replica; ++etp)
            for (std::int32_t ep = 1; etp * ep <= replica; ++ep)
              if (replica % (etp * ep) == 0) all.push_back({tp, cp, dp, pp, etp, ep});
        }
  return all;
}

// Coordinates counted up one rank at a time, the first axis fastest: no strides, no division.
std::vector<std::array<std::int32_t, 4>> counted(const std::array<std::int32_t, 4>& sizes) {
  std::vector<std::array<std::int32_t, 4>> all;
  std::array<std::int32_t, 4> at{};
  while (true) {
    all.push_back(at);
    std::size_t axis = 0;
    while (axis < 4 && ++at[axis] == sizes[axis]) at[axis++] = 0;
    if (axis == 4) return all;
  }
}

TEST(VocabShare, CoversAVocabularyThatTpDoesNotDivideOnceAndAsEvenlyAsPossible) {
  std::int64_t next = 0;
  for (const std::int64_t size : {17, 17, 17, 16}) {
    const VocabShare share = vocab_share(67, static_cast<std::int32_t>(next / 17), 4);
    EXPECT_EQ(share.begin, next);
    EXPECT_EQ(share.size, size);
    next += share.size;
  }
  EXPECT_EQ(next, 67);
}

TEST(RankGrid, GroupsAreTheRanksThatDifferOnlyInTheirAxesForEveryLayoutUpTo64Ranks) {
  constexpr std::array<Axis, 4> dense = {Axis::tp, Axis::cp, Axis::dp, Axis::pp};
  std::int64_t layouts = 0;
  for (std::int32_t a = 1; a <= 64; ++a)
    for (std::int32_t b = 1; a * b <= 64; ++b)
      for (std::int32_t c = 1; a * b * c <= 64; ++c)
        for (std::int32_t d = 1; a * b * c * d <= 64; ++d) {
          const std::array<std::int32_t, 4> sizes = {a, b, c, d};
          const RankGrid grid(dense, sizes);
          const auto coordinates = counted(sizes);
          const auto world = static_cast<std::int32_t>(coordinates.size());
          ASSERT_EQ(grid.world_size(), world);
          ++layouts;
          // Each rank with one set of axes, so that all sets and all ranks appear over the layouts.
          for (std::int32_t rank = 0; rank < world; ++rank) {
            const std::int32_t set = (rank + static_cast<std::int32_t>(layouts)) % 16;
            std::vector<Axis> axes;
            for (std::int32_t i = 3; i >= 0; --i)
              if ((set >> i & 1) != 0) axes.push_back(dense[i]);
            std::vector<Rank> expected;
            for (std::int32_t other = 0; other < world; ++other) {
              bool same = true;
              for (std::int32_t i = 0; i < 4; ++i)
                if ((set >> i & 1) == 0) same = same && coordinates[other][i] == coordinates[rank][i];
              if (same) expected.emplace_back(other);
            }
            ASSERT_EQ(grid.group(Rank(rank), axes), expected)
                << a << b << c << d << " rank " << rank << " set " << set;
            for (std::int32_t i = 0; i < 4; ++i)
              ASSERT_EQ(grid.coordinate(Rank(rank), dense[i]), coordinates[rank][i]);
          }
        }
  EXPECT_EQ(layouts, 1824);
}

TEST(RankGrid, RefusesAxesOfTheOtherGridAndRanksOutside) {
  const RankGrid grid({Axis::tp, Axis::cp, Axis::dp, Axis::pp}, {2, 1, 2, 2});
  EXPECT_THROW((void)grid.size(Axis::ep), Error);
  EXPECT_THROW((void)grid.group(Rank(0), {Axis::edp}), Error);
  EXPECT_THROW((void)grid.coordinate(Rank(8), Axis::tp), Error);
  EXPECT_THROW((void)RankGrid({Axis::tp, Axis::cp, Axis::dp, Axis::pp}, {0, 1, 1, 1}), Error);
}

TEST(Layout, PipelineGroupsOfBothFactorisationsAreTheSame) {
  for (const Degrees& d : all_degrees(24)) {
    ParallelSpec p{.tp = d.tp, .cp = d.cp, .dp = d.dp, .pp = d.pp, .ep = d.ep, .etp = d.etp};
    if (d.pp > 6) continue;
    const Layout layout = make_layout(moe_model(), p, Placement::loop);
    ASSERT_EQ(layout.dense.world_size(), layout.expert.world_size());
    for (std::int32_t r = 0; r < layout.world_size(); ++r) {
      ASSERT_EQ(layout.dense.group(Rank(r), {Axis::pp}), layout.expert.group(Rank(r), {Axis::pp}));
      ASSERT_EQ(layout.dense.group(Rank(r), {Axis::tp, Axis::cp, Axis::dp}),
                layout.expert.group(Rank(r), {Axis::etp, Axis::ep, Axis::edp}));
    }
  }
}

std::vector<Rank> grad_group(const Layout& layout, const ParamSpec& p, Rank rank) {
  switch (p.group) {
    case GradGroup::dp:
      return layout.dense.group(rank, {Axis::cp, Axis::dp});
    case GradGroup::tp_dp:
      return layout.dense.group(rank, {Axis::tp, Axis::cp, Axis::dp});
    case GradGroup::edp:
      return layout.expert.group(rank, {Axis::edp});
  }
  return {};
}

struct Tally {
  ParamSpec first;
  std::vector<std::int32_t> holders;  // per element
  std::vector<std::int32_t> owners;
};

// Each element: one owner, and as many holders as its gradient group; the group's ranks hold the same slice.
void expect_tiling(const ModelSpec& model, const Layout& layout) {
  std::map<std::string, Tally> tallies;
  std::vector<std::vector<ParamSpec>> all;
  for (std::int32_t r = 0; r < layout.world_size(); ++r) all.push_back(parameters(model, layout, Rank(r)));
  for (std::int32_t r = 0; r < layout.world_size(); ++r) {
    for (const ParamSpec& p : all[r]) {
      if (p.tied_copy) {
        ASSERT_FALSE(p.owner);
        continue;
      }
      Tally& t = tallies[p.name];
      if (t.holders.empty()) {
        t.first = p;
        t.holders.resize(p.global[0] * p.global[1]);
        t.owners.resize(p.global[0] * p.global[1]);
      }
      ASSERT_EQ(t.first.global, p.global);
      ASSERT_EQ(t.first.group, p.group);
      for (std::int64_t i = p.slice.begin[0]; i < p.slice.begin[0] + p.slice.size[0]; ++i)
        for (std::int64_t j = p.slice.begin[1]; j < p.slice.begin[1] + p.slice.size[1]; ++j) {
          ++t.holders.at(i * p.global[1] + j);
          t.owners.at(i * p.global[1] + j) += p.owner ? 1 : 0;
        }
      for (const Rank other : grad_group(layout, p, Rank(r))) {
        const auto& list = all[other.value];
        const auto same = std::find_if(list.begin(), list.end(), [&](const ParamSpec& q) {
          return q.name == p.name && q.tied_copy == p.tied_copy;
        });
        ASSERT_NE(same, list.end()) << p.name << " is not on rank " << other.value;
        ASSERT_EQ(same->slice, p.slice) << p.name;
      }
    }
  }
  std::int64_t total = 0;
  for (const auto& [name, t] : tallies) {
    const auto replicas = static_cast<std::int32_t>(grad_group(layout, t.first, Rank(0)).size());
    ASSERT_EQ(std::count(t.holders.begin(), t.holders.end(), replicas), std::ssize(t.holders)) << name;
    ASSERT_EQ(std::count(t.owners.begin(), t.owners.end(), 1), std::ssize(t.owners)) << name;
    total += std::ssize(t.holders);
  }
  ASSERT_EQ(total, spec::num_parameters(model));
}

TEST(Parameters, TileEveryTensorWithOneOwnerAnElementOnEveryLayout) {
  std::int64_t layouts = 0;
  for (const bool moe : {false, true}) {
    for (const bool tied : {false, true}) {
      ModelSpec model = moe ? moe_model() : dense_model();
      model.tie_word_embeddings = tied;
      for (const Degrees& d : all_degrees(8)) {
        const bool fits = 4 % d.tp == 0 && 8 % d.ep == 0 && 16 % d.etp == 0 && d.pp <= 6;
        if (!fits || (!moe && d.etp * d.ep > 1)) continue;
        const ParallelSpec p{.tp = d.tp, .cp = d.cp, .dp = d.dp, .pp = d.pp, .ep = d.ep, .etp = d.etp};
        ASSERT_NO_FATAL_FAILURE(expect_tiling(model, make_layout(model, p, Placement::loop)))
            << "tp" << d.tp << " cp" << d.cp << " dp" << d.dp << " pp" << d.pp << " etp" << d.etp << " ep"
            << d.ep;
        ++layouts;
      }
    }
  }
  EXPECT_GT(layouts, 100);
  ModelSpec tied = moe_model();
  tied.tie_word_embeddings = true;
  const ParallelSpec p{.tp = 2, .dp = 2, .pp = 3, .ep = 4, .vpp = 2};
  ASSERT_NO_FATAL_FAILURE(expect_tiling(tied, make_layout(tied, p, Placement::vee)));
  ASSERT_NO_FATAL_FAILURE(expect_tiling(tied, make_layout(tied, p, Placement::loop)));
}

TEST(Parameters, StandInTheDocumentedOrderWithHuggingFaceNames) {
  const ModelSpec model = moe_model();
  ModelSpec small = model;
  small.num_hidden_layers = 1;
  small.moe->num_experts = 2;
  std::vector<std::string> names;
  for (const ParamSpec& p : parameters(small, make_layout(small, {}, Placement::loop), Rank(0)))
    names.push_back(p.name);
  const std::string l = "model.layers.0.";
  EXPECT_EQ(names,
            (std::vector<std::string>{
                "model.embed_tokens.weight", l + "input_layernorm.weight", l + "self_attn.q_proj.weight",
                l + "self_attn.k_proj.weight", l + "self_attn.v_proj.weight", l + "self_attn.o_proj.weight",
                l + "post_attention_layernorm.weight", l + "block_sparse_moe.gate.weight",
                l + "block_sparse_moe.experts.0.w1.weight", l + "block_sparse_moe.experts.0.w3.weight",
                l + "block_sparse_moe.experts.0.w2.weight", l + "block_sparse_moe.experts.1.w1.weight",
                l + "block_sparse_moe.experts.1.w3.weight", l + "block_sparse_moe.experts.1.w2.weight",
                "model.norm.weight", "lm_head.weight"}));
  ModelSpec dense = dense_model();
  dense.num_hidden_layers = 1;
  names.clear();
  for (const ParamSpec& p : parameters(dense, make_layout(dense, {}, Placement::loop), Rank(0)))
    names.push_back(p.name);
  EXPECT_EQ(names.size(), 12);
  EXPECT_EQ(names[7], l + "mlp.gate_proj.weight");
  EXPECT_EQ(names[9], l + "mlp.down_proj.weight");
}

TEST(Parameters, AreCutAsMegatronCutsThem) {
  const ModelSpec model = moe_model();
  const ParallelSpec p{.tp = 2, .dp = 2, .ep = 2, .etp = 2};
  const auto list =
      parameters(model, make_layout(model, p, Placement::loop), Rank(3));  // tp 1, dp 1, etp 1, ep 1
  const auto find = [&](const std::string& suffix) {
    return *std::find_if(list.begin(), list.end(),
                         [&](const ParamSpec& q) { return q.name.ends_with(suffix); });
  };
  EXPECT_EQ(find("embed_tokens.weight").slice, (Slice{{12, 0}, {12, 12}}));
  EXPECT_EQ(find("q_proj.weight").slice, (Slice{{8, 0}, {8, 12}}));
  EXPECT_EQ(find("k_proj.weight").slice, (Slice{{4, 0}, {4, 12}}));
  EXPECT_EQ(find("o_proj.weight").slice, (Slice{{0, 8}, {12, 8}}));
  EXPECT_EQ(find("block_sparse_moe.gate.weight").slice, (Slice{{0, 0}, {8, 12}}));
  EXPECT_EQ(find("experts.4.w1.weight").slice,
            (Slice{{8, 0}, {8, 12}}));  // the first of this rank's 4 experts
  EXPECT_EQ(find("experts.7.w2.weight").slice, (Slice{{0, 8}, {12, 8}}));
  EXPECT_EQ(find("model.norm.weight").slice, (Slice{{0, 0}, {12, 1}}));
  EXPECT_EQ(find("model.norm.weight").num_dims, 1);
  EXPECT_EQ(find("model.norm.weight").init, Init::ones);
  EXPECT_FALSE(find("model.norm.weight").weight_decay);
  EXPECT_TRUE(find("block_sparse_moe.gate.weight").weight_decay);
  EXPECT_EQ(find("model.norm.weight").group, GradGroup::tp_dp);
  EXPECT_EQ(find("block_sparse_moe.gate.weight").group, GradGroup::tp_dp);
  EXPECT_EQ(find("q_proj.weight").group, GradGroup::dp);
  EXPECT_EQ(find("experts.4.w1.weight").group, GradGroup::edp);
  EXPECT_EQ(find("experts.4.w1.weight").expert, 4);
  EXPECT_EQ(find("experts.4.w1.weight").layer, 0);
}

TEST(Parameters, ExpertsLiveInContiguousBlocksAlsoBeyondDataParallelism) {
  const ModelSpec model = moe_model();
  const ParallelSpec p{
      .tp = 2, .dp = 2, .ep = 4, .etp = 1};  // ep 4 over dp 2: tp ranks hold different experts
  const Layout layout = make_layout(model, p, Placement::loop);
  for (std::int32_t r = 0; r < 4; ++r) {
    std::set<std::int32_t> homes;
    for (const ParamSpec& q : parameters(model, layout, Rank(r))) {
      if (q.expert < 0) continue;
      homes.insert(q.expert);
      EXPECT_TRUE(q.owner);  // edp = 1: nobody else has it
      EXPECT_EQ(q.slice.size[0] * q.slice.size[1], q.global[0] * q.global[1]);
    }
    EXPECT_EQ(homes, (std::set<std::int32_t>{2 * r, 2 * r + 1}));
  }
  EXPECT_EQ(layout.expert.size(Axis::edp), 1);
}

TEST(Layout, CutsLayersEvenlyWithTheRemainderFirst) {
  ModelSpec model = dense_model();
  model.num_hidden_layers = 7;
  const Layout layout = make_layout(model, {.pp = 4}, Placement::loop);
  ASSERT_EQ(layout.stages.size(), 4);
  EXPECT_EQ(layout.stages[0], (StageCut{0, 2, true, false}));
  EXPECT_EQ(layout.stages[1], (StageCut{2, 2, false, false}));
  EXPECT_EQ(layout.stages[2], (StageCut{4, 2, false, false}));
  EXPECT_EQ(layout.stages[3], (StageCut{6, 1, false, true}));
  const Layout given = make_layout(model, {.pp = 2, .stage_layers = {1, 6}}, Placement::loop);
  EXPECT_EQ(given.stages[1], (StageCut{1, 6, false, true}));
  EXPECT_THROW((void)make_layout(model, {.pp = 2, .stage_layers = {1, 5}}, Placement::loop), Error);
  EXPECT_THROW((void)make_layout(model, {.pp = 2, .stage_layers = {7}}, Placement::loop), Error);
}

TEST(Layout, PlacesStagesInALoopOrAVee) {
  const ModelSpec model = dense_model();
  const Layout loop = make_layout(model, {.dp = 2, .pp = 3, .vpp = 2}, Placement::loop);
  EXPECT_EQ(loop.stage_rank, (std::vector<std::int32_t>{0, 1, 2, 0, 1, 2}));
  EXPECT_EQ(loop.stages_of(Rank(3)), (std::vector<StageId>{StageId(1), StageId(4)}));
  const Layout vee = make_layout(model, {.dp = 2, .pp = 3, .vpp = 2}, Placement::vee);
  EXPECT_EQ(vee.stage_rank, (std::vector<std::int32_t>{0, 1, 2, 2, 1, 0}));
  EXPECT_EQ(vee.stages_of(Rank(0)), (std::vector<StageId>{StageId(0), StageId(5)}));
  EXPECT_EQ(vee.stages_of(Rank(5)), (std::vector<StageId>{StageId(2), StageId(3)}));
  EXPECT_THROW((void)make_layout(model, {.pp = 3}, Placement::vee), Error);
}

TEST(Parameters, ATiedHeadIsASecondCopyAlsoOnTheRankOfTheEmbedding) {
  ModelSpec model = dense_model();
  model.tie_word_embeddings = true;
  const auto copies = [&](const ParallelSpec& p, Placement placement, std::int32_t rank) {
    std::vector<std::pair<std::int32_t, bool>> found;  // stage, tied copy
    for (const ParamSpec& q : parameters(model, make_layout(model, p, placement), Rank(rank)))
      if (q.name == "model.embed_tokens.weight") found.emplace_back(q.stage.value, q.tied_copy);
    return found;
  };
  using Found = std::vector<std::pair<std::int32_t, bool>>;
  EXPECT_EQ(copies({}, Placement::loop, 0), (Found{{0, false}, {0, true}}));
  EXPECT_EQ(copies({.pp = 2}, Placement::loop, 0), (Found{{0, false}}));
  EXPECT_EQ(copies({.pp = 2}, Placement::loop, 1), (Found{{1, true}}));
  EXPECT_EQ(copies({.pp = 2, .vpp = 2}, Placement::vee, 0), (Found{{0, false}, {3, true}}));
  EXPECT_EQ(copies({.pp = 2, .vpp = 2}, Placement::vee, 1), (Found{}));
}

TEST(Layout, DescribesRanksAndStages) {
  const Layout layout = make_layout(moe_model(), {.tp = 2, .pp = 2, .ep = 2}, Placement::loop);
  EXPECT_EQ(describe(layout),
            "world of 4 = tp 2 x cp 1 x dp 1 x pp 2 = etp 1 x ep 2 x edp 1 x pp 2\n"
            "rank  tp  cp  dp  pp | etp  ep edp | stages\n"
            "   0   0   0   0   0 |   0   0   0 | 0: embedding + layers 0-2\n"
            "   1   1   0   0   0 |   0   1   0 | 0: embedding + layers 0-2\n"
            "   2   0   0   0   1 |   0   0   0 | 1: layers 3-5 + head\n"
            "   3   1   0   0   1 |   0   1   0 | 1: layers 3-5 + head\n");
}

}  // namespace
}  // namespace tessera::layout
