// tessera profile: where the time of a step goes, operation by operation, and how far each is from the
// machine's limits.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"

namespace tessera::cli {

struct ProfileFlags {
  std::string job;
  std::vector<std::string> overrides;
  std::string device = "cpu";
  std::int32_t steps = 3;
  std::int32_t most = 24;  // rows; 0: all
  bool json = false;
};
int profile(const ProfileFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
