// Launch: what a launch file says, apart from the framework that says it: the job, how the software works as
// far as its arguments decide that, and what a framework has no place for, carried beside as "key = value".
//
//   Launch want = launch_of(plan.job, graph::practice("megatron-core"), {.devices_per_node = 8});
//   differences(want, got)   // keys that `got` says otherwise: {"parallel.schedule", "\"zb-h1\""}
//
// Pure, thread safe.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "graph/practice.h"
#include "spec/job.h"

namespace tessera::frameworks {

struct Machine {
  std::int32_t devices_per_node = 8;
  std::int32_t zero_group = 0;  // cost::Candidate::zero_group
};

struct Launch {
  spec::Job job;  // model, train and parallel
  graph::Practice practice;
  Machine machine;
};

// The overlaps that job and practice both know become one: what both do (of tp: what the practice does).
// Selective recomputation names its modules; stages that are even have no list.
[[nodiscard]] Launch launch_of(const spec::Job& job, const graph::Practice& practice, const Machine& machine);

// Switches of the software that arguments of frameworks set.
struct Switch {
  std::string_view name;  // "grad_overlap"
  bool graph::Practice::*member;
  std::string_view on;  // "gradients are reduced under the backward pass"
};
[[nodiscard]] std::span<const Switch> switches();

struct Carried {
  std::string key;    // "parallel.schedule", "practice.ep_overlap", "zero_group"
  std::string value;  // JSON
  std::int32_t line = 0;
  friend bool operator==(const Carried&, const Carried&) = default;
};
// Keys of train, moe and parallel, switches and sizes of the practice, zero_group: those of `want` that `got`
// does not have.
[[nodiscard]] std::vector<Carried> differences(const Launch& want, const Launch& got);
// Adds a problem for a key or value that is not known.
void apply(std::span<const Carried> carried, std::string_view file, Launch& into, Problems& problems);

}  // namespace tessera::frameworks
