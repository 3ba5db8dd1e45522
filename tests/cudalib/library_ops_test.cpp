// What the libraries take, by shape; and, on a GPU, their products and attention beside the backend's own
// kernels.
#include "cudalib/library_ops.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "kernels/cuda/cuda_kernels.h"
#include "support/tensors.h"

namespace tessera::cudalib {
namespace {

using kernels::AttentionShape;
using kernels::Kernels;
using kernels::Weight;
using kernels::Write;
using tensor::DType;
using tensor::Tensor;
using test::Owned;

TEST(LibraryOps, TakeProductsOfBf16WhoseRowsFillWideLoads) {
  const GemmShape good{.pass = GemmPass::forward, .rows = 5, .outputs = 16, .inputs = 24};
  const auto with = [&](auto change) {
    GemmShape s = good;
    change(s);
    return takes_product(s);
  };
  EXPECT_TRUE(takes_product(good)) << "the number of rows is free";
  EXPECT_TRUE(with([](GemmShape& s) { s.out = DType::f32; })) << "the router's logits";
  EXPECT_TRUE(with([](GemmShape& s) { s.in = s.out = DType::f32; }));
  EXPECT_FALSE(with([](GemmShape& s) { s.outputs = 12; })) << "rows of y would not be 16-byte aligned";
  EXPECT_FALSE(with([](GemmShape& s) { s.inputs = 20; }));
  EXPECT_FALSE(with([](GemmShape& s) { s.rows = 0; }));
  EXPECT_FALSE(with([](GemmShape& s) { s.in = DType::f32; })) << "f32 and bf16 in one product";
  EXPECT_TRUE(with([](GemmShape& s) { s.pass = GemmPass::weight_gradient, s.out = DType::f32; }));
  EXPECT_FALSE(with([](GemmShape& s) { s.pass = GemmPass::weight_gradient; })) << "gradients are f32";
}

TEST(LibraryOps, TakeAttentionOfBf16WithHeadsInEights) {
  AttentionShape s{.batch = 2, .seq = 100, .heads = 4, .kv_heads = 2, .head_dim = 64, .scale = 0.125};
  EXPECT_TRUE(takes_attention(s, DType::bf16));
  EXPECT_FALSE(takes_attention(s, DType::f32));
  s.v_head_dim = 260;
  EXPECT_FALSE(takes_attention(s, DType::bf16));
  s = {.batch = 2, .seq = 100, .heads = 4, .kv_heads = 2, .head_dim = 12, .scale = 0.125};
  EXPECT_FALSE(takes_attention(s, DType::bf16));
}

// --- on a GPU

class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    const kernels::DeviceList list = kernels::cuda_devices();
    if (list.count == 0 && std::getenv("TESSERA_REQUIRE_GPU") != nullptr) FAIL() << list.why_none;
    if (list.count == 0) GTEST_SKIP() << "no GPU: " << list.why_none;
    own_ = kernels::make_cuda(0);
    library_ = make_gpu_kernels(0);
  }
  // A tensor in the memory of `k`, with the values of `from`.
  struct There {
    tensor::Buffer buffer;
    Tensor tensor;
  };
  static There there(Kernels& k, const Tensor& from) {
    There t;
    t.buffer = tensor::Buffer(k.memory(), from.bytes(), tensor::Reach::own);
    t.tensor = Tensor(t.buffer.data(), from.dtype(), from.shape(), k.memory()->device());
    k.memory()->copy(t.tensor, from);
    k.memory()->synchronise();
    return t;
  }
  static std::vector<double> here(Kernels& k, const Tensor& t) {
    std::vector<double> out;
    on_host(*k.memory(), t, tensor::Access::read, [&](const Tensor& h) { out = test::values(h); });
    return out;
  }
  // |a - b| over |b|, as vectors.
  static double difference(const std::vector<double>& a, const std::vector<double>& b) {
    double wrong = 0, all = 0;
    for (std::size_t i = 0; i < b.size(); ++i) {
      wrong += (a[i] - b[i]) * (a[i] - b[i]);
      all += b[i] * b[i];
    }
    return std::sqrt(wrong / all);
  }
  // op(kernels, tensors in their memory); the last `results` of the tensors are compared.
  template <class Op>
  void expect_equal(const std::string& what, const std::vector<const Owned*>& tensors, std::size_t results,
                    double bound, const Op& op) {
    std::vector<std::vector<double>> got[2];
    Kernels* both[2] = {library_.get(), own_.get()};
    for (int side = 0; side < 2; ++side) {
      std::vector<There> held;
      std::vector<Tensor> views;
      for (const Owned* t : tensors) {
        held.push_back(there(*both[side], *t));
        views.push_back(held.back().tensor);
      }
      op(*both[side], views);
      for (std::size_t i = views.size() - results; i < views.size(); ++i)
        got[side].push_back(here(*both[side], views[i]));
    }
    for (std::size_t i = 0; i < results; ++i) {
      const double error = difference(got[0][i], got[1][i]);
      EXPECT_TRUE(error < bound) << what << ", result " << i << ": " << error;
    }
  }

  std::unique_ptr<Kernels> own_, library_;
};

TEST_F(OnGpu, ProductsEqualTheBackendsOwn) {
  for (const auto& [t, n, k] : std::vector<std::array<std::int64_t, 3>>{
           {1, 8, 8}, {17, 64, 128}, {256, 1024, 768}, {1000, 2048, 4096}}) {
    const Owned x = test::random(DType::bf16, {t, k}, 1), value = test::random(DType::f32, {n, k}, 2);
    const Owned packed(DType::u8, {2 * n * k}), dy = test::random(DType::bf16, {t, n}, 3);
    const Owned y(DType::bf16, {t, n}), logits(DType::f32, {t, n}), dx = test::random(DType::bf16, {t, k}, 4);
    const Owned dw = test::random(DType::f32, {n, k}, 5);
    expect_equal(fmt::format("T={} N={} K={}", t, n, k), {&x, &value, &packed, &dy, &y, &logits, &dx, &dw}, 4,
                 0.01, [](Kernels& kernels, const std::vector<Tensor>& at) {
                   Weight w{at[1], at[2]};
                   kernels.pack(w);
                   kernels.linear(at[4], at[0], w);
                   kernels.linear(at[5], at[0], w);
                   kernels.linear_dgrad(at[6], at[3], w, Write::accumulate);
                   kernels.linear_wgrad(at[7], at[3], at[0]);
                 });
  }
}

TEST_F(OnGpu, AttentionEqualsTheBackendsOwn) {
  for (const AttentionShape& s : {
           AttentionShape{.batch = 2, .seq = 256, .heads = 4, .kv_heads = 4, .head_dim = 64, .scale = 0.125},
           AttentionShape{
               .batch = 1, .seq = 1000, .heads = 8, .kv_heads = 2, .head_dim = 128, .scale = 0.088},
           AttentionShape{.batch = 1,
           .seq = 512,
           .heads = 4,
           .kv_heads = 2,
           .head_dim = 64,
           .scale = 0.125,
           .window = 100},
           AttentionShape{.batch = 1,
           .seq = 384,
           .heads = 4,
           .kv_heads = 4,
           .head_dim = 192,
           .scale = 0.07,
           .v_head_dim = 128},
       }) {
    const std::int64_t t = s.batch * s.seq;
    const Owned qkv = test::random(DType::bf16, {t, s.qkv_dim()}, 1);
    const Owned dout = test::random(DType::bf16, {t, s.out_dim()}, 2), lse(DType::f32, {t, s.heads});
    const Owned out(DType::bf16, {t, s.out_dim()}), dqkv(DType::bf16, {t, s.qkv_dim()});
    expect_equal(fmt::format("seq={} heads={}/{} d={}", s.seq, s.heads, s.kv_heads, s.head_dim),
                 {&qkv, &dout, &lse, &out, &dqkv}, 2, 0.02,
                 [&](Kernels& kernels, const std::vector<Tensor>& at) {
                   kernels.attention(at[3], at[2], at[0], s);
                   kernels.attention_backward(at[4], at[1], at[0], at[3], at[2], s);
                 });
  }
}

}  // namespace
}  // namespace tessera::cudalib
