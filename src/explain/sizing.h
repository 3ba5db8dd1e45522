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
  std::vector<std::int32_t> devices;  // to try; empty: see size_training
  std::int32_t most_devices = 0;      // to try; 0: the cluster's
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
  std::vector<Size> sizes;              // ascending devices; those on which there is no layout are left out
  std::vector<std::int32_t> too_small;  // tried, nothing fits
  std::vector<std::int32_t>
      hopeless;  // not planned: too late even at the peak, or the best MFU of the others
  std::vector<std::int32_t> undivided;  // tried, no layout divides model, batch and devices
  // Indices into sizes; -1: none. Of those that meet the deadline; nearest: the fastest when none does.
  std::int32_t fewest = -1, cheapest = -1, fastest = -1, nearest = -1;
  double seconds = 0;  // wall clock; the one value that differs from run to run
};
// Tried are 1, 2, 4, ... devices up to the innermost domain of links, its doublings from there, and the most;
// then, between the fewest of them that serve and the one before, every eighth of the way until one serves;
// before the most, a round number near it. Sizes that miss the deadline even at the peak of their devices (of
// the eighths, at 1.05 times the best MFU of the others) are not planned.
//
// Each size is searched in closed form, the best eight layouts timed by the simulator; experts are cut over
// tensor-parallel ranks (etp) only where a pin says so or nothing fits without. The global batch
// stays: a size that cannot divide it has no layout. Throws Error{config} on numbers that are none, or when
// the cluster cannot have so many devices.
[[nodiscard]] Sizing size_training(const cost::Setup& setup, const search::Space& space,
                                   const SizingOptions& options);

// What a better machine is worth to one of the sizes, planned anew with the change.
enum class Upgrade : std::uint8_t {
  memory,       // of a device
  network,      // NICs: bandwidth of the tiers above the innermost
  links,        // bandwidth of the innermost tier
  domain,       // devices in one domain of the innermost tier
  reliability,  // time between failures of a device
  checkpoint    // speed of checkpoints
};
inline constexpr std::int32_t kNumUpgrades = 6;
[[nodiscard]] std::string_view name(Upgrade upgrade);  // "memory of a device"
// The same machine with `factor` times as much; nothing is done to reliability and checkpoint, which are none
// of the setup. The domain grows to whole multiples only; those above it grow where it no longer fits in.
[[nodiscard]] cost::Setup upgraded(const cost::Setup& setup, Upgrade upgrade, double factor);

struct Marginal {
  Upgrade upgrade{};
  double factor = 1.0;
  Size size;
  // By how much dearer a device hour may be before the change no longer pays: days before / days after - 1.
  [[nodiscard]] double worth(const Size& base) const { return base.days / size.days - 1.0; }
};
// A tenth more and twice as much of each; the domain twice and four times. What the cluster does not have (a
// network above) or nothing says (failures) is left out. REQUIRES a setup with as many devices as `base`.
[[nodiscard]] std::vector<Marginal> marginal_values(const cost::Setup& setup, const search::Space& space,
                                                    const SizingOptions& options, const Size& base);

}  // namespace tessera::explain
