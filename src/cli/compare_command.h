// tessera compare: flags and the command.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/question.h"

namespace tessera::cli {

struct CompareFlags : QuestionFlags {
  std::vector<std::string> things;  // models, clusters, plans
  std::string equal;                // "", active-compute, total-memory
  std::string tokens = "1T";
  double price = 0;
  double gain = -1;  // < 0: the published one where it applies
  double alpha = 1.2, routing_excess = 0.7;
  std::int64_t serve_batch = 64, serve_context = 8192;
  double memory = 1.0;
  std::int32_t threads = 0;
  bool json = false;
};
int compare(const CompareFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
