// Text for a terminal: display width, clipping, padding, wrapping, colour. Every function of this room
// returns text whose lines are at most Style::width columns wide; without colour the text holds no escape
// sequence. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::report {

struct Style {
  bool color = false;       // ANSI escape sequences
  std::int32_t width = 80;  // columns; below kMinWidth counts as kMinWidth
};
inline constexpr std::int32_t kMinWidth = 20;
[[nodiscard]] std::int32_t columns(const Style& style);  // max(width, kMinWidth)

enum class Tone : std::uint8_t { plain, strong, faint, accent, second, good, warning, bad };
[[nodiscard]] std::string paint(std::string_view text, Tone tone, const Style& style);

enum class Align : std::uint8_t { left, right };

// Columns that the text takes: escape sequences 0, East Asian wide and emoji 2, else 1 per code point. A byte
// that is no UTF-8 counts 1.
[[nodiscard]] std::int32_t display_width(std::string_view text);

// At most `width` columns; what is cut off is marked by an ellipsis. Escape sequences stay and are closed.
[[nodiscard]] std::string clip(std::string_view text, std::int32_t width);

// Exactly `width` columns when the text is not wider.
[[nodiscard]] std::string pad(std::string_view text, std::int32_t width, Align align = Align::left);

// Lines of at most `width` columns, broken at blanks; a longer word is broken where it must. Line feeds of
// the text stay.
[[nodiscard]] std::vector<std::string> wrap(std::string_view text, std::int32_t width);

// Foreign text made harmless: control characters (but for line feeds) and bytes that are no UTF-8 become
// U+FFFD, tabs two blanks. So a model's sample cannot move the cursor.
[[nodiscard]] std::string clean(std::string_view text);

}  // namespace tessera::report
