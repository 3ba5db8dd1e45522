#include "report/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "report/numbers.h"

namespace tessera::report {

namespace {

constexpr std::int32_t kGap = 2;
constexpr std::int32_t kBarMin = 8, kBarMax = 24;

std::string bar(double done, std::int32_t width, const Style& style) {
  const double share = std::isfinite(done) ? std::clamp(done, 0.0, 1.0) : 0.0;
  const auto full = static_cast<std::int32_t>(std::lround(share * width));
  std::string filled, rest;
  for (std::int32_t i = 0; i < width; ++i) (i < full ? filled : rest) += i < full ? "\u2501" : "\u2500";
  return paint(filled, Tone::accent, style) + paint(rest, Tone::faint, style);
}

}  // namespace

std::string progress_line(const ProgressState& state, const Style& style) {
  const std::string steps = fmt::format("{}", state.steps);
  std::vector<std::string> fields;
  fields.push_back(fmt::format("step {:>{}}/{}", state.step, steps.size(), steps));
  fields.push_back("loss " + paint(pad(fixed(state.loss, 4), 6), Tone::strong, style));
  const std::size_t always = fields.size();
  if (state.tokens_per_s) fields.push_back(pad(quantity(*state.tokens_per_s), 7, Align::right) + " tok/s");
  if (state.seconds_left) fields.push_back(pad(duration(*state.seconds_left), 7, Align::right) + " left");
  if (!state.strip.empty()) fields.push_back(state.strip);
  if (state.mfu) fields.push_back("MFU " + pad(percent(*state.mfu), 5, Align::right));
  if (state.grad_norm) fields.push_back("grad " + pad(fixed(*state.grad_norm, 2), 5, Align::right));
  if (state.lr) fields.push_back(std::isfinite(*state.lr) ? fmt::format("lr {:.1e}", *state.lr) : "lr --");

  const std::int32_t width = columns(style);
  std::int32_t used = -kGap;
  std::size_t shown = 0;
  for (const std::string& field : fields) {
    const std::int32_t next = used + kGap + display_width(field);
    if (next > width && shown >= always) break;
    used = next;
    ++shown;
  }
  const std::int32_t spare = width - used - kGap;
  if (shown == fields.size() && spare >= kBarMin && state.steps > 0) {
    const double done = static_cast<double>(state.step) / static_cast<double>(state.steps);
    fields[0] += std::string(kGap, ' ') + bar(done, std::min(spare, kBarMax), style);
  }
  std::string line;
  for (std::size_t i = 0; i < shown; ++i) line += (i > 0 ? std::string(kGap, ' ') : "") + fields[i];
  return clip(line, width);
}

}  // namespace tessera::report
