// What a running training shows: a line that is rewritten for a person, a line every twentieth of the run for
// a file, one JSON object a step for a machine.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "exec/metrics.h"
#include "report/routing_view.h"
#include "spec/job.h"

namespace tessera::cli {

[[nodiscard]] std::vector<report::RoutingRow> routing_rows(const std::vector<exec::RoutingFigures>& layers);

class ProgressPrinter {
 public:
  ProgressPrinter(const spec::Job& job, const TrainFlags& flags, const Terminal& terminal);
  ~ProgressPrinter();  // ends a line that stands open, also when the run fails
  ProgressPrinter(const ProgressPrinter&) = delete;
  ProgressPrinter& operator=(const ProgressPrinter&) = delete;

  void start(std::int64_t first_step) { first_step_ = first_step; }
  void step(const exec::StepMetrics& metrics);
  [[nodiscard]] const std::vector<std::string>& warnings() const { return warnings_; }

 private:
  void show(const std::string& line, bool last);
  [[nodiscard]] std::string strip(const exec::StepMetrics& metrics) const;

  const spec::Job& job_;
  const Terminal& terminal_;
  bool json_;
  bool map_;           // of the experts, beside each twentieth of the run
  bool open_ = false;  // the cursor stands behind a progress line
  std::int64_t first_step_ = 0;
  double seconds_ = 0.0;
  std::vector<std::string> warnings_;
};

}  // namespace tessera::cli
