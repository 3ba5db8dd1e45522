// Rotary embedding and causal attention of every implementation against the f64 reference that reads the same
// rounded inputs.
//
// A score s_ij = scale q_i k_j is itself a sum, so its error moves the weight p_ij: with S_ij = scale
// sum_d |q_d k_d| the allowance of out_i is that of a sum over the keys plus that of a sum over head_dim, the
// latter scaled by sum_j p_ij |v_j| (S_ij + max_j S_ij). The backward pass multiplies likewise.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using test::magnitudes;
class AttentionAgreement : public Agreement {};

std::vector<AttentionShape> attention_cases() {
  std::vector<AttentionShape> out;
  const auto add = [&](std::int64_t batch, std::int64_t seq, std::int64_t heads, std::int64_t kv,
                       std::int64_t d) {
    out.push_back({batch, seq, heads, kv, d, 1 / std::sqrt(static_cast<double>(d))});
  };
  add(0, 4, 2, 1, 8);
  add(1, 1, 1, 1, 2);
  add(2, 3, 2, 2, 4);
  add(3, 17, 3, 1, 6);
  add(2, 31, 4, 2, 16);
  add(1, 64, 2, 1, 32);
  add(1, 65, 1, 1, 64);
  add(1, 129, 2, 2, 10);
  add(2, 70, 2, 1, 128);
  return out;
}
// Windows below, at and beyond the sides of a block and of the sequence; values narrower and wider than keys.
std::vector<AttentionShape> banded_cases() {
  std::vector<AttentionShape> out;
  const auto add = [&](std::int64_t seq, std::int64_t d, std::int64_t v, std::int64_t window) {
    out.push_back({2, seq, 2, 1, d, 1 / std::sqrt(static_cast<double>(d)), v, window});
  };
  add(3, 4, 6, 0);
  add(70, 24, 16, 0);
  add(131, 16, 40, 0);
  add(20, 8, 0, 1);
  add(200, 8, 0, 1);
  add(200, 12, 0, 7);
  add(150, 8, 0, 48);
  add(150, 8, 0, 49);
  add(200, 8, 16, 64);
  add(200, 8, 0, 65);
  add(209, 16, 8, 100);
  add(209, 8, 0, 129);
  add(100, 8, 0, 100);
  add(100, 8, 0, 1000);
  return out;
}
std::string text(const AttentionShape& s) {
  return fmt::format("batch={} seq={} heads={} kv_heads={} head_dim={} v_dim={} window={}", s.batch, s.seq,
                     s.heads, s.kv_heads, s.head_dim, s.v_dim(), s.window);
}

// One (sequence, query head): addresses into the f64 tensors.
struct Head {
  const AttentionShape& s;
  std::int64_t b, h;
  [[nodiscard]] std::int64_t row(std::int64_t i) const { return b * s.seq + i; }
  [[nodiscard]] std::int64_t q(std::int64_t i) const { return row(i) * s.qkv_dim() + h * s.head_dim; }
  [[nodiscard]] std::int64_t k(std::int64_t j) const {
    return row(j) * s.qkv_dim() + (s.heads + h / (s.heads / s.kv_heads)) * s.head_dim;
  }
  [[nodiscard]] std::int64_t v(std::int64_t j) const {
    return row(j) * s.qkv_dim() + s.q_dim() + s.k_dim() + h / (s.heads / s.kv_heads) * s.v_dim();
  }
  [[nodiscard]] std::int64_t out(std::int64_t i) const { return row(i) * s.out_dim() + h * s.v_dim(); }
};
double abs_dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += std::abs(a[i] * b[i]);
  return sum;
}

// Scales with sqrt(count) already inside (Terms::count is 1).
struct AttentionScales {
  std::vector<double> out, lse, dqkv;
};
AttentionScales attention_scales(const AttentionShape& s, const Tensor& qkv_t, const Tensor& out_t,
                                 const Tensor& dout_t, const Tensor& lse_t) {
  const double *qkv = qkv_t.as<double>(), *out = out_t.as<double>(), *dout = dout_t.as<double>();
  const auto size = [](const Tensor& t) { return static_cast<std::size_t>(t.num_elements()); };
  AttentionScales scales{std::vector<double>(size(out_t)), std::vector<double>(size(lse_t)),
                         std::vector<double>(size(qkv_t))};
  const double root_d = std::sqrt(static_cast<double>(std::max(s.head_dim, s.v_dim())));
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.heads; ++h) {
      const Head at{s, b, h};
      for (std::int64_t i = 0; i < s.seq; ++i) {
        const double root_keys = std::sqrt(static_cast<double>(i + 1));
        const double lse = get(lse_t, at.row(i) * s.heads + h);
        double largest = 0;
        for (std::int64_t j = s.first_key(i); j <= i; ++j) {
          largest = std::max(largest, s.scale * abs_dot(qkv + at.q(i), qkv + at.k(j), s.head_dim));
        }
        scales.lse[static_cast<std::size_t>(at.row(i) * s.heads + h)] =
            root_keys + root_d * (std::abs(lse) + largest);
        const double delta = abs_dot(dout + at.out(i), out + at.out(i), s.v_dim());
        for (std::int64_t j = s.first_key(i); j <= i; ++j) {
          const double moved = s.scale * abs_dot(qkv + at.q(i), qkv + at.k(j), s.head_dim) + largest;
          double score = 0;
          for (std::int64_t d = 0; d < s.head_dim; ++d)
            score += s.scale * qkv[at.q(i) + d] * qkv[at.k(j) + d];
          const double p = std::exp(score - lse);
          const double dp = abs_dot(dout + at.out(i), qkv + at.v(j), s.v_dim()) + delta;
          const double p_scale = p * (root_keys + root_d * moved);
          const double ds_scale = s.scale * dp * (p_scale + p * root_d);
          for (std::int64_t d = 0; d < s.v_dim(); ++d) {
            scales.out[static_cast<std::size_t>(at.out(i) + d)] += p_scale * std::abs(qkv[at.v(j) + d]);
            scales.dqkv[static_cast<std::size_t>(at.v(j) + d)] += p_scale * std::abs(dout[at.out(i) + d]);
          }
          for (std::int64_t d = 0; d < s.head_dim; ++d) {
            scales.dqkv[static_cast<std::size_t>(at.q(i) + d)] += ds_scale * std::abs(qkv[at.k(j) + d]);
            scales.dqkv[static_cast<std::size_t>(at.k(j) + d)] += ds_scale * std::abs(qkv[at.q(i) + d]);
          }
        }
      }
    }
  }
  return scales;
}

TEST_P(AttentionAgreement, AttentionAndItsGradient) {
  for (const AttentionShape& c : attention_cases()) {
    SCOPED_TRACE(text(c));
    next_case();
    const std::int64_t t = c.batch * c.seq;
    const Pair qkv = input({t, c.qkv_dim()}, 1), dout = input({t, c.q_dim()}, 2);
    const Pair out = output({t, c.q_dim()}), lse = output({t, c.heads}), dqkv = output({t, c.qkv_dim()});
    for (const Side s : kSides) kernels(s).attention(out[s], lse[s], qkv[s], c);
    const Pair saved_out = rounded(out.want()), saved_lse = rounded(lse.want());
    for (const Side s : kSides) {
      kernels(s).attention_backward(dqkv[s], dout[s], qkv[s], saved_out[s], saved_lse[s], c);
    }
    const AttentionScales scales =
        attention_scales(c, qkv.want(), saved_out.want(), dout.want(), saved_lse.want());
    expect_match("attention out", out, {.count = 1, .scale = scales.out});
    expect_match("attention lse", lse, {.count = 1, .scale = scales.lse});
    expect_match("attention dqkv", dqkv, {.count = 1, .scale = scales.dqkv});
  }
}

TEST_P(AttentionAgreement, AttentionWithWindowsSinksAndValuesOfAnotherWidth) {
  for (const AttentionShape& c : banded_cases()) {
    for (const bool with_sinks : {false, true}) {
      if (!with_sinks && c.seq > 100) continue;  // time
      SCOPED_TRACE(text(c) + (with_sinks ? " with sinks" : ""));
      next_case();
      const std::int64_t t = c.batch * c.seq;
      const Pair qkv = input({t, c.qkv_dim()}, 1), dout = input({t, c.out_dim()}, 2);
      const Pair sinks = with_sinks ? input({c.heads}, 3, 2) : Pair();
      const Pair dsinks = with_sinks ? output({c.heads}) : Pair();
      const Pair out = output({t, c.out_dim()}), lse = output({t, c.heads}), dqkv = output({t, c.qkv_dim()});
      for (const Side s : kSides) kernels(s).attention(out[s], lse[s], qkv[s], sinks[s], c);
      const Pair saved_out = rounded(out.want()), saved_lse = rounded(lse.want());
      for (const Side s : kSides) {
        kernels(s).attention_backward(dqkv[s], dsinks[s], dout[s], qkv[s], saved_out[s], saved_lse[s],
                                      sinks[s], c);
      }
      const AttentionScales scales =
          attention_scales(c, qkv.want(), saved_out.want(), dout.want(), saved_lse.want());
      expect_match("attention band out", out, {.count = 1, .scale = scales.out});
      expect_match("attention band lse", lse, {.count = 1, .scale = scales.lse});
      expect_match("attention band dqkv", dqkv, {.count = 1, .scale = scales.dqkv});
      if (!with_sinks) continue;
      std::vector<double> scale(static_cast<std::size_t>(c.heads));
      for (std::int64_t r = 0; r < t * c.heads; ++r) {
        const double sink = get(sinks.want(), r % c.heads), l = get(saved_lse.want(), r);
        const double delta = abs_dot(dout.want().as<double>() + r * c.v_dim(),
                                     saved_out.want().as<double>() + r * c.v_dim(), c.v_dim());
        scale[static_cast<std::size_t>(r % c.heads)] +=
            std::exp(sink - l) * delta * (1 + std::abs(sink) + std::abs(l));
      }
      expect_match("attention dsinks", dsinks, {.count = t + c.v_dim(), .scale = scale});
    }
  }
}

TEST_P(AttentionAgreement, AttentionWithLargeScoresStaysFinite) {
  const AttentionShape c = {.batch = 1, .seq = 40, .heads = 2, .kv_heads = 1, .head_dim = 16, .scale = 4};
  const Pair qkv = input({40, c.qkv_dim()}, 1, 5);  // scores of several hundred
  const Pair out = output({40, c.q_dim()}), lse = output({40, 2});
  for (const Side s : kSides) kernels(s).attention(out[s], lse[s], qkv[s], c);
  const AttentionScales scales = attention_scales(c, qkv.want(), out.want(), out.want(), lse.want());
  expect_match("attention large out", out, {.count = 1, .scale = scales.out});
  expect_match("attention large lse", lse, {.count = 1, .scale = scales.lse});
}

// The keys after a query must not be read: NaN there would show.
TEST_P(AttentionAgreement, QueriesDoNotReadLaterKeysOrOtherSequences) {
  const AttentionShape c = {.batch = 2, .seq = 37, .heads = 2, .kv_heads = 1, .head_dim = 8, .scale = 0.35};
  const Owned qkv = random(dtype_, {74, c.qkv_dim()}, 1);
  const Owned out(dtype_, {74, c.q_dim()}), lse(dtype_, {74, 2});
  kernels_->attention(out, lse, qkv, c);
  const std::int64_t last = 20;  // rows 21 .. 73 change
  const Owned changed = copy_of(qkv), out2(dtype_, {74, c.q_dim()}), lse2(dtype_, {74, 2});
  for (std::int64_t i = (last + 1) * c.qkv_dim(); i < 74 * c.qkv_dim(); ++i)
    test::set(changed, i, 100 + i % 7);
  kernels_->attention(out2, lse2, changed, c);
  const auto kept = [&](const Owned& x) { return x.tensor().narrow_rows(0, last + 1); };
  EXPECT_TRUE(test::same_bits(kept(out), kept(out2)));
  EXPECT_TRUE(test::same_bits(kept(lse), kept(lse2)));
}

// Rows before the window of a query do not reach it, to the bit, whatever they hold.
TEST_P(AttentionAgreement, KeysBeforeTheWindowDoNotMatter) {
  const AttentionShape c = {
      .batch = 1, .seq = 180, .heads = 2, .kv_heads = 1, .head_dim = 8, .scale = 0.35, .window = 30};
  const Owned qkv = random(dtype_, {180, c.qkv_dim()}, 1), changed = copy_of(qkv);
  const Owned out(dtype_, {180, c.q_dim()}), lse(dtype_, {180, 2});
  const Owned out2(dtype_, {180, c.q_dim()}), lse2(dtype_, {180, 2});
  for (std::int64_t i = 0; i < 100 * c.qkv_dim(); ++i) test::set(changed, i, 100 + i % 7);
  kernels_->attention(out, lse, qkv, c);
  kernels_->attention(out2, lse2, changed, c);
  const auto kept = [&](const Owned& x) { return x.tensor().narrow_rows(129, 51); };
  EXPECT_TRUE(test::same_bits(kept(out), kept(out2)));
  EXPECT_TRUE(test::same_bits(kept(lse), kept(lse2)));
  EXPECT_NE(get(out, 128 * c.q_dim()), get(out2, 128 * c.q_dim())) << "row 128 still sees row 99";
}

// A window of the whole sequence is none; a sink of minus a lot changes nothing either.
TEST_P(AttentionAgreement, AWideWindowAndAnEmptySinkAreNone) {
  AttentionShape c = {.batch = 2, .seq = 100, .heads = 2, .kv_heads = 1, .head_dim = 8, .scale = 0.35};
  const Owned qkv = random(dtype_, {200, c.qkv_dim()}, 1), dout = random(dtype_, {200, c.q_dim()}, 2);
  const Owned sinks = test::tensor_of(dtype_, {2}, {-1e4, -1e4}), dsinks(dtype_, {2});
  std::vector<Owned> results;
  for (const bool plain : {true, false}) {
    c.window = plain ? 0 : 100;
    const Owned out(dtype_, {200, c.q_dim()}), lse(dtype_, {200, 2}), dqkv(dtype_, {200, c.qkv_dim()});
    kernels_->attention(out, lse, qkv, plain ? Tensor() : sinks.tensor(), c);
    kernels_->attention_backward(dqkv, plain ? Tensor() : dsinks.tensor(), dout, qkv, out, lse,
                                 plain ? Tensor() : sinks.tensor(), c);
    for (const Tensor& x : {out.tensor(), lse.tensor(), dqkv.tensor()}) results.push_back(copy_of(x));
  }
  for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(test::same_bits(results[i], results[i + 3])) << i;
  EXPECT_EQ(values(dsinks), (std::vector<double>{0, 0}));
}

TEST_P(AttentionAgreement, RopeTurnsQueriesAndKeysAndTurnsThemBack) {
  for (const AttentionShape& c : attention_cases()) {
    SCOPED_TRACE(text(c));
    next_case();
    const std::int64_t t = c.batch * c.seq, p = c.head_dim / 2;
    const Owned angle = random(DType::f64, {c.seq, p}, 2, 2), cos_f64 = copy_of(angle),
                sin_f64 = copy_of(angle);
    for (std::int64_t i = 0; i < c.seq * p; ++i) {
      test::set(cos_f64, i, std::cos(get(angle, i)));
      test::set(sin_f64, i, std::sin(get(angle, i)));
    }
    const Pair cos = rounded(cos_f64), sin = rounded(sin_f64);
    const Pair start = input({t, c.qkv_dim()}, 1);
    for (const bool inverse : {false, true}) {
      const Pair qkv = pair_of(start.got());
      for (const Side s : kSides) kernels(s).rope(qkv[s], cos[s], sin[s], c, inverse);
      std::vector<double> scale = magnitudes(start.want());
      for (std::int64_t r = 0; r < t; ++r) {
        for (std::int64_t h = 0; h < c.heads + c.kv_heads; ++h) {
          for (std::int64_t j = 0; j < p; ++j) {
            const auto low = static_cast<std::size_t>(r * c.qkv_dim() + h * c.head_dim + j);
            const auto high = low + static_cast<std::size_t>(p);
            const double x = scale[low], y = scale[high];
            const double cs = std::abs(get(cos.want(), r % c.seq * p + j));
            const double sn = std::abs(get(sin.want(), r % c.seq * p + j));
            scale[low] = x * cs + y * sn;
            scale[high] = y * cs + x * sn;
          }
        }
      }
      expect_match("rope", qkv, {.count = 2, .scale = scale});
    }
  }
}

TEST_P(AttentionAgreement, RopeOfSomeColumnsInBothPairFormsAtGivenPositions) {
  struct Case {
    RopeShape shape;
    std::int64_t t, columns;
  };
  std::vector<Case> cases;
  for (const RopePairs pairs : {RopePairs::halves, RopePairs::interleaved}) {
    cases.push_back({{.seq = 5, .heads = 3, .first = 4, .stride = 10, .rotated = 6, .pairs = pairs}, 10, 37});
    cases.push_back(
        {{.seq = 4, .heads = 2, .first = 0, .stride = 66, .rotated = 66, .pairs = pairs}, 8, 132});
    cases.push_back(
        {{.seq = 3, .heads = 1, .first = 7, .stride = 0, .rotated = 130, .pairs = pairs}, 3, 140});
    cases.push_back({{.seq = 2, .heads = 0, .first = 0, .stride = 0, .rotated = 2, .pairs = pairs}, 4, 3});
    cases.push_back({{.seq = 2, .heads = 1, .first = 1, .stride = 0, .rotated = 2, .pairs = pairs}, 0, 3});
  }
  for (const Case& c : cases) {
    for (const bool given : {false, true}) {
      SCOPED_TRACE(fmt::format("rotated {} pairs {} given {}", c.shape.rotated, int(c.shape.pairs), given));
      next_case();
      const Pair cos = input({9, c.shape.rotated / 2}, 2), sin = input({9, c.shape.rotated / 2}, 3);
      const Pair positions = given ? ids({c.t}, 4, 0, 9) : Pair();
      const Pair start = input({c.t, c.columns}, 1);
      for (const bool adjoint : {false, true}) {
        const Pair x = pair_of(start.got());
        for (const Side s : kSides) kernels(s).rope(x[s], cos[s], sin[s], c.shape, adjoint, positions[s]);
        expect_match("rope columns", x, {.count = 2, .scale = row_largest(start.want(), 2)});
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, AttentionAgreement, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
