// Dispatch alone, with experts that multiply a row by a number: where rows go, in which order, and back; then
// its forms inside of the layer.
#include "moe/dispatch.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "moe/problems.h"

namespace tessera::test {
namespace {

constexpr std::int64_t kTokens = 5, kHidden = 3;
constexpr std::int32_t kTopK = 2;
using moe::DispatchForm;

struct Case {
  RankLayout layout;
  DispatchForm form = DispatchForm::all_to_all;
};
std::string text(const Case& c) {
  return fmt::format("ep{} etp{} {}", c.layout.ep, c.layout.etp,
                     c.form == DispatchForm::all_gather     ? "all_gather"
                     : c.form == DispatchForm::hierarchical ? fmt::format("{} nodes", c.layout.nodes)
                                                            : "all_to_all");
}
const RankLayout kNodeLayouts[] = {{.dp = 4, .ep = 4, .nodes = 2},
                                   {.dp = 4, .ep = 4, .nodes = 4},
                                   {.dp = 2, .ep = 2, .nodes = 2},
                                   {.dp = 4, .ep = 2, .etp = 2, .nodes = 2},
                                   {.tp = 2, .dp = 4, .ep = 4, .etp = 2, .nodes = 2},
                                   {.dp = 4, .ep = 4, .worker = true, .nodes = 2}};
const std::vector<Case>& cases() {
  static const std::vector<Case> list = [] {
    std::vector<Case> all = {{}, {{.dp = 2, .etp = 2}}};
    for (const DispatchForm form : {DispatchForm::all_to_all, DispatchForm::all_gather}) {
      for (const RankLayout& l :
           {RankLayout{.dp = 2, .ep = 2}, RankLayout{.dp = 4, .ep = 4},
            RankLayout{.dp = 4, .ep = 2, .etp = 2}, RankLayout{.dp = 2, .ep = 2, .worker = true}}) {
        all.push_back({l, form});
      }
    }
    for (const RankLayout& l : kNodeLayouts) all.push_back({l, DispatchForm::hierarchical});
    return all;
  }();
  return list;
}

// One rank's dispatch over its own random choices; a share of them dropped.
struct DispatchRig {
  DispatchRig(RankGroups& g, DispatchForm form, double drop_share,
              std::int64_t max_rows = 8 * kTokens * kTopK)
      : dispatch(moe::make_dispatch({.dtype = DType::f64,
                                     .hidden = kHidden,
                                     .tokens = kTokens,
                                     .top_k = kTopK,
                                     .num_experts = kExperts,
                                     .max_rows = max_rows,
                                     .form = form},
                                    expert_groups(g.place))),
        kernels(kernels::make_reference()),
        ctx{.kernels = *kernels,
            .tp = *g.place.tp,
            .scratch = scratch,
            .weights = {},
            .worker = g.place.worker} {
    tensor::Arena counting;
    (void)dispatch->reserve(counting);
    memory = tensor::Arena(counting.peak());
    slot = dispatch->reserve(memory);
    tensor::Arena measure;
    (void)dispatch->travel(measure);
    scratch = tensor::Arena(measure.peak());
    travel = dispatch->travel(scratch);
    const auto seed = static_cast<std::uint64_t>(40 + g.place.rank);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const auto first = static_cast<std::int64_t>(uniform_below(kExperts, seed, 1, t));
      const auto step = 1 + static_cast<std::int64_t>(uniform_below(kExperts - 1, seed, 2, t));
      set(index, t * kTopK, static_cast<double>(first));
      set(index, t * kTopK + 1, static_cast<double>((first + step) % kExperts));
      for (std::int64_t k = 0; k < kTopK; ++k) {
        set(slot.pos_tK, t * kTopK + k, uniform(seed, 3, t * kTopK + k) < drop_share ? -1 : 0);
      }
    }
    kept = values(slot.pos_tK);
    x = random(DType::f64, {kTokens, kHidden}, seed);
    weights = random(DType::f64, {kTokens, kTopK}, seed + 100);
    dispatch->plan(ctx, slot, index, weights);
    rows = Owned(DType::f64, {slot.received, kHidden});
  }
  void there() {
    dispatch->begin_rows(ctx, travel, slot, x);
    dispatch->end_rows(ctx, travel, slot, rows);
  }
  Values back(const Tensor& results) {
    const Owned y(DType::f64, {kTokens, kHidden});
    set_values(dispatch->result_rows(travel, slot), values(results));
    dispatch->combine(ctx, travel, slot, y, x, weights);
    return values(y);
  }
  // dy of the rows; dweights of the choices.
  Values gradient_there(const Tensor& g, const Tensor& dweights) {
    const Owned dy(DType::f64, rows.tensor().shape());
    dispatch->begin_gradient(ctx, travel, slot, g, weights, dweights);
    dispatch->end_gradient(ctx, travel, slot, dy, weights, dweights);
    return values(dy);
  }
  Values gradient_back(const Tensor& drows, kernels::Write write, double before) {
    const Owned dn(DType::f64, {kTokens, kHidden});
    set_all(dn, before);
    dispatch->scatter(ctx, travel, slot, dn, drows, write);
    return values(dn);
  }

  std::unique_ptr<moe::Dispatch> dispatch;
  std::unique_ptr<kernels::Kernels> kernels;
  tensor::Arena memory, scratch;
  nn::Context ctx;
  moe::DispatchSlot slot;
  [[nodiscard]] std::span<const std::int32_t> begins() const { return slot.begin_e1.span<std::int32_t>(); }

  moe::Travel travel;
  Owned index = Owned(DType::i32, {kTokens, kTopK});
  Owned x, weights, rows;
  Values kept;  // below 0: dropped
};

// With experts that multiply by e + 1, split over etp: y = x + sum w (e + 1) x.
TEST(Dispatch, BringsEveryKeptChoiceToItsExpertAndBack) {
  for (const Case& c : cases()) {
    for (const double drop_share : {0.0, 0.4, 1.0}) {
      SCOPED_TRACE(fmt::format("{} drop={}", text(c), drop_share));
      on_every_rank(c.layout, [&](RankGroups& g) {
        DispatchRig rig(g, c.form, drop_share);
        rig.there();
        const std::int32_t local = kExperts / c.layout.ep;
        for (std::int32_t i = 0; i < local; ++i) {
          const double factor = (g.place.ep->rank() * local + i + 1.0) / c.layout.etp;
          for (std::int64_t r = rig.begins()[i] * kHidden; r < rig.begins()[i + 1] * kHidden; ++r) {
            set(rig.rows, r, factor * get(rig.rows, r));
          }
        }
        const Values y = rig.back(rig.rows);
        for (std::int64_t t = 0; t < kTokens; ++t) {
          double factor = 1;
          for (std::int64_t i = t * kTopK; i < (t + 1) * kTopK; ++i) {
            if (rig.kept[i] >= 0) factor += get(rig.weights, i) * (get(rig.index, i) + 1);
            EXPECT_EQ(get(rig.slot.pos_tK, i) < 0, rig.kept[i] < 0);
          }
          for (std::int64_t h = 0; h < kHidden; ++h) {
            EXPECT_NEAR(y[t * kHidden + h], factor * get(rig.x, t * kHidden + h), 1e-13);
          }
        }
        if (drop_share == 1.0) {
          EXPECT_EQ(rig.slot.received, 0);
        }
      });
    }
  }
}

// <combine(r), g> over all ranks = <r, dy> over all ranks, which is also <w, dweights>; and what scatter does
// is the adjoint of bringing the rows there.
TEST(Dispatch, GradientsAreAdjoint) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(text(c));
    const auto world = static_cast<std::size_t>(c.layout.world());
    std::vector<double> out(world), in(world), of_weights(world), there(world), back(world);
    on_every_rank(c.layout, [&](RankGroups& g) {
      const auto r = static_cast<std::size_t>(g.place.rank);
      DispatchRig rig(g, c.form, 0.3);
      rig.there();
      const Owned v = random(DType::f64, rig.rows.tensor().shape(), 70 + g.place.rank);
      there[r] = dot(v, rig.rows);
      const Values dn = rig.gradient_back(v, kernels::Write::overwrite, 99);
      const Values more = rig.gradient_back(v, kernels::Write::accumulate, 2);
      for (std::size_t i = 0; i < dn.size(); ++i) {
        back[r] += dn[i] * get(rig.x, static_cast<std::int64_t>(i));
        EXPECT_NEAR(more[i], dn[i] + 2, 1e-13);
      }
      Values y = rig.back(v);
      const Owned u = random(DType::f64, {kTokens, kHidden}, 90 + g.place.rank);
      const Owned dweights(DType::f64, {kTokens, kTopK});
      set_all(dweights, 99);
      const Values dy = rig.gradient_there(u, dweights);
      for (std::size_t i = 0; i < y.size(); ++i) {
        const auto at = static_cast<std::int64_t>(i);
        out[r] += get(u, at) * (y[i] - get(rig.x, at));
      }
      for (std::size_t i = 0; i < dy.size(); ++i) in[r] += dy[i] * get(v, static_cast<std::int64_t>(i));
      of_weights[r] = dot(rig.weights, dweights);
      for (std::int64_t i = 0; i < kTokens * kTopK; ++i) {
        if (rig.kept[i] < 0) {
          EXPECT_EQ(get(dweights, i), 0.0) << "a dropped choice has no gradient";
        }
      }
    });
    const auto total = [](const std::vector<double>& list) {
      double sum = 0;
      for (const double v : list) sum += v;
      return sum;
    };
    EXPECT_NEAR(total(there), total(back), 1e-12);
    EXPECT_NEAR(total(out), total(in), 1e-12);
    EXPECT_NEAR(total(out), total(of_weights), 1e-12);
    EXPECT_GT(std::abs(total(there)), 1e-3);
    EXPECT_GT(std::abs(total(out)), 1e-3);
  }
}

// Rows carry (rank, token): inside an expert they ascend, as in the batch of all ranks one after another.
TEST(Dispatch, OrdersTheRowsOfAnExpertLikeTheWholeBatch) {
  for (const Case& c : cases()) {
    if (c.form == DispatchForm::hierarchical) continue;  // by the rank that took a row on
    SCOPED_TRACE(text(c));
    on_every_rank(c.layout, [&](RankGroups& g) {
      DispatchRig rig(g, c.form, 0.2);
      for (std::int64_t i = 0; i < kTokens * kHidden; ++i) {
        set(rig.x, i, static_cast<double>(g.place.rank * 100 + i / kHidden));
      }
      rig.there();
      const auto begins = rig.begins();
      for (std::size_t e = 0; e + 1 < begins.size(); ++e) {
        for (std::int64_t r = begins[e] + 1; r < begins[e + 1]; ++r) {
          EXPECT_LT(get(rig.rows, (r - 1) * kHidden), get(rig.rows, r * kHidden));
        }
      }
      EXPECT_EQ(begins.back(), rig.slot.received);
    });
  }
}

TEST(Dispatch, RefusesMoreRowsThanItsBuffersHold) {
  for (const DispatchForm form : {DispatchForm::all_to_all, DispatchForm::all_gather}) {
    const RankLayout layout{.dp = 2, .ep = 2};
    try {
      on_every_rank(layout, [&](RankGroups& g) { DispatchRig rig(g, form, 0.0, 3); });
      FAIL() << "two ranks of 10 choices cannot fit 3 rows";
    } catch (const Error& e) {
      EXPECT_THAT(std::string(e.what()), ::testing::HasSubstr("the buffers hold 3"));
      EXPECT_THAT(std::string(e.what()), ::testing::HasSubstr("please report it"));
    }
  }
}

// ------------------------------------------------------------------------------------ inside of the layer

const RankLayout kExpertLayouts[] = {{.dp = 2, .ep = 2},
                                     {.tp = 2, .ep = 2},
                                     {.dp = 4, .ep = 4},
                                     {.tp = 4, .ep = 4},
                                     {.tp = 2, .dp = 2, .ep = 2, .etp = 2},
                                     {.dp = 4, .ep = 2, .etp = 2}};

std::vector<MoeCase> layer_cases() {
  return {
      {.aux = 0.7, .z = 0.3},
      {.recompute = nn::Recompute::selective, .aux = 0.7, .capacity = 0.8, .drops = moe::DropPolicy::probs},
      {.top_k = 4, .renormalise = false},
      {.shared = MoeCase::Shared::gated},
      {.recompute = nn::Recompute::selective, .shared = MoeCase::Shared::plain},
      {.capacity = 0.8, .expert_bias = true, .padding = moe::Padding::to_capacity}};
}

TEST(AllGatherDispatch, EqualsOneRankInEveryGradient) {
  for (MoeCase c : layer_cases()) {
    const LayerResult want = run_layer(moe_problem(c), {});
    c.dispatch = DispatchForm::all_gather;
    for (const RankLayout& layout : kExpertLayouts) {
      const LayerProblem p = moe_problem(c);
      WorldStats stats;
      expect_near(p, run_moe(p, layout, stats), want, 1e-12);
    }
  }
}

TEST(AllGatherDispatch, GivesTheExpertsTheSameBits) {
  for (MoeCase c : layer_cases()) {
    if (c.shared != MoeCase::Shared::none) continue;
    const RankLayout layout{.dp = 4, .ep = 4};
    const LayerResult sent = run_layer(moe_problem(c), layout);
    c.dispatch = DispatchForm::all_gather;
    const LayerResult gathered = run_layer(moe_problem(c), layout);
    for (std::size_t p = 2; p < sent.gradients.size(); ++p) {
      EXPECT_EQ(gathered.gradients[p], sent.gradients[p]) << "expert parameter " << p;
    }
  }
}

TEST(HierarchicalDispatch, EqualsOneRankInEveryGradient) {
  for (MoeCase c : layer_cases()) {
    const LayerResult want = run_layer(moe_problem(c), {});
    c.dispatch = DispatchForm::hierarchical;
    for (const RankLayout& layout : kNodeLayouts) {
      if (layout.world() > 4) continue;  // as many micro-batches as the problem has
      SCOPED_TRACE(text({layout, c.dispatch}));
      const LayerProblem p = moe_problem(c);
      WorldStats stats;
      expect_near(p, run_moe(p, layout, stats), want, 1e-12);
    }
  }
}

// Rows over the node boundary: one for each token and other node with a kept choice there, counted from the
// choices themselves. Then a row, its choices and weights there; a row back; in backward the same, with the
// weights' gradients.
TEST(HierarchicalDispatch, SendsATokenOnceToANode) {
  const RankLayout layout{.dp = 4, .ep = 4, .nodes = 2};
  on_every_rank(layout, [&](RankGroups& g) {
    DispatchRig rig(g, DispatchForm::hierarchical, 0.2);
    const std::int32_t other = 1 - g.place.across->rank();
    std::int64_t rows = 0, choices = 0;
    for (std::int64_t t = 0; t < kTokens; ++t) {
      bool sent = false;
      for (std::int64_t i = t * kTopK; i < (t + 1) * kTopK; ++i) {
        const bool there = rig.kept[i] >= 0 && static_cast<std::int32_t>(get(rig.index, i)) / 2 == other;
        sent = sent || there;
        choices += there ? 1 : 0;
      }
      rows += sent ? 1 : 0;
    }
    EXPECT_EQ(rig.slot.send_rows_N.as<std::int64_t>()[other], rows);
    EXPECT_LE(rows, choices);
    constexpr std::int64_t kRow = kHidden * 8;
    const auto sent_now = [&] {
      const std::int64_t bytes = g.place.across->bytes_sent().value;
      g.place.across->reset_counters();
      return bytes;
    };
    EXPECT_EQ(sent_now(), 2 * 4 + rows * kTopK * (4 + 8)) << "counts of two nodes; choices and weights";
    rig.there();
    EXPECT_EQ(sent_now(), rows * kRow);
    const std::int64_t taken = rig.slot.recv_rows_N.as<std::int64_t>()[other];
    (void)rig.back(rig.rows);
    EXPECT_EQ(sent_now(), taken * kRow);
    const Owned g_tH = random(DType::f64, {kTokens, kHidden}, 5);
    const Owned dweights(DType::f64, {kTokens, kTopK});
    (void)rig.gradient_there(g_tH, dweights);
    EXPECT_EQ(sent_now(), rows * kRow + taken * kTopK * 8);
    (void)rig.gradient_back(rig.rows, kernels::Write::overwrite, 0);
    EXPECT_EQ(sent_now(), taken * kRow);
  });
}

TEST(OverlappedDispatch, GivesTheSameBitsAsInLine) {
  for (MoeCase c : layer_cases()) {
    for (const DispatchForm form : {DispatchForm::all_to_all, DispatchForm::all_gather}) {
      c.dispatch = form;
      for (RankLayout layout : kExpertLayouts) {
        const LayerProblem p = moe_problem(c);
        const LayerResult in_line = run_layer(p, layout);
        layout.worker = true;
        expect_same_bits(run_layer(p, layout), in_line);
      }
    }
    c.dispatch = DispatchForm::hierarchical;
    RankLayout layout{.dp = 4, .ep = 4, .nodes = 2};
    const LayerProblem p = moe_problem(c);
    const LayerResult in_line = run_layer(p, layout);
    layout.worker = true;
    expect_same_bits(run_layer(p, layout), in_line);
  }
}

// Of one micro-batch: t tokens, K choices, b = 8.
TEST(AllGatherDispatch, SendsTheBytesOfItsClosedForm) {
  for (const RankLayout& l : {RankLayout{.dp = 2, .ep = 2}, RankLayout{.dp = 4, .ep = 4}}) {
    const LayerResult r =
        run_layer(moe_problem({.microbatches = l.dp, .dispatch = DispatchForm::all_gather}), l);
    for (const PhaseBytes& bytes : r.bytes) {
      EXPECT_EQ(bytes.forward, (l.ep - 1) * (12 * 2 * (4 + 8) + 2 * 12 * 8 * 8));
      EXPECT_EQ(bytes.input, (l.ep - 1) * (12 * 2 * 8 + 2 * 12 * 8 * 8));
      EXPECT_EQ(bytes.weight, 0);
    }
  }
}

}  // namespace
}  // namespace tessera::test
