// Attention over a cache, of every implementation: against causal attention on whole sequences in f64,
// against the reference, and the same bits whatever rows are beside a row.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

struct Case {
  std::int64_t heads, kv_heads, head_dim, v_head_dim, window;
  bool sinks = false;
  std::int64_t seq = 90;
};
std::vector<Case> cases() {
  return {{1, 1, 8, 0, 0},         {4, 4, 64, 0, 0},         {4, 1, 16, 0, 0}, {6, 2, 10, 0, 20},
          {8, 2, 32, 0, 64, true}, {5, 1, 24, 16, 0, true},  {3, 3, 7, 5, 1},  {2, 2, 80, 0, 70},
          {16, 1, 40, 32, 0},      {2, 1, 128, 0, 65, true}, {9, 3, 33, 0, 7}};
}
AttentionShape shape_of(const Case& c, std::int64_t batch, std::int64_t seq) {
  return {.batch = batch,
          .seq = seq,
          .heads = c.heads,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .scale = 1 / std::sqrt(static_cast<double>(c.head_dim)),
          .v_head_dim = c.v_head_dim,
          .window = c.window};
}

// Two sequences as rows of calls of the sizes `calls` (over and over), in slots 2 and 0 of three.
class Cached {
 public:
  Cached(Kernels& k, const Case& c, const Tensor& qkv, const Tensor& sinks, std::int64_t rows_per_call)
      : k_(k), c_(c), qkv_(qkv), sinks_(sinks) {
    const AttentionShape s = shape_of(c, 1, 1);
    std::int64_t rows = c.window > 0 ? c.window + rows_per_call : c.seq;
    rows = (std::min(rows, c.seq) + kCacheBlock - 1) / kCacheBlock * kCacheBlock;
    keys_ = zeros(qkv.dtype(), {3, c.kv_heads, rows, s.head_dim});
    values_ = zeros(qkv.dtype(), {3, c.kv_heads, rows, s.v_dim()});
    out_ = Owned(qkv.dtype(), {qkv.dim(0), s.out_dim()});
  }
  // order: (sequence, position) of the rows, cut into calls.
  Owned& run(const std::vector<std::pair<std::int32_t, std::int32_t>>& order,
             const std::vector<std::int64_t>& calls) {
    std::size_t at = 0;
    for (std::size_t call = 0; at < order.size(); ++call) {
      const std::size_t n = std::min(order.size() - at, static_cast<std::size_t>(calls[call % calls.size()]));
      one_call({order.begin() + static_cast<std::ptrdiff_t>(at),
                order.begin() + static_cast<std::ptrdiff_t>(at + n)});
      at += n;
    }
    return out_;
  }

 private:
  void one_call(const std::vector<std::pair<std::int32_t, std::int32_t>>& rows) {
    const auto n = std::ssize(rows);
    const AttentionShape s = shape_of(c_, n, 1);
    Owned x(qkv_.dtype(), {n, s.qkv_dim()}), out(qkv_.dtype(), {n, s.out_dim()});
    Owned slots(DType::i32, {n}), positions(DType::i32, {n});
    for (std::int64_t r = 0; r < n; ++r) {
      const auto [sequence, position] = rows[static_cast<std::size_t>(r)];
      const std::int64_t from = sequence * c_.seq + position;
      for (std::int64_t j = 0; j < s.qkv_dim(); ++j)
        test::set(x, r * s.qkv_dim() + j, get(qkv_, from * s.qkv_dim() + j));
      test::set(slots, r, sequence == 0 ? 2 : 0);
      test::set(positions, r, position);
    }
    k_.cache_append(keys_, x, s.q_dim(), slots, positions);
    k_.cache_append(values_, x, s.q_dim() + s.k_dim(), slots, positions);
    k_.decode_attention(out, x, keys_, values_, sinks_, slots, positions, s);
    for (std::int64_t r = 0; r < n; ++r) {
      const auto [sequence, position] = rows[static_cast<std::size_t>(r)];
      for (std::int64_t j = 0; j < s.out_dim(); ++j)
        test::set(out_, (sequence * c_.seq + position) * s.out_dim() + j, get(out, r * s.out_dim() + j));
    }
  }
  Kernels& k_;
  Case c_;
  Tensor qkv_, sinks_;
  Owned keys_, values_, out_;
};

std::vector<std::pair<std::int32_t, std::int32_t>> one_after_another(std::int64_t seq) {
  std::vector<std::pair<std::int32_t, std::int32_t>> order;
  for (std::int32_t b = 0; b < 2; ++b) {
    for (std::int32_t p = 0; p < seq; ++p) order.emplace_back(b, p);
  }
  return order;
}
std::vector<std::pair<std::int32_t, std::int32_t>> side_by_side(std::int64_t seq) {
  std::vector<std::pair<std::int32_t, std::int32_t>> order;
  for (std::int32_t p = 0; p < seq; ++p) {
    for (std::int32_t b = 0; b < 2; ++b) order.emplace_back(b, p);
  }
  return order;
}

class Decode : public KernelTest {};

TEST_P(Decode, EqualsAttentionOnTheWholeSequenceInAnyCutIntoCalls) {
  const std::unique_ptr<Kernels> truth = make_reference();
  for (const Case& c : cases()) {
    const AttentionShape whole = shape_of(c, 2, c.seq);
    const Owned rounded = random(dtype_, {2 * c.seq, whole.qkv_dim()}, 3);
    const Owned qkv = test::cast(rounded, DType::f64);
    const Owned sinks = c.sinks ? random(dtype_, {c.heads}, 4) : Owned();
    const Owned sinks64 = c.sinks ? test::cast(sinks, DType::f64) : Owned();
    Owned want(DType::f64, {2 * c.seq, whole.out_dim()}), lse(DType::f64, {2 * c.seq, c.heads});
    truth->attention(want, lse, qkv, sinks64, whole);
    const double allowed = dtype_ == DType::f64 ? 1e-13 : 2e-5;
    Cached chunks(*kernels_, c, rounded, sinks, 33);
    const Owned& a = chunks.run(one_after_another(c.seq), {33, 1, 7, 20});
    Cached single(*kernels_, c, rounded, sinks, 2);
    const Owned& b = single.run(side_by_side(c.seq), {2, 1, 1});
    for (std::int64_t i = 0; i < want.tensor().num_elements(); ++i) {
      const double error = std::abs(get(a, i) - get(want, i));
      ASSERT_TRUE(error <= allowed) << "heads " << c.heads << " head_dim " << c.head_dim << " at " << i;
      ASSERT_EQ(get(a, i), get(b, i)) << "the same bits, heads " << c.heads << " at " << i;
    }
  }
}

// Latent attention: one key of all heads, whose first columns are the value.
TEST_P(Decode, ValuesMayBeColumnsOfTheKeys) {
  const AttentionShape s = {
      .batch = 3, .seq = 1, .heads = 4, .kv_heads = 1, .head_dim = 24, .scale = 0.3, .v_head_dim = 20};
  const Owned q = random(dtype_, {3, 4 * 24}, 1), rows = random(dtype_, {70, 24}, 2);
  Owned cache = zeros(dtype_, {1, 1, 128, 24}), slots = zeros(DType::i32, {70});
  Owned positions(DType::i32, {70}), values = zeros(dtype_, {1, 1, 128, 20});
  for (std::int64_t p = 0; p < 70; ++p) test::set(positions, p, static_cast<double>(p));
  kernels_->cache_append(cache, rows, 0, slots, positions);
  kernels_->cache_append(values, columns(rows, 0, 20), 0, slots, positions);
  Owned a(dtype_, {3, 80}), b(dtype_, {3, 80});
  const Tensor last = positions.tensor().narrow_rows(67, 3), slot = slots.tensor().narrow_rows(0, 3);
  kernels_->decode_attention(a, q, cache, cache, Tensor(), slot, last, s);
  kernels_->decode_attention(b, q, cache, values, Tensor(), slot, last, s);
  EXPECT_EQ(test::values(a), test::values(b));
}

TEST_P(Decode, RefusesRowsOutsideTheCache) {
  const AttentionShape s = {.batch = 1, .seq = 1, .heads = 1, .kv_heads = 1, .head_dim = 4, .scale = 1};
  const Owned x = random(dtype_, {1, 12}, 1);
  Owned cache = zeros(dtype_, {2, 1, 64, 4}), out(dtype_, {1, 4}), slots = zeros(DType::i32, {1});
  Owned positions = zeros(DType::i32, {1});
  test::set(positions, 0, 64);  // sees 65 keys
  EXPECT_THROW(kernels_->decode_attention(out, x, cache, cache, Tensor(), slots, positions, s), Error);
  test::set(positions, 0, 63);
  EXPECT_NO_THROW(kernels_->decode_attention(out, x, cache, cache, Tensor(), slots, positions, s));
  test::set(slots, 0, 2);
  EXPECT_THROW(kernels_->decode_attention(out, x, cache, cache, Tensor(), slots, positions, s), Error);
  EXPECT_THROW(kernels_->cache_append(cache, x, 4, slots, positions), Error);
  test::set(slots, 0, 1);
  EXPECT_THROW(kernels_->cache_append(cache, x, 9, slots, positions), Error);
}

INSTANTIATE_TEST_SUITE_P(All, Decode, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
