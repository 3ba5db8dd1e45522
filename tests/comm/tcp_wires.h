// Wires over TCP between "processes" that are objects of one process, connected over loopback.
#pragma once
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "comm/message/wire.h"
#include "comm/tcp/tcp_wire.h"

namespace tessera::comm {

// A meeting of so many at a port that nobody else has: process 0's, which listens already.
inline tcp::Meeting host_meeting(std::int32_t processes) {
  tcp::Meeting m{.host = "127.0.0.1", .processes = processes, .token = "test", .version = "1"};
  m.timeout = Seconds(30.0);
  m.listener = tcp::listen_at(tcp::resolve(m.host, 0), 64);
  m.port = tcp::local_address(m.listener).port();
  return m;
}
// Another process's.
inline tcp::Meeting guest_meeting(const tcp::Meeting& host, std::int32_t process) {
  return {.host = host.host,
          .port = host.port,
          .process = process,
          .processes = host.processes,
          .token = host.token,
          .version = host.version,
          .timeout = host.timeout};
}

inline std::vector<std::unique_ptr<message::Wire>> tcp_wires(std::int32_t processes) {
  std::vector<std::unique_ptr<message::Wire>> wires(static_cast<std::size_t>(processes));
  std::vector<std::exception_ptr> errors(wires.size());
  tcp::Meeting host = host_meeting(processes);
  std::vector<tcp::Meeting> meetings;
  for (std::int32_t p = 1; p < processes; ++p) meetings.push_back(guest_meeting(host, p));
  meetings.insert(meetings.begin(), std::move(host));
  {
    std::vector<std::jthread> threads;
    for (std::size_t p = 0; p < wires.size(); ++p)
      threads.emplace_back([&, p] {
        try {
          wires[p] = tcp::open_wire(std::move(meetings[p]), [](std::int32_t) {});
        } catch (...) {
          errors[p] = std::current_exception();
        }
      });
  }
  for (const auto& e : errors)
    if (e) std::rethrow_exception(e);
  return wires;
}

}  // namespace tessera::comm
