// The network that a row trains: from its columns, with the family that its name says, or from a shipped
// model where columns cannot say enough (MLA, sinks, chunked attention). Pure.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "spec/model.h"
#include "validate/library.h"
#include "validate/row.h"

namespace tessera::validate {

struct NamedModel {
  std::optional<spec::ModelSpec> value;
  std::string reason, detail;  // when there is none
  std::vector<std::string> assumptions;
};
[[nodiscard]] NamedModel model_of(const Row& row, const Library& library);

}  // namespace tessera::validate
