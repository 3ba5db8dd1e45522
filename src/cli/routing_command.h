// `tessera routing`: what a routing file holds, of ours or of another program, and its conversion to ours.
#pragma once
#include <cstdint>
#include <string>

#include "cli/commands.h"

namespace tessera::cli {

struct RoutingFlags {
  std::string file;     // or TensorRT-LLM's folder
  std::string convert;  // file to write
  std::string content = "auto", order = "auto";
  std::int32_t experts = 0, first_layer = 0;
  std::int32_t pairs = 3;  // most co-active pairs shown of a layer
  bool json = false;
};
int routing(const RoutingFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
