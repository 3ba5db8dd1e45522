// The schedules a job may name and how many stages a pipeline rank has under each. The schedule room owns the
// schedules; a test holds the two lists together.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace tessera::spec {

struct ScheduleName {
  std::string_view name;
  std::int32_t vpp;  // 0: 2 or more, the user's choice
};
inline constexpr std::array<ScheduleName, 7> kScheduleNames = {{
    {.name = "naive", .vpp = 1},
    {.name = "gpipe", .vpp = 1},
    {.name = "1f1b", .vpp = 1},
    {.name = "interleaved", .vpp = 0},
    {.name = "zb-h1", .vpp = 1},
    {.name = "zb-v", .vpp = 2},
    {.name = "combined-1f1b", .vpp = 1},
}};

}  // namespace tessera::spec
