// Space: which layouts and choices a search may take. Every axis is a list of allowed values; an empty list
// means every value that divides. Pinning an axis is a list of one.
//
//   Space space;                       // everything
//   space.tp = {8};                    // as `--pin tp=8`
//   apply_pins({"pp=4,8", "schedule=1f1b", "recompute=none,full"}, space, problems);
//
// Pure, thread safe.
#pragma once
#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "cost/candidate.h"

namespace tessera::search {

inline constexpr std::int64_t kMinRankTokens = 512, kMaxRankTokens = 65'536;

struct RecomputeChoice {
  spec::Recompute mode = spec::Recompute::none;
  std::uint32_t modules = 0;  // graph::Module bits, of selective; 0: layernorm and moe_act
  friend bool operator==(const RecomputeChoice&, const RecomputeChoice&) = default;
};
[[nodiscard]] std::string to_text(const RecomputeChoice& choice);  // "none", "selective:layernorm+moe_act"

struct Space {
  // Empty: every value that divides the devices (tp, cp, pp, dp, ep, etp), the sequences of a replica
  // (micro_batch_size), the layers of a pipeline rank (vpp), but for three that never pay: etp beyond the
  // innermost domain of links; cp that leaves a rank less than kMinRankTokens of a sequence; micro-batches of
  // more than kMaxRankTokens on a rank, where kernels are long and growth costs bubble and memory alone. ep
  // and etp stay 1 for a dense model.
  std::vector<std::int32_t> tp, cp, pp, dp, ep, etp, vpp, micro_batch_size;
  std::vector<std::int32_t> zero_stages;   // empty: 0 to 3
  std::vector<RecomputeChoice> recompute;  // empty: default_recompute
  std::vector<schedule::Kind> schedules;   // empty: 1f1b, interleaved, zb-h1, zb-v
  std::vector<cost::AxisOrder> orders;     // empty: both
  friend bool operator==(const Space&, const Space&) = default;
};

// none, sets of modules that the model has, from cheap to dear, and full.
[[nodiscard]] std::vector<RecomputeChoice> default_recompute(const spec::ModelSpec& m,
                                                             const graph::Practice& practice);

// "tp=8", "pp=4,8", "zero=1", "mbs=1,2", "recompute=none,selective:layernorm+moe_act,full",
// "schedule=1f1b,zb-h1", "order=tp-cp-ep-pp-dp". Adds a problem with the nearest known word for each pin that
// cannot be read.
void apply_pins(std::span<const std::string> pins, Space& space, Problems& problems);
[[nodiscard]] std::vector<std::string> pin_names();

// Pins that leave nothing to search: values that do not divide the devices, an ep for a dense model, ...
void check_space(const cost::Setup& setup, const Space& space, Problems& problems);

// A fixed order of candidates, simple ones first: ties in time are broken by it.
[[nodiscard]] std::strong_ordering compare(const cost::Candidate& a, const cost::Candidate& b);

}  // namespace tessera::search
