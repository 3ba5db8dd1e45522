#include "report/page.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace tessera::report {

namespace {
constexpr std::int32_t kIndent = 2;
constexpr std::int32_t kGap = 2;
constexpr std::size_t kMaxLead = 12;      // bytes of a description before its text
constexpr std::int32_t kMinMeaning = 28;  // columns; with less, meanings go below their values
}  // namespace

Page::Page(const Style& style) : style_{style.color, columns(style)}, inner_(style_) {
  if (style_.width >= kMinWidth + kIndent) inner_.width -= kIndent;
}

void Page::line(std::string_view text) {
  if (!text.empty()) text_ += std::string(static_cast<std::size_t>(style_.width - inner_.width), ' ');
  text_.append(text).append("\n");
}

void Page::title(std::string_view text) {
  for (const std::string& part : wrap(clean(text), style_.width)) {
    if (!part.empty()) text_ += paint(part, Tone::strong, style_) + "\n";
  }
}

void Page::section(std::string_view text) {
  const std::string shown = clip(clean(text), style_.width);
  const std::int32_t room = style_.width - display_width(shown) - 1;
  std::string rule = room > 0 ? " " : "";
  for (std::int32_t i = 0; i < room; ++i) rule += "\u2500";
  if (!text_.empty()) text_ += "\n";
  text_ += paint(shown, Tone::strong, style_) + paint(rule, Tone::faint, style_) + "\n";
}

void Page::gap() {
  text_ += "\n";
}

void Page::block(std::string_view lines) {
  while (!lines.empty()) {
    const std::size_t end = std::min(lines.find('\n'), lines.size());
    line(lines.substr(0, end));
    lines.remove_prefix(std::min(end + 1, lines.size()));
  }
}

void Page::description(std::string_view text) {
  const std::size_t word = text.find("  ");
  const std::size_t rest = word == std::string_view::npos ? word : text.find_first_not_of(' ', word);
  if (rest == std::string_view::npos || rest > kMaxLead) return paragraph(text, Tone::plain);
  item(clean(text.substr(0, rest)), text.substr(rest), Tone::plain);
}

void Page::paragraph(std::string_view text, Tone tone) {
  for (const std::string& part : wrap(clean(text), inner_.width)) line(paint(part, tone, style_));
}

void Page::item(std::string_view mark, std::string_view text, Tone tone) {
  const std::int32_t indent = display_width(mark);
  std::string lead(mark);
  for (const std::string& part : wrap(clean(text), inner_.width - indent)) {
    line(paint(lead + part, tone, style_));
    lead = std::string(static_cast<std::size_t>(indent), ' ');
  }
}

void Page::facts(const std::vector<Fact>& facts) {
  std::int32_t label_width = 0, value_width = 0;
  for (const Fact& fact : facts) {
    label_width = std::max(label_width, display_width(fact.label));
    value_width = std::max(value_width, display_width(fact.value));
  }
  label_width = std::min(label_width, inner_.width / 2);
  const std::int32_t value_at = label_width + kGap;
  const std::int32_t meaning_at = value_width > 0 ? value_at + value_width + kGap : value_at;
  const bool beside = inner_.width - meaning_at >= kMinMeaning;
  for (const Fact& fact : facts) {
    std::string lead = pad(clip(fact.label, label_width), value_at) +
                       paint(pad(fact.value, value_width, Align::right), Tone::strong, style_);
    const std::int32_t at = beside ? meaning_at : kGap;
    if (!beside) {
      if (!fact.value.empty()) line(clip(lead, inner_.width));
      if (fact.value.empty()) line(clip(fact.label, inner_.width));
      lead.clear();
    }
    if (fact.meaning.empty()) {
      if (beside) line(clip(lead, inner_.width));
      continue;
    }
    for (const std::string& part : wrap(clean(fact.meaning), inner_.width - at)) {
      line(pad(lead, at) + paint(part, fact.tone, style_));
      lead.clear();
    }
  }
}

void Page::quote(std::string_view prompt, std::string_view continuation) {
  // Wrapped as one text; then the prompt's characters are painted, counted off without blanks and line feeds,
  // which wrapping moves.
  const auto inked = [](std::string_view text) {
    return std::count_if(text.begin(), text.end(), [](char c) { return c != ' ' && c != '\n'; });
  };
  const std::string head = clean(prompt);
  auto left = inked(head);
  const std::string bar = paint("\u2502", Tone::faint, style_);
  for (const std::string& part : wrap(head + clean(continuation), inner_.width - kGap)) {
    std::size_t cut = 0;
    for (; cut < part.size() && left > 0; ++cut) left -= part[cut] != ' ' ? 1 : 0;
    line(bar + (part.empty() ? "" : " ") +
         paint(std::string_view(part).substr(0, cut), Tone::accent, style_) + part.substr(cut));
  }
}

}  // namespace tessera::report
