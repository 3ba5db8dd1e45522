#include "tensor/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/math.h"
#include "base/text.h"

namespace tessera::tensor {

namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;

// Where nothing is queued, every point is reached.
class NoEvent final : public Event {
 public:
  void record() override {}
  void wait() override {}
  [[nodiscard]] bool done() override { return true; }
};

// Where nothing is queued, this thread is the lane.
class ThreadMark final : public Mark {
 public:
  void record() override { ns_ = thread_cpu_ns(); }
  [[nodiscard]] std::int64_t ns_since(const Mark& start) const override {
    return ns_ - dynamic_cast<const ThreadMark&>(start).ns_;
  }

 private:
  std::int64_t ns_ = 0;
};

std::size_t mapped_bytes(Bytes size) {
  return static_cast<std::size_t>(round_up(size.value, size.value >= kHugePage ? kHugePage : 4096));
}

class HostMemory final : public Memory {
 public:
  [[nodiscard]] Device device() const override { return Device::cpu; }

  // Fresh pages cost 2.6 us each in a virtual machine; huge pages are five times cheaper and all are touched
  // here.
  [[nodiscard]] void* allocate(Bytes size, Reach /*reach*/) override {
    const std::size_t n = mapped_bytes(size);
    void* p = ::mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
      throw Error(ErrorKind::io, fmt::format("cannot reserve {} of memory", human(size)), "tensor buffer",
                  "use a smaller model or micro-batch, more recomputation, or a machine with more memory");
    }
    ::madvise(p, n, MADV_HUGEPAGE);
    std::memset(p, 0, n);
    return p;
  }
  void release(void* memory, Bytes size, Reach /*reach*/) noexcept override {
    ::munmap(memory, mapped_bytes(size));
  }
  void synchronise() override {}

 private:
  void do_copy(void* to, const void* from, Bytes size) override {
    std::memmove(to, from, static_cast<std::size_t>(size.value));
  }
  void do_clear(void* at, Bytes size) override { std::memset(at, 0, static_cast<std::size_t>(size.value)); }
};

}  // namespace

std::int32_t Memory::lane() const {
  if (num_inside_.load(std::memory_order_relaxed) == 0) return 0;  // who has entered one sees its own entry
  const std::lock_guard lock(mutex_);
  const auto it =
      std::ranges::find(inside_, std::this_thread::get_id(), &decltype(inside_)::value_type::first);
  return it == inside_.end() ? 0 : it->second;
}

void Memory::enter(std::int32_t lane) {
  const std::thread::id me = std::this_thread::get_id();
  const std::lock_guard lock(mutex_);
  std::erase_if(inside_, [&](const auto& entry) { return entry.first == me; });
  if (lane != 0) inside_.emplace_back(me, lane);
  num_inside_ = static_cast<std::int32_t>(inside_.size());
}

InLane::InLane(Memory& memory, std::int32_t lane) : memory_(memory), before_(memory.lane()) {
  memory_.use_here();
  memory_.enter(lane);
}
InLane::~InLane() {
  memory_.enter(before_);
}

std::unique_ptr<Mark> Memory::make_mark() {
  return std::make_unique<ThreadMark>();
}

std::unique_ptr<Event> Memory::make_event() {
  return std::make_unique<NoEvent>();
}

void Memory::copy(Tensor to, Tensor from) {
  TESSERA_CHECK_EQ(to.bytes().value, from.bytes().value, "a copy keeps the bytes");
  if (to.raw() == from.raw() || to.empty()) return;
  do_copy(to.raw(), from.raw(), to.bytes());
}

void Memory::clear(Tensor t) {
  if (!t.empty()) do_clear(t.raw(), t.bytes());
}

std::shared_ptr<Memory> make_host_memory() {
  return std::make_shared<HostMemory>();
}

Buffer::Buffer(std::shared_ptr<Memory> memory, Bytes size, Reach reach)
    : memory_(std::move(memory)), size_(size), reach_(reach) {
  if (size.value > 0) data_ = static_cast<std::byte*>(memory_->allocate(size, reach));
}

Buffer::Buffer(Buffer&& other) noexcept {
  *this = std::move(other);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(reach_, other.reach_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) memory_->release(data_, size_, reach_);
}

}  // namespace tessera::tensor
