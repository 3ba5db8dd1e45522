#include "report/schedule_view.h"

#include <algorithm>
#include <string_view>

#include "base/text.h"

namespace tessera::report {

namespace {

Tone tone_of(std::string_view cell, Tone before) {
  switch (cell.front()) {
    case 'F':
      return Tone::accent;
    case 'I':
    case 'B':
      return Tone::second;
    case 'W':
      return Tone::good;
    case '-':
      return before;  // the action of the cell before goes on
    default:
      return Tone::faint;
  }
}

// "rank 0 | F0 - .": cells are words behind the bar.
std::string painted(std::string_view line, const Style& style) {
  const std::size_t bar = line.find('|');
  if (bar == std::string_view::npos) return paint(line, Tone::faint, style);
  std::string out(line.substr(0, bar + 1));
  line.remove_prefix(bar + 1);
  Tone tone = Tone::faint;
  while (!line.empty()) {
    const std::size_t begin = std::min(line.find_first_not_of(' '), line.size());
    const std::size_t end = std::min(line.find(' ', begin), line.size());
    out += line.substr(0, begin);
    if (begin < end) {
      tone = tone_of(line.substr(begin, end - begin), tone);
      out += paint(line.substr(begin, end - begin), tone, style);
    }
    line.remove_prefix(end);
  }
  return out;
}

// Of the ranks; the last line can be clipped.
std::int32_t widest_line(std::string_view text) {
  std::int32_t widest = 0;
  for (const std::string& line : split(text, '\n')) {
    if (line.find('|') != std::string::npos) widest = std::max(widest, display_width(line));
  }
  return widest;
}

}  // namespace

std::string schedule_view(const schedule::Schedule& schedule, const schedule::StageCosts& costs,
                          const Style& style) {
  const std::int32_t width = columns(style);
  std::int32_t low = 1, high = width / 2;  // a cell takes two columns at least
  std::string best = schedule::draw_grid(schedule, costs, {.max_columns = low});
  while (low < high) {  // most cells that fit
    const std::int32_t middle = (low + high + 1) / 2;
    std::string text = schedule::draw_grid(schedule, costs, {.max_columns = middle});
    if (widest_line(text) <= width) {
      best = std::move(text);
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  std::string out;
  for (std::string_view rest = best; !rest.empty();) {
    const std::size_t end = rest.find('\n');
    const std::string line = clip(rest.substr(0, end), width);
    out += painted(line, style) + "\n";
    rest.remove_prefix(end + 1);
  }
  return out;
}

}  // namespace tessera::report
