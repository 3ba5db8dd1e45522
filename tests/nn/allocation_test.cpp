// Forward and backward of attention take no memory from the heap after set-up.
#include <gtest/gtest.h>

#include "nn/attention_problems.h"
#include "support/allocation_count.h"

namespace tessera::test {
namespace {

std::vector<std::int64_t> taken_by_a_second_step(const LayerProblem& p, std::int32_t tp) {
  std::vector<std::int64_t> taken(tp, -1);
  on_every_rank({.tp = tp}, [&](RankGroups& g) {
    const auto kernels = kernels::make_cpu();
    RankParams params(p.params);
    nn::Dims dims = p.dims;
    dims.tp = tp;
    const auto layer = p.make(g.place, dims, params);
    tensor::Arena slots(Bytes(1 << 20)), scratch(Bytes(1 << 20));
    layer->reserve_saved(slots);
    layer->reserve_deferred(slots);
    nn::Context ctx{*kernels, *g.place.tp, scratch, p.weights};
    const std::int64_t t = dims.local_tokens();
    const Tensor x = p.x[0].tensor().narrow_rows(g.place.tp->rank() * t, t);
    const Owned y(DType::f64, {t, dims.hidden});
    const auto step = [&] {
      layer->forward(ctx, {0, 0}, {}, x, y, nn::Pass::forward);
      layer->backward_input(ctx, {0, 0}, {}, y);
      layer->backward_weight(ctx, {0, 0}, {});
    };
    step();
    const std::int64_t before = allocations;
    step();
    taken[g.place.rank] = allocations - before;
  });
  return taken;
}

TEST(AttentionAllocation, ASecondStepAllocatesNothing) {
  for (const auto mode : {nn::Recompute::none, nn::Recompute::selective}) {
    const AttentionCase full{.recompute = mode,
                             .norm = nn::NormKind::layer,
                             .bias = true,
                             .qk_norm = nn::QkNorm::whole,
                             .clip = 0.9,
                             .window = 4,
                             .sinks = true};
    for (const std::int32_t tp : {1, 2}) {
      const std::vector<std::int64_t> none(tp, 0);
      EXPECT_EQ(taken_by_a_second_step(attention_case(full), tp), none);
      EXPECT_EQ(taken_by_a_second_step(latent_case({.bias = true, .recompute = mode}), tp), none);
      EXPECT_EQ(taken_by_a_second_step(latent_case({.q_latent = false, .recompute = mode}), tp), none);
    }
  }
}

TEST(AttentionAllocation, TheCounterCounts) {
  const std::int64_t before = allocations;
  const auto p = std::make_unique<std::int64_t>(1);
  EXPECT_EQ(allocations - before, *p);
}

}  // namespace
}  // namespace tessera::test
