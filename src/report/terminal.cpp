#include "report/terminal.h"

#include <algorithm>
#include <array>
#include <utility>

namespace tessera::report {

namespace {

constexpr char32_t kNoCharacter = 0xffffffff;
constexpr std::string_view kReset = "\x1b[0m";
constexpr std::string_view kEllipsis = "\u2026";
constexpr std::string_view kReplacement = "\ufffd";

// The next character, or escape sequence, of a text.
struct Glyph {
  std::string_view bytes;
  char32_t code = kNoCharacter;  // kNoCharacter: escape sequence or a byte that is no UTF-8
  std::int32_t width = 1;
  bool escape = false;
};

bool in(char32_t c, char32_t low, char32_t high) {
  return low <= c && c <= high;
}

// Unicode 15, East Asian Width W and F, with the emoji blocks; coarse where blocks hold nothing else.
std::int32_t width_of(char32_t c) {
  if (in(c, 0x300, 0x36f) || in(c, 0x200b, 0x200f) || in(c, 0xfe00, 0xfe0f)) return 0;
  constexpr std::array<std::pair<char32_t, char32_t>, 13> wide = {{{0x1100, 0x115f},
                                                                   {0x2e80, 0x303e},
                                                                   {0x3041, 0xa4cf},
                                                                   {0xac00, 0xd7a3},
                                                                   {0xf900, 0xfaff},
                                                                   {0xfe30, 0xfe6f},
                                                                   {0xff00, 0xff60},
                                                                   {0xffe0, 0xffe6},
                                                                   {0x1f300, 0x1f64f},
                                                                   {0x1f680, 0x1f6ff},
                                                                   {0x1f900, 0x1f9ff},
                                                                   {0x20000, 0x2fffd},
                                                                   {0x30000, 0x3fffd}}};
  for (const auto& [low, high] : wide) {
    if (in(c, low, high)) return 2;
  }
  return 1;
}

// CSI sequences, the only ones that paint() writes.
std::size_t escape_length(std::string_view text) {
  if (text.size() < 2 || text[0] != '\x1b' || text[1] != '[') return 0;
  std::size_t end = 2;
  while (end < text.size() && (text[end] < '@' || text[end] > '~')) ++end;
  return end < text.size() ? end + 1 : 0;
}

Glyph next_glyph(std::string_view text) {
  if (const std::size_t n = escape_length(text); n > 0) {
    return {.bytes = text.substr(0, n), .width = 0, .escape = true};
  }
  const auto byte = [&](std::size_t i) {
    return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i]));
  };
  const std::uint32_t first = byte(0);
  if (first < 0x80) return {.bytes = text.substr(0, 1), .code = first};
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return {.bytes = text.substr(0, 1)};
  std::uint32_t code = first & (0x7fU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80U) return {.bytes = text.substr(0, 1)};
    code = (code << 6U) | (byte(i) & 0x3fU);
  }
  constexpr std::array<std::uint32_t, 5> smallest = {0, 0, 0x80, 0x800, 0x10000};
  if (code < smallest[length] || code > 0x10ffff || in(code, 0xd800, 0xdfff))
    return {.bytes = text.substr(0, 1)};
  return {.bytes = text.substr(0, length), .code = code, .width = width_of(code)};
}

std::string_view escape_of(Tone tone) {
  switch (tone) {
    case Tone::plain:
      return "";
    case Tone::strong:
      return "\x1b[1m";
    case Tone::faint:
      return "\x1b[2m";
    case Tone::accent:
      return "\x1b[36m";
    case Tone::second:
      return "\x1b[35m";
    case Tone::good:
      return "\x1b[32m";
    case Tone::warning:
      return "\x1b[33m";
    case Tone::bad:
      return "\x1b[31m";
  }
  return "";
}

}  // namespace

std::int32_t columns(const Style& style) {
  return std::max(style.width, kMinWidth);
}

std::string paint(std::string_view text, Tone tone, const Style& style) {
  const std::string_view escape = escape_of(tone);
  if (!style.color || escape.empty() || text.empty()) return std::string(text);
  return std::string(escape).append(text).append(kReset);
}

std::int32_t display_width(std::string_view text) {
  std::int32_t width = 0;
  while (!text.empty()) {
    const Glyph glyph = next_glyph(text);
    width += glyph.width;
    text.remove_prefix(glyph.bytes.size());
  }
  return width;
}

std::string clip(std::string_view text, std::int32_t width) {
  if (display_width(text) <= width) return std::string(text);
  if (width <= 0) return "";
  std::string out;
  std::int32_t used = 0;
  bool painted = false;
  while (!text.empty()) {
    const Glyph glyph = next_glyph(text);
    if (used + glyph.width > width - 1) break;
    out += glyph.bytes;
    used += glyph.width;
    if (glyph.escape) painted = glyph.bytes != kReset;
    text.remove_prefix(glyph.bytes.size());
  }
  out += kEllipsis;
  if (painted) out += kReset;
  return out;
}

std::string pad(std::string_view text, std::int32_t width, Align align) {
  const std::int32_t missing = std::max(0, width - display_width(text));
  const std::string blanks(static_cast<std::size_t>(missing), ' ');
  switch (align) {
    case Align::left:
      return std::string(text) + blanks;
    case Align::right:
      return blanks + std::string(text);
  }
  return std::string(text);
}

namespace {

// One line of text without line feeds into `out`.
void wrap_line(std::string_view text, std::int32_t width, std::vector<std::string>& out) {
  std::string line;
  std::int32_t used = 0;
  const auto flush = [&] {
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out.push_back(std::exchange(line, {}));
    used = 0;
  };
  while (!text.empty()) {
    const std::size_t blanks = std::min(text.find_first_not_of(' '), text.size());
    const std::size_t end = std::min(text.find(' ', blanks), text.size());
    std::string_view word = text.substr(blanks, end - blanks);
    const std::int32_t word_width = display_width(word);
    if (used > 0 && used + static_cast<std::int32_t>(blanks) + word_width > width) {
      flush();
    } else {
      const std::int32_t room = std::max(0, width - 1 - used);
      const std::int32_t kept = std::min(static_cast<std::int32_t>(blanks), room);
      line.append(static_cast<std::size_t>(kept), ' ');
      used += kept;
    }
    while (!word.empty()) {
      const Glyph glyph = next_glyph(word);
      if (used > 0 && used + glyph.width > width) flush();
      line += glyph.bytes;
      used += glyph.width;
      word.remove_prefix(glyph.bytes.size());
    }
    text.remove_prefix(end);
  }
  flush();
}

}  // namespace

std::vector<std::string> wrap(std::string_view text, std::int32_t width) {
  width = std::max(width, 2);
  std::vector<std::string> out;
  while (true) {
    const std::size_t end = text.find('\n');
    wrap_line(text.substr(0, end), width, out);
    if (end == std::string_view::npos) return out;
    text.remove_prefix(end + 1);
  }
}

std::string clean(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    // An escape of foreign text is a control character like others, so a sequence is taken byte by byte.
    const bool escape = text.front() == '\x1b';
    const Glyph glyph = escape ? Glyph{.bytes = text.substr(0, 1)} : next_glyph(text);
    const char32_t c = glyph.code;
    const bool control = c == kNoCharacter || c < 0x20 || in(c, 0x7f, 0x9f) || in(c, 0x200b, 0x200f) ||
                         in(c, 0x2028, 0x202e) || in(c, 0x2060, 0x206f);
    if (c == '\n') {
      out += '\n';
    } else if (c == '\t') {
      out += "  ";
    } else {
      out += control ? kReplacement : glyph.bytes;
    }
    text.remove_prefix(glyph.bytes.size());
  }
  return out;
}

}  // namespace tessera::report
