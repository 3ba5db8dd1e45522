// Whether a process of this host is there.
#pragma once
#include <cstdint>

namespace tessera::comm::message {

enum class Life : std::uint8_t { runs, stopped, dead };
[[nodiscard]] Life life_of(std::int64_t pid);

}  // namespace tessera::comm::message
