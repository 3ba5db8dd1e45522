// Products of row-major matrices by cuBLASLt: a linear layer's forward, its gradient of the input and of the
// weight. cuBLASLt thinks in columns: a row-major R x C matrix is to it a column-major C x R one whose
// columns lie C apart, so operands change places (gemm_layout below is the whole translation).
//
//   const GemmShape s{.pass = GemmPass::forward, .rows = T, .outputs = N, .inputs = K};
//   GemmEngine engine(stream, gpu_name, GemmChoice::first);
//   engine.run(s, {.x = x, .w = w, .y = y}, workspace);   // y[T, N] = x[T, K] w[N, K]^T
//
// gemm_layout and gemm_descriptors need no GPU and are tested. GemmEngine opens a handle, which needs one:
// NOT
// EXECUTED YET, no figure is known. Without the libraries all but gemm_layout and the table's text throw
// Error{unsupported}. A GemmEngine is used by one thread at a time; all else by any.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/quantity.h"
#include "kernels/kernels.h"
#include "tensor/tensor.h"

namespace tessera::cudalib {

enum class GemmPass : std::uint8_t {
  forward,          // y[T, N] = x[T, K] w[N, K]^T
  input_gradient,   // dx[T, K] = dy[T, N] w[N, K]
  weight_gradient,  // dw[N, K] = dy[T, N]^T x[T, K]
};

struct GemmShape {
  GemmPass pass = GemmPass::forward;
  std::int64_t rows = 0;                    // T
  std::int64_t outputs = 0;                 // N
  std::int64_t inputs = 0;                  // K
  tensor::DType in = tensor::DType::bf16;   // of both factors: bf16, f32 or f64
  tensor::DType out = tensor::DType::bf16;  // of the result: as `in`, or f32 of bf16 factors
  kernels::Write write = kernels::Write::overwrite;
  // "forward T=1 N=2 K=3 bf16>f32 overwrite": the key of the table.
  [[nodiscard]] std::string text() const;
  friend bool operator==(const GemmShape&, const GemmShape&) = default;
};

// What each operand of cuBLASLt's D = op(A) op(B) is.
enum class GemmOperand : std::uint8_t { x, w, y };  // or their gradients: same shape
struct StoredMatrix {
  GemmOperand operand = GemmOperand::x;
  bool transposed = false;  // before the product; never of D
  std::int64_t rows = 0;    // as stored, column-major: before `transposed`
  std::int64_t columns = 0;
  std::int64_t stride = 0;  // from one column to the next, elements
  friend bool operator==(const StoredMatrix&, const StoredMatrix&) = default;
};
struct GemmLayout {
  StoredMatrix a, b, d;
  [[nodiscard]] std::int64_t m() const { return d.rows; }
  [[nodiscard]] std::int64_t n() const { return d.columns; }
  [[nodiscard]] std::int64_t k() const { return a.transposed ? a.rows : a.columns; }
  friend bool operator==(const GemmLayout&, const GemmLayout&) = default;
};

// Throws Error{config} on a size below 1 or types that have no product.
[[nodiscard]] GemmLayout gemm_layout(const GemmShape& shape);
// The same after cuBLASLt took it: its descriptors are made and their attributes read back.
[[nodiscard]] GemmLayout gemm_descriptors(const GemmShape& shape);
[[nodiscard]] std::int64_t cublaslt_version();  // 130100 is 13.1

inline constexpr std::int64_t kGemmWorkspaceBytes = std::int64_t{32} << 20;

// The algorithms that were found fastest, by shape, for one library version and GPU; cuBLASLt's own 64 bytes.
using GemmAlgorithm = std::array<std::uint64_t, 8>;
struct GemmTable {
  std::string gpu;
  std::int64_t version = 0;  // cublaslt_version()
  std::map<std::string, GemmAlgorithm> algorithms;

  // JSON. from_text throws Error{config} on another form.
  [[nodiscard]] std::string to_text() const;
  [[nodiscard]] static GemmTable from_text(std::string_view text);
  // False: its algorithms mean nothing here and must not be used.
  [[nodiscard]] bool valid_for(std::string_view gpu_name, std::int64_t library) const;
};

// first: the first that the heuristics name, or the table's; the same from run to run. timed: shapes that the
// table lacks are timed, 3 runs to warm up and 10 measured for each of up to 16 candidates; the choice, and
// with it the last bits, can differ between runs unless the table is kept. Timing overwrites the result, also
// of an accumulating product: time before training starts.
enum class GemmChoice : std::uint8_t { first, timed };

// Device memory, 256-byte aligned.
struct GemmPointers {
  void* x = nullptr;  // x, or dx as the result
  void* w = nullptr;  // w, or dw as the result
  void* y = nullptr;  // y as the result, or dy
};

class GemmEngine {
 public:
  // stream: a cudaStream_t, null for the default one. A table of another GPU or version is dropped.
  GemmEngine(void* stream, std::string gpu_name, GemmChoice choice, GemmTable table = {});
  ~GemmEngine();
  GemmEngine(GemmEngine&&) noexcept;
  GemmEngine& operator=(GemmEngine&&) noexcept;

  // Finds the algorithm of a shape ahead of the first step; run() does it where it was not.
  void prepare(const GemmShape& shape, const GemmPointers& pointers, void* workspace);
  // workspace: kGemmWorkspaceBytes, of this stream alone. The result's pointer is written to.
  void run(const GemmShape& shape, const GemmPointers& pointers, void* workspace);
  [[nodiscard]] const GemmTable& table() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::cudalib
