// What `tessera model` prints: parameters, bytes of training, and which operators compute or memory bounds.
// Pure, thread safe.
#pragma once
#include <string>

#include "cost/memory.h"
#include "cost/roofline.h"
#include "report/terminal.h"

namespace tessera::report {

struct ModelView {
  std::string model;
  const cost::Setup* setup = nullptr;  // one device, one sequence
  // Of one rank without any parallelism; the second with full recomputation.
  cost::MemoryCost memory, memory_recomputed;
  const cost::Roofline* roofline = nullptr;  // of no passes: no table
};
[[nodiscard]] std::string model_page(const ModelView& view, const Style& style);

}  // namespace tessera::report
