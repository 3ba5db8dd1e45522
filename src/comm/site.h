// Site: where in training a rank is when it communicates (step, layer, micro-batch, phase). The engine keeps
// the rank's Whereabouts up to date; every communicator of the rank notes them in its flight recorder, and
// messages between processes carry them, so that an error names more than a call.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>

namespace tessera::comm {

enum class Phase : std::uint8_t {
  none,
  load,
  forward,
  backward,
  backward_input,
  backward_weight,
  update,
  report
};

inline constexpr std::int32_t kHeadLayer = 1 << 30;  // final norm, head and loss

struct Site {
  std::int64_t step = -1;  // -1: unknown, in all three
  std::int32_t layer = -1;
  std::int32_t microbatch = -1;
  Phase phase = Phase::none;
  friend bool operator==(const Site&, const Site&) = default;
};

// "step 12, layer 3, micro-batch 1, forward", or "" when nothing is known.
[[nodiscard]] std::string text(const Site& site);

// Written by the rank's own thread, read by any; a torn read is possible and harmless.
class Whereabouts {
 public:
  void set_step(std::int64_t step, Phase phase) {
    step_.store(step, std::memory_order_relaxed);
    set_action(-1, phase);
  }
  void set_action(std::int32_t microbatch, Phase phase) {
    microbatch_.store(microbatch, std::memory_order_relaxed);
    phase_.store(phase, std::memory_order_relaxed);
    layer_.store(-1, std::memory_order_relaxed);
  }
  void set_layer(std::int32_t layer) { layer_.store(layer, std::memory_order_relaxed); }
  [[nodiscard]] Site site() const {
    constexpr auto relaxed = std::memory_order_relaxed;
    return {step_.load(relaxed), layer_.load(relaxed), microbatch_.load(relaxed), phase_.load(relaxed)};
  }

 private:
  std::atomic<std::int64_t> step_{-1};
  std::atomic<std::int32_t> layer_{-1};
  std::atomic<std::int32_t> microbatch_{-1};
  std::atomic<Phase> phase_{Phase::none};
};

}  // namespace tessera::comm
