// A graph of operations for cuDNN 9.19, without cuDNN's types: tensors, products, pointwise operations,
// reductions and views, and the plan (a compiled kernel) that the library makes of it.
//
//   CudnnGraph g;
//   const GraphTensor q = g.tensor(Element::bf16, dims, strides);
//   const GraphTensor s = g.inner(Element::f32, score_dims);
//   g.matmul(q, k_transposed, s); ...
//   const CudnnPlan plan = g.plan(device);
//   plan.run(handle, bindings, workspace);
//
// Dims are {batch, heads, rows, columns}, strides in elements. Building and planning need no GPU (but a
// libcuda.so.1 that the library can open). CudnnPlan::run and CudnnHandle have not been executed yet: no GPU
// was at hand. Any thread; one object is used by one thread at a time. Without the libraries all throw
// Error{unsupported}; a refusal of cuDNN becomes Error{unsupported} with its own words.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/quantity.h"
#include "cudalib/device_properties.h"

namespace tessera::cudalib {

enum class Element : std::uint8_t { bf16, f32, i32, boolean };
enum class Pointwise : std::uint8_t {
  add,
  sub,
  mul,
  div,
  exp,
  log,
  identity,
  greater,           // x > b, boolean
  greater_or_equal,  // x >= b, boolean
  select,            // t ? x : b
};
enum class Reduction : std::uint8_t { max, add };  // along the dims that y has as 1 (or fewer heads)

using Dims4 = std::array<std::int64_t, 4>;
[[nodiscard]] Dims4 packed_strides(const Dims4& dims);

struct GraphTensor {
  std::int64_t uid = 0;  // names the tensor in bindings and in the plan's kernels; from 1
  Element element = Element::f32;
  Dims4 dims{};
  Dims4 strides{};
};
struct GraphScalar {
  std::int64_t uid = 0;
  std::string name;
  float value = 0;
};
struct Binding {
  std::int64_t uid = 0;
  void* pointer = nullptr;  // of the device; of the host for a scalar
};

// cuDNN on one stream (a cudaStream_t; null is the default stream). Allocates some device memory: open it
// before the arena is sized. One thread at a time.
class CudnnHandle {
 public:
  explicit CudnnHandle(void* stream);
  ~CudnnHandle();
  CudnnHandle(CudnnHandle&& other) noexcept;
  CudnnHandle& operator=(CudnnHandle&& other) noexcept;
  [[nodiscard]] void* get() const { return handle_; }  // a cudnnHandle_t

 private:
  void* handle_ = nullptr;
};

// What a plan's text says about the kernels in it.
struct PlanKernel {
  std::string name;                // "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_..."
  std::vector<std::int64_t> uids;  // the tensors and scalars that reach it
};
[[nodiscard]] std::vector<PlanKernel> kernels_of_plan(std::string_view json);

class CudnnPlan {
 public:
  // From json(), of the same library version and GPU: a millisecond instead of half a second. Throws
  // Error{config} when the library refuses the text.
  [[nodiscard]] static CudnnPlan restore(std::string json, const DeviceProperties& device);
  ~CudnnPlan();
  CudnnPlan(CudnnPlan&&) noexcept;
  CudnnPlan& operator=(CudnnPlan&&) noexcept;

  [[nodiscard]] Bytes workspace() const;
  [[nodiscard]] std::string json() const;  // about 80 KB
  // Queues the plan on the handle's stream. workspace: 256-byte aligned, workspace() bytes. Not executed yet.
  void run(CudnnHandle& handle, std::span<const Binding> bindings, void* workspace) const;

 private:
  friend class CudnnGraph;
  struct Impl;
  explicit CudnnPlan(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class CudnnGraph {
 public:
  CudnnGraph();
  ~CudnnGraph();
  CudnnGraph(CudnnGraph&&) noexcept;
  CudnnGraph& operator=(CudnnGraph&&) noexcept;

  // In device memory, aligned to 16 bytes; inner: inside of the kernel only; scalar: an f32 handed over at
  // each run.
  [[nodiscard]] GraphTensor tensor(Element element, const Dims4& dims, const Dims4& strides);
  [[nodiscard]] GraphTensor inner(Element element, const Dims4& dims);
  [[nodiscard]] GraphTensor inner(Element element, const Dims4& dims, const Dims4& strides);
  [[nodiscard]] GraphTensor scalar(std::string name, float value);
  [[nodiscard]] const std::vector<GraphScalar>& scalars() const;

  void matmul(const GraphTensor& a, const GraphTensor& b, const GraphTensor& c);  // summed in f32
  void pointwise(Pointwise mode, const GraphTensor& x, const GraphTensor& y);
  void pointwise(Pointwise mode, const GraphTensor& x, const GraphTensor& b, const GraphTensor& y);
  void select(const GraphTensor& x, const GraphTensor& otherwise, const GraphTensor& keep,
              const GraphTensor& y);
  void index(const GraphTensor& like, std::int64_t axis, const GraphTensor& y);  // y = position on the axis
  void reduce(Reduction mode, const GraphTensor& x, const GraphTensor& y);
  void view(const GraphTensor& x, const GraphTensor& y);  // the same values by y's dims and strides

  // The first engine that the library's heuristics propose and that compiles. Half a second or so.
  [[nodiscard]] CudnnPlan plan(const DeviceProperties& device) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Of the cuDNN in use: 91900 is 9.19.0.
[[nodiscard]] std::int64_t cudnn_version();

}  // namespace tessera::cudalib
