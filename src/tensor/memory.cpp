#include "tensor/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "base/math.h"
#include "base/text.h"

namespace tessera::tensor {

namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;

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
