// What one change of a plan buys: every single step of a layout, of a choice or of the machine, priced as the
// plan itself is (explain/pricing.h).
//
//   for (const Change& c : what_if(setup, candidate)) c.text; c.priced.seconds(); c.gain(base);
//
// A change of tp, cp or pp is taken from dp, so that the devices stay as many. A change of the machine
// (links, memory) or of the recipe (batch, capacity) keeps the layout. More memory costs no time by itself:
// it is shown by the best single change that does not fit today and then would.
#pragma once
#include <string>
#include <vector>

#include "explain/pricing.h"

namespace tessera::explain {

enum class Lever : std::uint8_t {
  tp,
  cp,
  pp,
  ep,
  etp,
  micro_batch,
  vpp,
  schedule,
  recompute,
  zero,
  order,
  capacity,
  batch,
  links,    // of the innermost tier
  network,  // of the tiers above: NICs
  memory
};
inline constexpr std::int32_t kNumLevers = 16;
[[nodiscard]] std::string_view name(Lever lever);

struct Change {
  Lever lever = Lever::tp;
  std::string text;  // "tp 4 -> 8, dp 16 -> 8"
  cost::Setup setup;
  cost::Candidate candidate;
  Priced priced;
  // Tokens per second beside those of `base`, minus one: 0.1 is 10 % faster.
  [[nodiscard]] double gain(const cost::Setup& base_setup, const Priced& base) const;
};

// In the order of Lever; changes that change nothing are left out, invalid ones are there with the reason.
// REQUIRES a valid candidate.
[[nodiscard]] std::vector<Change> what_if(const cost::Setup& setup, const cost::Candidate& base);

}  // namespace tessera::explain
