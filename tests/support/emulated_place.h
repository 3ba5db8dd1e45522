// The CUDA backend where there is no GPU: its sources, compiled for the host (support/emulation.h).
#pragma once
#include <memory>

#include "kernels/kernels.h"

namespace tessera::kernels::emulated {

[[nodiscard]] std::unique_ptr<Kernels> make();

}  // namespace tessera::kernels::emulated
