// The first bad tensor that one rank met in a step (RankEngine::find_bad_tensor).
#pragma once
#include <compare>
#include <cstdint>
#include <limits>
#include <string>

namespace tessera::exec {

struct StepProbe {
  enum class Pass : std::uint8_t { weights, forward, backward };
  // Where in a step a tensor stands; smaller is earlier. The same for all layouts.
  struct Moment {
    Pass pass = Pass::backward;
    std::int64_t microbatch = std::numeric_limits<std::int64_t>::max();
    std::int64_t place = 0;  // forward: ascending with the layers; backward: descending
    friend auto operator<=>(const Moment&, const Moment&) = default;
  };

  std::int32_t microbatch = -1;  // of the action that runs
  Moment first;
  std::string what;  // empty: nothing was bad

  void note(const Moment& moment, const std::string& text) {
    if (!what.empty() && first <= moment) return;
    first = moment;
    what = text;
  }
};

}  // namespace tessera::exec
