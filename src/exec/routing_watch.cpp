#include "exec/routing_watch.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "trace/routing.h"

namespace tessera::exec {

namespace {
// What evens the load, whatever balances it now.
constexpr const char* kMend =
    "balance more: moe.balancing: loss with a larger moe.aux_loss_coef, or bias with a larger "
    "moe.bias_update_rate";
}  // namespace

RoutingFigures routing_figures(const LayerRouting& routing) {
  RoutingFigures f;
  f.layer = routing.layer;
  f.chosen = routing.chosen;
  f.entropy = routing.entropy;
  const trace::LoadSpread spread = trace::spread_of(routing.chosen);
  f.max_over_mean = spread.max_over_mean;
  f.cv = spread.cv;
  f.load_entropy = spread.entropy;
  f.effective_experts = spread.effective_experts;
  f.dead = spread.dead;
  if (spread.total > 0) {
    std::int64_t dropped = 0;
    for (const std::int64_t n : routing.dropped) dropped += n;
    f.drop_rate = static_cast<double>(dropped) / static_cast<double>(spread.total);
  }
  return f;
}

std::vector<std::string> RoutingWatch::look(const std::vector<RoutingFigures>& layers) {
  streaks_.resize(layers.size());
  std::vector<std::string> news;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const RoutingFigures& f = layers[i];
    std::vector<std::int64_t> load = f.chosen;
    std::ranges::sort(load, std::greater<>());
    const std::int64_t all = std::accumulate(load.begin(), load.end(), std::int64_t{0});
    // A token's k choices go to k experts, so fewer than k can never take most of them.
    const auto few = std::max<std::ptrdiff_t>(top_k_, std::ssize(load) / 4);
    const std::int64_t top = std::accumulate(load.begin(), load.begin() + few, std::int64_t{0});
    const double share = all > 0 ? static_cast<double>(top) / static_cast<double>(all) : 0.0;
    const bool collapsed = few < std::ssize(load) && share > kCollapseShare;
    streaks_[i].collapsed = collapsed ? streaks_[i].collapsed + 1 : 0;
    if (streaks_[i].collapsed == kStepsToWarn) {
      news.push_back(
          fmt::format("routing has collapsed in layer {}: for {} steps {} of {} experts took more than "
                      "{:.0f}% of the choices "
                      "(now {:.0f}%); {}; or lower train.lr",
                      f.layer, kStepsToWarn, few, load.size(), 100.0 * kCollapseShare, 100.0 * share, kMend));
    }
    // With few choices in all, an expert without one is chance.
    const bool dead = f.dead > 0 && all >= 16 * std::ssize(load);
    streaks_[i].dead = dead ? streaks_[i].dead + 1 : 0;
    if (streaks_[i].dead == kStepsToWarn) {
      const auto expert = std::ranges::find(f.chosen, 0) - f.chosen.begin();
      news.push_back(fmt::format(
          "layer {} has a dead expert: for {} steps some got no token (now {} of {}, expert {} first); {}",
          f.layer, kStepsToWarn, f.dead, load.size(), expert, kMend));
    }
  }
  return news;
}

}  // namespace tessera::exec
