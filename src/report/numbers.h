// Numbers as this room prints them: a value that is not finite is two dashes. Inside of this room.
#pragma once
#include <cstdint>
#include <string>

#include "base/quantity.h"

namespace tessera::report {

[[nodiscard]] std::string fixed(double value, std::int32_t decimals);  // "3.2142"; large ones "1.23e+08"
[[nodiscard]] std::string percent(double fraction);                    // "23.1%"; small ones "<0.1%"
[[nodiscard]] std::string duration(Seconds seconds);                   // "1m 05s"
[[nodiscard]] std::string quantity(double count);                      // "18.4 k"
[[nodiscard]] std::string grouped(std::int64_t n);                     // "1,234,567"

}  // namespace tessera::report
