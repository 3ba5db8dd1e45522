// The CUDA backend where there is no GPU: its sources, compiled for the host (support/emulation.h).
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/cuda/library_ops.h"
#include "kernels/kernels.h"

namespace tessera::kernels::emulated {

// Over tensors of the host.
[[nodiscard]] std::unique_ptr<Kernels> make();
// With a memory of its own, whose tensors the host refuses to touch, as it could not touch a GPU's, and with
// launches and copies in lanes: done as late as can be, or beside the host.
[[nodiscard]] std::unique_ptr<Kernels> make_device();
[[nodiscard]] std::unique_ptr<Kernels> make_device_beside();
// The same, counting the calls that waited until all of it was done.
[[nodiscard]] std::unique_ptr<Kernels> make_counting_device(std::atomic<std::int64_t>& waits);
// As make, asking `library` first.
[[nodiscard]] std::unique_ptr<Kernels> make_with(std::unique_ptr<LibraryOps> library);

}  // namespace tessera::kernels::emulated
