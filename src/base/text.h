// Text for people: numbers with units, the nearest known word, lists.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/quantity.h"

namespace tessera {

[[nodiscard]] std::string human(Bytes bytes);         // "1.50 MiB"
[[nodiscard]] std::string human(Seconds seconds);     // "1.5 ms", "2m 05s"
[[nodiscard]] std::string human_count(double count);  // "12.3 M"

// The word of `known` with the smallest edit distance, or "" when none is near (more than a third of the
// letters).
[[nodiscard]] std::string nearest(std::string_view word, std::span<const std::string> known);

[[nodiscard]] std::string join(std::span<const std::string> words, std::string_view separator);
[[nodiscard]] std::vector<std::string> split(std::string_view text, char separator);
[[nodiscard]] std::string_view trim(std::string_view text);

// "{1, 2, 4}": the divisors of n, for mend lines.
[[nodiscard]] std::string divisors_text(std::int64_t n);

}  // namespace tessera
