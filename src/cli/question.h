// What `tessera plan`, `size` and `compare` are asked: a model on a cluster under a recipe, from flags to the
// setup of the cost model and the space of the search. Inside of this room.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cost/candidate.h"
#include "graph/practice.h"
#include "search/space.h"

namespace tessera::cli {

struct QuestionFlags {
  std::string model, cluster;          // shipped ones by name, or config.json and cluster YAML
  std::int32_t devices = 0;            // 0: of the cluster
  std::int64_t global_batch_size = 0;  // 0: about 4 M tokens, a power of two
  std::int64_t sequence_length = 0;    // 0: 4096, or what the model was made for
  std::string precision = "bf16";
  double capacity_factor = 0.0;
  std::string practice = graph::kDefaultPractice;
  std::string routing = "balanced";
  std::string placement;          // where experts live; empty: in order
  std::string calibration;        // file instead of the device's shipped one
  std::vector<std::string> pins;  // "tp=8"
};

struct Question {
  cost::Setup setup;
  search::Space space;
};
// Error{config} with every problem of the flags and files at once.
[[nodiscard]] Question read_question(const QuestionFlags& flags);
// The same of a model that comes from elsewhere: flags.model is not looked at.
[[nodiscard]] Question read_question(const QuestionFlags& flags, const spec::ModelSpec& model);

}  // namespace tessera::cli
