// What the sources of published runs say about their machines and software, as far as their rows do not.
// Keyed by facts of the row (accelerator, framework, id prefix), one entry a source: no constant of the cost
// model is set here. Pure.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "graph/practice.h"
#include "spec/cluster.h"
#include "validate/library.h"
#include "validate/row.h"

namespace tessera::validate {

// Calibration name of the printed accelerator; empty when none fits.
[[nodiscard]] std::string accelerator_of(const Row& row);
// The machines: NVLink domains, and the network as printed, else as the accelerator's usual node has it.
[[nodiscard]] spec::ClusterSpec cluster_of(const Row& row, const Library& library,
                                           std::string_view accelerator, std::int32_t devices);

// Named practice of the framework, with what the row's text says of overlap and kernels; empty with the
// reason when the framework cannot be modelled.
[[nodiscard]] std::optional<graph::Practice> practice_of(const Row& row, std::string& reason);

// Kind and bytes of a published peak; nullopt when there is none.
struct MemoryUnit {
  MemoryKind kind = MemoryKind::unknown;
  double bytes = 1e9;  // of one printed unit
};
[[nodiscard]] MemoryUnit memory_unit(const Row& row);

}  // namespace tessera::validate
