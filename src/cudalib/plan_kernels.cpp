#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cudalib/cudnn_graph.h"

namespace tessera::cudalib {

std::vector<PlanKernel> kernels_of_plan(std::string_view json) {
  std::vector<PlanKernel> result;
  try {
    const auto value = nlohmann::json::parse(json);
    for (const auto& kernel : value.at("engine").at("payload").at("kernels")) {
      PlanKernel k{.name = kernel.at("kernelName").get<std::string>(), .uids = {}};
      for (const auto& offset : kernel.at("kernelParams").at("offsets"))
        if (offset.contains("uid")) k.uids.push_back(offset["uid"].get<std::int64_t>());
      result.push_back(std::move(k));
    }
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::unsupported, std::string("a cuDNN plan's text has another form: ") + e.what(),
                "engine.payload.kernels", "use cuDNN 9.19");
  }
  return result;
}

Dims4 packed_strides(const Dims4& dims) {
  return {dims[1] * dims[2] * dims[3], dims[2] * dims[3], dims[3], 1};
}

}  // namespace tessera::cudalib
