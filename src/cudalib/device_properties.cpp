#include "cudalib/device_properties.h"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace tessera::cudalib {
namespace {

constexpr const char* kWhere = "device properties";
constexpr const char* kMend = "take the text that cuDNN writes on a machine with the GPU";
constexpr std::array<const char*, 23> kKeys = {"maxGridSize",
                                               "maxBlockSize",
                                               "regsPerBlock",
                                               "multiProcessorCount",
                                               "smClockRateKHz",
                                               "memClockRateKHz",
                                               "l2CacheSize",
                                               "warpSize",
                                               "maxSharedMemoryPerBlock",
                                               "maxSharedMemoryPerBlockOptin",
                                               "reservedSharedMemoryPerBlock",
                                               "maxRegistersPerSM",
                                               "pciDeviceId",
                                               "maxCtasPerSM",
                                               "maxThreadsPerBlock",
                                               "maxThreadsPerSM",
                                               "isTccDriver",
                                               "supportCoopLaunch",
                                               "deviceVer",
                                               "driverVer",
                                               "cudaDeviceId",
                                               "totalGlobalMem",
                                               "deviceName"};

}  // namespace

DeviceProperties DeviceProperties::from_json(std::string_view json) {
  const auto value = nlohmann::json::parse(json, nullptr, false);
  if (!value.is_object())
    throw Error(ErrorKind::config, "the device properties are not a JSON object", kWhere, kMend);
  Problems problems;
  for (const char* key : kKeys)
    if (!value.contains(key)) problems.add(fmt::format("the key {} is missing", key), kWhere, kMend);
  problems.throw_if_any();
  try {
    return {.json = std::string(json),
            .name = value["deviceName"].get<std::string>(),
            .sm_count = value["multiProcessorCount"].get<std::int32_t>(),
            .compute = value["deviceVer"].get<std::int32_t>()};
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::config, fmt::format("a value has the wrong type: {}", e.what()), kWhere, kMend);
  }
}

}  // namespace tessera::cudalib
