// From arguments to a launch, for files and for settings that are about to be written. Inside of this room.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "frameworks/internal.h"

namespace tessera::frameworks {

// REQUIRES of `in`: the model, the practice to start from, the devices. Throws Error{config} with all
// problems.
void interpret(Framework f, Arguments& args, std::span<const Carried> carried, std::string_view file,
               Interpretation& in);

// What reading settings without Tessera's own lines gives; problems of it are not told.
[[nodiscard]] Launch as_read(Framework f, const Settings& settings, const Launch& want);

[[nodiscard]] std::string as_json(const spec::Value& v);  // in one line

}  // namespace tessera::frameworks
