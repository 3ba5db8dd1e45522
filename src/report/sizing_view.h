// What `tessera size` prints: a line a number of devices, and the answers. Pure, thread safe.
#pragma once
#include <string>

#include "explain/sizing.h"
#include "report/terminal.h"

namespace tessera::report {

struct SizingView {
  std::string model, cluster;
  const explain::Sizing* sizing = nullptr;
  const explain::SizingOptions* options = nullptr;
};
[[nodiscard]] std::string sizing_page(const SizingView& view, const Style& style);

}  // namespace tessera::report
