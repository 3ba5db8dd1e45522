// Says in plain words when routing goes wrong and stays so: a few experts take most of the choices of a layer
// (collapse), or an expert gets no token at all (dead). The first steps of a run look like that by chance, so
// both must last.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "exec/rank_engine.h"

namespace tessera::exec {

struct RoutingFigures {  // of one MoE layer in one step
  std::int32_t layer = 0;
  std::vector<std::int64_t> chosen;  // [E] choices before drops
  double max_over_mean = 0.0;
  double cv = 0.0;                 // standard deviation over mean of the load
  double load_entropy = 0.0;       // of the shares of the load, nats; at most ln E
  double effective_experts = 0.0;  // exp of it: E when all are used alike, 1 when one takes all
  double entropy = 0.0;            // mean entropy of the router's scores of a token, nats
  std::int32_t dead = 0;           // experts without a token in this step
  double drop_rate = 0.0;
  double unserved_rate = 0.0;               // tokens that no expert computes
  double logit_rms = 0.0, logit_max = 0.0;  // of the router; max of absolute values
  struct Range {
    double least = 0.0, most = 0.0;
  };
  std::optional<Range> bias;  // correction bias of the choice, where the model has one
};

// Of the counts; the rest stays as it is.
[[nodiscard]] RoutingFigures routing_figures(const LayerRouting& routing);

class RoutingWatch {
 public:
  // of all choices, on a quarter of the experts (at least top_k)
  static constexpr double kCollapseShare = 0.8;
  static constexpr std::int32_t kStepsToWarn = 10;  // in a row

  explicit RoutingWatch(std::int32_t top_k) : top_k_(top_k) {}
  // Figures of the layers of one step, always the same layers. Returns what is new since the step before.
  [[nodiscard]] std::vector<std::string> look(const std::vector<RoutingFigures>& layers);

 private:
  struct Streak {
    std::int32_t collapsed = 0, dead = 0;  // steps in a row
  };
  std::int32_t top_k_;
  std::vector<Streak> streaks_;
};

}  // namespace tessera::exec
