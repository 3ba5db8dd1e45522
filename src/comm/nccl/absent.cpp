#include "base/error.h"
#include "comm/nccl/nccl_network.h"

namespace tessera::comm::nccl {

bool is_built_in() {
  return false;
}

std::string version() {
  return "";
}

std::unique_ptr<DeviceNetwork> make_network(std::int32_t /*device*/,
                                            std::shared_ptr<tensor::Memory> /*memory*/, Seconds /*timeout*/) {
  throw Error(ErrorKind::unsupported, "this build of Tessera has no NCCL", "tessera",
              "build where the CUDA toolkit and NCCL are installed; without them GPUs meet through the host");
}

}  // namespace tessera::comm::nccl
