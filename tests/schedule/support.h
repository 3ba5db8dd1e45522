// What the tests of schedules share: options of every kind, idle time, small random numbers.
#pragma once
#include <cstdint>
#include <vector>

#include "base/random.h"
#include "schedule/check.h"
#include "schedule/schedule.h"
#include "schedule/simulate.h"

namespace tessera::schedule {

inline constexpr Kind kAllKinds[] = {Kind::naive, Kind::gpipe, Kind::one_f_one_b, Kind::interleaved,
                                     Kind::zb_h1, Kind::zb_v,  Kind::combined};

// A schedule of the kind with the chunks it needs (interleaved: `vpp`).
inline Schedule make(Kind kind, std::int32_t pp, std::int32_t m, std::int32_t vpp = 2) {
  const std::int32_t required = required_vpp(kind);
  return generate({.kind = kind, .pp = pp, .vpp = required > 0 ? required : vpp, .num_microbatches = m});
}

// Costs such that one rank's F, I and W of a micro-batch take f, i and w in all, whatever the number of
// chunks.
inline StageCosts per_rank(const Schedule& s, double f, double i, double w) {
  const double v = s.vpp;
  return StageCosts::uniform(s.num_stages(), Seconds(f / v), Seconds(i / v), Seconds(w / v));
}

// Makespan beyond the m (F + I + W) that every rank must work.
inline double idle(const Schedule& s, double f, double i, double w) {
  return to_seconds(simulate(s, per_rank(s, f, i, w)).makespan).value - s.num_microbatches * (f + i + w);
}

// A sequence of random numbers; the whole sequence depends on the seed alone.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : seed_(seed) {}
  std::int32_t below(std::int32_t n) {
    return static_cast<std::int32_t>(
        uniform_below(static_cast<std::uint64_t>(n), seed_, stream_of("dice"), next_++));
  }
  std::int32_t between(std::int32_t low, std::int32_t high) { return low + below(high - low + 1); }

 private:
  std::uint64_t seed_;
  std::uint64_t next_ = 0;
};

}  // namespace tessera::schedule
