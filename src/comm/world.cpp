#include "comm/world.h"

#include <fmt/format.h>

#include <algorithm>

namespace tessera::comm {

bool World::is_local(Rank rank) const {
  return std::ranges::binary_search(local_ranks(), rank);
}

std::int32_t place_of(Rank rank, std::span<const Rank> members, std::int32_t size, std::string_view label) {
  const auto bad = [&](std::string what) {
    throw Error(ErrorKind::internal, std::move(what),
                fmt::format("rank {}, communicator {}", rank.value, label),
                "list each member once, the asking rank among them");
  };
  const auto me = std::ranges::find(members, rank);
  if (me == members.end()) bad(fmt::format("rank {} is not a member", rank.value));
  for (const Rank r : members) {
    if (r.value < 0 || r.value >= size) bad(fmt::format("rank {} in a world of {}", r.value, size));
    if (std::ranges::count(members, r) != 1) bad(fmt::format("rank {} is listed twice", r.value));
  }
  return static_cast<std::int32_t>(me - members.begin());
}

}  // namespace tessera::comm
