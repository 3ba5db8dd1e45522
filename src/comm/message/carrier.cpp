#include "comm/message/carrier.h"

#include <chrono>

namespace tessera::comm::message {

namespace {
constexpr auto kBusy = std::chrono::microseconds(200);
constexpr auto kIdle = std::chrono::milliseconds(1);
}  // namespace

Carrier::Carrier(Post& post)
    : thread_([&post](const std::stop_token& stop) {
        while (!stop.stop_requested()) {
          if (post.poll()) {
            std::this_thread::sleep_for(kBusy);
          } else {
            std::this_thread::sleep_for(kIdle);
          }
        }
      }) {}

}  // namespace tessera::comm::message
