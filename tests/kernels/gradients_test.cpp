// Every backward kernel against central differences, in f64, with random weights and a random weighting of
// the outputs as the loss.
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

TEST_P(KernelGradients, LinearMatchesDifferences) {
  const std::int64_t t = 5, n = 7, k = 3;
  const Owned x = random(kF64, {t, k}, 1), w = random(kF64, {n, k}, 2), u = random(kF64, {t, n}, 3);
  PackedWeight weight(*kernels_, w);
  const Owned y(kF64, {t, n}), dx(kF64, {t, k}), dw = zeros(kF64, {n, k});
  const auto loss = [&] {
    weight.repack();
    kernels_->linear(y, x, weight);
    return dot(u, y);
  };
  kernels_->linear_dgrad(dx, u, weight);
  kernels_->linear_wgrad(dw, u, x);
  EXPECT_TRUE(gradient_matches("dx", x, dx, loss));
  EXPECT_TRUE(gradient_matches("dw", w, dw, loss));
}

TEST_P(KernelGradients, RmsNormMatchesDifferences) {
  const std::int64_t t = 4, h = 9;
  const Owned x = random(kF64, {t, h}, 1), w = random(kF64, {h}, 2), u = random(kF64, {t, h}, 3);
  const Owned y(kF64, {t, h}), rstd(kF64, {t}), dx(kF64, {t, h}), dw = zeros(kF64, {h});
  const auto loss = [&] {
    kernels_->rms_norm(y, rstd, x, w, 1e-2);  // large, so that its place in the formula matters
    return dot(u, y);
  };
  (void)loss();
  kernels_->rms_norm_dgrad(dx, u, x, rstd, w, Write::overwrite);
  kernels_->rms_norm_wgrad(dw, u, x, rstd);
  EXPECT_TRUE(gradient_matches("dx", x, dx, loss));
  EXPECT_TRUE(gradient_matches("dw", w, dw, loss));
}

// MHA, GQA with several sequences, one kv head, a single key.
const std::array<AttentionShape, 5> kAttentionShapes = {{
    {.batch = 1, .seq = 7, .heads = 2, .kv_heads = 2, .head_dim = 4, .scale = 0.5},
    {.batch = 2, .seq = 5, .heads = 4, .kv_heads = 2, .head_dim = 6, .scale = 0.4},
    {.batch = 3, .seq = 3, .heads = 3, .kv_heads = 1, .head_dim = 2, .scale = 0.7},
    {.batch = 2, .seq = 1, .heads = 2, .kv_heads = 1, .head_dim = 2, .scale = 0.7},
    {.batch = 1, .seq = 19, .heads = 1, .kv_heads = 1, .head_dim = 8, .scale = 0.3},
}};

TEST_P(KernelGradients, RopeMatchesDifferences) {
  for (const AttentionShape& s : kAttentionShapes) {
    const std::int64_t t = s.batch * s.seq;
    const Owned qkv = random(kF64, {t, s.qkv_dim()}, 1), u = random(kF64, {t, s.qkv_dim()}, 2);
    const Owned angle = random(kF64, {s.seq, s.head_dim / 2}, 3);
    const Owned cos = copy_of(angle), sin = copy_of(angle);
    for (std::int64_t i = 0; i < angle.tensor().num_elements(); ++i) {
      test::set(cos, i, std::cos(get(angle, i)));
      test::set(sin, i, std::sin(get(angle, i)));
    }
    const auto loss = [&] {
      const Owned y = copy_of(qkv);
      kernels_->rope(y, cos, sin, s, false);
      return dot(u, y);
    };
    const Owned dqkv = copy_of(u);
    kernels_->rope(dqkv, cos, sin, s, true);
    EXPECT_TRUE(gradient_matches("dqkv", qkv, dqkv, loss));
  }
}

TEST_P(KernelGradients, AttentionMatchesDifferences) {
  for (const AttentionShape& s : kAttentionShapes) {
    SCOPED_TRACE(fmt::format("batch {} seq {} heads {} kv {}", s.batch, s.seq, s.heads, s.kv_heads));
    const std::int64_t t = s.batch * s.seq;
    const Owned qkv = random(kF64, {t, s.qkv_dim()}, 1), u = random(kF64, {t, s.q_dim()}, 2);
    const Owned out(kF64, {t, s.q_dim()}), lse(kF64, {t, s.heads}), dqkv(kF64, {t, s.qkv_dim()});
    const auto loss = [&] {
      kernels_->attention(out, lse, qkv, s);
      return dot(u, out);
    };
    (void)loss();
    kernels_->attention_backward(dqkv, u, qkv, out, lse, s);
    EXPECT_TRUE(gradient_matches("dqkv", qkv, dqkv, loss));
  }
}

TEST_P(KernelGradients, SwigluMatchesDifferences) {
  const std::int64_t t = 3, i = 5;
  const Owned gate_up = random(kF64, {t, 2 * i}, 1, 2), u = random(kF64, {t, i}, 2);
  const Owned h(kF64, {t, i}), dgate_up(kF64, {t, 2 * i});
  const auto loss = [&] {
    kernels_->swiglu(h, gate_up);
    return dot(u, h);
  };
  kernels_->swiglu_backward(dgate_up, u, gate_up);
  EXPECT_TRUE(gradient_matches("dgate_up", gate_up, dgate_up, loss));
}

TEST_P(KernelGradients, EmbeddingMatchesDifferences) {
  const std::int64_t t = 8, v = 4, h = 3, begin = 2;
  const Owned table = random(kF64, {v, h}, 1), u = random(kF64, {t, h}, 2);
  const Owned ids = test::tensor_of(DType::i32, {t}, {0, 2, 5, 5, 7, 3, 5, 6});  // outside, repeated
  const Owned y(kF64, {t, h}), dtable = zeros(kF64, {v, h});
  const auto loss = [&] {
    kernels_->embedding(y, ids, table, begin);
    return dot(u, y);
  };
  kernels_->embedding_wgrad(dtable, u, ids, begin);
  EXPECT_TRUE(gradient_matches("dtable", table, dtable, loss));
}

// The loss and gradient of cross entropy over vocabulary shares that end at the given columns.
struct SharedLoss {
  Owned loss_T, lse_T, dlogits_TV;
};
SharedLoss cross_entropy(Kernels& kernels, const Tensor& logits, const Tensor& targets,
                         const std::vector<std::int64_t>& ends, double weight) {
  const std::int64_t t = logits.dim(0);
  const auto p = static_cast<std::int64_t>(ends.size());
  const Owned stats(logits.dtype(), {p, 3, t});
  SharedLoss out{Owned(logits.dtype(), {t}), Owned(logits.dtype(), {t}), copy_of(logits)};
  std::int64_t begin = 0;
  for (std::int64_t i = 0; i < p; begin = ends[static_cast<std::size_t>(i++)]) {
    const Owned share = columns(logits, begin, ends[static_cast<std::size_t>(i)] - begin);
    kernels.cross_entropy_stats(stats.tensor().narrow_rows(i, 1).reshaped({3, t}), share, targets, begin);
  }
  kernels.cross_entropy_join(out.loss_T, out.lse_T, stats, targets);
  begin = 0;
  for (const std::int64_t end : ends) {
    const Owned share = columns(logits, begin, end - begin);
    kernels.cross_entropy_backward(share, out.lse_T, targets, begin, weight);
    put_columns(out.dlogits_TV, begin, share);
    begin = end;
  }
  return out;
}

TEST_P(KernelGradients, CrossEntropyOverAnySharesMatchesDifferencesAndOneShare) {
  const std::int64_t t = 6, v = 11;
  const double weight = 0.37;
  const Owned logits = random(kF64, {t, v}, 1, 3);
  const Owned targets = test::tensor_of(DType::i32, {t}, {0, 10, -1, 4, 7, -100});
  const SharedLoss one = cross_entropy(*kernels_, logits, targets, {v}, weight);
  for (const auto& ends : std::vector<std::vector<std::int64_t>>{{11}, {6, 11}, {4, 8, 11}}) {
    SCOPED_TRACE(fmt::format("{} shares", ends.size()));
    const auto loss = [&] {
      double sum = 0;
      for (const double l : values(cross_entropy(*kernels_, logits, targets, ends, weight).loss_T)) {
        sum += weight * l;
      }
      return sum;
    };
    const SharedLoss shared = cross_entropy(*kernels_, logits, targets, ends, weight);
    EXPECT_TRUE(gradient_matches("dlogits", logits, shared.dlogits_TV, loss));
    EXPECT_TRUE(test::matches_reordered("shares loss", shared.loss_T, one.loss_T, v));
    EXPECT_TRUE(test::matches_reordered("shares lse", shared.lse_T, one.lse_T, v));
    EXPECT_TRUE(test::matches_reordered("shares dlogits", shared.dlogits_TV, one.dlogits_TV, v));
    for (const std::int64_t ignored : {2, 5}) {
      EXPECT_EQ(get(shared.loss_T, ignored), 0);
      for (std::int64_t i = 0; i < v; ++i) EXPECT_EQ(get(shared.dlogits_TV, ignored * v + i), 0);
    }
  }
}

// Which terms of the router's loss are on.
struct RouterTerms {
  const char* name;
  double weights, aux, z;
};

TEST_P(KernelGradients, RouterMatchesDifferencesInAllFormsAndWithEachTermAlone) {
  const std::int64_t t = 9, e = 6, k = 3, units = 2;
  const std::array<RouterOptions, 3> forms = {{
      {.top_k = 3, .score = RouterScore::softmax_then_topk, .renormalise = false},
      {.top_k = 3, .score = RouterScore::softmax_then_topk, .renormalise = true},
      {.top_k = 3, .score = RouterScore::topk_then_softmax, .renormalise = false},
  }};
  const std::array<RouterTerms, 4> terms = {
      {{"all", 1, 1, 0.3}, {"weights", 1, 0, 0}, {"aux", 0, 1, 0}, {"z", 0, 0, 0.3}}};
  const Owned logits = random(kF64, {t, e}, 1, 2);
  const Owned unit = random_ids(DType::i32, {t}, 4, 0, units);
  const Owned probs(kF64, {t, e}), lse(kF64, {t}), weights(kF64, {t, k}), dlogits(kF64, {t, e});
  const Owned index(DType::i32, {t, k});
  for (const RouterOptions& form : forms) {
    for (const RouterTerms& on : terms) {
      SCOPED_TRACE(fmt::format("form {} {} loss {}", int(form.score), form.renormalise, on.name));
      const Owned u = random(kF64, {t, k}, 2, on.weights), aux = random(kF64, {units, e}, 3, on.aux);
      const auto loss = [&] {
        kernels_->router(probs, lse, index, weights, logits, form);
        double sum = dot(u, weights);
        for (std::int64_t i = 0; i < t; ++i) {
          const auto row = static_cast<std::int64_t>(get(unit, i)) * e;
          for (std::int64_t j = 0; j < e; ++j) sum += get(aux, row + j) * get(probs, i * e + j);
          sum += on.z * get(lse, i) * get(lse, i);
        }
        return sum;
      };
      (void)loss();
      const Tensor used_aux = on.aux > 0 ? aux.tensor() : Tensor();
      kernels_->router_backward(dlogits, u, probs, lse, index, weights, used_aux,
                                on.aux > 0 ? unit.tensor() : Tensor(), on.z, form);
      EXPECT_TRUE(gradient_matches("dlogits", logits, dlogits, loss));
    }
  }
}

TEST_P(KernelGradients, CombineWithDroppedChoicesMatchesDifferences) {
  const std::int64_t t = 4, k = 2, r = 7, h = 5;
  const Owned x = random(kF64, {t, h}, 1), rows = random(kF64, {r, h}, 2), weights = random(kF64, {t, k}, 3);
  const Owned u = random(kF64, {t, h}, 4);
  const Owned pos = test::tensor_of(DType::i32, {t, k}, {3, 0, -1, 5, -1, -7, 6, 1});  // rows 2 and 4 unused
  const Owned y(kF64, {t, h}), drows = zeros(kF64, {r, h}), dweights(kF64, {t, k});
  const auto loss = [&] {
    kernels_->combine(y, x, rows, pos, weights);
    return dot(u, y);
  };
  kernels_->combine_backward(drows, dweights, u, rows, pos, weights);
  EXPECT_TRUE(gradient_matches("dx", x, u, loss));
  EXPECT_TRUE(gradient_matches("drows", rows, drows, loss));
  EXPECT_TRUE(gradient_matches("dweights", weights, dweights, loss));
}

TEST_P(KernelGradients, SumOfRowsIsTheGradientOfGatherWithDroppedChoices) {
  const std::int64_t t = 4, k = 2, r = 5, h = 3;
  const Owned x = random(kF64, {t, h}, 1), u = random(kF64, {r, h}, 2);
  const Owned index = test::tensor_of(DType::i32, {r}, {1, 0, 3, 1, 0});               // token of each row
  const Owned pos = test::tensor_of(DType::i32, {t, k}, {1, 4, 0, 3, -1, -1, -1, 2});  // rows of each token
  const Owned y(kF64, {r, h}), dx(kF64, {t, h});
  const auto loss = [&] {
    kernels_->gather_rows(y, x, index);
    return dot(u, y);
  };
  kernels_->sum_rows(dx, u, pos, Write::overwrite);
  EXPECT_TRUE(gradient_matches("dx", x, dx, loss));
}

INSTANTIATE_TEST_SUITE_P(All, KernelGradients, ::testing::ValuesIn(f64_subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
