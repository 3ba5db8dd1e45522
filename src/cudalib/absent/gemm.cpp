#include "cudalib/gemm.h"

#include "base/error.h"

namespace tessera::cudalib {
namespace {

[[noreturn]] void absent() {
  throw Error(ErrorKind::unsupported, "this build of Tessera has no cuBLASLt", "tessera",
              "install the CUDA toolkit, cuDNN and NCCL and configure again");
}

}  // namespace

std::int64_t cublaslt_version() {
  absent();
}
GemmLayout gemm_descriptors(const GemmShape& /*shape*/) {
  absent();
}

struct GemmEngine::Impl {};
GemmEngine::GemmEngine(void* /*stream*/, std::string /*gpu_name*/, GemmChoice /*choice*/,
                       GemmTable /*table*/) {
  absent();
}
GemmEngine::~GemmEngine() = default;
GemmEngine::GemmEngine(GemmEngine&&) noexcept = default;
GemmEngine& GemmEngine::operator=(GemmEngine&&) noexcept = default;
void GemmEngine::prepare(const GemmShape& /*shape*/, const GemmPointers& /*pointers*/, void* /*workspace*/) {
  absent();
}
void GemmEngine::run(const GemmShape& /*shape*/, const GemmPointers& /*pointers*/, void* /*workspace*/) {
  absent();
}
const GemmTable& GemmEngine::table() const {
  absent();
}

}  // namespace tessera::cudalib
