// Dispatch alone, with experts that multiply a row by a number: where rows go, in which order, and back.
#include "moe/dispatch.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "moe/problems.h"

namespace tessera::test {
namespace {

constexpr std::int64_t kTokens = 5, kHidden = 3;
constexpr std::int32_t kTopK = 2;

// One rank's dispatch over its own random choices; a share of them dropped.
struct DispatchRig {
  DispatchRig(RankGroups& g, double drop_share, std::int64_t max_rows = 4 * kTokens * kTopK)
      : dispatch({.dtype = DType::f64,
                  .hidden = kHidden,
                  .tokens = kTokens,
                  .top_k = kTopK,
                  .num_experts = kExperts,
                  .max_rows = max_rows},
                 *g.place.ep, *g.place.etp),
        kernels(kernels::make_reference()) {
    tensor::Arena counting;
    (void)dispatch.reserve(counting);
    memory = tensor::Arena(counting.peak());
    slot = dispatch.reserve(memory);
    tensor::Arena measure;
    dispatch.measure_scratch(measure);
    scratch = tensor::Arena(measure.peak());
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
    dispatch.plan(slot, index);
    sent = Owned(DType::f64, {slot.sent, kHidden});
    rows = Owned(DType::f64, {slot.received, kHidden});
  }
  void forward() {
    if (!dispatch.exchanges()) {
      kernels->gather_rows(rows, x, slot.tokens());
      return;
    }
    kernels->gather_rows(sent, x, slot.tokens());
    dispatch.to_experts(*kernels, scratch, slot, rows, sent);
  }
  void back(const Tensor& from) {
    if (dispatch.exchanges()) {
      dispatch.from_experts(*kernels, scratch, slot, sent, from);
    } else {
      set_values(sent, values(from));
    }
  }

  moe::Dispatch dispatch;
  std::unique_ptr<kernels::Kernels> kernels;
  tensor::Arena memory, scratch;
  moe::DispatchSlot slot;
  Owned index = Owned(DType::i32, {kTokens, kTopK});
  Owned x, weights, sent, rows;
  Values kept;  // below 0: dropped
};

const RankLayout kLayouts[] = {
    {}, {.dp = 2, .ep = 2}, {.dp = 2, .etp = 2}, {.dp = 4, .ep = 4}, {.dp = 4, .ep = 2, .etp = 2}};

// combine(dispatch(x)) = x-weighted sum: with experts that multiply by e + 1, split over etp.
TEST(Dispatch, BringsEveryKeptChoiceToItsExpertAndBack) {
  for (const RankLayout& layout : kLayouts) {
    for (const double drop_share : {0.0, 0.4, 1.0}) {
      SCOPED_TRACE(fmt::format("ep={} etp={} drop={}", layout.ep, layout.etp, drop_share));
      on_every_rank(layout, [&](RankGroups& g) {
        DispatchRig rig(g, drop_share);
        rig.forward();
        const std::int32_t local = kExperts / layout.ep;
        for (std::int32_t i = 0; i < local; ++i) {
          const double factor = (g.place.ep->rank() * local + i + 1.0) / layout.etp;
          for (std::int64_t r = rig.slot.begins()[i] * kHidden; r < rig.slot.begins()[i + 1] * kHidden; ++r) {
            set(rig.rows, r, factor * get(rig.rows, r));
          }
        }
        rig.back(rig.rows);
        const Owned y(DType::f64, {kTokens, kHidden});
        rig.kernels->combine(y, rig.x, rig.sent, rig.slot.pos_tK, rig.weights);
        for (std::int64_t t = 0; t < kTokens; ++t) {
          double factor = 1;
          for (std::int64_t i = t * kTopK; i < (t + 1) * kTopK; ++i) {
            if (rig.kept[i] >= 0) factor += get(rig.weights, i) * (get(rig.index, i) + 1);
            EXPECT_EQ(get(rig.slot.pos_tK, i) < 0, rig.kept[i] < 0);
          }
          for (std::int64_t h = 0; h < kHidden; ++h) {
            EXPECT_NEAR(get(y, t * kHidden + h), factor * get(rig.x, t * kHidden + h), 1e-13);
          }
        }
        if (drop_share == 1.0) {
          EXPECT_EQ(rig.slot.received, 0);
        }
      });
    }
  }
}

// <to_experts(u), v> over all ranks = <u, from_experts(v)> over all ranks.
TEST(Dispatch, ThereAndBackAreAdjoint) {
  for (const RankLayout& layout : kLayouts) {
    if (layout.world() == 1) continue;
    std::vector<double> there(layout.world()), back(layout.world());
    on_every_rank(layout, [&](RankGroups& g) {
      DispatchRig rig(g, 0.3);
      rig.forward();
      const Owned v = random(DType::f64, rig.rows.tensor().shape(), 70 + g.place.rank);
      there[g.place.rank] = dot(v, rig.rows);
      const Owned u = copy_of(rig.sent);
      rig.back(v);
      back[g.place.rank] = dot(u, rig.sent);
    });
    double a = 0, b = 0;
    for (std::size_t r = 0; r < there.size(); ++r) {
      a += there[r];
      b += back[r];
    }
    EXPECT_NEAR(a, b, 1e-12);
    EXPECT_GT(std::abs(a), 1e-3);
  }
}

// Rows carry (rank, token): inside an expert they ascend, as in the batch of all ranks one after another.
TEST(Dispatch, OrdersTheRowsOfAnExpertLikeTheWholeBatch) {
  for (const RankLayout& layout : kLayouts) {
    SCOPED_TRACE(fmt::format("ep={} etp={}", layout.ep, layout.etp));
    on_every_rank(layout, [&](RankGroups& g) {
      DispatchRig rig(g, 0.2);
      for (std::int64_t i = 0; i < kTokens * kHidden; ++i) {
        set(rig.x, i, static_cast<double>(g.place.rank * 100 + i / kHidden));
      }
      rig.forward();
      const auto begins = rig.slot.begins();
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
  const RankLayout layout{.dp = 2, .ep = 2};
  try {
    on_every_rank(layout, [&](RankGroups& g) { DispatchRig rig(g, 0.0, 3); });
    FAIL() << "two ranks of 10 choices cannot fit 3 rows";
  } catch (const Error& e) {
    EXPECT_THAT(std::string(e.what()), ::testing::HasSubstr("the buffers hold 3"));
    EXPECT_THAT(std::string(e.what()), ::testing::HasSubstr("please report it"));
  }
}

}  // namespace
}  // namespace tessera::test
