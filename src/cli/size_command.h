// tessera size: flags and the command.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/question.h"

namespace tessera::cli {

struct SizeFlags : QuestionFlags {
  std::string tokens;          // "15T"
  double deadline_days = 0;    // 0: none
  double price = 0;            // of a device and hour; 0: the cluster's
  double mtbf_hours = 50'000;  // of one device; 0: nothing fails
  double checkpoint_seconds = 30, restart_seconds = 600;
  double interval_seconds = 0;      // between checkpoints; 0: the best
  std::vector<std::int32_t> sizes;  // to try; empty: doublings
  std::int32_t most_devices = 0;    // 0: of the cluster
  double memory = 1.0;              // of the usable memory
  std::int32_t threads = 0;
  bool only_sizes = false;  // without what a better machine is worth
  bool json = false;
};
// Exit code 1 when no size meets the deadline, or nothing fits at all.
int size(const SizeFlags& flags, const Terminal& terminal);

// "15T" of a flag. Adds a problem when it is no number above 0.
[[nodiscard]] double tokens_of(const std::string& text, Problems& problems);

}  // namespace tessera::cli
