#include "cudalib/cudnn_graph.h"

#include <cudnn.h>
#include <fmt/format.h>

#include <utility>

#include "base/error.h"

static_assert(CUDNN_VERSION >= 91900, "cuDNN 9.19 or later");

namespace tessera::cudalib {
namespace {

constexpr std::int64_t kAlignment = 16;

void check(cudnnStatus_t status, std::string_view what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  std::string words(512, '\0');
  cudnnGetLastErrorString(words.data(), words.size());
  words.resize(words.find('\0') == std::string::npos ? words.size() : words.find('\0'));
  throw Error(
      ErrorKind::unsupported,
      fmt::format("cuDNN {} refuses {}: {} {}", cudnnGetVersion(), what, cudnnGetErrorString(status), words),
      "cuDNN", "set CUDNN_LOGLEVEL_DBG=2 CUDNN_LOGDEST_DBG=stderr for cuDNN's reasons");
}

class Desc {
 public:
  explicit Desc(cudnnBackendDescriptorType_t type) {
    check(cudnnBackendCreateDescriptor(type, &d_), "a new descriptor");
  }
  ~Desc() {
    if (d_ != nullptr) cudnnBackendDestroyDescriptor(d_);
  }
  Desc(Desc&& other) noexcept : d_(std::exchange(other.d_, nullptr)) {}
  Desc& operator=(Desc&& other) noexcept {
    std::swap(d_, other.d_);
    return *this;
  }
  template <class T>
  void set(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, std::span<const T> v) {
    check(cudnnBackendSetAttribute(d_, attribute, type, std::ssize(v), v.data()),
          fmt::format("attribute {}", static_cast<int>(attribute)));
  }
  template <class T>
  void set(cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, const T& v) {
    set(attribute, type, std::span<const T>(&v, 1));
  }
  void set(cudnnBackendAttributeName_t attribute, const Desc& v) {
    set(attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, v.d_);
  }
  void finalize(std::string_view what) { check(cudnnBackendFinalize(d_), what); }
  [[nodiscard]] cudnnBackendDescriptor_t get() const { return d_; }

 private:
  cudnnBackendDescriptor_t d_ = nullptr;
};

cudnnDataType_t type_of(Element element) {
  switch (element) {
    case Element::bf16:
      return CUDNN_DATA_BFLOAT16;
    case Element::f32:
      return CUDNN_DATA_FLOAT;
    case Element::i32:
      return CUDNN_DATA_INT32;
    case Element::boolean:
      return CUDNN_DATA_BOOLEAN;
  }
  TESSERA_CHECK(false, "an element type");
  return CUDNN_DATA_FLOAT;
}

cudnnPointwiseMode_t mode_of(Pointwise mode) {
  switch (mode) {
    case Pointwise::add:
      return CUDNN_POINTWISE_ADD;
    case Pointwise::sub:
      return CUDNN_POINTWISE_SUB;
    case Pointwise::mul:
      return CUDNN_POINTWISE_MUL;
    case Pointwise::div:
      return CUDNN_POINTWISE_DIV;
    case Pointwise::exp:
      return CUDNN_POINTWISE_EXP;
    case Pointwise::log:
      return CUDNN_POINTWISE_LOG;
    case Pointwise::identity:
      return CUDNN_POINTWISE_IDENTITY;
    case Pointwise::greater:
      return CUDNN_POINTWISE_CMP_GT;
    case Pointwise::greater_or_equal:
      return CUDNN_POINTWISE_CMP_GE;
    case Pointwise::select:
      return CUDNN_POINTWISE_BINARY_SELECT;
  }
  TESSERA_CHECK(false, "a pointwise mode");
  return CUDNN_POINTWISE_ADD;
}

// From a device's JSON text.
Desc device_descriptor(const DeviceProperties& device) {
  Desc d(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  d.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
        std::span<const char>(device.json.data(), device.json.size() + 1));
  d.finalize("the device's properties");
  return d;
}

std::string text_of(const Desc& d, cudnnBackendAttributeName_t attribute) {
  std::int64_t count = 0;
  check(cudnnBackendGetAttribute(d.get(), attribute, CUDNN_TYPE_CHAR, 0, &count, nullptr), "the text's size");
  std::string text(static_cast<std::size_t>(count), '\0');
  check(cudnnBackendGetAttribute(d.get(), attribute, CUDNN_TYPE_CHAR, count, &count, text.data()),
        "the text");
  while (!text.empty() && text.back() == '\0') text.pop_back();
  return text;
}

}  // namespace

bool is_built_in() {
  return true;
}

std::int64_t cudnn_version() {
  return static_cast<std::int64_t>(cudnnGetVersion());
}

DeviceProperties DeviceProperties::of_device(std::int32_t device) {
  Desc d(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  d.set(CUDNN_ATTR_DEVICEPROP_DEVICE_ID, CUDNN_TYPE_INT32, device);
  d.finalize(fmt::format("the properties of GPU {}", device));
  return from_json(text_of(d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION));
}

CudnnHandle::CudnnHandle(void* stream) {
  cudnnHandle_t handle = nullptr;
  check(cudnnCreate(&handle), "a handle");
  handle_ = handle;
  check(cudnnSetStream(handle, static_cast<cudaStream_t>(stream)), "the stream");
}
CudnnHandle::~CudnnHandle() {
  if (handle_ != nullptr) cudnnDestroy(static_cast<cudnnHandle_t>(handle_));
}
CudnnHandle::CudnnHandle(CudnnHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
CudnnHandle& CudnnHandle::operator=(CudnnHandle&& other) noexcept {
  std::swap(handle_, other.handle_);
  return *this;
}

struct CudnnPlan::Impl {
  std::vector<Desc> kept;  // what the plan was made from
  Desc plan{CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR};
};

CudnnPlan::CudnnPlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudnnPlan::~CudnnPlan() = default;
CudnnPlan::CudnnPlan(CudnnPlan&&) noexcept = default;
CudnnPlan& CudnnPlan::operator=(CudnnPlan&&) noexcept = default;

CudnnPlan CudnnPlan::restore(std::string json, const DeviceProperties& device) {
  auto impl = std::make_unique<Impl>();
  try {
    impl->plan.set(CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                   std::span<const char>(json.data(), json.size() + 1));
    impl->kept.push_back(device_descriptor(device));
    impl->plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, impl->kept.back());
    impl->plan.finalize("a stored plan");
  } catch (const Error& e) {
    throw Error(ErrorKind::config, e.problems().front().what, "a stored cuDNN plan",
                "delete the stored plan: it is built again");
  }
  return CudnnPlan(std::move(impl));
}

Bytes CudnnPlan::workspace() const {
  std::int64_t bytes = 0;
  std::int64_t count = 0;
  check(cudnnBackendGetAttribute(impl_->plan.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                 CUDNN_TYPE_INT64, 1, &count, &bytes),
        "the workspace's size");
  return Bytes(bytes);
}

std::string CudnnPlan::json() const {
  return text_of(impl_->plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION);
}

void CudnnPlan::run(CudnnHandle& handle, std::span<const Binding> bindings, void* workspace) const {
  std::vector<std::int64_t> uids;
  std::vector<void*> pointers;
  for (const Binding& b : bindings) {
    uids.push_back(b.uid);
    pointers.push_back(b.pointer);
  }
  Desc pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, std::span<const std::int64_t>(uids));
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, std::span<void* const>(pointers));
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, workspace);
  pack.finalize("the pointers of a run");
  check(cudnnBackendExecute(static_cast<cudnnHandle_t>(handle.get()), impl_->plan.get(), pack.get()),
        "a run");
}

struct CudnnGraph::Impl {
  std::vector<Desc> tensors;  // uid - 1
  std::vector<Desc> modes;
  std::vector<Desc> operations;
  std::vector<GraphScalar> scalars;

  GraphTensor add(Element element, const Dims4& dims, const Dims4& strides, bool is_virtual, bool by_value) {
    const auto uid = std::ssize(tensors) + 1;
    Desc d(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    d.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, static_cast<std::int64_t>(uid));
    d.set(CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, type_of(element));
    d.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, std::span<const std::int64_t>(dims));
    d.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, std::span<const std::int64_t>(strides));
    d.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, kAlignment);
    d.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, is_virtual);
    d.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, by_value);
    d.finalize(fmt::format("tensor {}", uid));
    tensors.push_back(std::move(d));
    return {.uid = uid, .element = element, .dims = dims, .strides = strides};
  }
  [[nodiscard]] const Desc& of(const GraphTensor& t) const {
    return tensors.at(static_cast<std::size_t>(t.uid - 1));
  }
  void add_pointwise(cudnnPointwiseMode_t mode, const GraphTensor& x, const GraphTensor* b,
                     const GraphTensor* t, const GraphTensor& y, std::int64_t axis) {
    Desc pw(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    const cudnnDataType_t math = y.element == Element::boolean ? CUDNN_DATA_BOOLEAN : CUDNN_DATA_FLOAT;
    pw.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, mode);
    pw.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, math);
    if (axis >= 0) pw.set(CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, axis);
    pw.finalize("a pointwise mode");
    Desc op(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, pw);
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, of(x));
    if (b != nullptr) op.set(CUDNN_ATTR_OPERATION_POINTWISE_BDESC, of(*b));
    if (t != nullptr) op.set(CUDNN_ATTR_OPERATION_POINTWISE_TDESC, of(*t));
    op.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, of(y));
    op.finalize("a pointwise operation");
    modes.push_back(std::move(pw));
    operations.push_back(std::move(op));
  }
};

CudnnGraph::CudnnGraph() : impl_(std::make_unique<Impl>()) {}
CudnnGraph::~CudnnGraph() = default;
CudnnGraph::CudnnGraph(CudnnGraph&&) noexcept = default;
CudnnGraph& CudnnGraph::operator=(CudnnGraph&&) noexcept = default;

GraphTensor CudnnGraph::tensor(Element element, const Dims4& dims, const Dims4& strides) {
  return impl_->add(element, dims, strides, false, false);
}
GraphTensor CudnnGraph::inner(Element element, const Dims4& dims) {
  return impl_->add(element, dims, packed_strides(dims), true, false);
}
GraphTensor CudnnGraph::inner(Element element, const Dims4& dims, const Dims4& strides) {
  return impl_->add(element, dims, strides, true, false);
}
GraphTensor CudnnGraph::scalar(std::string name, float value) {
  const GraphTensor t = impl_->add(Element::f32, {1, 1, 1, 1}, {1, 1, 1, 1}, false, true);
  impl_->scalars.push_back({.uid = t.uid, .name = std::move(name), .value = value});
  return t;
}
const std::vector<GraphScalar>& CudnnGraph::scalars() const {
  return impl_->scalars;
}

void CudnnGraph::matmul(const GraphTensor& a, const GraphTensor& b, const GraphTensor& c) {
  Desc mode(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  mode.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  mode.finalize("a product's mode");
  Desc op(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, impl_->of(a));
  op.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, impl_->of(b));
  op.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, impl_->of(c));
  op.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, mode);
  op.finalize("a product");
  impl_->modes.push_back(std::move(mode));
  impl_->operations.push_back(std::move(op));
}

void CudnnGraph::pointwise(Pointwise mode, const GraphTensor& x, const GraphTensor& y) {
  impl_->add_pointwise(mode_of(mode), x, nullptr, nullptr, y, -1);
}
void CudnnGraph::pointwise(Pointwise mode, const GraphTensor& x, const GraphTensor& b, const GraphTensor& y) {
  impl_->add_pointwise(mode_of(mode), x, &b, nullptr, y, -1);
}
void CudnnGraph::select(const GraphTensor& x, const GraphTensor& otherwise, const GraphTensor& keep,
                        const GraphTensor& y) {
  impl_->add_pointwise(mode_of(Pointwise::select), x, &otherwise, &keep, y, -1);
}
void CudnnGraph::index(const GraphTensor& like, std::int64_t axis, const GraphTensor& y) {
  impl_->add_pointwise(CUDNN_POINTWISE_GEN_INDEX, like, nullptr, nullptr, y, axis);
}

void CudnnGraph::reduce(Reduction mode, const GraphTensor& x, const GraphTensor& y) {
  Desc d(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  d.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
        mode == Reduction::max ? CUDNN_REDUCE_TENSOR_MAX : CUDNN_REDUCE_TENSOR_ADD);
  d.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, CUDNN_DATA_FLOAT);
  d.finalize("a reduction's mode");
  Desc op(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, impl_->of(x));
  op.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, impl_->of(y));
  op.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, d);
  op.finalize("a reduction");
  impl_->modes.push_back(std::move(d));
  impl_->operations.push_back(std::move(op));
}

void CudnnGraph::view(const GraphTensor& x, const GraphTensor& y) {
  Desc op(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  op.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, impl_->of(x));
  op.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, impl_->of(y));
  op.finalize("a view");
  impl_->operations.push_back(std::move(op));
}

CudnnPlan CudnnGraph::plan(const DeviceProperties& device) const {
  std::vector<Desc> kept;
  kept.push_back(device_descriptor(device));
  std::vector<cudnnBackendDescriptor_t> operations;
  for (const Desc& op : impl_->operations) operations.push_back(op.get());
  kept.emplace_back(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  kept[1].set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
              std::span<const cudnnBackendDescriptor_t>(operations));
  kept[1].finalize("the graph");
  Desc heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, kept[1]);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, CUDNN_HEUR_MODE_A);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, kept[0]);
  heuristics.finalize("the choice of an engine");
  std::int64_t count = 0;
  check(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &count, nullptr),
        "the number of engines");
  std::vector<Desc> configs;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (std::int64_t i = 0; i < count; ++i) {
    configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    raw.push_back(configs.back().get());
  }
  if (count > 0)
    check(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                   CUDNN_TYPE_BACKEND_DESCRIPTOR, count, &count, raw.data()),
          "the engines");
  std::string refusal = "it names no engine for the graph";
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    auto impl = std::make_unique<CudnnPlan::Impl>();
    try {
      impl->plan.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[i]);
      impl->plan.set(CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, kept[0]);
      impl->plan.finalize("a plan");
    } catch (const Error& e) {
      refusal = e.problems().front().what;
      continue;
    }
    kept.push_back(std::move(configs[i]));
    impl->kept = std::move(kept);
    return CudnnPlan(std::move(impl));
  }
  throw Error(ErrorKind::unsupported, fmt::format("cuDNN {} has no plan: {}", cudnnGetVersion(), refusal),
              fmt::format("cuDNN on {}", device.name),
              "set CUDNN_LOGLEVEL_DBG=2 CUDNN_LOGDEST_DBG=stderr for cuDNN's reasons");
}

}  // namespace tessera::cudalib
