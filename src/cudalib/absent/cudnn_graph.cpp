#include "cudalib/cudnn_graph.h"

#include "base/error.h"

namespace tessera::cudalib {
namespace {

[[noreturn]] void absent() {
  throw Error(ErrorKind::unsupported, "this build of Tessera has no cuDNN", "tessera",
              "install the CUDA toolkit, cuDNN and NCCL and configure again");
}

}  // namespace

bool is_built_in() {
  return false;
}
std::int64_t cudnn_version() {
  absent();
}
DeviceProperties DeviceProperties::of_device(std::int32_t /*device*/) {
  absent();
}

CudnnHandle::CudnnHandle(void* /*stream*/) {
  absent();
}
CudnnHandle::~CudnnHandle() = default;
CudnnHandle::CudnnHandle(CudnnHandle&&) noexcept = default;
CudnnHandle& CudnnHandle::operator=(CudnnHandle&&) noexcept = default;

struct CudnnPlan::Impl {};
CudnnPlan::CudnnPlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudnnPlan::~CudnnPlan() = default;
CudnnPlan::CudnnPlan(CudnnPlan&&) noexcept = default;
CudnnPlan& CudnnPlan::operator=(CudnnPlan&&) noexcept = default;
CudnnPlan CudnnPlan::restore(std::string /*json*/, const DeviceProperties& /*device*/) {
  absent();
}
Bytes CudnnPlan::workspace() const {
  absent();
}
std::string CudnnPlan::json() const {
  absent();
}
void CudnnPlan::run(CudnnHandle& /*handle*/, std::span<const Binding> /*bindings*/,
                    void* /*workspace*/) const {
  absent();
}

struct CudnnGraph::Impl {};
CudnnGraph::CudnnGraph() {
  absent();
}
CudnnGraph::~CudnnGraph() = default;
CudnnGraph::CudnnGraph(CudnnGraph&&) noexcept = default;
CudnnGraph& CudnnGraph::operator=(CudnnGraph&&) noexcept = default;
GraphTensor CudnnGraph::tensor(Element /*element*/, const Dims4& /*dims*/, const Dims4& /*strides*/) {
  absent();
}
GraphTensor CudnnGraph::inner(Element /*element*/, const Dims4& /*dims*/) {
  absent();
}
GraphTensor CudnnGraph::inner(Element /*element*/, const Dims4& /*dims*/, const Dims4& /*strides*/) {
  absent();
}
GraphTensor CudnnGraph::scalar(std::string /*name*/, float /*value*/) {
  absent();
}
const std::vector<GraphScalar>& CudnnGraph::scalars() const {
  absent();
}
void CudnnGraph::matmul(const GraphTensor& /*a*/, const GraphTensor& /*b*/, const GraphTensor& /*c*/) {
  absent();
}
void CudnnGraph::pointwise(Pointwise /*mode*/, const GraphTensor& /*x*/, const GraphTensor& /*y*/) {
  absent();
}
void CudnnGraph::pointwise(Pointwise /*mode*/, const GraphTensor& /*x*/, const GraphTensor& /*b*/,
                           const GraphTensor& /*y*/) {
  absent();
}
void CudnnGraph::select(const GraphTensor& /*x*/, const GraphTensor& /*otherwise*/,
                        const GraphTensor& /*keep*/, const GraphTensor& /*y*/) {
  absent();
}
void CudnnGraph::index(const GraphTensor& /*like*/, std::int64_t /*axis*/, const GraphTensor& /*y*/) {
  absent();
}
void CudnnGraph::reduce(Reduction /*mode*/, const GraphTensor& /*x*/, const GraphTensor& /*y*/) {
  absent();
}
void CudnnGraph::view(const GraphTensor& /*x*/, const GraphTensor& /*y*/) {
  absent();
}
CudnnPlan CudnnGraph::plan(const DeviceProperties& /*device*/) const {
  absent();
}

}  // namespace tessera::cudalib
