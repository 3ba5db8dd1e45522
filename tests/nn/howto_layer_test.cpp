// The example of docs/howto/add-a-layer.md: a layer written, then proven by the rig that every layer goes
// through.
#include <gtest/gtest.h>

#include "nn/problems.h"
#include "support/layer_gradients.h"

namespace tessera::test {
namespace {

using kernels::Write;
using nn::Arena;
using nn::Context;
using nn::Microbatch;
using nn::Slots;

// [layer]
// y_tH = x_tH + x_tH A^T with one matrix A [H, H], held whole by every tp rank.
// Bytes sent: none. Gradient of A: summed over tp x dp, because every tp rank sees its own rows.
class Adapter : public nn::Layer {
 public:
  Adapter(nn::Dims dims, nn::Param a_HH) : dims_(dims), a_(a_HH) {}

  // Once per slot at set-up, over a counting arena and then over a real one.
  void reserve_saved(Arena&) override { saved_.emplace_back(); }
  void reserve_deferred(Arena& arena) override {
    deferred_.push_back(arena.take(dims_.dtype, {dims_.local_tokens(), dims_.hidden}));
  }
  void measure_scratch(Arena&) const override {}  // takes none

  void forward(Context& ctx, Slots slots, const Microbatch&, Tensor x_tH, Tensor y_tH, nn::Pass) override {
    nn::slot_at(saved_, slots.saved) = x_tH;  // a view: x stays valid until W of this slot
    ctx.kernels.linear(y_tH, x_tH, a_.weight);
    ctx.kernels.accumulate(y_tH, x_tH);
  }
  // g_tH comes in as d loss / d y and leaves as d loss / d x.
  void backward_input(Context& ctx, Slots slots, const Microbatch&, Tensor g_tH) override {
    const Tensor dy_tH = nn::slot_at(deferred_, slots.deferred);  // what W will need
    ctx.kernels.fill(dy_tH, 0.0);
    ctx.kernels.accumulate(dy_tH, g_tH);
    ctx.kernels.linear_dgrad(g_tH, dy_tH, a_.weight, Write::accumulate);
  }
  // Only here gradients of weights grow: the order of W alone fixes their bits.
  void backward_weight(Context& ctx, Slots slots, const Microbatch&) override {
    ctx.kernels.linear_wgrad(a_.grad, nn::slot_at(deferred_, slots.deferred),
                             nn::slot_at(saved_, slots.saved));
  }

 private:
  nn::Dims dims_;
  nn::Param a_;
  std::vector<Tensor> saved_, deferred_;
};
// [/layer]

// [proof]
LayerProblem adapter_problem() {
  LayerProblem p = residual_problem(2);  // two micro-batches of random rows and random upstream gradients
  add_param(p, "a", {p.dims.hidden, p.dims.hidden}, 1);
  p.make = [](const Place&, const nn::Dims& dims, RankParams& params) -> std::unique_ptr<nn::Layer> {
    return std::make_unique<Adapter>(dims, params.add(0));
  };
  return p;
}

TEST(Adapter, GradientsMatchCentralDifferences) {
  expect_gradients(adapter_problem());
}

TEST(Adapter, OnTwoAndFourRanksEqualsOneRank) {
  const LayerProblem p = adapter_problem();
  for (const std::int32_t tp : {2, 4}) expect_near(p, run_layer(p, {.tp = tp}), run_layer(p, {}), 1e-12);
}

TEST(Adapter, SendsNothing) {
  for (const PhaseBytes& sent : run_layer(adapter_problem(), {.tp = 2}).bytes) {
    EXPECT_EQ(sent.forward + sent.input + sent.weight, 0);
  }
}
// [/proof]

}  // namespace
}  // namespace tessera::test
