// Experts change slots between two steps: their values and optimizer state travel to the ranks that hold the
// new slots, in one all-to-all over ep for each bucket and tensor; what ZeRO cut over edp is gathered first
// and cut again after. Takes memory of its own while it runs: three times the experts of the largest bucket.
#pragma once
#include <cstdint>

#include "exec/communicators.h"
#include "exec/param_store.h"
#include "layout/layout.h"

namespace tessera::exec {

// Collective: every rank, with the same two layouts, which differ in expert_of_slot alone. The store's names
// stay those of `from`; packed copies are made anew.
void move_experts(ParamStore& store, const Communicators& comms, kernels::Kernels& kernels,
                  const layout::Layout& from, const layout::Layout& to);

// Slots of `layer` whose expert comes from another of `ep` ranks.
[[nodiscard]] std::int64_t count_moves(const layout::Layout& from, const layout::Layout& to,
                                       std::int32_t layer, std::int32_t ep);

}  // namespace tessera::exec
