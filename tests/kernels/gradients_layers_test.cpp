// The backward kernels of attention with windows, sinks and values of another width, of rope, the norms, the
// activations and the router's sigmoid forms against central differences, in f64, with random weights and a
// random weighting of the outputs as the loss.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/fixtures.h"
#include "support/gradient_check.h"

namespace tessera::kernels {
namespace {

using test::dot;
using test::gradient_matches;
constexpr DType kF64 = DType::f64;

class LayerGradients : public KernelTest {};

TEST_P(LayerGradients, AttentionWithWindowSinksAndItsOwnValueWidth) {
  const std::array<AttentionShape, 6> shapes = {{
      {.batch = 2, .seq = 7, .heads = 4, .kv_heads = 2, .head_dim = 4, .scale = 0.5, .v_head_dim = 6},
      {.batch = 2, .seq = 9, .heads = 2, .kv_heads = 1, .head_dim = 6, .scale = 0.4, .window = 3},
      {.batch = 1, .seq = 7, .heads = 2, .kv_heads = 2, .head_dim = 4, .scale = 0.7, .window = 1},
      {.batch = 1, .seq = 5, .heads = 2, .kv_heads = 1, .head_dim = 6, .scale = 0.4, .window = 50},
      {.batch = 2,
       .seq = 8,
       .heads = 4,
       .kv_heads = 2,
       .head_dim = 6,
       .scale = 0.4,
       .v_head_dim = 3,
       .window = 4},
      {.batch = 1, .seq = 1, .heads = 2, .kv_heads = 1, .head_dim = 2, .scale = 0.4, .v_head_dim = 1},
  }};
  for (const AttentionShape& s : shapes) {
    for (const bool with_sinks : {false, true}) {
      SCOPED_TRACE(fmt::format("seq {} window {} v {} sinks {}", s.seq, s.window, s.v_dim(), with_sinks));
      const std::int64_t t = s.batch * s.seq;
      const Owned qkv = random(kF64, {t, s.qkv_dim()}, 1), u = random(kF64, {t, s.out_dim()}, 2);
      const Owned sinks = random(kF64, {s.heads}, 3), dsinks(kF64, {s.heads});
      const Tensor used = with_sinks ? sinks.tensor() : Tensor();
      const Owned out(kF64, {t, s.out_dim()}), lse(kF64, {t, s.heads}), dqkv(kF64, {t, s.qkv_dim()});
      const auto loss = [&] {
        kernels_->attention(out, lse, qkv, used, s);
        return dot(u, out);
      };
      (void)loss();
      kernels_->attention_backward(dqkv, with_sinks ? dsinks.tensor() : Tensor(), u, qkv, out, lse, used, s);
      EXPECT_TRUE(gradient_matches("dqkv", qkv, dqkv, loss));
      if (with_sinks) {
        EXPECT_TRUE(gradient_matches("dsinks", sinks, dsinks, loss));
      }
    }
  }
}

TEST_P(LayerGradients, TheAdjointOfRopeInBothPairFormsWithAFactorAndGivenPositions) {
  const std::int64_t t = 6, columns = 14, table = 9;
  for (const RopePairs pairs : {RopePairs::halves, RopePairs::interleaved}) {
    for (const bool given : {false, true}) {
      const RopeShape shape = {.seq = 3, .heads = 2, .first = 2, .stride = 6, .rotated = 4, .pairs = pairs};
      const Owned x = random(kF64, {t, columns}, 1), u = random(kF64, {t, columns}, 2);
      // Not of length one: scaled tables are not a rotation, and their transpose not its inverse.
      const Owned cos = random(kF64, {table, 2}, 3), sin = random(kF64, {table, 2}, 4);
      const Owned positions = test::tensor_of(DType::i32, {t}, {8, 0, 3, 3, 7, 1});
      const Tensor used = given ? positions.tensor() : Tensor();
      const auto loss = [&] {
        const Owned y = copy_of(x);
        kernels_->rope(y, cos, sin, shape, false, used);
        return dot(u, y);
      };
      const Owned dx = copy_of(u);
      kernels_->rope(dx, cos, sin, shape, true, used);
      EXPECT_TRUE(gradient_matches("dx", x, dx, loss));
    }
  }
}

TEST_P(LayerGradients, LayerNorm) {
  const std::int64_t t = 4, h = 9;
  const Owned x = random(kF64, {t, h}, 1, 1, 0.7), w = random(kF64, {h}, 2), b = random(kF64, {h}, 3);
  const Owned u = random(kF64, {t, h}, 4), y(kF64, {t, h}), mean(kF64, {t}), rstd(kF64, {t});
  const Owned dx(kF64, {t, h}), dw = zeros(kF64, {h}), db = zeros(kF64, {h});
  const auto loss = [&] {
    kernels_->layer_norm(y, mean, rstd, x, w, b, 1e-2);
    return dot(u, y);
  };
  (void)loss();
  kernels_->layer_norm_dgrad(dx, u, x, mean, rstd, w, Write::overwrite);
  kernels_->layer_norm_wgrad(dw, db, u, x, mean, rstd);
  EXPECT_TRUE(gradient_matches("dx", x, dx, loss));
  EXPECT_TRUE(gradient_matches("dw", w, dw, loss));
  EXPECT_TRUE(gradient_matches("db", b, db, loss));
}

// The groups may be halves of wider ones, whose other half lies on another rank: the sums are added up.
TEST_P(LayerGradients, NormsOfColumnGroupsAlsoWhenCutOverTwoRanks) {
  const std::int64_t t = 3, columns = 13;
  const ColumnGroups cols = {.first = 2, .groups = 2, .width = 5};
  for (const bool cut : {false, true}) {
    const GroupNormOptions options = {.eps = 1e-2, .count = cut ? 2 * cols.width : cols.width};
    const Owned x = random(kF64, {t, columns}, 1), other = random(kF64, {t, columns}, 2);
    const Owned w = random(kF64, {cols.width}, 3), w_other = random(kF64, {cols.width}, 4);
    const Owned u = random(kF64, {t, columns}, 5), u_other = random(kF64, {t, columns}, 6);
    const Owned y = zeros(kF64, {t, columns}), sums(kF64, {t, 2}), part(kF64, {t, 2});
    const auto squares = [&] {
      kernels_->group_squares(sums, x, cols);
      if (!cut) return;
      kernels_->group_squares(part, other, cols);
      kernels_->accumulate(sums, part);
    };
    const auto loss = [&] {
      squares();
      kernels_->group_norm(y, x, sums, w, options, cols);
      double total = dot(u, y);
      if (cut) {
        kernels_->group_norm(y, other, sums, w_other, options, cols);
        total += dot(u_other, y);
      }
      return total;
    };
    squares();
    const Owned dx = copy_of(u), dots(kF64, {t, 2}), dw(kF64, {cols.width});
    kernels_->group_norm_dots(dots, u, x, w, cols);
    if (cut) {
      kernels_->group_norm_dots(part, u_other, other, w_other, cols);
      kernels_->accumulate(dots, part);
    }
    kernels_->group_norm_wgrad(dw, u, x, sums, options, cols, Write::overwrite);
    kernels_->group_norm_dgrad(dx, dx, x, sums, dots, w, options, cols);  // in place
    EXPECT_TRUE(gradient_matches("dw", w, dw, loss));
    const Owned want = zeros(kF64, {t, columns});
    put_columns(want, cols.first, kernels::columns(dx, cols.first, 10));
    EXPECT_TRUE(gradient_matches("dx", x, want, loss));
    for (std::int64_t i = 0; i < t * columns; ++i) {
      const std::int64_t c = i % columns;
      if (c >= cols.first && c < cols.first + 10) continue;
      EXPECT_EQ(get(dx, i), get(u, i)) << "column " << c;
    }
  }
}

TEST_P(LayerGradients, ClampStopsGradientsAtAndBeyondItsLimit) {
  const Owned x = test::tensor_of(kF64, {2, 4}, {9, -0.5, 2.5, 1, -9, 0.7, -1.5, -3});
  const Owned u = random(kF64, {2, 4}, 1), y = copy_of(x), dx = copy_of(u), after = copy_of(u);
  kernels_->clamp(y, 1.5, 1, 3);
  EXPECT_EQ(values(y), (std::vector<double>{9, -0.5, 1.5, 1, -9, 0.7, -1.5, -1.5}));
  kernels_->clamp_backward(dx, x, 1.5, 1, 3);
  kernels_->clamp_backward(after, y, 1.5, 1, 3);
  std::vector<double> want = values(u);
  want[2] = want[6] = want[7] = 0;
  EXPECT_EQ(values(dx), want);
  EXPECT_EQ(values(after), want) << "from the clamped values";
}

TEST_P(LayerGradients, BiasIsAddedToEveryRowAndItsGradientIsTheColumnSum) {
  const std::int64_t t = 5, n = 3;
  const Owned x = random(kF64, {t, n}, 1), b = random(kF64, {n}, 2), u = random(kF64, {t, n}, 3);
  const auto loss = [&] {
    const Owned y = copy_of(x);
    kernels_->add_bias(y, b);
    return dot(u, y);
  };
  const Owned db(kF64, {n});
  kernels_->bias_wgrad(db, u, Write::overwrite);
  EXPECT_TRUE(gradient_matches("db", b, db, loss));
}

// Values on both sides of the limits, none at them.
TEST_P(LayerGradients, EveryActivation) {
  const std::int64_t t = 6, i = 5;
  for (const ActivationOptions& options :
       std::array<ActivationOptions, 4>{{{Activation::swiglu},
                                         {Activation::gelu},
                                         {Activation::gelu_tanh},
                                         {Activation::clamped_swiglu, 1.3}}}) {
    SCOPED_TRACE(fmt::format("kind {}", static_cast<int>(options.kind)));
    const std::int64_t columns = options.gated() ? 2 * i : i;
    const Owned z = random(kF64, {t, columns}, 1, 2), u = random(kF64, {t, i}, 2);
    const Owned h(kF64, {t, i}), dz(kF64, {t, columns});
    const auto loss = [&] {
      kernels_->activation(h, z, options);
      return dot(u, h);
    };
    kernels_->activation_backward(dz, u, z, options);
    EXPECT_TRUE(gradient_matches("dz", z, dz, loss));
  }
}

TEST_P(LayerGradients, SigmoidGate) {
  const std::int64_t t = 4, h = 5;
  const Owned y0 = random(kF64, {t, h}, 1), f = random(kF64, {t, h}, 2), z = random(kF64, {t}, 3, 2);
  const Owned u = random(kF64, {t, h}, 4), df(kF64, {t, h}), dz(kF64, {t});
  const auto loss = [&] {
    const Owned y = copy_of(y0);
    kernels_->sigmoid_gate(y, f, z);
    return dot(u, y);
  };
  kernels_->sigmoid_gate_backward(df, dz, u, f, z);
  EXPECT_TRUE(gradient_matches("df", f, df, loss));
  EXPECT_TRUE(gradient_matches("dz", z, dz, loss));
}

// The choice stands still: bias and groups move it, and no gradient goes through them.
TEST_P(LayerGradients, RouterFormsWithScaleGroupsAndBias) {
  const std::int64_t t = 9, e = 8, k = 3, units = 2;
  std::vector<RouterOptions> forms;
  for (const RouterScore score :
       {RouterScore::softmax_then_topk, RouterScore::topk_then_softmax, RouterScore::sigmoid}) {
    for (const bool renormalise : {false, true}) {
      forms.push_back({.top_k = 3,
                       .score = score,
                       .renormalise = renormalise,
                       .scale = 2.5,
                       .n_group = 4,
                       .topk_group = 2,
                       .group_score = GroupScore::top2_sum});
    }
  }
  const Owned logits = random(kF64, {t, e}, 1, 2), bias = random(kF64, {e}, 5, 0.1);
  const Owned unit = random_ids(DType::i32, {t}, 4, 0, units);
  const Owned probs(kF64, {t, e}), lse(kF64, {t}), weights(kF64, {t, k}), dlogits(kF64, {t, e});
  const Owned index(DType::i32, {t, k});
  for (const RouterOptions& form : forms) {
    for (const auto& [name, on_weights, on_aux, z] :
         std::vector<std::tuple<std::string, double, double, double>>{
             {"all", 1, 1, 0.3}, {"weights", 1, 0, 0}, {"aux", 0, 1, 0}, {"z", 0, 0, 0.3}}) {
      SCOPED_TRACE(fmt::format("form {} {} loss {}", int(form.score), form.renormalise, name));
      const Owned u = random(kF64, {t, k}, 2, on_weights), aux = random(kF64, {units, e}, 3, on_aux);
      const auto loss = [&] {
        kernels_->router(probs, lse, index, weights, logits, bias, form);
        double sum = dot(u, weights);
        for (std::int64_t i = 0; i < t; ++i) {
          const auto row = static_cast<std::int64_t>(get(unit, i)) * e;
          double total = 0;
          for (std::int64_t j = 0; j < e; ++j) total += get(probs, i * e + j);
          for (std::int64_t j = 0; j < e; ++j) sum += get(aux, row + j) * get(probs, i * e + j) / total;
          sum += z * get(lse, i) * get(lse, i);
        }
        return sum;
      };
      (void)loss();
      kernels_->router_backward(dlogits, u, probs, lse, index, weights, on_aux > 0 ? aux.tensor() : Tensor(),
                                on_aux > 0 ? unit.tensor() : Tensor(), z, form, logits);
      EXPECT_TRUE(gradient_matches("dlogits", logits, dlogits, loss));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, LayerGradients, ::testing::ValuesIn(f64_subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
