// Counts as people write them.
//
//   parse_count("15T") = 1.5e13; "1.4e12"; "300 B"; "2_000"; "12k"
#pragma once
#include <optional>
#include <string_view>

namespace tessera {

// A decimal number, then at most one of k, M, B or G, T, P: 10^3 to 10^15. Case does not matter, for a count
// has no thousandths. None: anything else, infinity and NaN too.
[[nodiscard]] std::optional<double> parse_count(std::string_view text);

}  // namespace tessera
