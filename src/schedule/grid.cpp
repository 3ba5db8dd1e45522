#include "schedule/grid.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "schedule/simulate.h"

namespace tessera::schedule {

namespace {
constexpr std::int32_t kWindow = 5;    // columns on each side of the marked one
constexpr std::int32_t kMaxRows = 17;  // ranks around the marked one

std::string trim_right(std::string line) {
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}
}  // namespace

std::string marked_lists(const Schedule& schedule,
                         const std::set<std::pair<std::int32_t, std::int32_t>>& marked) {
  if (marked.empty()) return "";
  const auto [rank, position] = *marked.begin();
  const std::int32_t first = std::max(0, position - kWindow), last = position + kWindow;
  const auto num_ranks = static_cast<std::int32_t>(schedule.ranks.size());
  const std::int32_t top = std::clamp(rank - kMaxRows / 2, 0, std::max(0, num_ranks - kMaxRows));
  const std::int32_t bottom = std::min(num_ranks, top + kMaxRows);
  std::string out = fmt::format("{:>8} |", "action");
  std::vector<std::vector<std::string>> cells;
  std::size_t width = 4;
  for (std::int32_t r = top; r < bottom; ++r) {
    const ActionList& list = schedule.ranks[static_cast<std::size_t>(r)];
    std::vector<std::string>& row = cells.emplace_back();
    for (std::int32_t i = first; i <= last && i < static_cast<std::int32_t>(list.size()); ++i) {
      const std::string text = to_text(list[static_cast<std::size_t>(i)]);
      row.push_back(marked.contains({r, i}) ? ">" + text + "<" : " " + text + " ");
      width = std::max(width, row.back().size());
    }
  }
  for (std::int32_t i = first; i <= last; ++i) out += fmt::format(" {:<{}}", i, width);
  out = trim_right(std::move(out));
  for (std::size_t r = 0; r < cells.size(); ++r) {
    std::string line = fmt::format("\n  rank {} |", top + static_cast<std::int32_t>(r));
    for (const std::string& cell : cells[r]) line += fmt::format("{:<{}}", cell, width + 1);
    out += trim_right(std::move(line));
  }
  return out;
}

namespace {

// Kind, micro-batch and, with several chunks, the chunk: F3, F3a, F3b.
std::string label(const Schedule& s, const Action& a) {
  std::string text = fmt::format("{}{}", name(a.kind), a.microbatch.value);
  if (s.vpp > 1) {
    const std::int32_t chunk = a.stage.value / s.pp;
    text += chunk < 26 ? std::string(1, static_cast<char>('a' + chunk)) : fmt::format(".{}", chunk);
  }
  return text;
}

SimTime shortest_compute(const Schedule& s, const Simulation& sim) {
  SimTime unit{};
  for (std::size_t r = 0; r < s.ranks.size(); ++r) {
    for (std::size_t i = 0; i < s.ranks[r].size(); ++i) {
      const SimTime d = sim.actions[r][i].end - sim.actions[r][i].start;
      if (is_compute(s.ranks[r][i].kind) && d.value > 0 && (unit.value == 0 || d < unit)) unit = d;
    }
  }
  return unit;
}

}  // namespace

std::string draw_grid(const Schedule& schedule, const StageCosts& costs, const DrawOptions& options) {
  TESSERA_CHECK(options.max_columns >= 1, "a picture needs a column");
  const Schedule s = compute_only(schedule);
  const Simulation sim = simulate(s, costs);
  const SimTime unit = shortest_compute(s, sim);
  if (unit.value == 0) return "";
  const auto column = [&](SimTime t) { return (t.value + unit.value / 2) / unit.value; };
  const std::int64_t all = std::max<std::int64_t>(1, column(sim.makespan));
  const std::int64_t shown = std::min<std::int64_t>(all, options.max_columns);
  std::size_t width = 1;
  for (const ActionList& list : s.ranks) {
    for (const Action& a : list) width = std::max(width, label(s, a).size());
  }
  const std::size_t rank_width = fmt::format("{}", s.pp - 1).size();
  std::string out;
  for (std::size_t r = 0; r < s.ranks.size(); ++r) {
    std::vector<std::string> cells(static_cast<std::size_t>(shown), ".");
    for (std::size_t i = 0; i < s.ranks[r].size(); ++i) {
      const std::int64_t begin = column(sim.actions[r][i].start);
      const std::int64_t end = std::max(begin + 1, column(sim.actions[r][i].end));
      for (std::int64_t c = begin; c < std::min(end, shown); ++c) {
        cells[static_cast<std::size_t>(c)] = c == begin ? label(s, s.ranks[r][i]) : "-";
      }
    }
    std::string line = fmt::format("rank {:>{}} |", r, rank_width);
    for (const std::string& cell : cells) line += fmt::format(" {:<{}}", cell, width);
    out += trim_right(std::move(line)) + "\n";
  }
  if (shown < all) out += fmt::format("({} of {} columns shown)\n", shown, all);
  return out;
}

}  // namespace tessera::schedule
