// bf16 activations: a kernel computes what it computes in f32 on the same numbers, and rounds the result
// once. So each operation runs in both types on inputs that bf16 holds, and the results in bf16 are those in
// f32, rounded, to the bit; statistics and gradients of parameters are equal. That the ones in f32 are right,
// the agreement tests show.
#include "tensor/bf16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using tensor::Bf16;

enum class Kind { activation, stats };

// One tensor for the run in bf16, one for that in f32.
class Twin {
 public:
  Twin(Kind kind, Owned f32) : kind_(kind), f32_(std::move(f32)) {
    bf16_ = test::cast(f32_, kind == Kind::activation ? DType::bf16 : DType::f32);
  }
  [[nodiscard]] Tensor operator[](DType run) const { return run == DType::bf16 ? bf16_ : f32_; }
  [[nodiscard]] Kind kind() const { return kind_; }

 private:
  Kind kind_;
  Owned f32_, bf16_;
};

// Random numbers that bf16 holds.
Twin in(const Shape& shape, std::uint64_t seed, double spread = 1) {
  const Owned rounded = test::cast(random(DType::bf16, shape, seed, spread), DType::f32);
  return {Kind::activation, copy_of(rounded)};
}
Twin stats_in(const Shape& shape, std::uint64_t seed, double spread = 1) {
  return {Kind::stats, random(DType::f32, shape, seed, spread)};
}
Twin out(const Shape& shape) {
  return {Kind::activation, Owned(DType::f32, shape)};
}
Twin stats_out(const Shape& shape) {
  return {Kind::stats, Owned(DType::f32, shape)};
}

class Bf16Kernels : public KernelTest {
 protected:
  void run(const std::function<void(DType)>& op) {
    for (const DType type : {DType::bf16, DType::f32}) op(type);
  }
  // Zero units in the last place where the arithmetic is the same, one where a GPU may contract it otherwise.
  void expect_rounded(const std::string& what, const Twin& twin) {
    const Tensor got = twin[DType::bf16], f32 = twin[DType::f32];
    const bool emulated = GetParam().implementation.name == "cuda_emulated";
    std::int64_t wrong = 0;
    std::string text;
    for (std::int64_t i = 0; i < got.num_elements(); ++i) {
      const double exact = get(f32, i);
      const double want =
          twin.kind() == Kind::activation ? double(float(Bf16(static_cast<float>(exact)))) : exact;
      const double ulp = std::abs(want) * (twin.kind() == Kind::activation ? 0x1p-7 : 0x1p-18);
      const double allowed = emulated ? 0.0 : ulp;
      if (std::abs(get(got, i) - want) <= allowed) continue;
      if (wrong++ == 0) text = fmt::format("element {}: got {:.9g}, want {:.9g}", i, get(got, i), want);
    }
    EXPECT_EQ(wrong, 0) << what << ": " << text;
  }
  // Sums of `count` terms in f32, whose sizes add up to `size`, rounded to the type of got.
  void expect_near(const std::string& what, const Tensor& got, const Tensor& want, const Tensor& size,
                   std::int64_t count) {
    const double rounding = got.dtype() == DType::bf16 ? 0x1p-8 : 0x1p-24;
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < got.num_elements(); ++i) {
      const double allowed = rounding * std::abs(get(want, i)) +
                             4 * std::sqrt(static_cast<double>(count)) * 0x1p-24 * get(size, i);
      if (!(std::abs(get(got, i) - get(want, i)) <= allowed)) ++wrong;
    }
    EXPECT_EQ(wrong, 0) << what << " of " << got.num_elements();
  }
};

const std::vector<std::pair<std::int64_t, std::int64_t>> kShapes = {
    {0, 8}, {1, 1}, {3, 17}, {5, 130}, {33, 64}};

TEST(Bf16, RoundsToTheNearestWithTiesToEven) {
  const auto rounded = [](float x) { return static_cast<float>(Bf16(x)); };
  EXPECT_EQ(rounded(1.0F), 1.0F);
  EXPECT_EQ(rounded(1.0F + 0x1p-8F), 1.0F) << "a tie goes to the even one";
  EXPECT_EQ(rounded(1.0F + 0x1p-7F + 0x1p-8F), 1.0F + 0x1p-6F);
  EXPECT_EQ(rounded(1.0F + 0x1p-8F + 0x1p-20F), 1.0F + 0x1p-7F);
  EXPECT_EQ(rounded(-0.0F), 0.0F);
  EXPECT_TRUE(std::signbit(rounded(-0.0F)));
  EXPECT_EQ(rounded(std::numeric_limits<float>::max()), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(rounded(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_TRUE(std::isnan(rounded(std::bit_cast<float>(0x7f800001U)))) << "a NaN whose upper half is infinity";
}

TEST_P(Bf16Kernels, ProductsTakeTheWeightRoundedWithACopyOrWithout) {
  Kernels& k = *kernels_;
  for (const auto& [t, n] : kShapes) {
    const std::int64_t width = n + 3;
    const Owned value = random(DType::f32, {n, width}, 1);
    const Owned rounded = test::cast(test::cast(value, DType::bf16), DType::f32);
    Owned packed(DType::u8, {k.packed_bytes(DType::bf16, n, width).value});
    Weight with{value, packed};
    k.pack(with);
    const Twin x = in({t, width}, 2), dy = in({t, n}, 3), logits_grad = stats_in({t, n}, 4);
    for (const Weight& w : {with, Weight{value, {}}}) {
      const auto weight = [&](DType type) { return type == DType::bf16 ? w : Weight{rounded, {}}; };
      const Twin y = out({t, n}), logits = stats_out({t, n}), dx = in({t, width}, 5),
                 dx_router = out({t, width});
      const Twin dw = stats_in({n, width}, 6), dw_router = stats_in({n, width}, 7);
      run([&](DType d) {
        k.linear(y[d], x[d], weight(d));
        k.linear(logits[d], x[d], weight(d));
        k.linear_dgrad(dx[d], dy[d], weight(d), Write::accumulate);
        k.linear_dgrad(dx_router[d], logits_grad[d], weight(d));
        k.linear_wgrad(dw[d], dy[d], x[d]);
        k.linear_wgrad(dw_router[d], logits_grad[d], x[d]);
      });
      for (const auto& [what, twin] :
           std::vector<std::pair<std::string, const Twin*>>{{"y", &y},
                                                            {"logits", &logits},
                                                            {"dx", &dx},
                                                            {"dx of logits", &dx_router},
                                                            {"dw", &dw},
                                                            {"dw of logits", &dw_router}})
        expect_rounded(fmt::format("linear {} of {} x {}", what, t, n), *twin);
    }
  }
}

TEST_P(Bf16Kernels, ProductsOfExperts) {
  Kernels& k = *kernels_;
  const std::int64_t rows = 140, n = 21, width = 34;
  const Owned begin = test::tensor_of(DType::i32, {5}, {0, 3, 3, 70, 140});
  std::vector<Owned> values, rounded, packed;
  std::vector<Weight> plain, with, seen;
  std::vector<Twin> dw, b, db;
  for (std::uint64_t e = 0; e < 4; ++e) {
    values.push_back(random(DType::f32, {n, width}, 20 + e));
    rounded.push_back(test::cast(test::cast(values.back(), DType::bf16), DType::f32));
    packed.emplace_back(DType::u8, Shape{k.packed_bytes(DType::bf16, n, width).value});
    plain.push_back({values.back(), {}});
    with.push_back({values.back(), packed.back()});
    seen.push_back({rounded.back(), {}});
    k.pack(with.back());
    dw.push_back(stats_in({n, width}, 30 + e));
    b.push_back(stats_in({n}, 40 + e));
    db.push_back(stats_in({n}, 50 + e));
  }
  const auto of = [](const std::vector<Twin>& twins, DType type) {
    std::vector<Tensor> out;
    for (const Twin& t : twins) out.push_back(t[type]);
    return out;
  };
  const Twin x = in({rows, width}, 2), dy = in({rows, n}, 3), biased = in({rows, n}, 4);
  for (const std::vector<Weight>& weights : {with, plain}) {
    const Twin y = out({rows, n}), dx = out({rows, width});
    run([&](DType d) {
      const std::vector<Weight>& w = d == DType::bf16 ? weights : seen;
      k.experts_linear(y[d], x[d], w, begin);
      k.experts_linear_dgrad(dx[d], dy[d], w, begin);
    });
    expect_rounded("experts y", y);
    expect_rounded("experts dx", dx);
  }
  run([&](DType d) {
    k.experts_linear_wgrad(of(dw, d), dy[d], x[d], begin);
    k.experts_add_bias(biased[d], of(b, d), begin);
    k.experts_bias_wgrad(of(db, d), dy[d], begin);
  });
  expect_rounded("experts bias", biased);
  for (std::size_t e = 0; e < 4; ++e) {
    expect_rounded("experts dw", dw[e]);
    expect_rounded("experts db", db[e]);
  }
}

// Rows of whole vectors go to tensor cores, whose sums run in another order: against f64, and to the bit what
// an expert alone gives.
TEST_P(Bf16Kernels, ProductsOfExpertsOnTensorCores) {
  Kernels& k = *kernels_;
  const std::unique_ptr<Kernels> truth = make_reference();
  for (const auto& [n, width] : {std::array<std::int64_t, 2>{8, 8}, {136, 40}, {40, 264}}) {
    const std::int64_t rows = 150;
    const Owned begin = test::tensor_of(DType::i32, {6}, {0, 0, 3, 132, 132, 150});
    const Owned x = random(DType::bf16, {rows, width}, 1), dy = random(DType::bf16, {rows, n}, 2);
    const Owned x64 = test::cast(x, DType::f64), dy64 = test::cast(dy, DType::f64);
    std::vector<Owned> held;
    std::vector<Weight> w, w64, magnitudes;
    std::vector<Tensor> dw, dw64, dw_magnitude;
    const auto keep = [&](Owned one) -> Tensor { return held.emplace_back(std::move(one)); };
    for (std::uint64_t e = 0; e < 5; ++e) {
      const Tensor value = keep(random(DType::f32, {n, width}, 10 + e));
      w.push_back({value, keep(Owned(DType::u8, {k.packed_bytes(DType::bf16, n, width).value}))});
      k.pack(w.back());
      w64.push_back({keep(test::cast(test::cast(value, DType::bf16), DType::f64)), {}});
      magnitudes.push_back({keep(magnitude_of(w64.back().value_NK)), {}});
      dw.push_back(keep(random(DType::f32, {n, width}, 20 + e)));
      dw64.push_back(keep(test::cast(dw.back(), DType::f64)));
      dw_magnitude.push_back(keep(magnitude_of(dw64.back())));
    }
    const Owned y(DType::bf16, {rows, n}), dx(DType::bf16, {rows, width}), y64(DType::f64, {rows, n}),
        dx64(DType::f64, {rows, width}), y_size(DType::f64, {rows, n}), dx_size(DType::f64, {rows, width});
    k.experts_linear(y, x, w, begin);
    k.experts_linear_dgrad(dx, dy, w, begin);
    k.experts_linear_wgrad(dw, dy, x, begin);
    truth->experts_linear(y64, x64, w64, begin);
    truth->experts_linear_dgrad(dx64, dy64, w64, begin);
    truth->experts_linear_wgrad(dw64, dy64, x64, begin);
    truth->experts_linear(y_size, magnitude_of(x64), magnitudes, begin);
    truth->experts_linear_dgrad(dx_size, magnitude_of(dy64), magnitudes, begin);
    truth->experts_linear_wgrad(dw_magnitude, magnitude_of(dy64), magnitude_of(x64), begin);
    expect_near("experts y", y, y64, y_size, width);
    expect_near("experts dx", dx, dx64, dx_size, n);
    for (std::size_t e = 0; e < 5; ++e) expect_near("experts dw", dw[e], dw64[e], dw_magnitude[e], rows + 1);

    const Owned alone = test::tensor_of(DType::i32, {2}, {0, 18}), part(DType::bf16, {18, n});
    k.experts_linear(part, x.tensor().narrow_rows(132, 18), std::span(w).subspan(4, 1), alone);
    EXPECT_TRUE(test::same_bits(part, y.tensor().narrow_rows(132, 18)));
  }
}

TEST_P(Bf16Kernels, Norms) {
  Kernels& k = *kernels_;
  for (const auto& [t, h] : kShapes) {
    const Twin x = in({t, h}, 1, 3), dy = in({t, h}, 2), w = stats_in({h}, 3), b = stats_in({h}, 4);
    const Twin y = out({t, h}), z = out({t, h}), rstd = stats_out({t}), mean = stats_out({t}),
               s = stats_out({t});
    const Twin dx = in({t, h}, 5), dz = out({t, h}), dw = stats_in({h}, 6), dv = stats_in({h}, 7);
    const Twin db = stats_in({h}, 8), bias = in({t, h}, 9), db_more = stats_in({h}, 10);
    run([&](DType d) {
      k.rms_norm(y[d], rstd[d], x[d], w[d], 1e-5);
      k.rms_norm_dgrad(dx[d], dy[d], x[d], rstd[d], w[d], Write::accumulate);
      k.rms_norm_wgrad(dw[d], dy[d], x[d], rstd[d]);
      k.layer_norm(z[d], mean[d], s[d], x[d], w[d], b[d], 1e-5);
      k.layer_norm_dgrad(dz[d], dy[d], x[d], mean[d], s[d], w[d], Write::overwrite);
      k.layer_norm_wgrad(dv[d], db[d], dy[d], x[d], mean[d], s[d]);
      k.add_bias(bias[d], b[d]);
      k.bias_wgrad(db_more[d], dy[d], Write::accumulate);
    });
    for (const Twin* twin : {&y, &z, &rstd, &mean, &s, &dx, &dz, &dw, &dv, &db, &bias, &db_more})
      expect_rounded(fmt::format("norms of {} x {}", t, h), *twin);
  }
}

TEST_P(Bf16Kernels, NormsOfGroupsClampsAndMoves) {
  Kernels& k = *kernels_;
  const ColumnGroups cols{.first = 3, .groups = 2, .width = 5};
  const GroupNormOptions o{.eps = 1e-5, .count = 5};
  const Twin x = in({7, 16}, 1), dy = in({7, 16}, 2), w = stats_in({5}, 3), y = in({7, 16}, 4),
             dx = in({7, 16}, 5);
  const Twin sums = stats_out({7, 2}), dots = stats_out({7, 2}), dw = stats_in({5}, 6);
  const Twin clamped = in({7, 16}, 7), dclamped = in({7, 16}, 8), moved = in({7, 16}, 9),
             summed = in({7, 4}, 10);
  run([&](DType d) {
    k.group_squares(sums[d], x[d], cols);
    k.group_norm(y[d], x[d], sums[d], w[d], o, cols);
    k.group_norm_dots(dots[d], dy[d], x[d], w[d], cols);
    k.group_norm_dgrad(dx[d], dy[d], x[d], sums[d], dots[d], w[d], o, cols);
    k.group_norm_wgrad(dw[d], dy[d], x[d], sums[d], o, cols, Write::accumulate);
    k.clamp(clamped[d], 0.5, 2, 9);
    k.clamp_backward(dclamped[d], x[d], 0.5, 2, 9);
    k.move_columns(moved[d], x[d], {.blocks = 3, .width = 2, .to = {1, 4}, .from = {0, 5}});
    k.move_columns(summed[d], x[d], {.blocks = 3, .width = 3, .to = {1, 0}, .from = {2, 4}});
  });
  for (const Twin* twin : {&sums, &y, &dots, &dx, &dw, &clamped, &dclamped, &moved, &summed})
    expect_rounded("groups, clamps, moves", *twin);
}

TEST_P(Bf16Kernels, AttentionWholeInPartsAndOverACache) {
  Kernels& k = *kernels_;
  const AttentionShape shape{.batch = 2,
                             .seq = 9,
                             .heads = 4,
                             .kv_heads = 2,
                             .head_dim = 10,
                             .scale = 0.3,
                             .v_head_dim = 6,
                             .window = 5};
  const std::int64_t t = shape.batch * shape.seq;
  const Twin qkv = in({t, shape.qkv_dim()}, 1), dout = in({t, shape.out_dim()}, 2), sinks = stats_in({4}, 3);
  const Twin o = out({t, shape.out_dim()}), lse = stats_out({t, 4});
  const Twin cos = stats_in({9, 5}, 4), sin = stats_in({9, 5}, 5);
  const Twin turned = in({t, shape.qkv_dim()}, 6);
  run([&](DType d) {
    k.attention(o[d], lse[d], qkv[d], sinks[d], shape);
    k.rope(turned[d], cos[d], sin[d], shape, false);
  });
  for (const Twin* twin : {&o, &lse, &turned}) expect_rounded("attention", *twin);

  const AttentionPart part{.rows = 4, .q_first = 5, .k_first = 0, .distance = 5};
  const Twin kv = in({t, shape.qkv_dim() - shape.q_dim()}, 7), joined = in({t, shape.out_dim()}, 8);
  const Twin held = stats_in({t, 4}, 9), dq = in({t, shape.qkv_dim()}, 10);
  const Twin dkv = in({t, shape.qkv_dim() - shape.q_dim()}, 11), seen = in({t, shape.out_dim()}, 12);
  const Twin after = stats_in({t, 4}, 13);
  run([&](DType d) {
    k.attention_part(joined[d], held[d], qkv[d], kv[d], {}, shape, part, Write::accumulate);
    k.attention_part_backward(dq[d], dkv[d], dout[d], qkv[d], kv[d], seen[d], after[d], shape, part);
  });
  for (const Twin* twin : {&joined, &held, &dq, &dkv}) expect_rounded("parts of attention", *twin);

  const Twin keys = in({3, 2, kCacheBlock, 10}, 14), cached = in({3, 2, kCacheBlock, 6}, 15);
  const AttentionShape single{
      .batch = 5, .seq = 1, .heads = 4, .kv_heads = 2, .head_dim = 10, .scale = 0.3, .v_head_dim = 6};
  const Owned slots = test::tensor_of(DType::i32, {5}, {0, 2, 1, 0, 2});
  const Owned positions = test::tensor_of(DType::i32, {5}, {3, 60, 0, 4, 12});
  const Twin q = in({5, single.qkv_dim()}, 16), decoded = out({5, single.out_dim()});
  run([&](DType d) {
    k.cache_append(keys[d], q[d], single.q_dim(), slots, positions);
    k.decode_attention(decoded[d], q[d], keys[d], cached[d], sinks[d], slots, positions, single);
  });
  for (const Twin* twin : {&keys, &decoded}) expect_rounded("decoding", *twin);
}

TEST_P(Bf16Kernels, TheGradientOfAttentionFromTheSameOutput) {
  Kernels& k = *kernels_;
  const AttentionShape shape{.batch = 1, .seq = 12, .heads = 4, .kv_heads = 4, .head_dim = 8, .scale = 0.4};
  const Twin qkv = in({12, shape.qkv_dim()}, 1), dout = in({12, shape.out_dim()}, 2);
  const Twin o = in({12, shape.out_dim()}, 3), lse = stats_in({12, 4}, 4), sinks = stats_in({4}, 5);
  const Twin dqkv = out({12, shape.qkv_dim()}), dsinks = stats_out({4});
  run([&](DType d) {
    k.attention_backward(dqkv[d], dsinks[d], dout[d], qkv[d], o[d], lse[d], sinks[d], shape);
  });
  expect_rounded("dqkv", dqkv);
  expect_rounded("dsinks", dsinks);
}

TEST_P(Bf16Kernels, ActivationsAndGates) {
  Kernels& k = *kernels_;
  for (const ActivationOptions& a :
       {ActivationOptions{Activation::swiglu}, ActivationOptions{Activation::gelu},
        ActivationOptions{Activation::gelu_tanh}, ActivationOptions{Activation::clamped_swiglu, 1.5}}) {
    const std::int64_t columns = a.gated() ? 26 : 13;
    const Twin z = in({5, columns}, 1, 2), dh = in({5, 13}, 2), h = out({5, 13}), dz = out({5, columns});
    run([&](DType d) {
      k.activation(h[d], z[d], a);
      k.activation_backward(dz[d], dh[d], z[d], a);
    });
    expect_rounded("activation", h);
    expect_rounded("activation_backward", dz);
  }
  const Twin f = in({5, 13}, 3), z = in({5}, 4), y = in({5, 13}, 5), dy = in({5, 13}, 6), df = out({5, 13}),
             dz = out({5});
  run([&](DType d) {
    k.sigmoid_gate(y[d], f[d], z[d]);
    k.sigmoid_gate_backward(df[d], dz[d], dy[d], f[d], z[d]);
  });
  for (const Twin* twin : {&y, &df, &dz}) expect_rounded("gate", *twin);
}

TEST_P(Bf16Kernels, TablesAndLosses) {
  Kernels& k = *kernels_;
  const Owned ids = test::tensor_of(DType::i32, {6}, {0, 11, 3, 3, 7, -100});
  const Twin table = stats_in({9, 10}, 1), y = out({6, 10}), dy = in({6, 10}, 2),
             dtable = stats_in({9, 10}, 3);
  const Twin logits = in({6, 9}, 4, 3), stats = stats_out({3, 6});
  run([&](DType d) {
    k.embedding(y[d], ids, table[d], 2);
    k.embedding_wgrad(dtable[d], dy[d], ids, 2);
    k.cross_entropy_stats(stats[d], logits[d], ids, 2);
  });
  const Twin loss = stats_out({6}), lse = stats_out({6});
  run([&](DType d) {
    k.cross_entropy_join(loss[d], lse[d], stats[d].reshaped({1, 3, 6}), ids);
    k.cross_entropy_backward(logits[d], lse[d], ids, 2, 0.25);
  });
  for (const Twin* twin : {&y, &dtable, &stats, &loss, &lse, &logits})
    expect_rounded("tables and losses", *twin);
}

TEST_P(Bf16Kernels, RowsAndSums) {
  Kernels& k = *kernels_;
  const Owned index = test::tensor_of(DType::i32, {5}, {2, 0, 1, 2, 2});
  const Owned pos = test::tensor_of(DType::i32, {3, 2}, {4, 0, -1, 2, 1, 3});
  const Twin src = in({3, 10}, 1), dst = out({5, 10}), rows = in({5, 10}, 2), weights = stats_in({3, 2}, 3);
  const Twin x = in({3, 10}, 4), y = out({3, 10}), drows = in({5, 10}, 5), dweights = stats_out({3, 2});
  const Twin dx = in({3, 10}, 6), sum = out({3, 10}), a = in({3, 10}, 7), filled = out({3, 10});
  const Twin parameter = stats_in({3, 10}, 8), stream = in({3, 10}, 9);
  run([&](DType d) {
    k.gather_rows(dst[d], src[d], index);
    k.combine(y[d], x[d], rows[d], pos, weights[d]);
    k.combine_backward(drows[d], dweights[d], x[d], rows[d], pos, weights[d]);
    k.sum_rows(dx[d], rows[d], pos, Write::accumulate);
    k.add(sum[d], x[d], a[d]);
    k.accumulate(a[d], x[d]);
    k.accumulate(stream[d], parameter[d]);
    k.fill(filled[d], 0.3);
  });
  for (const Twin* twin : {&dst, &y, &drows, &dweights, &dx, &sum, &a, &stream, &filled})
    expect_rounded("rows", *twin);
  EXPECT_EQ(k.sum(x[DType::bf16]), k.sum(x[DType::f32]));
  EXPECT_EQ(k.sum_squares(x[DType::bf16]), k.sum_squares(x[DType::f32]));
  run([&](DType d) { k.accumulate(parameter[d], x[d]); });
  expect_rounded("a parameter's gradient from rows", parameter);
}

TEST_P(Bf16Kernels, AWrongTypeBesideBf16IsNamed) {
  const Owned x(DType::bf16, {2, 4}), y(DType::bf16, {2, 4}), rstd(DType::bf16, {2}), w(DType::f32, {4});
  try {
    kernels_->rms_norm(y, rstd, x, w, 1e-5);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("rstd is bf16 [2], expected f32 [2] with x bf16 [2, 4]"));
  }
}

TEST(Bf16, IsRefusedByBackendsWithoutIt) {
  const Owned x(DType::bf16, {2, 4}), y(DType::bf16, {2, 4});
  for (const auto& make : {&make_reference, static_cast<std::unique_ptr<Kernels> (*)()>(&make_cpu)}) {
    const std::unique_ptr<Kernels> kernels = make();
    EXPECT_FALSE(kernels->takes_bf16());
    EXPECT_THROW(kernels->accumulate(y, x), Error);
  }
}

std::vector<Subject> bf16_subjects() {
  std::vector<Subject> out;
  for (const Implementation& i : implementations()) {
    if (i.make()->takes_bf16()) out.push_back({i, DType::bf16});
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(All, Bf16Kernels, ::testing::ValuesIn(bf16_subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
