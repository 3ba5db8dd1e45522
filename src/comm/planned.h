// A communicator that only has a place in a group: for dry runs, which ask for ranks and sizes and call
// nothing. Takes no memory for the other ranks, so a world of any size can be planned.
#pragma once
#include <memory>
#include <string_view>

#include "comm/communicator.h"

namespace tessera::comm {

// Every call is Error{internal}. `label` has static storage.
[[nodiscard]] std::unique_ptr<Communicator> make_planned(std::int32_t rank, std::int32_t size,
                                                         std::string_view label);

}  // namespace tessera::comm
