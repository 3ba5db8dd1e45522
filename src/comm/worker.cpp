#include "comm/worker.h"

#include <fmt/format.h>

#include <utility>

#include "base/clock.h"
#include "base/error.h"

namespace tessera::comm {

CommWorker::CommWorker(Options options)
    : options_(std::move(options)), exceptions_at_start_(std::uncaught_exceptions()) {
  TESSERA_CHECK(options_.capacity >= 1, "a worker holds at least one operation");
  slots_.resize(static_cast<std::size_t>(options_.capacity));
  thread_ = std::thread([this] { loop(); });
}

CommWorker::~CommWorker() {
  drain();
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CommWorker::attach(std::shared_ptr<tensor::Memory> memory) {
  const std::lock_guard lock(mutex_);
  TESSERA_CHECK_EQ(done_, posted_, "a worker is attached while it has nothing to do");
  memory_ = std::move(memory);
  lane_ = memory_->new_lane();
  for (Slot& slot : slots_) {
    slot.posted = memory_->make_event();
    slot.finished = memory_->make_event();
  }
}

void CommWorker::drain() noexcept {
  std::unique_lock lock(mutex_);
  if (done_ == posted_) return;
  if (options_.on_unwind && std::uncaught_exceptions() > exceptions_at_start_) {
    lock.unlock();
    options_.on_unwind();
    lock.lock();
  }
  changed_.wait(lock, [&] { return done_ == posted_; });
}

CommWorker::Slot& CommWorker::slot_of(std::int64_t number) {
  return slots_[static_cast<std::size_t>(number % options_.capacity)];
}

CommWorker::Slot& CommWorker::next_slot() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return posted_ - done_ < options_.capacity; });
  return slot_of(posted_);  // only the owner posts, so it stays free
}

CommWorker::Ticket CommWorker::publish() {
  Ticket ticket;
  if (memory_) slot_of(posted_).posted->record();
  {
    const std::lock_guard lock(mutex_);
    ticket.number = posted_++;
  }
  changed_.notify_all();
  return ticket;
}

void CommWorker::loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return done_ < posted_ || closing_; });
    if (done_ == posted_) return;
    const std::int64_t number = done_;
    if (error_ == nullptr) {
      Slot& slot = slot_of(number);
      lock.unlock();
      run_one(slot, number);
      lock.lock();
      totals_.operations += 1;
      totals_.wall_ns += slot.timing.end_ns - slot.timing.start_ns;
      totals_.cpu_ns += slot.timing.cpu_ns;
    }
    ++done_;
    changed_.notify_all();
  }
}

void CommWorker::run_one(Slot& slot, std::int64_t number) {
  const std::int64_t cpu = thread_cpu_ns();
  slot.timing.start_ns = wall_ns();
  std::exception_ptr error;
  try {
    if (memory_) {
      const tensor::InLane lane(*memory_, lane_);
      slot.posted->wait();
      slot.run(slot.storage.data());
      slot.finished->record();
    } else {
      slot.run(slot.storage.data());
    }
  } catch (...) {
    error = std::current_exception();
  }
  slot.timing.end_ns = wall_ns();
  slot.timing.cpu_ns = thread_cpu_ns() - cpu;
  if (error == nullptr) return;
  const std::lock_guard lock(mutex_);
  error_ = std::move(error);
  failed_ = number;
}

void CommWorker::wait(Ticket ticket) {
  std::unique_lock lock(mutex_);
  TESSERA_CHECK(ticket.number >= 0 && ticket.number < posted_, "the ticket was posted to this worker");
  if (done_ <= ticket.number) {
    const std::int64_t start = wall_ns();
    changed_.wait(lock, [&] { return done_ > ticket.number; });
    if (listener_ != nullptr) listener_->on_wait(start, wall_ns());
  }
  if (error_ != nullptr && failed_ <= ticket.number) std::rethrow_exception(error_);
  // The slot of an old ticket may serve a later operation by now; that one's end is behind this one's.
  if (memory_) slot_of(ticket.number).finished->wait();
}

void CommWorker::wait_all() {
  std::int64_t last = 0;
  {
    const std::lock_guard lock(mutex_);
    last = posted_ - 1;
  }
  if (last >= 0) wait({last});
}

bool CommWorker::done(Ticket ticket) const {
  const std::lock_guard lock(mutex_);
  return ticket.number < done_;
}

CommWorker::Timing CommWorker::timing(Ticket ticket) const {
  const std::lock_guard lock(mutex_);
  TESSERA_CHECK(ticket.number >= 0 && ticket.number < done_ && ticket.number >= posted_ - options_.capacity,
                "timings are kept for the last operations that are done");
  return slots_[static_cast<std::size_t>(ticket.number % options_.capacity)].timing;
}

CommWorker::Totals CommWorker::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace tessera::comm
