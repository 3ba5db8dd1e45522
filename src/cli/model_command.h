// tessera model: what a model is before any layout: parameters, bytes of training, which operators compute
// and which memory bounds.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "graph/practice.h"

namespace tessera::cli {

struct ModelFlags {
  std::string model;                // shipped one by name, or config.json
  std::string device = "h100-sxm";  // name of a calibration
  std::string calibration;          // file instead of the device's shipped one
  std::string precision = "bf16";
  std::string practice = graph::kDefaultPractice;
  std::int64_t sequence_length = 0;                          // 0: 4096, or the model's positions
  std::vector<std::int64_t> tokens = {1, 8, 64, 512, 4096};  // of the passes in the table of operators
  bool operators = false;
  bool json = false;
};
int model(const ModelFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
