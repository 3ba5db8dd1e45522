// UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tessera::data {

// Offset of the first byte that does not begin or continue a valid character; a character cut short by the
// end of the text is reported at its first byte. Empty when all of the text is valid.
[[nodiscard]] std::optional<std::int64_t> first_invalid_utf8(std::string_view text);

// Throws Error{config} with the offset, the byte and its line when the text is not UTF-8. `name` says whose
// text it is.
void check_utf8(std::string_view text, std::string_view name);

// Number of bytes at the front of the text that form no character, up to the first that do: 0 when the text
// begins with a character or is empty.
[[nodiscard]] std::int64_t invalid_utf8_prefix(std::string_view text);

// The text with U+FFFD in place of bytes that form no character: one for the longest begin of a character
// that is cut short, else one a byte (Unicode 15, section 3.9, "substitution of maximal subparts").
[[nodiscard]] std::string replace_invalid_utf8(std::string text);

// Number of characters (code points) of valid UTF-8.
[[nodiscard]] std::int64_t count_characters(std::string_view text);

}  // namespace tessera::data
