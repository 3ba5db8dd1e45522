// Which calls the CUDA backend offers to a library, and that it does itself what the library leaves.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "kernels/fixtures.h"
#include "support/emulated_place.h"

namespace tessera::kernels {
namespace {

// Notes every call, and takes those of the given names: it writes 7 into what it takes.
class NotingLibrary final : public LibraryOps {
 public:
  NotingLibrary(std::vector<std::string>& calls, std::vector<std::string> takes)
      : calls_(calls), takes_(std::move(takes)) {}
  bool linear(const Tensor& y, const Tensor& x, const Tensor& w) override {
    return note(fmt::format("linear {}>{} w {}", tensor::name(x.dtype()), tensor::name(y.dtype()), text(w)),
                y);
  }
  bool linear_dgrad(const Tensor& dx, const Tensor& dy, const Tensor& w, Write write) override {
    return note(fmt::format("dgrad {}>{} w {}{}", tensor::name(dy.dtype()), tensor::name(dx.dtype()), text(w),
                            write == Write::accumulate ? " +=" : ""),
                dx);
  }
  bool linear_wgrad(const Tensor& dw, const Tensor& dy, const Tensor&) override {
    return note(fmt::format("wgrad {}>{}", tensor::name(dy.dtype()), tensor::name(dw.dtype())), dw);
  }
  bool attention(const Tensor& out, const Tensor&, const Tensor&, const AttentionShape&) override {
    return note("attention", out);
  }
  bool attention_backward(const Tensor& dqkv, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          const AttentionShape&) override {
    return note("attention_backward", dqkv);
  }

 private:
  static std::string text(const Tensor& w) {
    return fmt::format("{} {}", tensor::name(w.dtype()), w.shape().text());
  }
  bool note(const std::string& call, const Tensor& result) {
    calls_.push_back(call);
    const bool mine = std::ranges::any_of(takes_, [&](const std::string& t) { return call.starts_with(t); });
    if (mine) test::set_all(result, 7);
    return mine;
  }
  std::vector<std::string>& calls_;
  std::vector<std::string> takes_;
};

class Library : public ::testing::Test {
 protected:
  std::unique_ptr<Kernels> kernels(std::vector<std::string> takes) {
    return emulated::make_with(std::make_unique<NotingLibrary>(calls_, std::move(takes)));
  }
  std::vector<std::string> calls_;
};

TEST_F(Library, IsAskedForProductsWithTheWeightThatTheActivationsRead) {
  const auto k = kernels({"linear", "wgrad"});
  const Owned value = random(DType::f32, {3, 4}, 1), x = random(DType::bf16, {9, 4}, 2),
              y(DType::bf16, {9, 3});
  const Owned packed(DType::u8, {k->packed_bytes(DType::bf16, 3, 4).value}), logits(DType::f32, {9, 3});
  const Owned dx(DType::bf16, {9, 4}), dy = random(DType::bf16, {9, 3}, 3), dw = zeros(DType::f32, {3, 4});
  Weight w{value, packed};
  k->pack(w);
  k->linear(y, x, w);
  k->linear(logits, x, w);
  k->linear_dgrad(dx, dy, w);
  k->linear_wgrad(dw, dy, x);
  EXPECT_EQ(calls_,
            (std::vector<std::string>{"linear bf16>bf16 w bf16 [3, 4]", "linear bf16>f32 w bf16 [3, 4]",
                                      "dgrad bf16>bf16 w bf16 [3, 4]", "wgrad bf16>f32"}));
  EXPECT_EQ(values(y), std::vector<double>(27, 7.0)) << "taken";
  EXPECT_EQ(values(dw), std::vector<double>(12, 7.0)) << "taken";
  const auto alone = emulated::make();
  const Owned want(DType::bf16, {9, 4});
  alone->linear_dgrad(want, dy, w);
  EXPECT_EQ(values(dx), values(want)) << "what is left, the backend does itself";
}

TEST_F(Library, IsNotAskedForBf16ProductsWhoseWeightHasNoCopy) {
  const auto k = kernels({"linear"});
  const Owned value = random(DType::f32, {3, 4}, 1), x = random(DType::bf16, {9, 4}, 2),
              y(DType::bf16, {9, 3});
  k->linear(y, x, Weight{value, {}});
  EXPECT_TRUE(calls_.empty());
  const Owned x32 = random(DType::f32, {9, 4}, 2), y32(DType::f32, {9, 3});
  k->linear(y32, x32, Weight{value, {}});
  EXPECT_EQ(calls_, std::vector<std::string>{"linear f32>f32 w f32 [3, 4]"});
}

TEST_F(Library, IsNotAskedForFewRowsWhoseWeightIsReadOnce) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const DType stats = tensor::stats_of(dtype);
    for (const std::int64_t inputs : {1, 7, 40, 264, 2048}) {
      const double unit = dtype == DType::f64 ? 1e-15 : dtype == DType::f32 ? 3e-7 : 4e-3;
      const double tolerance = unit * std::sqrt(static_cast<double>(inputs));
      const auto k = kernels({"linear"}), alone = emulated::make();
      const Owned value = random(stats, {37, inputs}, 1, 0.3);
      const Owned packed(DType::u8, {k->packed_bytes(dtype, 37, inputs).value});
      Weight w{value, packed};
      if (!packed.tensor().empty()) k->pack(w);
      const Owned x = random(dtype, {8, inputs}, 2, 0.3);
      std::vector<double> first;
      for (const std::int64_t rows : {8, 5, 3, 1}) {
        for (const DType out : {dtype, stats}) {
          const Owned y(out, {rows, 37}), want(out, {rows, 37});
          k->linear(y, x.tensor().narrow_rows(0, rows), w);
          alone->linear(want, x.tensor().narrow_rows(0, rows), w);
          for (std::int64_t i = 0; i < rows * 37; ++i)
            ASSERT_NEAR(get(y, i), get(want, i), tolerance * (1 + std::abs(get(want, i)))) << i;
          if (out != dtype && dtype == DType::bf16) continue;
          if (first.empty()) first = values(y);
          for (std::int64_t i = 0; i < rows * 37; ++i)
            ASSERT_EQ(get(y, i), first[static_cast<std::size_t>(i)]) << "whatever runs beside it";
        }
      }
    }
  }
  EXPECT_TRUE(calls_.empty());
}

TEST_F(Library, IsAskedForAttentionInBothDirections) {
  const auto k = kernels({"attention"});
  const AttentionShape s{.batch = 1, .seq = 4, .heads = 2, .kv_heads = 1, .head_dim = 4, .scale = 0.5};
  const Owned qkv = random(DType::bf16, {4, s.qkv_dim()}, 1), dout = random(DType::bf16, {4, 8}, 2);
  const Owned out(DType::bf16, {4, 8}), lse(DType::f32, {4, 2}), dqkv(DType::bf16, {4, s.qkv_dim()});
  k->attention(out, lse, qkv, s);
  k->attention_backward(dqkv, dout, qkv, out, lse, s);
  EXPECT_EQ(calls_, (std::vector<std::string>{"attention", "attention_backward"}));
  EXPECT_EQ(get(out, 0), 7.0);
  EXPECT_EQ(get(dqkv, 0), 7.0);
}

// Attention without sinks by the backend's own kernels, with lse in a library's order.
class AttentionLibrary final : public LibraryOps {
 public:
  bool linear(const Tensor&, const Tensor&, const Tensor&) override { return false; }
  bool linear_dgrad(const Tensor&, const Tensor&, const Tensor&, Write) override { return false; }
  bool linear_wgrad(const Tensor&, const Tensor&, const Tensor&) override { return false; }
  bool attention(const Tensor& out, const Tensor& lse, const Tensor& qkv, const AttentionShape& s) override {
    const Owned own(lse.dtype(), lse.shape());
    kernels_->attention(out, own, qkv, s);
    for_rows(s, [&](std::int64_t ours, std::int64_t theirs) { test::set(lse, theirs, get(own, ours)); });
    return true;
  }
  bool attention_backward(const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                          const Tensor& lse, const AttentionShape& s) override {
    const Owned own(lse.dtype(), lse.shape());
    for_rows(s, [&](std::int64_t ours, std::int64_t theirs) { test::set(own, ours, get(lse, theirs)); });
    kernels_->attention_backward(dqkv, {}, dout, qkv, out, own, {}, s);
    return true;
  }

 private:
  template <class Body>
  static void for_rows(const AttentionShape& s, const Body& body) {
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t i = 0; i < s.seq; ++i) {
        for (std::int64_t h = 0; h < s.heads; ++h)
          body((b * s.seq + i) * s.heads + h, (b * s.heads + h) * s.seq + i);
      }
    }
  }
  std::unique_ptr<Kernels> kernels_ = emulated::make();
};

TEST_F(Library, ItsAttentionGetsSinksFromTheBackend) {
  const AttentionShape s{.batch = 2,
                         .seq = 9,
                         .heads = 6,
                         .kv_heads = 2,
                         .head_dim = 8,
                         .scale = 0.4,
                         .v_head_dim = 16,
                         .window = 5};
  for (const auto& [dtype, tolerance] :
       {std::pair(DType::f64, 1e-13), {DType::f32, 2e-5}, {DType::bf16, 0.03}}) {
    const DType stats = tensor::stats_of(dtype);
    const Owned qkv = random(dtype, {18, s.qkv_dim()}, 1), dout = random(dtype, {18, s.out_dim()}, 2);
    const Owned sinks = random(stats, {6}, 3, 2.0);
    const auto run = [&](Kernels& k) {
      const Owned out(dtype, {18, s.out_dim()}), lse(stats, {18, 6}), dqkv(dtype, {18, s.qkv_dim()}),
          dsinks(stats, {6});
      k.attention(out, lse, qkv, sinks, s);
      k.attention_backward(dqkv, dsinks, dout, qkv, out, lse, sinks, s);
      std::vector<double> all;
      for (const Owned* t : {&out, &dqkv, &dsinks}) {
        const std::vector<double> v = values(*t);
        all.insert(all.end(), v.begin(), v.end());
      }
      return all;
    };
    const std::vector<double> want = run(*emulated::make());
    const std::vector<double> got = run(*emulated::make_with(std::make_unique<AttentionLibrary>()));
    double most = 0.0;
    for (const double w : want) most = std::max(most, std::abs(w));
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got[i], want[i], tolerance * most) << tensor::name(dtype) << " " << i;
  }
}

}  // namespace
}  // namespace tessera::kernels
