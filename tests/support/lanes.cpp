#include "support/lanes.h"

#include <atomic>
#include <chrono>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"

namespace tessera::emulation {
namespace {

constexpr std::int64_t kAskAfterNs = 10'000'000;
constexpr std::int64_t kForEverNs = 30'000'000'000;

class LaneEvent final : public tensor::Event {
 public:
  LaneEvent(Lanes& lanes, const tensor::Memory& memory) : lanes_(lanes), memory_(memory) {}
  void record() override {
    const std::int64_t number = ++points_->recorded;
    lanes_.at(memory_.lane()).put([points = points_, number] {
      std::int64_t done = points->done.load();
      while (done < number && !points->done.compare_exchange_weak(done, number)) {
      }
    });
  }
  void wait() override {
    const std::int64_t number = points_->recorded.load();
    if (points_->done.load() >= number) return;
    lanes_.at(memory_.lane()).put_attempts([points = points_, number] {
      return points->done.load() >= number;
    });
  }
  [[nodiscard]] bool done() override { return points_->done.load() >= points_->recorded.load(); }

 private:
  struct Points {
    std::atomic<std::int64_t> recorded{0}, done{0};
  };
  Lanes& lanes_;
  const tensor::Memory& memory_;
  std::shared_ptr<Points> points_ = std::make_shared<Points>();
};

class LaneMark final : public tensor::Mark {
 public:
  LaneMark(Lanes& lanes, const tensor::Memory& memory) : lanes_(lanes), memory_(memory) {}
  void record() override {
    lane_ = memory_.lane();
    lanes_.at(lane_).put([ns = ns_] { *ns = wall_ns(); });
  }
  [[nodiscard]] std::int64_t ns_since(const tensor::Mark& start) const override {
    lanes_.finish(lane_);
    return *ns_ - *dynamic_cast<const LaneMark&>(start).ns_;
  }

 private:
  Lanes& lanes_;
  const tensor::Memory& memory_;
  std::int32_t lane_ = 0;
  std::shared_ptr<std::atomic<std::int64_t>> ns_ = std::make_shared<std::atomic<std::int64_t>>(0);
};

}  // namespace

Lanes::Lanes(Pace pace) : pace_(pace) {
  if (pace_ == Pace::beside) thread_ = std::jthread([this](const std::stop_token& stop) { loop(stop); });
}

Lanes::~Lanes() {
  finish_all();
}

Queue& Lanes::at(std::int32_t lane) {
  const std::lock_guard lock(mutex_);
  return queues_[lane];
}

std::vector<Queue*> Lanes::all() {
  std::vector<Queue*> list;
  const std::lock_guard lock(mutex_);
  for (auto& [lane, queue] : queues_) list.push_back(&queue);
  return list;
}

bool Lanes::step_others(const Queue& mine) {
  for (Queue* queue : all()) {
    if (queue != &mine && queue->step()) return true;
  }
  return false;
}

void Lanes::finish(std::int32_t lane, const tensor::Memory::Check& check) {
  Queue& mine = at(lane);
  const std::int64_t start = wall_ns();
  std::int64_t moved = start, asked = start;
  while (!mine.empty()) {
    {
      const std::lock_guard lock(mutex_);
      if (error_) std::rethrow_exception(error_);
    }
    if (pace_ == Pace::late && (mine.step() || step_others(mine))) {
      moved = wall_ns();
      continue;
    }
    const std::int64_t now = wall_ns();
    if (check && now - asked > kAskAfterNs) {
      asked = now;
      check(now - start);
    }
    TESSERA_CHECK(now - moved < kForEverNs, "work of an emulated device waits for what never comes");
    std::this_thread::sleep_for(std::chrono::microseconds(pace_ == Pace::late ? 200 : 30));
  }
}

void Lanes::finish_all() {
  for (std::int32_t lane = 0;; ++lane) {
    {
      const std::lock_guard lock(mutex_);
      if (queues_.empty() || lane > queues_.rbegin()->first) return;
      if (!queues_.contains(lane)) continue;
    }
    finish(lane);
  }
}

std::unique_ptr<tensor::Event> Lanes::make_event(const tensor::Memory& memory) {
  return std::make_unique<LaneEvent>(*this, memory);
}

std::unique_ptr<tensor::Mark> Lanes::make_mark(const tensor::Memory& memory) {
  return std::make_unique<LaneMark>(*this, memory);
}

// A lane that nobody knows goes on by itself for a while, so that lanes come apart.
void Lanes::loop(const std::stop_token& stop) {
  std::int32_t idle = 0;
  for (std::uint64_t turn = 0; !stop.stop_requested(); ++turn) {
    const std::vector<Queue*> queues = all();
    const auto words = philox(3, 7, turn);
    std::uint64_t steps = 0;
    try {
      if (!queues.empty()) {
        Queue& queue = *queues[words[0] % queues.size()];
        while (steps <= words[1] % 32 && queue.step()) ++steps;
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      return;
    }
    idle = steps > 0 ? 0 : idle + 1;
    if (idle > std::ssize(queues)) std::this_thread::sleep_for(std::chrono::microseconds(30));
  }
}

}  // namespace tessera::emulation
