#include "tensor/arena.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/math.h"
#include "base/text.h"

namespace tessera::tensor {

namespace {
constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
}

Buffer::Buffer(Bytes size) : size_(size) {
  if (size.value == 0) return;
  // Fresh pages cost 2.6 us each in a virtual machine; huge pages are five times cheaper and all are touched
  // here.
  mapped_ = Bytes(round_up(size.value, size.value >= kHugePage ? kHugePage : 4096));
  const auto n = static_cast<std::size_t>(mapped_.value);
  void* p = ::mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    throw Error(ErrorKind::io, fmt::format("cannot reserve {} of memory", human(size)), "tensor buffer",
                "use a smaller model or micro-batch, more recomputation, or a machine with more memory");
  }
  ::madvise(p, n, MADV_HUGEPAGE);
  std::memset(p, 0, n);
  data_ = static_cast<std::byte*>(p);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, Bytes(0))),
      mapped_(std::exchange(other.mapped_, Bytes(0))) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr) ::munmap(data_, static_cast<std::size_t>(mapped_.value));
}

Arena::Arena(Bytes capacity) : buffer_(Bytes(std::max<std::int64_t>(capacity.value, kAlignment))) {}

Tensor Arena::take(DType dtype, Shape shape) {
  const std::int64_t n = round_up(shape.num_elements() * size_of(dtype), kAlignment);
  const std::int64_t begin = used_;
  if (!counting() && begin + n > buffer_.size().value) {
    throw Error(ErrorKind::internal,
                fmt::format("arena of {} is too small: {} used, {} more asked for", human(buffer_.size()),
                            human(Bytes(begin)), human(Bytes(n))),
                fmt::format("tensor {} {}", name(dtype), shape.text()),
                "this is a defect of Tessera's memory plan: please report it with the job");
  }
  used_ += n;
  peak_ = std::max(peak_, used_);
  return {counting() ? nullptr : buffer_.data() + begin, dtype, shape};
}

void Arena::release(std::int64_t mark) {
  TESSERA_CHECK(mark >= 0 && mark <= used_, "arena released out of order");
  used_ = mark;
}

}  // namespace tessera::tensor
