// Results do not depend, to the bit, on how rows or columns of the output are split over calls: what tensor
// parallelism, sequence splits and sharded optimisers rely on.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

class Splits : public KernelTest {
 protected:
  [[nodiscard]] Owned draw(Shape shape, std::uint64_t seed, double spread = 1) const {
    return random(dtype_, shape, seed, spread);
  }
  [[nodiscard]] Owned blank(Shape shape) const { return Owned(dtype_, shape); }
};

// f(begin, count) for the parts of n that end at `ends`, the last being n.
void for_parts(const std::vector<std::int64_t>& ends,
               const std::function<void(std::int64_t, std::int64_t)>& f) {
  std::int64_t begin = 0;
  for (const std::int64_t end : ends) {
    f(begin, end - begin);
    begin = end;
  }
}
Tensor rows_of(const Tensor& x, std::int64_t begin, std::int64_t count) {
  return x.narrow_rows(begin, count);
}

constexpr std::int64_t kT = 45, kN = 70, kK = 53;
const std::vector<std::vector<std::int64_t>> kRowEnds = {{1, 45}, {16, 32, 45}, {7, 8, 9, 44, 45}};
const std::vector<std::vector<std::int64_t>> kNEnds = {{1, 70}, {35, 70}, {16, 48, 69, 70}};
const std::vector<std::vector<std::int64_t>> kKEnds = {{1, 53}, {26, 53}, {16, 48, 52, 53}};

TEST_P(Splits, LinearOverRowsAndOverColumns) {
  const Owned x = draw({kT, kK}, 1), w = draw({kN, kK}, 2), y = blank({kT, kN});
  kernels_->linear(y, x, PackedWeight(*kernels_, w));
  for (const auto& ends : kRowEnds) {
    const Owned parts = blank({kT, kN});
    const PackedWeight weight(*kernels_, w);
    for_parts(ends, [&](std::int64_t begin, std::int64_t count) {
      kernels_->linear(rows_of(parts, begin, count), rows_of(x, begin, count), weight);
    });
    EXPECT_TRUE(test::same_bits(parts, y)) << "rows";
  }
  for (const auto& ends : kNEnds) {
    const Owned parts = blank({kT, kN});
    for_parts(ends, [&](std::int64_t begin, std::int64_t count) {
      const Owned y_part = blank({kT, count});
      kernels_->linear(y_part, x, PackedWeight(*kernels_, rows_of(w, begin, count)));
      put_columns(parts, begin, y_part);
    });
    EXPECT_TRUE(test::same_bits(parts, y)) << "output features";
  }
}

// A few rows take another way through the weight than many; the inner sum spans several of its blocks.
TEST_P(Splits, LinearOfAFewRowsGivesTheBitsOfMany) {
  const std::int64_t t = 30, n = 75, k = 1301;
  const Owned x = draw({t, k}, 1), w = draw({n, k}, 2), dy = draw({t, k}, 3), v = draw({k, n}, 4);
  const Owned y = blank({t, n}), start = draw({t, n}, 5), dx = copy_of(start);
  const PackedWeight weight(*kernels_, w), other(*kernels_, v);
  kernels_->linear(y, x, weight);
  kernels_->linear_dgrad(dx, dy, other, Write::accumulate);
  for (std::int64_t rows = 1; rows <= 10; ++rows) {
    const std::int64_t first = t - rows;
    const Owned y_part = blank({rows, n}), dx_part = copy_of(rows_of(start, first, rows));
    kernels_->linear(y_part, rows_of(x, first, rows), weight);
    kernels_->linear_dgrad(dx_part, rows_of(dy, first, rows), other, Write::accumulate);
    EXPECT_TRUE(test::same_bits(y_part, rows_of(y, first, rows))) << rows << " rows";
    EXPECT_TRUE(test::same_bits(dx_part, rows_of(dx, first, rows))) << rows << " rows";
  }
}

TEST_P(Splits, LinearDgradOverRowsAndOverColumns) {
  for (const Write write : {Write::overwrite, Write::accumulate}) {
    const Owned dy = draw({kT, kN}, 1), w = draw({kN, kK}, 2), start = draw({kT, kK}, 3);
    const Owned dx = copy_of(start);
    kernels_->linear_dgrad(dx, dy, PackedWeight(*kernels_, w), write);
    for (const auto& ends : kRowEnds) {
      const Owned parts = copy_of(start);
      const PackedWeight weight(*kernels_, w);
      for_parts(ends, [&](std::int64_t begin, std::int64_t count) {
        kernels_->linear_dgrad(rows_of(parts, begin, count), rows_of(dy, begin, count), weight, write);
      });
      EXPECT_TRUE(test::same_bits(parts, dx)) << "rows";
    }
    for (const auto& ends : kKEnds) {
      const Owned parts = copy_of(start);
      for_parts(ends, [&](std::int64_t begin, std::int64_t count) {
        const Owned w_part = columns(w, begin, count), dx_part = columns(start, begin, count);
        kernels_->linear_dgrad(dx_part, dy, PackedWeight(*kernels_, w_part), write);
        put_columns(parts, begin, dx_part);
      });
      EXPECT_TRUE(test::same_bits(parts, dx)) << "input features";
    }
  }
}

TEST_P(Splits, LinearWgradOverRowsAndOverColumnsOfTheWeight) {
  const Owned dy = draw({kT, kN}, 1), x = draw({kT, kK}, 2), start = draw({kN, kK}, 3), dw = copy_of(start);
  kernels_->linear_wgrad(dw, dy, x);
  for (const auto& ends : kNEnds) {
    const Owned parts = copy_of(start);
    for_parts(ends, [&](std::int64_t begin, std::int64_t count) {
      kernels_->linear_wgrad(rows_of(parts, begin, count), columns(dy, begin, count), x);
    });
    EXPECT_TRUE(test::same_bits(parts, dw)) << "output features";
  }
  for (const auto& ends : kKEnds) {
    const Owned parts = copy_of(start);
    for_parts(ends, [&](std::int64_t begin, std::int64_t count) {
      const Owned part = columns(start, begin, count);
      kernels_->linear_wgrad(part, dy, columns(x, begin, count));
      put_columns(parts, begin, part);
    });
    EXPECT_TRUE(test::same_bits(parts, dw)) << "input features";
  }
}

TEST_P(Splits, RmsNormOverRows) {
  const Owned x = draw({kT, kK}, 1), w = draw({kK}, 2), dy = draw({kT, kK}, 3);
  const Owned y = blank({kT, kK}), rstd = blank({kT}), dx = blank({kT, kK});
  kernels_->rms_norm(y, rstd, x, w, 1e-5);
  kernels_->rms_norm_dgrad(dx, dy, x, rstd, w, Write::overwrite);
  for (const auto& ends : kRowEnds) {
    const Owned y_parts = blank({kT, kK}), rstd_parts = blank({kT}), dx_parts = blank({kT, kK});
    for_parts(ends, [&](std::int64_t b, std::int64_t n) {
      kernels_->rms_norm(rows_of(y_parts, b, n), rows_of(rstd_parts, b, n), rows_of(x, b, n), w, 1e-5);
      kernels_->rms_norm_dgrad(rows_of(dx_parts, b, n), rows_of(dy, b, n), rows_of(x, b, n),
                               rows_of(rstd, b, n), w, Write::overwrite);
    });
    EXPECT_TRUE(test::same_bits(y_parts, y));
    EXPECT_TRUE(test::same_bits(rstd_parts, rstd));
    EXPECT_TRUE(test::same_bits(dx_parts, dx));
  }
}

TEST_P(Splits, LayerNormColumnGroupsClampAndGatesOverRows) {
  const ColumnGroups cols = {.first = 3, .groups = 2, .width = 19};
  const GroupNormOptions options = {.eps = 1e-5, .count = 19};
  const Owned x = draw({kT, kK}, 1), w = draw({kK}, 2), b = draw({kK}, 3), dy = draw({kT, kK}, 4);
  const Owned wg = draw({19}, 5), z = draw({kT}, 6, 3);
  using Parts = std::vector<Owned>;
  // Outputs for rows [at, at + n): y, mean, rstd, dx of LayerNorm; sums, y, dots, dx of groups; a gate's y,
  // df, dz; a clamp.
  const auto run = [&](const Parts& out, std::int64_t at, std::int64_t n) {
    const auto r = [&](const Owned& of) { return rows_of(of, at, n); };
    kernels_->layer_norm(r(out[0]), r(out[1]), r(out[2]), r(x), w, b, 1e-5);
    kernels_->layer_norm_dgrad(r(out[3]), r(dy), r(x), r(out[1]), r(out[2]), w, Write::overwrite);
    kernels_->group_squares(r(out[4]), r(x), cols);
    kernels_->group_norm(r(out[5]), r(x), r(out[4]), wg, options, cols);
    kernels_->group_norm_dots(r(out[6]), r(dy), r(x), wg, cols);
    kernels_->group_norm_dgrad(r(out[7]), r(dy), r(x), r(out[4]), r(out[6]), wg, options, cols);
    kernels_->sigmoid_gate(r(out[8]), r(dy), r(z));
    kernels_->sigmoid_gate_backward(r(out[9]), r(out[10]), r(dy), r(x), r(z));
    kernels_->clamp(r(out[11]), 0.5, 2, kK - 2);
    kernels_->clamp_backward(r(out[11]), r(x), 0.25, 2, kK - 2);
    kernels_->add_bias(r(out[11]), b);
  };
  const auto fresh = [&] {
    Parts out;
    for (const Shape& s : std::vector<Shape>{{kT, kK},
                                             {kT},
                                             {kT},
                                             {kT, kK},
                                             {kT, 2},
                                             {kT, kK},
                                             {kT, 2},
                                             {kT, kK},
                                             {kT, kK},
                                             {kT, kK},
                                             {kT},
                                             {kT, kK}}) {
      out.push_back(s.num_dims() == 2 && s[1] == kK ? copy_of(x) : blank(s));
    }
    return out;
  };
  const Parts whole = fresh();
  run(whole, 0, kT);
  for (const auto& ends : kRowEnds) {
    const Parts parts = fresh();
    for_parts(ends, [&](std::int64_t begin, std::int64_t n) { run(parts, begin, n); });
    for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_TRUE(test::same_bits(parts[i], whole[i])) << i;
  }
}

TEST_P(Splits, RopeOverRowsAtTheirPositions) {
  const RopeShape shape = {
      .seq = kT, .heads = 3, .first = 1, .stride = 17, .rotated = 16, .pairs = RopePairs::interleaved};
  const Owned cos = draw({kT, 8}, 1), sin = draw({kT, 8}, 2), start = draw({kT, kK}, 3), x = copy_of(start);
  std::vector<double> positions(kT);
  for (std::size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<double>(i);
  const Owned position = Owned(DType::i32, {kT});
  test::set_values(position, positions);
  kernels_->rope(x, cos, sin, shape, false);
  for (const auto& ends : kRowEnds) {
    const Owned parts = copy_of(start);
    for_parts(ends, [&](std::int64_t b, std::int64_t n) {
      kernels_->rope(rows_of(parts, b, n), cos, sin, shape, false, rows_of(position, b, n));
    });
    EXPECT_TRUE(test::same_bits(parts, x));
  }
}

// Tensor parallelism gives each rank a share of gate and up.
TEST_P(Splits, ActivationsOverRowsAndOverColumns) {
  for (const ActivationOptions& o : std::vector<ActivationOptions>{{Activation::swiglu},
                                                                   {Activation::gelu},
                                                                   {Activation::gelu_tanh},
                                                                   {Activation::clamped_swiglu, 2}}) {
    SCOPED_TRACE(fmt::format("kind {}", int(o.kind)));
    const std::int64_t wide = o.gated() ? 2 : 1;
    const Owned z = draw({kT, wide * kK}, 1, 3), dh = draw({kT, kK}, 2);
    const Owned h = blank({kT, kK}), dz = blank({kT, wide * kK});
    kernels_->activation(h, z, o);
    kernels_->activation_backward(dz, dh, z, o);
    for (const auto& ends : kKEnds) {
      const Owned h_parts = blank({kT, kK}), dz_parts = blank({kT, wide * kK});
      for_parts(ends, [&](std::int64_t b, std::int64_t n) {
        const Owned in = blank({kT, wide * n}), out = blank({kT, n}), din = blank({kT, wide * n});
        for (std::int64_t part = 0; part < wide; ++part) {
          put_columns(in, part * n, columns(z, part * kK + b, n));
        }
        kernels_->activation(out, in, o);
        kernels_->activation_backward(din, columns(dh, b, n), in, o);
        put_columns(h_parts, b, out);
        for (std::int64_t part = 0; part < wide; ++part) {
          put_columns(dz_parts, part * kK + b, columns(din, part * n, n));
        }
      });
      EXPECT_TRUE(test::same_bits(h_parts, h));
      EXPECT_TRUE(test::same_bits(dz_parts, dz));
    }
    for (const auto& ends : kRowEnds) {
      const Owned h_parts = blank({kT, kK});
      for_parts(ends, [&](std::int64_t b, std::int64_t n) {
        kernels_->activation(rows_of(h_parts, b, n), rows_of(z, b, n), o);
      });
      EXPECT_TRUE(test::same_bits(h_parts, h));
    }
  }
}

TEST_P(Splits, AttentionOverSequencesAndOverHeads) {
  const AttentionShape all = {.batch = 2, .seq = 35, .heads = 4, .kv_heads = 2, .head_dim = 12, .scale = 0.3};
  const std::int64_t t = 70, d = all.head_dim;
  const Owned qkv = draw({t, all.qkv_dim()}, 1), dout = draw({t, all.q_dim()}, 2);
  const Owned out = blank({t, all.q_dim()}), lse = blank({t, all.heads}), dqkv = blank({t, all.qkv_dim()});
  kernels_->attention(out, lse, qkv, all);
  kernels_->attention_backward(dqkv, dout, qkv, out, lse, all);

  AttentionShape one = all;
  one.batch = 1;
  const Owned out_b = blank({t, all.q_dim()}), lse_b = blank({t, all.heads}),
              dqkv_b = blank({t, all.qkv_dim()});
  for_parts({35, 70}, [&](std::int64_t b, std::int64_t n) {
    kernels_->attention(rows_of(out_b, b, n), rows_of(lse_b, b, n), rows_of(qkv, b, n), one);
    kernels_->attention_backward(rows_of(dqkv_b, b, n), rows_of(dout, b, n), rows_of(qkv, b, n),
                                 rows_of(out, b, n), rows_of(lse, b, n), one);
  });
  EXPECT_TRUE(test::same_bits(out_b, out)) << "sequences";
  EXPECT_TRUE(test::same_bits(lse_b, lse)) << "sequences";
  EXPECT_TRUE(test::same_bits(dqkv_b, dqkv)) << "sequences";

  const AttentionShape half = {.batch = 2, .seq = 35, .heads = 2, .kv_heads = 1, .head_dim = d, .scale = 0.3};
  const Owned out_h = blank({t, all.q_dim()}), lse_h = blank({t, all.heads}),
              dqkv_h = blank({t, all.qkv_dim()});
  for (std::int64_t r = 0; r < 2; ++r) {
    const Owned in = blank({t, half.qkv_dim()}), part = blank({t, half.q_dim()}), part_lse = blank({t, 2});
    const Owned din = blank({t, half.qkv_dim()});
    put_columns(in, 0, columns(qkv, 2 * r * d, 2 * d));
    put_columns(in, 2 * d, columns(qkv, (4 + r) * d, d));
    put_columns(in, 3 * d, columns(qkv, (6 + r) * d, d));
    kernels_->attention(part, part_lse, in, half);
    kernels_->attention_backward(din, columns(dout, 2 * r * d, 2 * d), in, part, part_lse, half);
    put_columns(out_h, 2 * r * d, part);
    put_columns(lse_h, 2 * r, part_lse);
    put_columns(dqkv_h, 2 * r * d, columns(din, 0, 2 * d));
    put_columns(dqkv_h, (4 + r) * d, columns(din, 2 * d, d));
    put_columns(dqkv_h, (6 + r) * d, columns(din, 3 * d, d));
  }
  EXPECT_TRUE(test::same_bits(out_h, out)) << "heads";
  EXPECT_TRUE(test::same_bits(lse_h, lse)) << "heads";
  EXPECT_TRUE(test::same_bits(dqkv_h, dqkv)) << "heads";
}

TEST_P(Splits, RouterAndCrossEntropyOverRows) {
  const RouterOptions options = {.top_k = 2, .score = RouterScore::softmax_then_topk, .renormalise = true};
  const Owned logits = draw({kT, kN}, 1, 3), targets = random_ids(DType::i32, {kT}, 2, -2, kN);
  const Owned probs = blank({kT, kN}), lse = blank({kT}), weights = blank({kT, 2}),
              index(DType::i32, {kT, 2});
  const Owned stats = blank({3, kT}), dlogits = copy_of(logits);
  kernels_->router(probs, lse, index, weights, logits, options);
  kernels_->cross_entropy_stats(stats, logits, targets, 0);
  kernels_->cross_entropy_backward(dlogits, lse, targets, 0, 0.7);
  for (const auto& ends : kRowEnds) {
    const Owned probs2 = blank({kT, kN}), lse2 = blank({kT}), weights2 = blank({kT, 2}),
                index2(DType::i32, {kT, 2});
    const Owned stats2 = blank({3, kT}), dlogits2 = copy_of(logits);
    for_parts(ends, [&](std::int64_t b, std::int64_t n) {
      kernels_->router(rows_of(probs2, b, n), rows_of(lse2, b, n), rows_of(index2, b, n),
                       rows_of(weights2, b, n), rows_of(logits, b, n), options);
      const Owned part = blank({3, n});
      kernels_->cross_entropy_stats(part, rows_of(logits, b, n), rows_of(targets, b, n), 0);
      put_columns(stats2, b, part);
      kernels_->cross_entropy_backward(rows_of(dlogits2, b, n), rows_of(lse, b, n), rows_of(targets, b, n), 0,
                                       0.7);
    });
    EXPECT_TRUE(test::same_bits(probs2, probs));
    EXPECT_TRUE(test::same_bits(lse2, lse));
    EXPECT_TRUE(test::same_bits(weights2, weights));
    EXPECT_TRUE(test::same_bits(index2, index));
    EXPECT_TRUE(test::same_bits(stats2, stats));
    EXPECT_TRUE(test::same_bits(dlogits2, dlogits));
  }
}

TEST_P(Splits, CombineAndSumRowsOverTokens) {
  const std::int64_t k = 2, r = 30;
  const Owned x = draw({kT, kK}, 1), rows = draw({r, kK}, 2), weights = draw({kT, k}, 3);
  const Owned pos = random_ids(DType::i32, {kT, k}, 4, -3, r);
  const Owned y = blank({kT, kK}), dx = copy_of(x);
  kernels_->combine(y, x, rows, pos, weights);
  kernels_->sum_rows(dx, rows, pos, Write::accumulate);
  for (const auto& ends : kRowEnds) {
    const Owned y2 = blank({kT, kK}), dx2 = copy_of(x);
    for_parts(ends, [&](std::int64_t b, std::int64_t n) {
      kernels_->combine(rows_of(y2, b, n), rows_of(x, b, n), rows, rows_of(pos, b, n),
                        rows_of(weights, b, n));
      kernels_->sum_rows(rows_of(dx2, b, n), rows, rows_of(pos, b, n), Write::accumulate);
    });
    EXPECT_TRUE(test::same_bits(y2, y));
    EXPECT_TRUE(test::same_bits(dx2, dx));
  }
}

// A sharded optimiser updates any range of a flat tensor.
TEST_P(Splits, AdamwOverAnyShards) {
  const std::int64_t n = 1003;
  const AdamWOptions options = {.lr = 1e-3,
                                .beta1 = 0.9,
                                .beta2 = 0.95,
                                .eps = 1e-8,
                                .weight_decay = 0.1,
                                .bias_correction1 = 0.1,
                                .bias_correction2 = 0.05,
                                .grad_scale = 0.3};
  const Owned p0 = draw({n}, 1), g = draw({n}, 2), m0 = draw({n}, 3), v0 = magnitude_of(draw({n}, 4));
  const Owned p = copy_of(p0), m = copy_of(m0), v = copy_of(v0);
  kernels_->adamw(p, g, m, v, options);
  for (const auto& ends : std::vector<std::vector<std::int64_t>>{{501, 1003}, {1, 7, 256, 1002, 1003}}) {
    const Owned p2 = copy_of(p0), m2 = copy_of(m0), v2 = copy_of(v0);
    for_parts(ends, [&](std::int64_t b, std::int64_t c) {
      kernels_->adamw(rows_of(p2, b, c), rows_of(g, b, c), rows_of(m2, b, c), rows_of(v2, b, c), options);
    });
    EXPECT_TRUE(test::same_bits(p2, p));
    EXPECT_TRUE(test::same_bits(m2, m));
    EXPECT_TRUE(test::same_bits(v2, v));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Splits, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
