// The bottleneck of a simulated step in words: the largest cause of lost time and what it comes from.
#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "report/numbers.h"
#include "report/simulation.h"
#include "report/waterfall.h"

namespace tessera::report {

namespace {

using cost::Part;

double mean_bytes(const SimulationView& view, graph::Axis axis) {
  double sum = 0.0;
  for (const sim::RankResult& r : view.result->ranks) sum += r.bytes_sent[static_cast<std::size_t>(axis)];
  return sum / static_cast<double>(view.result->ranks.size());
}

std::string gigabytes(double bytes) {
  return bytes < 1e9 ? fmt::format("{:.1f} MB", bytes / 1e6) : fmt::format("{:.1f} GB", bytes / 1e9);
}

// The innermost tier that holds so many devices in a row.
const spec::TierSpec& tier_of(const SimulationView& view, std::int64_t devices) {
  const std::vector<spec::TierSpec>& tiers = view.setup->cluster.tiers;
  const auto found =
      std::find_if(tiers.begin(), tiers.end(), [&](const auto& t) { return t.size >= devices; });
  return found == tiers.end() ? tiers.back() : *found;
}

// "each device sends 12.0 GB a step through nvlink (450 GB/s)".
std::string traffic(const SimulationView& view, double bytes, std::int64_t span) {
  const spec::TierSpec& tier = tier_of(view, span);
  return fmt::format("a device sends {} a step through {} ({:.3g} GB/s)", gigabytes(bytes), tier.name,
                     tier.bandwidth.value / 1e9);
}

std::string why_products(const SimulationView& view) {
  const double whole = view.cost[Part::ideal] + view.cost[Part::gemm] + view.cost[Part::attention];
  return fmt::format(
      "products and attention take {:.2f} x their time at the peak of {}: no device sustains its "
      "peak, and tiles that do not fill it lose more",
      whole / view.cost[Part::ideal], view.setup->calibration.name);
}

std::string why_bubble(const SimulationView& view) {
  const cost::Candidate& c = *view.candidate;
  const std::int32_t m = view.schedule->num_microbatches;
  const std::string chunks = c.vpp > 1 ? fmt::format(" in {} chunks", c.vpp) : "";
  return fmt::format(
      "{} pipeline ranks{} fill and drain for only {} micro-batches ({}); more micro-batches "
      "(smaller dp or micro-batch), more vpp or less pp shrink it",
      c.pp, chunks, m, schedule::name(view.schedule->kind));
}

std::string why_experts(const SimulationView& view) {
  const cost::Candidate& c = *view.candidate;
  const std::int64_t span = std::int64_t{c.ep} * c.etp;
  return fmt::format(
      "ep {} spans {} devices: {}", c.ep, span,
      traffic(view, mean_bytes(view, graph::Axis::ep) + mean_bytes(view, graph::Axis::etp), span));
}

std::string why(const SimulationView& view, Part part) {
  const cost::Candidate& c = *view.candidate;
  switch (part) {
    case Part::ideal:
      return "";
    case Part::gemm:
    case Part::attention:
      return why_products(view);
    case Part::memory_bound:
      return fmt::format(
          "norms, activations and loss move bytes at {:.3g} TB/s and compute little; fusion "
          "and a larger tp share shrink them",
          view.setup->calibration.memory_bandwidth / 1e12);
    case Part::launch:
      return "kernels are so short that starting them shows; a larger micro-batch, less tp or graphs help";
    case Part::recompute:
      return "forward runs again to save memory; a layout with room for more activations saves it";
    case Part::imbalance:
      return fmt::format("all wait for the most loaded of {} expert ranks", c.ep);
    case Part::tp:
      return fmt::format("tp {}: {}", c.tp, traffic(view, mean_bytes(view, graph::Axis::tp), c.tp));
    case Part::cp:
      return fmt::format("cp {}: {}", c.cp,
                         traffic(view, mean_bytes(view, graph::Axis::cp), std::int64_t{c.tp} * c.cp));
    case Part::ep:
      return why_experts(view);
    case Part::pp:
      return fmt::format("pp {} with {} stages a rank: a device sends {} a step, and waits for what arrives",
                         c.pp, c.vpp, gigabytes(mean_bytes(view, graph::Axis::pp)));
    case Part::bubble:
      return why_bubble(view);
    case Part::dp:
      return fmt::format("gradients and weights of {} replicas (ZeRO {}): {}", c.dp, c.zero_stage,
                         traffic(view, mean_bytes(view, graph::Axis::dp), c.world_size()));
    case Part::optimizer:
      return "the optimizer reads and writes its whole state for few tokens; a larger batch, or more dp with "
             "ZeRO 1, make it small";
    case Part::jitter:
      return view.without_stragglers ? "all wait for the slow rank" : "the slowest of many devices";
  }
  return "";
}

// Of the causes that `counts` says.
template <class F>
Part largest(const cost::StepCost& cost, F&& counts) {
  Part most = Part::ideal;
  for (std::int32_t p = 1; p < cost::kNumParts; ++p) {
    const auto part = static_cast<Part>(p);
    if (counts(part) && (most == Part::ideal || cost[part] > cost[most])) most = part;
  }
  return most;
}

// What a layout changes; the rest is the device's.
bool is_of_layout(Part part) {
  switch (part) {
    case Part::ideal:
    case Part::gemm:
    case Part::attention:
    case Part::memory_bound:
    case Part::launch:
      return false;
    case Part::recompute:
    case Part::imbalance:
    case Part::tp:
    case Part::cp:
    case Part::ep:
    case Part::pp:
    case Part::bubble:
    case Part::dp:
    case Part::optimizer:
    case Part::jitter:
      return true;
  }
  return false;
}

std::string sentence(const SimulationView& view, std::string_view lead, Part part) {
  const double seconds = view.cost.seconds();
  return fmt::format("{}: {}, {} of {} ({}): {}.", lead, describe(part), duration(Seconds(view.cost[part])),
                     duration(Seconds(seconds)), percent(view.cost[part] / seconds), why(view, part));
}

}  // namespace

std::string simulation_bottleneck(const SimulationView& view) {
  const Part part = largest(view.cost, [](Part p) { return p != Part::ideal; });
  std::string text = sentence(view, "Bottleneck", part);
  const Part of_layout = largest(view.cost, is_of_layout);
  if (part != of_layout && view.cost[of_layout] > 0.0) {
    text += " " + sentence(view, "Of what the layout decides", of_layout);
  }
  if (view.schedule->pp < 2) return text;
  const std::vector<sim::RankResult>& ranks = view.result->ranks;
  const auto less_busy = [](const auto& a, const auto& b) { return a.busy < b.busy; };
  const auto busiest = std::max_element(ranks.begin(), ranks.end(), less_busy);
  double mean = 0.0;
  for (const sim::RankResult& r : ranks) mean += static_cast<double>(r.busy.value) / view.schedule->pp;
  const double more = static_cast<double>(busiest->busy.value) / mean - 1.0;
  constexpr double kUneven = 0.02;
  if (!(more >= kUneven)) return text;
  return text + fmt::format(" Pipeline rank {} computes {} more than the mean, and the others wait for it.",
                            busiest - ranks.begin(), percent(more));
}

}  // namespace tessera::report
