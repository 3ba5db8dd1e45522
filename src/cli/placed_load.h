// The load of the experts where a placement file says they live: for plan and simulate, and what it means
// there.
#pragma once
#include <string>

#include "cost/candidate.h"
#include "cost/routing_load.h"
#include "spec/model.h"

namespace tessera::cli {

// Error{config} for a model without experts, a file that is no placement of it, and as cost::placed.
[[nodiscard]] cost::RoutingLoad placed_load(const cost::RoutingLoad& load, const spec::ModelSpec& model,
                                            const std::string& placement);

// What an uneven load means for ep ranks: "experts: histogram of 64 experts in 26 layers, placed: the fullest
// of 8 expert ranks takes 1.05 times the mean; a token's choices lie on 2.5 of 4 nodes". Empty: balanced, or
// no experts.
[[nodiscard]] std::string load_note(const cost::Setup& setup, std::int32_t ep);
// The same numbers as a JSON object; empty where the note is.
[[nodiscard]] std::string load_json(const cost::Setup& setup, std::int32_t ep);

}  // namespace tessera::cli
