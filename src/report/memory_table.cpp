// Memory of each rank, planned and measured. Kinds are gathered into the five that a reader can act upon.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "report/numbers.h"
#include "report/page.h"
#include "report/table.h"

namespace tessera::report {

namespace {

constexpr std::size_t kGroups = 5;
constexpr std::array<const char*, kGroups> kHeaders = {"weights", "grads", "optim", "saved", "buffers"};

std::size_t group_of(plan::MemoryKind kind) {
  using plan::MemoryKind;
  switch (kind) {
    case MemoryKind::weights:
    case MemoryKind::packed_weights:
      return 0;
    case MemoryKind::gradients:
      return 1;
    case MemoryKind::optimizer:
      return 2;
    case MemoryKind::saved:
    case MemoryKind::deferred:
      return 3;
    case MemoryKind::scratch:
    case MemoryKind::communication:
    case MemoryKind::tokens:
      return 4;
  }
  return kGroups - 1;
}

struct Unit {
  const char* name;
  double bytes;
};

Unit unit_for(std::int64_t largest) {
  constexpr std::array<Unit, 4> units = {
      {{"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}}};
  std::size_t u = 0;
  while (u + 1 < units.size() && static_cast<double>(largest) >= units[u + 1].bytes) ++u;
  return units[u];
}

bool is_measured(const MemoryRow& row) {
  return row.measured.total().value != 0;
}

std::vector<std::string> cells_of(const MemoryRow& row, const std::string& ranks, const Unit& unit) {
  const auto text = [&](std::int64_t bytes) { return fixed(static_cast<double>(bytes) / unit.bytes, 1); };
  const plan::RankMemory& shown = is_measured(row) ? row.measured : row.planned;
  std::array<std::int64_t, kGroups> sums{};
  for (std::int32_t k = 0; k < plan::kNumMemoryKinds; ++k) {
    const auto kind = static_cast<plan::MemoryKind>(k);
    sums[group_of(kind)] += shown[kind].value;
  }
  std::vector<std::string> cells = {ranks};
  for (const std::int64_t sum : sums) cells.push_back(text(sum));
  const std::int64_t planned = row.planned.total().value, measured = row.measured.total().value;
  cells.push_back(text(planned));
  cells.push_back(is_measured(row) ? text(measured) : "--");
  const double off =
      planned > 0 ? static_cast<double>(measured - planned) / static_cast<double>(planned) : 0.0;
  cells.push_back(!is_measured(row) || planned <= 0 ? "--"
                  : measured == planned             ? "exact"
                                                    : fmt::format("{:+.1f}%", off * 100));
  return cells;
}

}  // namespace

void put_memory(Page& page, const RunView& view) {
  if (view.memory.empty()) return;
  std::int64_t largest = 0;
  for (const MemoryRow& row : view.memory) {
    largest = std::max({largest, row.planned.total().value, row.measured.total().value});
  }
  const Unit unit = unit_for(largest);
  std::vector<Column> columns = {{.header = "rank", .align = Align::left}};
  for (std::size_t g = 0; g < kGroups; ++g) {
    columns.push_back({.header = kHeaders[g], .drop = static_cast<std::int32_t>(kGroups - g)});
  }
  columns.push_back({.header = "planned"});
  columns.push_back({.header = "measured"});
  columns.push_back({.header = "diff"});
  Table table(columns);
  for (std::size_t i = 0; i < view.memory.size();) {
    const MemoryRow& row = view.memory[i];
    std::size_t end = i + 1;  // ranks in a row with the same memory share a line
    while (end < view.memory.size() && view.memory[end].planned == row.planned &&
           view.memory[end].measured == row.measured) {
      ++end;
    }
    const std::string ranks = end - i == 1 ? fmt::format("{}", row.rank)
                                           : fmt::format("{}-{}", row.rank, view.memory[end - 1].rank);
    table.add_row(cells_of(row, ranks, unit));
    i = end;
  }
  page.section(fmt::format("Memory per rank, {}", unit.name));
  page.block(table.render(page.inner()));
  page.paragraph(
      "weights: with the packed copies that kernels read; saved: kept from forward to backward; buffers: "
      "scratch, messages, tokens. diff: measured against planned.",
      Tone::faint);
}

}  // namespace tessera::report
