// What cuDNN needs to know about a GPU to choose and compile kernels for it: a JSON text of 23 keys that the
// library itself writes on a machine with that GPU. A plan can so be built and checked where there is none.
//
//   const DeviceProperties h100 = DeviceProperties::from_json(read_text("h100.json"));
//   h100.sm_count;  // 132
//
// Values; any thread. from_json throws Error{config} with the missing key.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace tessera::cudalib {

// False where Tessera was built without the CUDA toolkit and cuDNN: then every function of this room that
// says so throws Error{unsupported}.
[[nodiscard]] bool is_built_in();

struct DeviceProperties {
  std::string json;  // as cuDNN reads it
  std::string name;
  std::int32_t sm_count = 0;
  std::int32_t compute = 0;  // capability * 100 in decimal: 900 is sm_90

  [[nodiscard]] static DeviceProperties from_json(std::string_view json);
  // Of GPU `device` of this machine. Throws Error{unsupported} without the libraries or without a driver.
  // Not run on a GPU yet.
  [[nodiscard]] static DeviceProperties of_device(std::int32_t device);
};

}  // namespace tessera::cudalib
