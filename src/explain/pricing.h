// The price of one candidate as `tessera plan` lists it and `tessera simulate` plays it: memory, then the
// simulator's seconds by cause. One function, so that a figure of an explanation and a simulation of the same
// thing cannot differ. Pure, thread safe.
#pragma once
#include <string>

#include "cost/candidate.h"
#include "cost/step.h"

namespace tessera::explain {

struct Priced {
  cost::StepCost cost;
  std::string invalid;  // what does not divide; then nothing else is known
  bool fits = false;    // reserved memory within the usable memory of a device
  [[nodiscard]] bool valid() const { return invalid.empty(); }
  [[nodiscard]] double seconds() const { return cost.seconds(); }
};
[[nodiscard]] Priced price(const cost::Setup& setup, const cost::Candidate& c);

}  // namespace tessera::explain
