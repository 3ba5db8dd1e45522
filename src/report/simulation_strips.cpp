// Pipeline ranks along the time axis of a step: what they do and what they hold.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "report/simulation.h"

namespace tessera::report {

namespace {

using Interval = std::pair<std::int64_t, std::int64_t>;  // nanoseconds, [begin, end)

constexpr std::array<const char*, 8> kLevels = {"\u2581", "\u2582", "\u2583", "\u2584",
                                                "\u2585", "\u2586", "\u2587", "\u2588"};

// Sorted, without overlaps.
std::vector<Interval> united(std::vector<Interval> all) {
  std::sort(all.begin(), all.end());
  std::vector<Interval> out;
  for (const Interval& i : all) {
    if (!out.empty() && i.first <= out.back().second) {
      out.back().second = std::max(out.back().second, i.second);
    } else if (i.second > i.first) {
      out.push_back(i);
    }
  }
  return out;
}

// Seconds of each cell that the intervals cover.
std::vector<double> covered(const std::vector<Interval>& intervals, double step_ns, std::int32_t width) {
  std::vector<double> cells(static_cast<std::size_t>(width), 0.0);
  const double cell = step_ns / width;
  for (const auto& [begin, end] : intervals) {
    double at = static_cast<double>(begin);
    const double stop = static_cast<double>(end);
    auto c = std::min(static_cast<std::int32_t>(at / cell), width - 1);
    while (at < stop && c < width) {
      const double next = c + 1 == width ? stop : std::min(stop, (c + 1) * cell);
      cells[static_cast<std::size_t>(c)] += next - at;
      at = next;
      ++c;
    }
  }
  return cells;
}

}  // namespace

std::string rank_strip(const sim::Result& result, std::int32_t rank, std::int32_t width) {
  const double step_ns = static_cast<double>(result.makespan.value) / 1000.0;
  if (width < 1 || !(step_ns > 0.0) || result.trace.spans.empty()) return "";
  std::vector<Interval> busy, all;
  for (const trace::Span& s : result.trace.spans) {
    if (s.rank != result.ranks[static_cast<std::size_t>(rank)].rank) continue;
    const bool computes = trace::is_compute(s.category);
    if (computes) busy.emplace_back(s.start_ns, s.end_ns);
    if (computes || s.category == trace::Category::communication) all.emplace_back(s.start_ns, s.end_ns);
  }
  const std::vector<double> computing = covered(united(std::move(busy)), step_ns, width);
  const std::vector<double> active = covered(united(std::move(all)), step_ns, width);
  std::string strip;
  for (std::size_t c = 0; c < computing.size(); ++c) {
    const double communicating = active[c] - computing[c], waiting = step_ns / width - active[c];
    if (computing[c] >= communicating && computing[c] >= waiting) {
      strip += "\u2588";
    } else {
      strip += communicating >= waiting ? "\u2592" : "\u00b7";
    }
  }
  return strip;
}

std::string memory_strip(const sim::RankResult& rank, sim::SimTime makespan, double top, std::int32_t width) {
  if (width < 1 || !(top > 0.0) || makespan.value <= 0) return "";
  std::vector<double> most(static_cast<std::size_t>(width), 0.0);
  const auto cell_of = [&](sim::SimTime t) {
    const double share = static_cast<double>(t.value) / static_cast<double>(makespan.value);
    return std::clamp(static_cast<std::int32_t>(share * width), 0, width - 1);
  };
  for (std::size_t i = 0; i < rank.memory.size(); ++i) {
    const bool last = i + 1 == rank.memory.size();
    const std::int32_t from = cell_of(rank.memory[i].time);
    // A level that ends where a cell begins is not of that cell.
    const std::int32_t to =
        last ? width - 1 : std::max(from, cell_of(sim::SimTime(rank.memory[i + 1].time.value - 1)));
    for (std::int32_t c = from; c <= to; ++c) {
      double& cell = most[static_cast<std::size_t>(c)];
      cell = std::max(cell, rank.memory[i].bytes);
    }
  }
  std::string strip;
  for (const double bytes : most) {
    const double level = std::ceil(bytes / top * static_cast<double>(kLevels.size())) - 1.0;
    strip += kLevels[static_cast<std::size_t>(std::clamp(level, 0.0, 7.0))];
  }
  return strip;
}

RankShares rank_shares(const sim::RankResult& result) {
  const auto whole = static_cast<double>((result.busy + result.idle).value);
  if (!(whole > 0.0)) return {.idle = 1.0};
  sim::SimTime exposed{};
  for (const sim::SimTime t : result.exposed) exposed += t;
  RankShares shares;
  shares.busy = static_cast<double>(result.busy.value) / whole;
  shares.exposed = static_cast<double>(exposed.value) / whole;
  shares.idle = 1.0 - shares.busy - shares.exposed;
  return shares;
}

PeakParts peak_parts(const schedule::Schedule& schedule, const cost::StepWork& work, std::int32_t rank,
                     const sim::RankResult& result) {
  using schedule::ActionKind;
  const auto at = [](std::int32_t i) { return static_cast<std::size_t>(i); };
  PeakParts parts;
  parts.fixed = work.static_bytes.empty() ? 0.0 : work.static_bytes[at(rank)];
  std::vector<std::int32_t> live(at(schedule.num_stages()), 0);
  double nearest = -1.0;
  for (const schedule::Action& a : schedule.ranks[at(rank)]) {
    if (!schedule::is_compute(a.kind)) continue;
    const auto s = at(a.stage.value);
    if (a.kind == ActionKind::forward) ++live[s];
    double saved = 0.0;
    for (const StageId stage : schedule.stages_of(rank)) {
      saved += live[at(stage.value)] * work.stages[at(stage.value)].saved_bytes;
    }
    const double transient = work.stages[s].transient_bytes;
    const double off = std::abs(parts.fixed + saved + transient - result.peak_bytes);
    if (nearest < 0.0 || off < nearest) {
      nearest = off;
      parts.activations = saved;
      parts.transient = transient;
    }
    if (a.kind == ActionKind::backward || a.kind == ActionKind::backward_weight) --live[s];
  }
  return parts;
}

double reserved_bytes(double allocated) {
  cost::MemoryCost memory;
  memory.parts[0] = allocated;
  return memory.reserved();
}

cost::StepCost simulated_cost(const sim::Result& result, const cost::StepCost& cost) {
  cost::StepCost out = cost;
  out.parts = result.waterfall(cost);
  return out;
}

}  // namespace tessera::report
