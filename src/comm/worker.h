// CommWorker: one helper thread of a rank that runs posted operations in the order of posting, so that a
// gradient bucket's all-reduce goes on while the rank computes.
//
//   CommWorker worker({.on_unwind = [&] { world.abort(rank, "left while its worker ran"); }});
//   auto ticket = worker.post([dp = comm.get(), grads] { dp->all_reduce(grads); });
//   ... backward of earlier layers ...
//   worker.wait(ticket);
//
// A communicator belongs to one thread at a time: give the worker its own (instance 1, 2, ... of the same
// members). All ranks must post the same collectives in the same order. Operations are copied into
// preallocated slots: no allocation after construction. After an operation has thrown, the later ones are not
// run; wait rethrows the error for it and for all after it.
// One thread posts and waits (the owner).
//
// Beside a GPU (`attach`) the worker has a lane of its memory: an operation begins behind what the owner had
// queued when it was posted, and what the owner queues after `wait` begins behind the operation, while
// neither thread waits for the GPU.
#pragma once
#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "tensor/memory.h"

namespace tessera::comm {

// Told when the owner has waited for an operation, on its thread (tracing). Must not throw.
class WaitListener {
 public:
  virtual ~WaitListener() = default;
  virtual void on_wait(std::int64_t start_ns, std::int64_t end_ns) = 0;  // wall clock
};

class CommWorker {
 public:
  struct Options {
    std::int32_t capacity = 64;  // operations posted but not done; post waits when there are as many
    // Called when an exception destroys the worker while operations are open: must make their waits end
    // (ThreadWorld::abort), or the destructor waits for them.
    std::function<void()> on_unwind = nullptr;
  };
  struct Ticket {
    std::int64_t number = -1;
  };
  struct Timing {
    std::int64_t start_ns = 0;  // wall clock of base/clock.h
    std::int64_t end_ns = 0;
    std::int64_t cpu_ns = 0;  // of the helper thread, inside the operation
  };
  struct Totals {
    std::int64_t operations = 0;
    std::int64_t wall_ns = 0;
    std::int64_t cpu_ns = 0;
  };
  static constexpr std::size_t kOperationBytes = 192;  // captures: three tensors and a few words

  explicit CommWorker(Options options);
  // Runs what was posted, or ends it by on_unwind. Errors that nobody waited for are dropped.
  ~CommWorker();
  CommWorker(const CommWorker&) = delete;
  CommWorker& operator=(const CommWorker&) = delete;

  // The memory of the tensors that operations move. While nothing is posted.
  void attach(std::shared_ptr<tensor::Memory> memory);

  // F: void(), trivially copyable (captures pointers, tensors, numbers), at most kOperationBytes.
  template <class F>
  Ticket post(const F& operation) {
    static_assert(std::is_trivially_copyable_v<F> && std::is_trivially_destructible_v<F>);
    static_assert(sizeof(F) <= kOperationBytes && alignof(F) <= alignof(std::max_align_t));
    Slot& slot = next_slot();
    ::new (static_cast<void*>(slot.storage.data())) F(operation);
    slot.run = [](std::byte* storage) { (*std::launder(reinterpret_cast<F*>(storage)))(); };
    return publish();
  }
  // Until the operation is done; rethrows its error, or that of an earlier one.
  void wait(Ticket ticket);
  void wait_all();
  // Until no operation is open: the memory and the communicators that they use may go. While an exception
  // unwinds the owner, on_unwind ends them first. The destructor does the same.
  void drain() noexcept;
  [[nodiscard]] bool done(Ticket ticket) const;
  // Of a done operation that is one of the last `capacity` posted; Error{internal} otherwise.
  [[nodiscard]] Timing timing(Ticket ticket) const;
  [[nodiscard]] Totals totals() const;                                      // of all done operations
  void set_wait_listener(WaitListener* listener) { listener_ = listener; }  // null: none
  [[nodiscard]] const std::function<void()>& on_unwind() const { return options_.on_unwind; }

 private:
  struct Slot {
    alignas(std::max_align_t) std::array<std::byte, kOperationBytes> storage;
    void (*run)(std::byte*) = nullptr;
    Timing timing;
    std::unique_ptr<tensor::Event> posted, finished;  // of an attached memory
  };
  [[nodiscard]] Slot& slot_of(std::int64_t number);
  [[nodiscard]] Slot& next_slot();  // waits for room
  Ticket publish();
  void loop();
  void run_one(Slot& slot, std::int64_t number);

  Options options_;
  WaitListener* listener_ = nullptr;
  std::shared_ptr<tensor::Memory> memory_;  // null: none is attached
  std::vector<Slot> slots_;
  std::int32_t lane_ = 0;
  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::int64_t posted_ = 0;
  std::int64_t done_ = 0;
  bool closing_ = false;
  std::exception_ptr error_;
  std::int64_t failed_ = -1;  // number of the operation that threw
  Totals totals_;
  std::int32_t exceptions_at_start_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace tessera::comm
