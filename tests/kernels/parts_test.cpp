// Attention by parts of the keys: the chunks of a sequence against each other, joined, give what attention of
// the whole sequence gives, forward and backward, on every implementation; pairs and FLOPs are counted once.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using tensor::DType;

// Every element within bound of the largest; NaN never is.
::testing::AssertionResult near(const std::string& name, const std::vector<double>& got,
                                const std::vector<double>& want, double bound) {
  double largest = 0;
  for (const double w : want) largest = std::max(largest, std::abs(w));
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!(std::abs(got[i] - want[i]) <= bound * largest))
      return ::testing::AssertionFailure() << name << "[" << i << "]: got " << got[i] << ", want " << want[i];
  }
  return ::testing::AssertionSuccess();
}

struct Case {
  std::int64_t batch, chunks, rows, heads, kv_heads, head_dim, v_dim, window;
  bool sinks;
};

std::vector<Case> cases() {
  return {{1, 2, 1, 1, 1, 2, 2, 0, false},   {2, 4, 3, 2, 1, 4, 4, 0, true},
          {1, 4, 50, 2, 1, 8, 12, 0, false}, {2, 2, 70, 4, 2, 16, 16, 0, true},
          {1, 3, 65, 1, 1, 24, 8, 1, true},  {1, 4, 40, 2, 2, 8, 8, 33, true},
          {1, 4, 64, 2, 1, 8, 8, 64, false}, {1, 4, 49, 2, 1, 8, 8, 120, true},
          {2, 3, 66, 2, 1, 10, 6, 67, true}};
}

AttentionShape shape_of(const Case& c) {
  return {.batch = c.batch,
          .seq = c.chunks * c.rows,
          .heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim)),
          .v_head_dim = c.v_dim,
          .window = c.window};
}

// Columns [first, first + width) of x.
Owned columns(const Tensor& x, std::int64_t first, std::int64_t width) {
  Owned out(x.dtype(), {x.rows(), width});
  for (std::int64_t t = 0; t < x.rows(); ++t) {
    for (std::int64_t c = 0; c < width; ++c)
      test::set(out, t * width + c, test::get(x, t * x.dim(1) + first + c));
  }
  return out;
}

// body(part) for the chunk pairs with kept pairs, a query's own chunk first.
template <class Body>
void for_parts(const Case& c, const AttentionShape& shape, Body body) {
  for (std::int64_t q = 0; q < c.chunks; ++q) {
    for (std::int64_t k = q; k >= 0; --k) {
      const AttentionPart part{
          .rows = c.rows, .q_first = q * c.rows, .k_first = k * c.rows, .distance = (q - k) * c.rows};
      if (part.kept_pairs(shape) > 0) body(part);
    }
  }
}

void expect_parts_are_the_whole(Kernels& k, const Case& c, DType dtype, double bound) {
  const AttentionShape s = shape_of(c);
  const std::int64_t t = s.batch * s.seq;
  const Owned qkv = test::random(dtype, {t, s.qkv_dim()}, 1);
  const Owned dout = test::random(dtype, {t, s.out_dim()}, 2);
  const Owned some = test::random(dtype, {s.heads}, 3);
  const Tensor sinks = c.sinks ? some.tensor() : Tensor();
  Owned out = test::zeros(dtype, {t, s.out_dim()}), lse = test::zeros(dtype, {t, s.heads});
  Owned dqkv = test::zeros(dtype, {t, s.qkv_dim()}), dsinks = test::zeros(dtype, {s.heads});
  const Tensor dsinks_or_none = c.sinks ? dsinks.tensor() : Tensor();
  k.reset_flops();
  k.attention(out, lse, qkv, sinks, s);
  k.attention_backward(dqkv, dsinks_or_none, dout, qkv, out, lse, sinks, s);
  const Flops whole = k.flops();

  const Owned kv = columns(qkv, s.q_dim(), s.qkv_dim() - s.q_dim());
  Owned out2(dtype, {t, s.out_dim()}), lse2(dtype, {t, s.heads});
  Owned dq = test::zeros(dtype, {t, s.qkv_dim()}), dkv = test::zeros(dtype, {t, kv.tensor().dim(1)});
  Owned dsinks2(dtype, {s.heads});
  k.reset_flops();
  for_parts(c, s, [&](const AttentionPart& part) {
    k.attention_part(out2, lse2, qkv, kv, sinks, s, part,
                     part.distance == 0 ? Write::overwrite : Write::accumulate);
  });
  for_parts(c, s, [&](const AttentionPart& part) {
    k.attention_part_backward(dq, dkv, dout, qkv, kv, out2, lse2, s, part);
  });
  if (c.sinks) k.attention_sinks_backward(dsinks2, dout, out2, lse2, sinks, s);
  EXPECT_EQ(k.flops(), whole);
  EXPECT_TRUE(near("out", test::values(out2), test::values(out), bound));
  EXPECT_TRUE(near("lse", test::values(lse2), test::values(lse), bound));
  EXPECT_TRUE(
      near("dq", test::values(columns(dq, 0, s.q_dim())), test::values(columns(dqkv, 0, s.q_dim())), bound));
  EXPECT_TRUE(
      near("dkv", test::values(dkv), test::values(columns(dqkv, s.q_dim(), s.qkv_dim() - s.q_dim())), bound));
  if (c.sinks) {
    EXPECT_TRUE(near("dsinks", test::values(dsinks2), test::values(dsinks), bound));
  }
}

TEST(AttentionParts, JoinedAreAttentionOfTheWholeSequence) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(fmt::format("batch={} chunks={} rows={} heads={} d={} v={} window={}", c.batch, c.chunks,
                             c.rows, c.heads, c.head_dim, c.v_dim, c.window));
    const auto reference = make_reference();
    expect_parts_are_the_whole(*reference, c, DType::f64, 1e-13);
    const auto cpu = make_cpu();
    expect_parts_are_the_whole(*cpu, c, DType::f64, 1e-13);
    expect_parts_are_the_whole(*cpu, c, DType::f32, 1e-5);
  }
}

TEST(AttentionParts, KeepThePairsThatCountingFinds) {
  for (const std::int64_t rows : {1, 2, 5, 9}) {
    for (const std::int64_t window : {0, 1, 2, 4, 5, 6, 9, 10, 13, 30}) {
      for (std::int64_t distance = 0; distance < 4 * rows; distance += rows) {
        const AttentionShape s{.batch = 1,
                               .seq = 4 * rows,
                               .heads = 1,
                               .kv_heads = 1,
                               .head_dim = 1,
                               .scale = 1,
                               .window = window};
        std::int64_t pairs = 0;
        for (std::int64_t q = 0; q < rows; ++q) {
          for (std::int64_t k = 0; k < rows; ++k) {
            const std::int64_t apart = q + distance - k;
            pairs += apart >= 0 && (window == 0 || apart < window) ? 1 : 0;
          }
        }
        const AttentionPart part{.rows = rows, .q_first = 0, .k_first = 0, .distance = distance};
        EXPECT_EQ(part.kept_pairs(s), pairs) << rows << " " << window << " " << distance;
      }
    }
  }
}

TEST(AttentionParts, RefuseQueriesBeforeTheirKeys) {
  const auto k = make_reference();
  const AttentionShape s = shape_of({1, 2, 4, 1, 1, 2, 2, 0, false});
  const Owned q = test::zeros(DType::f64, {8, 2}), kv = test::zeros(DType::f64, {8, 4});
  Owned out = test::zeros(DType::f64, {8, 2}), lse = test::zeros(DType::f64, {8, 1});
  const AttentionPart part{.rows = 4, .q_first = 4, .k_first = 0, .distance = 3};
  try {
    k->attention_part(out, lse, q, kv, {}, s, part, Write::overwrite);
    FAIL() << "nothing was refused";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("distance=3 is below rows=4"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace tessera::kernels
