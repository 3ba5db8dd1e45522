// PassPair: two passes of one rank that take turns on its core. `run` starts the first; whenever one calls
// pass() the other goes on from where it stood, and when one has ended the other runs through. Only one of
// them runs at any time, and who runs when follows from the passes alone, not from time: ranks that run the
// same passes hand over at the same points, and the bits are those of running them one after the other.
//
// The second pass has a thread of its own (made once), so that both keep their stacks; it sees what the
// first wrote and the other way round. An error in one pass ends the other at its next pass() and comes out
// of run. Used by one thread.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "nn/layer.h"

namespace tessera::exec {

class PassPair : public nn::Turn {
 public:
  PassPair();
  ~PassPair() override;
  PassPair(const PassPair&) = delete;
  PassPair& operator=(const PassPair&) = delete;

  // `first` on this thread, `second` on the other. Both are called, by reference.
  void run(const std::function<void()>& first, const std::function<void()>& second);
  void pass() override;

 private:
  enum class Who : std::uint8_t { nobody, first, second };
  struct Ended {};  // thrown by pass() after the other pass has failed

  void loop();
  // Gives the turn away and waits until it comes back.
  void hand_over(std::unique_lock<std::mutex>& lock, Who mine, Who other);
  void guarded(const std::function<void()>& body) noexcept;

  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  Who turn_ = Who::nobody;
  bool second_open_ = false;  // posted and not ended
  bool first_open_ = false;
  bool closing_ = false;
  const std::function<void()>* second_ = nullptr;
  std::exception_ptr error_;  // the first
  std::thread::id second_id_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace tessera::exec
