// What `tessera calibrate --from-log` prints: the runs, the coefficients with what the runs cannot tell, and
// measured beside predicted steps. Pure, thread safe.
#pragma once
#include <string>
#include <vector>

#include "report/terminal.h"
#include "validate/refit.h"

namespace tessera::report {

struct RefitView {
  std::string device;
  std::vector<std::string> notes;  // what was read: a line a log
  const validate::Refit* refit = nullptr;
};
[[nodiscard]] std::string refit_page(const RefitView& view, const Style& style);

}  // namespace tessera::report
