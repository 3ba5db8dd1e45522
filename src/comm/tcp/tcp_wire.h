// The wire over TCP: every process has a connection to every other one. Needs no library; for processes that
// torchrun, srun or a user starts.
#pragma once
#include <functional>
#include <memory>

#include "comm/message/wire.h"
#include "comm/tcp/rendezvous.h"

namespace tessera::comm::tcp {

// Finds the other processes (meet, with its errors). end_process: called, on any thread, when another process
// ends all of them; it does not return in a program, whose process it ends.
[[nodiscard]] std::unique_ptr<message::Wire> open_wire(
    Meeting meeting, std::function<void(std::int32_t exit_code)> end_process);

}  // namespace tessera::comm::tcp
