// TOML as a tree with lines. Inside of this room.
#pragma once
#include <string_view>

#include "spec/value.h"

namespace tessera::frameworks {

// Error{config} with file and line of a syntax fault.
[[nodiscard]] spec::Value parse_toml(std::string_view text, std::string_view file);

}  // namespace tessera::frameworks
