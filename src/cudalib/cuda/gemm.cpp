#include "cudalib/gemm.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <bit>
#include <limits>
#include <span>
#include <utility>

#include "base/error.h"

namespace tessera::cudalib {
namespace {

using tensor::DType;
constexpr std::uint32_t kAlignment = 16;
constexpr int kCandidates = 16;
constexpr int kWarmUps = 3;
constexpr int kTimed = 10;

void check(cublasStatus_t status, std::string_view what, std::string_view shape) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(
      ErrorKind::unsupported,
      fmt::format("cuBLASLt {} refuses {}: {}", cublasLtGetVersion(), what, cublasLtGetStatusName(status)),
      std::string(shape), "set CUBLASLT_LOG_LEVEL=5 for its reasons");
}
void check(cudaError_t status, std::string_view what) {
  if (status == cudaSuccess) return;
  throw Error(ErrorKind::unsupported, fmt::format("CUDA: {}: {}", what, cudaGetErrorString(status)), "GPU",
              "see whether nvidia-smi lists the GPU and its driver is 580 or later");
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return CUDA_R_64F;
    case DType::f32:
      return CUDA_R_32F;
    case DType::bf16:
      return CUDA_R_16BF;
    case DType::i64:
    case DType::i32:
    case DType::u8:
      break;
  }
  TESSERA_CHECK(false, "a type of a product");
  return CUDA_R_32F;
}

// f64 sums in f64, all else in f32 with every bit of f32 factors (no TF32).
cublasComputeType_t compute_of(DType in) {
  return in == DType::f64 ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
}

// The descriptors of one product.
class Descriptors {
 public:
  explicit Descriptors(const GemmShape& shape) : text_(shape.text()) {
    const GemmLayout layout = gemm_layout(shape);
    const cudaDataType_t scale = shape.in == DType::f64 ? CUDA_R_64F : CUDA_R_32F;
    check(cublasLtMatmulDescInit(&operation_, compute_of(shape.in), scale), "a product", text_);
    set_transposed(CUBLASLT_MATMUL_DESC_TRANSA, layout.a.transposed);
    set_transposed(CUBLASLT_MATMUL_DESC_TRANSB, layout.b.transposed);
    init(a_, layout.a, shape.in);
    init(b_, layout.b, shape.in);
    init(d_, layout.d, shape.out);
  }
  [[nodiscard]] cublasLtMatmulDesc_t operation() { return &operation_; }
  [[nodiscard]] cublasLtMatrixLayout_t a() { return &a_; }
  [[nodiscard]] cublasLtMatrixLayout_t b() { return &b_; }
  [[nodiscard]] cublasLtMatrixLayout_t d() { return &d_; }

  [[nodiscard]] bool transposed(cublasLtMatmulDescAttributes_t attribute) {
    std::int32_t value = 0;
    std::size_t size = 0;
    check(cublasLtMatmulDescGetAttribute(&operation_, attribute, &value, sizeof value, &size),
          "a transposition", text_);
    return value == CUBLAS_OP_T;
  }
  [[nodiscard]] StoredMatrix read_back(cublasLtMatrixLayout_t m, GemmOperand operand, bool is_transposed) {
    std::uint64_t rows = 0;
    std::uint64_t columns = 0;
    std::int64_t stride = 0;
    std::size_t size = 0;
    check(cublasLtMatrixLayoutGetAttribute(m, CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, sizeof rows, &size), "rows",
          text_);
    check(cublasLtMatrixLayoutGetAttribute(m, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof columns, &size),
          "columns", text_);
    check(cublasLtMatrixLayoutGetAttribute(m, CUBLASLT_MATRIX_LAYOUT_LD, &stride, sizeof stride, &size),
          "stride", text_);
    return {.operand = operand,
            .transposed = is_transposed,
            .rows = static_cast<std::int64_t>(rows),
            .columns = static_cast<std::int64_t>(columns),
            .stride = stride};
  }

 private:
  void set_transposed(cublasLtMatmulDescAttributes_t attribute, bool value) {
    const std::int32_t op = value ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescSetAttribute(&operation_, attribute, &op, sizeof op), "a transposition", text_);
  }
  void init(cublasLtMatrixLayoutOpaque_t& m, const StoredMatrix& s, DType dtype) const {
    check(cublasLtMatrixLayoutInit(&m, type_of(dtype), static_cast<std::uint64_t>(s.rows),
                                   static_cast<std::uint64_t>(s.columns), s.stride),
          "a matrix", text_);
  }

  std::string text_;
  cublasLtMatmulDescOpaque_t operation_{};
  cublasLtMatrixLayoutOpaque_t a_{}, b_{}, d_{};
};

// Events that go with the scope.
class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

std::int64_t cublaslt_version() {
  return static_cast<std::int64_t>(cublasLtGetVersion());
}

GemmLayout gemm_descriptors(const GemmShape& shape) {
  const GemmLayout asked = gemm_layout(shape);
  Descriptors d(shape);
  return {.a = d.read_back(d.a(), asked.a.operand, d.transposed(CUBLASLT_MATMUL_DESC_TRANSA)),
          .b = d.read_back(d.b(), asked.b.operand, d.transposed(CUBLASLT_MATMUL_DESC_TRANSB)),
          .d = d.read_back(d.d(), asked.d.operand, false)};
}

struct GemmEngine::Impl {
  cublasLtHandle_t handle = nullptr;
  cudaStream_t stream = nullptr;
  GemmChoice choice = GemmChoice::first;
  GemmTable table;
  struct Prepared {
    GemmLayout layout;
    Descriptors descriptors;
    cublasLtMatmulAlgo_t algorithm;
  };
  std::map<std::string, Prepared> prepared;

  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    if (handle != nullptr) cublasLtDestroy(handle);
  }

  // Those that the heuristics name, best first; none adds in memory that other blocks write at the same time.
  [[nodiscard]] std::vector<cublasLtMatmulAlgo_t> candidates(Descriptors& d, const std::string& text) const {
    cublasLtMatmulPreferenceOpaque_t preference{};
    check(cublasLtMatmulPreferenceInit(&preference), "a preference", text);
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
            "a preference", text);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(kGemmWorkspaceBytes));
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE |
                                   CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE));
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      set(attribute, kAlignment);
    std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results{};
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle, d.operation(), d.a(), d.b(), d.d(), d.d(), &preference,
                                         kCandidates, results.data(), &count),
          "the choice of an algorithm", text);
    std::vector<cublasLtMatmulAlgo_t> found;
    for (const auto& result : std::span(results).first(static_cast<std::size_t>(count)))
      if (result.state == CUBLAS_STATUS_SUCCESS) found.push_back(result.algo);
    if (found.empty()) check(CUBLAS_STATUS_NOT_SUPPORTED, "every algorithm", text);
    return found;
  }

  [[nodiscard]] cublasStatus_t launch(const GemmShape& shape, const GemmLayout& layout, Descriptors& d,
                                      const cublasLtMatmulAlgo_t& algorithm, const GemmPointers& pointers,
                                      void* workspace) const {
    const auto pointer = [&](const StoredMatrix& m) {
      switch (m.operand) {
        case GemmOperand::x:
          return pointers.x;
        case GemmOperand::w:
          return pointers.w;
        case GemmOperand::y:
          return pointers.y;
      }
      return pointers.y;
    };
    const double adds = shape.write == kernels::Write::accumulate ? 1.0 : 0.0;
    const double alpha64 = 1.0;
    const auto alpha32 = static_cast<float>(alpha64);
    const auto beta32 = static_cast<float>(adds);
    const bool wide = shape.in == DType::f64;
    const void* alpha = wide ? static_cast<const void*>(&alpha64) : &alpha32;
    const void* beta = wide ? static_cast<const void*>(&adds) : &beta32;
    void* result = pointer(layout.d);
    return cublasLtMatmul(handle, d.operation(), alpha, pointer(layout.a), d.a(), pointer(layout.b), d.b(),
                          beta, result, d.d(), result, d.d(), &algorithm, workspace,
                          static_cast<std::size_t>(kGemmWorkspaceBytes), stream);
  }

  // Milliseconds of kTimed runs, infinite where the library refuses the algorithm.
  [[nodiscard]] float time_of(const GemmShape& shape, const GemmLayout& layout, Descriptors& d,
                              const cublasLtMatmulAlgo_t& algorithm, const GemmPointers& pointers,
                              void* workspace) const {
    const Event begin;
    const Event end;
    for (int i = 0; i < kWarmUps + kTimed; ++i) {
      if (i == kWarmUps) check(cudaEventRecord(begin.get(), stream), "the start of a timing");
      if (launch(shape, layout, d, algorithm, pointers, workspace) != CUBLAS_STATUS_SUCCESS)
        return std::numeric_limits<float>::infinity();
    }
    check(cudaEventRecord(end.get(), stream), "the end of a timing");
    check(cudaEventSynchronize(end.get()), "the end of a timing");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()), "a timing");
    return milliseconds;
  }

  Prepared& find(const GemmShape& shape, const GemmPointers& pointers, void* workspace) {
    const std::string text = shape.text();
    if (const auto found = prepared.find(text); found != prepared.end()) return found->second;
    const GemmLayout layout = gemm_layout(shape);
    Descriptors d(shape);
    cublasLtMatmulAlgo_t algorithm{};
    if (const auto known = table.algorithms.find(text); known != table.algorithms.end()) {
      algorithm = std::bit_cast<cublasLtMatmulAlgo_t>(known->second);
    } else {
      const auto list = candidates(d, text);
      algorithm = list.front();
      if (choice == GemmChoice::timed) {
        float best = std::numeric_limits<float>::infinity();
        for (const auto& candidate : list) {
          const float time = time_of(shape, layout, d, candidate, pointers, workspace);
          if (time < best) {
            best = time;
            algorithm = candidate;
          }
        }
        table.algorithms[text] = std::bit_cast<GemmAlgorithm>(algorithm);
      }
    }
    return prepared.emplace(text, Prepared{layout, std::move(d), algorithm}).first->second;
  }
};

GemmEngine::GemmEngine(void* stream, std::string gpu_name, GemmChoice choice, GemmTable table)
    : impl_(std::make_unique<Impl>()) {
  check(cublasLtCreate(&impl_->handle), "a handle", gpu_name);
  impl_->stream = static_cast<cudaStream_t>(stream);
  impl_->choice = choice;
  if (table.valid_for(gpu_name, cublaslt_version())) impl_->table = std::move(table);
  impl_->table.gpu = std::move(gpu_name);
  impl_->table.version = cublaslt_version();
}
GemmEngine::~GemmEngine() = default;
GemmEngine::GemmEngine(GemmEngine&&) noexcept = default;
GemmEngine& GemmEngine::operator=(GemmEngine&&) noexcept = default;

void GemmEngine::prepare(const GemmShape& shape, const GemmPointers& pointers, void* workspace) {
  (void)impl_->find(shape, pointers, workspace);
}

void GemmEngine::run(const GemmShape& shape, const GemmPointers& pointers, void* workspace) {
  Impl::Prepared& p = impl_->find(shape, pointers, workspace);
  check(impl_->launch(shape, p.layout, p.descriptors, p.algorithm, pointers, workspace), "a run",
        shape.text());
}

const GemmTable& GemmEngine::table() const {
  return impl_->table;
}

}  // namespace tessera::cudalib
