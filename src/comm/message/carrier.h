// Carrier: one thread of a process of a ProcessWorld that keeps messages moving while its ranks compute. Most
// transports move a large message only inside of calls to them: without it what is sent beside compute would
// stand still until somebody waits.
//
// It looks every 0.2 ms while something is on its way, else every millisecond (a message that comes is met
// that soon): under 1 % of a core.
#pragma once
#include <thread>

#include "comm/message/post.h"

namespace tessera::comm::message {

class Carrier {
 public:
  explicit Carrier(Post& post);  // which outlives it
  Carrier(const Carrier&) = delete;
  Carrier& operator=(const Carrier&) = delete;

 private:
  std::jthread thread_;
};

}  // namespace tessera::comm::message
