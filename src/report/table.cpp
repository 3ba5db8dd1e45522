#include "report/table.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/text.h"

namespace tessera::report {

namespace {

constexpr std::int32_t kGap = 2;      // blanks between columns
constexpr std::int32_t kMinClip = 6;  // columns that a clipped cell keeps

std::int32_t total(const std::vector<std::int32_t>& width) {
  const auto gaps = static_cast<std::int32_t>(width.size()) - 1;
  return std::accumulate(width.begin(), width.end(), gaps * kGap);
}

std::string repeat(std::string_view glyph, std::int32_t count) {
  std::string out;
  for (std::int32_t i = 0; i < count; ++i) out += glyph;
  return out;
}

}  // namespace

Table::Table(std::vector<Column> columns) : columns_(std::move(columns)) {
  TESSERA_CHECK(!columns_.empty(), "a table needs a column");
}

void Table::add_row(std::vector<std::string> cells, Tone tone) {
  TESSERA_CHECK_EQ(cells.size(), columns_.size(), "a row has one cell a column");
  rows_.push_back({std::move(cells), tone});
}

void Table::add_rule() {
  rows_.push_back({});
}

void Table::add_footer(std::vector<std::string> cells) {
  TESSERA_CHECK_EQ(cells.size(), columns_.size(), "a footer has one cell a column");
  footers_.push_back({std::move(cells), Tone::strong});
}

Table::Fit Table::fit(std::int32_t width) const {
  Fit fit;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    std::int32_t widest = display_width(columns_[c].header);
    for (const std::vector<Row>* rows : {&rows_, &footers_}) {
      for (const Row& row : *rows) {
        if (!row.cells.empty()) widest = std::max(widest, display_width(row.cells[c]));
      }
    }
    fit.shown.push_back(c);
    fit.width.push_back(widest);
  }
  while (total(fit.width) > width) {
    const auto worst =
        std::max_element(fit.shown.rbegin(), fit.shown.rend(),
                         [&](std::size_t a, std::size_t b) { return columns_[a].drop < columns_[b].drop; });
    if (columns_[*worst].drop == 0) break;
    fit.hidden.insert(fit.hidden.begin(), columns_[*worst].header);
    fit.width.erase(fit.width.begin() + (fit.shown.rend() - worst - 1));
    fit.shown.erase(std::next(worst).base());
  }
  while (total(fit.width) > width) {
    std::size_t widest = fit.shown.size();
    for (std::size_t i = 0; i < fit.shown.size(); ++i) {
      if (columns_[fit.shown[i]].align != Align::left || fit.width[i] <= kMinClip) continue;
      if (widest == fit.shown.size() || fit.width[i] > fit.width[widest]) widest = i;
    }
    if (widest == fit.shown.size()) break;
    --fit.width[widest];
  }
  return fit;
}

std::string Table::line(const Row& row, const Fit& fit, const Style& style) const {
  std::string out;
  for (std::size_t i = 0; i < fit.shown.size(); ++i) {
    const std::size_t c = fit.shown[i];
    const bool last = i + 1 == fit.shown.size();
    if (i > 0) out.append(kGap, ' ');
    const std::string cell = clip(row.cells[c], fit.width[i]);
    out += last && columns_[c].align == Align::left ? cell : pad(cell, fit.width[i], columns_[c].align);
  }
  while (!out.empty() && out.back() == ' ') out.pop_back();
  return paint(clip(out, columns(style)), row.tone, style) + "\n";
}

std::string Table::render(const Style& style) const {
  const std::int32_t width = columns(style);
  const Fit shape = fit(width);
  const std::string rule =
      paint(repeat("\u2500", std::min(total(shape.width), width)), Tone::faint, style) + "\n";
  std::vector<std::string> headers;
  for (const Column& column : columns_) headers.push_back(column.header);
  std::string out = line({headers, Tone::strong}, shape, style) + rule;
  for (const Row& row : rows_) out += row.cells.empty() ? rule : line(row, shape, style);
  if (!footers_.empty()) out += rule;
  for (const Row& row : footers_) out += line(row, shape, style);
  if (!shape.hidden.empty()) {
    const std::string note = "(too narrow for: " + join(shape.hidden, ", ") + ")";
    for (const std::string& part : wrap(note, width)) out += paint(part, Tone::faint, style) + "\n";
  }
  return out;
}

}  // namespace tessera::report
