#include "comm/communicator.h"

#include <fmt/format.h>

#include "base/clock.h"
#include "base/math.h"
#include "comm/chunks.h"

namespace tessera::comm {

using tensor::DType;

std::string_view name(Call call) {
  switch (call) {
    case Call::all_reduce:
      return "all_reduce";
    case Call::all_reduce_direct:
      return "all_reduce_direct";
    case Call::reduce_scatter:
      return "reduce_scatter";
    case Call::all_gather:
      return "all_gather";
    case Call::all_gather_v:
      return "all_gather_v";
    case Call::reduce_scatter_v:
      return "reduce_scatter_v";
    case Call::all_to_all_v:
      return "all_to_all_v";
    case Call::send:
      return "send";
    case Call::recv:
      return "recv";
    case Call::broadcast:
      return "broadcast";
    case Call::barrier:
      return "barrier";
  }
  return "unknown";
}

namespace {

// Checks of one call. A wrong argument is a defect of the caller, so every fault is Error{internal}, raised
// before any other rank is involved.
class Checker {
 public:
  Checker(const Communicator& comm, Call call) : comm_(comm), call_(call) {}

  [[noreturn]] void fail(std::string what, std::string mend) const {
    throw Error(ErrorKind::internal, std::move(what),
                fmt::format("{} {}, rank {} of {}", comm_.label(), name(call_), comm_.rank(), comm_.size()),
                std::move(mend));
  }
  void memory(const Tensor& x, std::string_view which) const {
    if (!comm_.moves(x.device()))
      fail(fmt::format("`{}` lies on a device, but this communicator moves host memory", which),
           "pass a tensor in host memory");
    if (x.raw() == nullptr && x.num_elements() > 0)
      fail(fmt::format("`{}` {} has no memory", which, x.shape().text()),
           "do not communicate tensors of a counting arena");
  }
  void sums(const Tensor& x, bool integers) const {
    const bool real = x.dtype() == DType::f64 || x.dtype() == DType::f32;
    const bool whole = x.dtype() == DType::i64 || x.dtype() == DType::i32;
    const bool narrow = x.dtype() == DType::bf16 && x.device() != tensor::Device::cpu && !integers;
    if (real || narrow || (integers && whole)) return;
    fail(fmt::format("dtype {} cannot be summed by this call", tensor::name(x.dtype())),
         integers ? "use f64, f32, i64 or i32" : "use f64 or f32");
  }
  void same_dtype(const Tensor& a, const Tensor& b) const {
    if (a.dtype() != b.dtype())
      fail(fmt::format("out is {} but in is {}", tensor::name(a.dtype()), tensor::name(b.dtype())),
           "use one dtype on both sides");
  }
  // Elements of `whole` = size x elements of `part`.
  void parts(const Tensor& whole, const Tensor& part, std::string_view whole_name,
             std::string_view part_name) const {
    same_dtype(whole, part);
    if (whole.num_elements() == part.num_elements() * comm_.size()) return;
    fail(fmt::format("`{}` {} is not {} times `{}` {}", whole_name, whole.shape().text(), comm_.size(),
                     part_name, part.shape().text()),
         fmt::format("`{}` must hold {} equal parts", whole_name, comm_.size()));
  }
  [[nodiscard]] std::int64_t total(std::span<const std::int64_t> rows, std::string_view which) const {
    if (std::ssize(rows) != comm_.size())
      fail(fmt::format("`{}` has {} counts for {} ranks", which, rows.size(), comm_.size()),
           "pass one row count per rank");
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if (rows[i] < 0)
        fail(fmt::format("`{}`[{}] = {} is negative", which, i, rows[i]), "pass row counts of 0 or more");
      sum += rows[i];
    }
    return sum;
  }
  void rows(const Tensor& x, std::int64_t want, std::string_view which) const {
    if (x.shape().num_dims() < 1 || x.rows() != want)
      fail(fmt::format("`{}` {} must have {} rows", which, x.shape().text(), want),
           "make dim 0 the sum of the row counts");
  }
  void same_row(const Tensor& a, const Tensor& b) const {
    same_dtype(a, b);
    if (a.row_elements() != b.row_elements())
      fail(fmt::format("rows differ: out {} and in {}", a.shape().text(), b.shape().text()),
           "give both sides the same dims after dim 0");
  }
  void peer(std::int32_t rank) const {
    if (rank < 0 || rank >= comm_.size() || rank == comm_.rank())
      fail(fmt::format("peer {} is not another rank of this group", rank),
           fmt::format("use a group rank from 0 to {} other than {}", comm_.size() - 1, comm_.rank()));
  }

 private:
  const Communicator& comm_;
  Call call_;
};

// Counts one call, also when it throws, and tells the listener.
class Meter {
 public:
  Meter(const Communicator& comm, CallListener* listener, Counters& counters, Call call, std::int64_t bytes)
      : comm_(comm),
        listener_(listener),
        count_(counters[static_cast<std::size_t>(call)]),
        call_(call),
        bytes_(bytes),
        start_(tessera::wall_ns()) {
    count_.calls += 1;
    count_.bytes_sent += Bytes(bytes);
  }
  ~Meter() {
    const std::int64_t end = tessera::wall_ns();
    count_.wall_ns += end - start_;
    if (listener_ != nullptr) listener_->on_call(comm_, call_, Bytes(bytes_), start_, end);
  }
  Meter(const Meter&) = delete;
  Meter& operator=(const Meter&) = delete;

 private:
  const Communicator& comm_;
  CallListener* listener_;
  CallCount& count_;
  Call call_;
  std::int64_t bytes_;
  std::int64_t start_;
};

std::int64_t row_bytes(const Tensor& x) {
  return x.row_elements() * tensor::size_of(x.dtype());
}

}  // namespace

std::int64_t ring_elements_sent(std::int64_t elements, std::int32_t rank, std::int32_t size) {
  if (size == 1) return 0;
  const Chunks chunks(elements, size);
  return 2 * elements - chunks.count(rank) - chunks.count((rank + 1) % size);
}

Bytes Communicator::bytes_sent() const {
  Bytes sum;
  for (const CallCount& c : counters_) sum += c.bytes_sent;
  return sum;
}
std::int64_t Communicator::wall_ns() const {
  std::int64_t sum = 0;
  for (const CallCount& c : counters_) sum += c.wall_ns;
  return sum;
}

void Communicator::all_reduce(Tensor x) {
  const Checker check(*this, Call::all_reduce);
  check.memory(x, "x");
  check.sums(x, false);
  const Meter meter(*this, listener_, counters_, Call::all_reduce,
                    ring_elements_sent(x.num_elements(), rank_, size_) * tensor::size_of(x.dtype()));
  do_all_reduce(x);
}

void Communicator::all_reduce_direct(Tensor x, Op op) {
  const Checker check(*this, Call::all_reduce_direct);
  check.memory(x, "x");
  check.sums(x, true);
  const Meter meter(*this, listener_, counters_, Call::all_reduce_direct, (size_ - 1) * x.bytes().value);
  do_all_reduce_direct(x, op);
}

void Communicator::reduce_scatter(Tensor out, Tensor in) {
  const Checker check(*this, Call::reduce_scatter);
  check.memory(out, "out");
  check.memory(in, "in");
  check.sums(in, false);
  check.parts(in, out, "in", "out");
  const Meter meter(*this, listener_, counters_, Call::reduce_scatter, (size_ - 1) * out.bytes().value);
  do_reduce_scatter(out, in);
}

void Communicator::all_gather(Tensor out, Tensor in) {
  const Checker check(*this, Call::all_gather);
  check.memory(out, "out");
  check.memory(in, "in");
  check.parts(out, in, "out", "in");
  const Meter meter(*this, listener_, counters_, Call::all_gather, (size_ - 1) * in.bytes().value);
  do_all_gather(out, in);
}

void Communicator::all_gather_v(Tensor out, Tensor in, std::span<const std::int64_t> rows) {
  const Checker check(*this, Call::all_gather_v);
  check.memory(out, "out");
  check.memory(in, "in");
  check.rows(out, check.total(rows, "rows"), "out");
  check.rows(in, rows[static_cast<std::size_t>(rank_)], "in");
  check.same_row(out, in);
  const Meter meter(*this, listener_, counters_, Call::all_gather_v, (size_ - 1) * in.bytes().value);
  do_all_gather_v(out, in, rows);
}

void Communicator::reduce_scatter_v(Tensor out, Tensor in, std::span<const std::int64_t> rows) {
  const Checker check(*this, Call::reduce_scatter_v);
  check.memory(out, "out");
  check.memory(in, "in");
  check.sums(in, false);
  check.rows(in, check.total(rows, "rows"), "in");
  check.rows(out, rows[static_cast<std::size_t>(rank_)], "out");
  check.same_row(out, in);
  const Meter meter(*this, listener_, counters_, Call::reduce_scatter_v,
                    in.bytes().value - out.bytes().value);
  do_reduce_scatter_v(out, in, rows);
}

void Communicator::all_to_all_v(Tensor out, std::span<const std::int64_t> recv_rows, Tensor in,
                                std::span<const std::int64_t> send_rows) {
  const Checker check(*this, Call::all_to_all_v);
  check.memory(out, "out");
  check.memory(in, "in");
  check.rows(out, check.total(recv_rows, "recv_rows"), "out");
  const std::int64_t sent = check.total(send_rows, "send_rows");
  check.rows(in, sent, "in");
  check.same_row(out, in);
  const std::int64_t own = send_rows[static_cast<std::size_t>(rank_)];
  if (const std::int64_t back = recv_rows[static_cast<std::size_t>(rank_)]; own != back)
    check.fail(fmt::format("this rank sends {} rows to itself but receives {}", own, back),
               "send_rows[rank] and recv_rows[rank] must be equal");
  const Meter meter(*this, listener_, counters_, Call::all_to_all_v, (sent - own) * row_bytes(in));
  do_all_to_all_v(out, recv_rows, in, send_rows);
}

void Communicator::send(Tensor x, std::int32_t to, std::int64_t tag) {
  const Checker check(*this, Call::send);
  check.memory(x, "x");
  check.peer(to);
  const Meter meter(*this, listener_, counters_, Call::send, x.bytes().value);
  do_send(x, to, tag);
}

void Communicator::recv(Tensor x, std::int32_t from, std::int64_t tag) {
  const Checker check(*this, Call::recv);
  check.memory(x, "x");
  check.peer(from);
  const Meter meter(*this, listener_, counters_, Call::recv, 0);
  do_recv(x, from, tag);
}

void Communicator::wait_send(std::int32_t to, std::int64_t tag) {
  Checker(*this, Call::send).peer(to);
  // Waiting is part of the send that it ends: time, but no further call.
  CallCount& count = counters_[static_cast<std::size_t>(Call::send)];
  const std::int64_t start = tessera::wall_ns();
  do_wait_send(to, tag);
  count.wall_ns += tessera::wall_ns() - start;
}

void Communicator::broadcast(Tensor x, std::int32_t root) {
  const Checker check(*this, Call::broadcast);
  check.memory(x, "x");
  if (root < 0 || root >= size_)
    check.fail(fmt::format("root {} is not a rank of this group", root),
               fmt::format("use a group rank from 0 to {}", size_ - 1));
  const Meter meter(*this, listener_, counters_, Call::broadcast,
                    root == rank_ ? (size_ - 1) * x.bytes().value : 0);
  do_broadcast(x, root);
}

void Communicator::barrier() {
  const Meter meter(*this, listener_, counters_, Call::barrier, 0);
  do_barrier();
}

}  // namespace tessera::comm
