#include "tensor/arena.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/math.h"
#include "base/text.h"

namespace tessera::tensor {

namespace {

// Not empty even for nothing, so that it is no counting arena.
Bytes at_least_one(Bytes size) {
  return Bytes(std::max(size.value, kAlignment));
}

bool is_integer(DType dtype) {
  return dtype == DType::i32 || dtype == DType::i64;
}

}  // namespace

ArenaSize ArenaSize::join(const ArenaSize& other) const {
  return {.all = std::max(all, other.all),
          .own = std::max(own, other.own),
          .shared = std::max(shared, other.shared)};
}

Arena::Arena(Bytes capacity) {
  buffers_[0] = Buffer(at_least_one(capacity));
}

Arena::Arena(const std::shared_ptr<Memory>& memory, const ArenaSize& size) : device_(memory->device()) {
  const bool host = device_ == Device::cpu;
  buffers_[0] = Buffer(memory, at_least_one(host ? size.all : size.own), Reach::own);
  if (!host) buffers_[1] = Buffer(memory, at_least_one(size.shared), Reach::shared);
}

Tensor Arena::take(DType dtype, Shape shape) {
  return take(is_integer(dtype) ? Reach::shared : Reach::own, dtype, shape);
}

Tensor Arena::take_shared(DType dtype, Shape shape) {
  return take(Reach::shared, dtype, shape);
}

Tensor Arena::take(Reach reach, DType dtype, const Shape& shape) {
  const Bytes n(round_up(shape.num_elements() * size_of(dtype), kAlignment));
  const bool host = device_ == Device::cpu;
  const Buffer& buffer = buffers_[!host && reach == Reach::shared ? 1 : 0];
  Bytes& part = reach == Reach::shared ? used_.shared : used_.own;
  const Bytes begin = host ? used_.all : part;
  if (!counting() && begin + n > buffer.size()) {
    throw Error(ErrorKind::internal,
                fmt::format("arena of {} is too small: {} used, {} more asked for", human(buffer.size()),
                            human(begin), human(n)),
                fmt::format("tensor {} {}", name(dtype), shape.text()),
                "this is a defect of Tessera's memory plan: please report it with the job");
  }
  part += n;
  used_.all += n;
  peak_ = peak_.join(used_);
  return {counting() ? nullptr : buffer.data() + begin.value, dtype, shape,
          reach == Reach::shared ? Device::cpu : device_};
}

void Arena::release(const ArenaSize& mark) {
  const auto before = [](Bytes a, Bytes b) { return a.value >= 0 && a <= b; };
  TESSERA_CHECK(
      before(mark.all, used_.all) && before(mark.own, used_.own) && before(mark.shared, used_.shared),
      "arena released out of order");
  used_ = mark;
}

void Arena::cover(const ArenaSize& end) {
  used_ = used_.join(end);
  peak_ = peak_.join(used_);
}

}  // namespace tessera::tensor
