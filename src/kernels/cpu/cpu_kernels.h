// The fast backend on the loops of one instruction set (isa.h). make_cpu() takes the best one; tests and
// benchmarks take each in turn.
#pragma once
#include <memory>

#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"

namespace tessera::kernels::cpu {

// Error{unsupported} when this processor cannot run `isa`.
[[nodiscard]] std::unique_ptr<Kernels> make_cpu(const Isa& isa);

}  // namespace tessera::kernels::cpu
