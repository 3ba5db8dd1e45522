// Products by cuBLASLt as far as they go without a GPU: the translation of row-major products into its
// column-major descriptors, carried out by hand and compared with the plain product; the descriptors read
// back; the table's file.
#include "cudalib/gemm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "cudalib/device_properties.h"

namespace tessera::cudalib {
namespace {
using tensor::DType;
using ::testing::HasSubstr;

std::vector<double> numbers(std::int64_t count, double seed) {
  std::vector<double> v(count);
  for (std::int64_t i = 0; i < count; ++i) v[i] = std::sin(seed + 1.7 * i);
  return v;
}

// D = op(A) op(B) as the library defines it: element (i, j) of a stored matrix lies at i + j * stride.
std::vector<double> by_layout(const GemmLayout& g, const std::vector<double>& x, const std::vector<double>& w,
                              const std::vector<double>& y) {
  const auto data = [&](const StoredMatrix& m) -> const std::vector<double>& {
    return m.operand == GemmOperand::x ? x : m.operand == GemmOperand::w ? w : y;
  };
  const auto at = [&](const StoredMatrix& m, std::int64_t i, std::int64_t j) {
    return m.transposed ? data(m).at(j + i * m.stride) : data(m).at(i + j * m.stride);
  };
  std::vector<double> d(g.m() * g.n());
  for (std::int64_t j = 0; j < g.n(); ++j)
    for (std::int64_t i = 0; i < g.m(); ++i)
      for (std::int64_t k = 0; k < g.k(); ++k) d.at(i + j * g.d.stride) += at(g.a, i, k) * at(g.b, k, j);
  return d;
}

TEST(GemmLayouts, GiveTheRowMajorProductOfEachPass) {
  const std::int64_t T = 5;
  const std::int64_t N = 3;
  const std::int64_t K = 4;
  const auto x = numbers(T * K, 1);
  const auto w = numbers(N * K, 2);
  const auto y = numbers(T * N, 3);
  std::vector<double> forward(T * N), dx(T * K), dw(N * K);
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < K; ++k) {
        forward[t * N + n] += x[t * K + k] * w[n * K + k];
        dx[t * K + k] += y[t * N + n] * w[n * K + k];
        dw[n * K + k] += y[t * N + n] * x[t * K + k];
      }
  const auto check = [&](GemmPass pass, const std::vector<double>& wanted) {
    const auto layout = gemm_layout({.pass = pass, .rows = T, .outputs = N, .inputs = K});
    const auto got = by_layout(layout, x, w, y);
    ASSERT_EQ(got.size(), wanted.size());
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], wanted[i], 1e-12) << i;
  };
  check(GemmPass::forward, forward);
  check(GemmPass::input_gradient, dx);
  check(GemmPass::weight_gradient, dw);
}

TEST(GemmLayouts, SurviveTheLibrarysDescriptors) {
  if (!is_built_in()) GTEST_SKIP() << "built without the CUDA toolkit and cuDNN";
  EXPECT_GE(cublaslt_version(), 130000);
  for (const auto pass : {GemmPass::forward, GemmPass::input_gradient, GemmPass::weight_gradient})
    for (const auto& [in, out] : {std::pair{DType::bf16, DType::bf16},
                                  {DType::bf16, DType::f32},
                                  {DType::f32, DType::f32},
                                  {DType::f64, DType::f64}}) {
      const GemmShape s{.pass = pass, .rows = 8192, .outputs = 1408, .inputs = 2048, .in = in, .out = out};
      EXPECT_EQ(gemm_descriptors(s), gemm_layout(s)) << s.text();
    }
}

TEST(GemmLayouts, RefuseEmptySizesAndTypesWithoutAProduct) {
  try {
    (void)gemm_layout({.rows = 0, .outputs = 2, .inputs = 3, .in = DType::f32, .out = DType::bf16});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_THAT(e.what(), HasSubstr("rows=0"));
    EXPECT_THAT(e.what(), HasSubstr("no product of f32 factors with a result of bf16"));
    EXPECT_THAT(e.what(), HasSubstr("use bf16 factors with a bf16 or f32 result"));
  }
}

TEST(GemmTables, ComeBackFromTheirText) {
  GemmTable table{.gpu = "NVIDIA H100 80GB HBM3", .version = 130100, .algorithms = {}};
  const GemmShape s{
      .rows = 1, .outputs = 2, .inputs = 3, .out = DType::f32, .write = kernels::Write::accumulate};
  EXPECT_EQ(s.text(), "forward T=1 N=2 K=3 bf16>f32 accumulate");
  table.algorithms[s.text()] = {0, 1, 0xffffffffffffffff, 3, 4, 5, 6, 0x0123456789abcdef};
  const GemmTable back = GemmTable::from_text(table.to_text());
  EXPECT_EQ(back.gpu, table.gpu);
  EXPECT_EQ(back.version, table.version);
  EXPECT_EQ(back.algorithms, table.algorithms);
  EXPECT_TRUE(back.valid_for("NVIDIA H100 80GB HBM3", 130100));
  EXPECT_FALSE(back.valid_for("NVIDIA H100 80GB HBM3", 130200));
  EXPECT_FALSE(back.valid_for("NVIDIA A100", 130100));
}

TEST(GemmTables, RefuseTextsThatAreNone) {
  for (const char* text : {"", "[]", "{}", R"({"format":2,"gpu":"x","cublaslt_version":1,"algorithms":{}})",
                           R"({"format":1,"gpu":"x","cublaslt_version":1,"algorithms":{"a":"12"}})",
                           R"({"format":1,"gpu":"x","cublaslt_version":1,"algorithms":[1]})"}) {
    try {
      (void)GemmTable::from_text(text);
      ADD_FAILURE() << "no error: " << text;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::config);
      EXPECT_THAT(e.what(), HasSubstr("the products are timed again"));
    }
  }
}

TEST(GemmEngines, WithoutAGpuSayThatTheHandleWasRefused) {
  if (!is_built_in()) GTEST_SKIP() << "built without the CUDA toolkit and cuDNN";
  try {
    const GemmEngine engine(nullptr, "no GPU", GemmChoice::first);
    GTEST_SKIP() << "this machine has a GPU";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::unsupported);
    EXPECT_THAT(e.what(), HasSubstr("refuses a handle"));
  }
}

}  // namespace
}  // namespace tessera::cudalib
