// Unicode normalisation form C (composed characters).
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace tessera::data {

// None when the text is in the form already because no character of it can change or compose (all below
// U+0300). REQUIRES: `text` is UTF-8.
[[nodiscard]] std::optional<std::string> to_nfc(std::string_view text);

}  // namespace tessera::data
