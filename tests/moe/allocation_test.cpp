// Forward and backward of the mixture of experts take no memory from the heap, with and without an exchange
// of rows.
#include <gtest/gtest.h>

#include "moe/problems.h"
#include "support/allocation_count.h"

namespace tessera::test {
namespace {

TEST(MoeAllocation, ASecondStepAllocatesNothing) {
  using moe::DropPolicy;
  for (const RankLayout& layout : {RankLayout{}, RankLayout{.tp = 2, .dp = 2, .ep = 2, .etp = 2}}) {
    for (const DropPolicy policy : {DropPolicy::position, DropPolicy::probs}) {
      const LayerProblem p = moe_problem({.recompute = nn::Recompute::selective,
                                          .unit = moe::BalanceUnit::sequence,
                                          .aux = 0.1,
                                          .capacity = 0.9,
                                          .drops = policy});
      std::vector<std::int64_t> taken(layout.world(), -1);
      on_every_rank(layout, [&](RankGroups& g) {
        const auto kernels = kernels::make_cpu();
        RankParams params(p.params);
        nn::Dims dims = p.dims;
        dims.tp = layout.tp;
        const auto layer = p.make(g.place, dims, params);
        tensor::Arena slots(Bytes(1 << 20)), scratch(Bytes(1 << 20));
        layer->reserve_saved(slots);
        layer->reserve_deferred(slots);
        nn::Context ctx{*kernels, *g.place.tp, scratch, p.weights};
        const std::int64_t t = dims.local_tokens();
        const Tensor x = p.x[g.place.dp_rank()].tensor().narrow_rows(g.place.tp->rank() * t, t);
        const Owned y(DType::f64, {t, dims.hidden});
        const auto step = [&] {
          layer->forward(ctx, {0, 0}, {}, x, y, nn::Pass::forward);
          layer->backward_input(ctx, {0, 0}, {}, y);
          layer->backward_weight(ctx, {0, 0}, {});
        };
        step();
        const std::int64_t before = allocations;
        step();
        dynamic_cast<moe::MoeLayer&>(*layer).reset_stats();
        taken[g.place.rank] = allocations - before;
      });
      EXPECT_EQ(taken, std::vector<std::int64_t>(layout.world(), 0));
    }
  }
}

TEST(MoeAllocation, TheCounterCounts) {
  const std::int64_t before = allocations;
  const auto p = std::make_unique<std::int64_t>(1);
  EXPECT_EQ(allocations - before, *p);
}

}  // namespace
}  // namespace tessera::test
