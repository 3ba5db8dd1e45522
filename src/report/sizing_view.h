// What `tessera size` prints: a line a number of devices, the answers, and what a better machine is worth.
// Pure, thread safe.
#pragma once
#include <span>
#include <string>

#include "explain/sizing.h"
#include "report/terminal.h"

namespace tessera::report {

struct SizingView {
  std::string model, cluster;
  const explain::Sizing* sizing = nullptr;
  const explain::SizingOptions* options = nullptr;
  const cost::Setup* setup = nullptr;   // of any size
  const explain::Size* base = nullptr;  // of the marginals; null: none
  std::span<const explain::Marginal> marginals;
};
// "memory of a device x 1.1"
[[nodiscard]] std::string describe(const explain::Marginal& m);
[[nodiscard]] std::string sizing_page(const SizingView& view, const Style& style);

}  // namespace tessera::report
