// An estimate that cannot overflow, for validation. The exact counts are in model.h.
#pragma once
#include "spec/model.h"

namespace tessera::spec {

// num_parameters and the MTP layers, in double.
[[nodiscard]] double estimated_parameters(const ModelSpec& m);

}  // namespace tessera::spec
