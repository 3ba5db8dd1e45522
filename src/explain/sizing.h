// How many devices a training needs: for each size of a cluster its fastest layout, how long the tokens take
// with failures and checkpoints, and what that costs; among them the fewest that meet a deadline, the
// cheapest and the fastest.
//
//   const Sizing s = size_training(setup, space, {.tokens = 15e12, .deadline_days = 60});
//
// Goodput, the share of the time that trains (Young 1974, Daly 2006): a cluster of n devices fails every
// M = mtbf / n; a checkpoint holds the steps up for d; after a failure the work since the last checkpoint is
// lost, half an interval in the mean, and R passes until it goes on. With interval t:
//
//   goodput = 1 / (1 + d / t) * 1 / (1 + (t / 2 + R) / M),   best t = sqrt(2 d M) (Daly's first order)
//
// Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cost/candidate.h"
#include "cost/step.h"
#include "search/space.h"

namespace tessera::explain {

struct Reliability {
  double device_mtbf_hours = 0;    // mean time between failures that stop the job, of one device; 0: none
  double checkpoint_seconds = 0;   // that a checkpoint holds the steps up
  double restart_seconds = 600.0;  // from a failure to the next step
  double interval_seconds = 0;     // between checkpoints; 0: the best
};
struct Goodput {
  double share = 1.0;             // of the time that trains
  double interval_seconds = 0.0;  // between checkpoints; 0: no failures, none needed
  double failures_per_day = 0.0;
};
[[nodiscard]] Goodput goodput(const Reliability& r, std::int32_t devices);

struct SizingOptions {
  double tokens = 0;
  double deadline_days = 0;          // 0: none
  double price_per_device_hour = 0;  // 0: the cluster's
  Reliability reliability;
  std::vector<std::int32_t> devices;  // to try, ascending; empty: doublings from the fewest that fit
  std::int32_t most_devices = 0;      // of the doublings; 0: the cluster's
  double memory_fraction = 1.0;
  std::int32_t threads = 0;
};
struct Size {
  std::int32_t devices = 0;
  cost::Candidate candidate;
  cost::StepCost cost;
  Goodput goodput;
  double days = 0, price = 0;  // price 0: not known
  bool meets_deadline = true;
};
struct Sizing {
  std::vector<Size> sizes;              // ascending devices; those on which nothing fits are left out
  std::vector<std::int32_t> too_small;  // tried, nothing fits
  // Indices into sizes; -1: none.
  std::int32_t fewest = -1, cheapest = -1, fastest = -1;
};
// Each size is searched in closed form, its best layout timed by the simulator. The global batch stays.
// Throws
// Error{config} on numbers that are none, or when the cluster cannot have so many devices.
[[nodiscard]] Sizing size_training(const cost::Setup& setup, const search::Space& space,
                                   const SizingOptions& options);

}  // namespace tessera::explain
