#include "exec/measure_collectives.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/clock.h"
#include "tensor/arena.h"

namespace tessera::exec {

namespace {

using tensor::DType;
using tensor::Tensor;

constexpr std::int64_t kElement = 4;
constexpr std::int64_t kTurned = std::int64_t{4} << 20;  // bytes of the tensors that take turns
constexpr std::int64_t kLeastTimings = 3;

class Collectives {
 public:
  Collectives(comm::Communicator& comm, const CollectiveOptions& options)
      : comm_(comm),
        options_(options),
        arena_(Bytes(3 * std::max(kTurned, *std::ranges::max_element(options.kib) * 1024) + 4096)) {}

  std::vector<graph::MeasuredOp> run() {
    for (const std::int64_t kib : options_.kib) sizes(kib * 1024 / kElement);
    return std::move(ops_);
  }

 private:
  // n: elements of the whole tensor. Tensors take turns over more memory than a core's own cache has.
  void sizes(std::int64_t n) {
    using graph::Call;
    const std::int64_t ranks = comm_.size(), part = n / ranks;
    const std::int64_t turns = std::clamp<std::int64_t>(kTurned / (n * kElement), 1, 64);
    arena_.release({});
    const Tensor wholes = arena_.take(DType::f32, {turns, n}), others = arena_.take(DType::f32, {turns, n});
    const Tensor pieces = arena_.take(DType::f32, {turns, part});
    const auto turn = [&](const Tensor& t, std::int64_t i) { return t.narrow_rows(i % turns, 1).flat(); };
    const Bytes sent((ranks - 1) * part * kElement);
    time(Call::all_gather, sent, [&](std::int64_t i) { comm_.all_gather(turn(wholes, i), turn(pieces, i)); });
    time(Call::reduce_scatter, sent,
         [&](std::int64_t i) { comm_.reduce_scatter(turn(pieces, i), turn(wholes, i)); });
    time(Call::all_reduce, Bytes(2 * sent.value), [&](std::int64_t i) { comm_.all_reduce(turn(wholes, i)); });
    const std::vector<std::int64_t> rows(static_cast<std::size_t>(ranks), part);
    time(Call::all_to_all_v, sent,
         [&](std::int64_t i) { comm_.all_to_all_v(turn(others, i), rows, turn(wholes, i), rows); });
    if (ranks != 2) return;
    time(Call::send, Bytes(n * kElement), [&](std::int64_t i) {
      if (comm_.rank() == 0) {
        comm_.send(turn(wholes, i), 1, i);
        comm_.wait_send(1, i);
        if (options_.acknowledged) comm_.recv(best_, 1, i);
      } else {
        comm_.recv(turn(wholes, i), 0, i);
        if (!options_.acknowledged) return;
        comm_.send(best_, 0, i);
        comm_.wait_send(0, i);
      }
    });
  }

  template <class Work>
  void time(graph::Call call, Bytes sent, Work work) {
    double best = std::numeric_limits<double>::infinity();
    std::int64_t count = 0, timings = 0;
    const std::int64_t start = wall_ns();
    do {
      comm_.barrier();
      const std::int64_t from = wall_ns();
      for (std::int32_t i = 0; i < options_.repeats; ++i) work(count++);
      best = std::min(best, static_cast<double>(wall_ns() - from) * 1e-9 / options_.repeats);
      // Rank 0 decides for all.
      const double spent = static_cast<double>(wall_ns() - start) * 1e-9;
      *go_on_.as<std::int64_t>() =
          comm_.rank() == 0 && (spent < options_.seconds.value || ++timings < kLeastTimings) ? 1 : 0;
      comm_.all_reduce_direct(go_on_, comm::Op::sum);
    } while (*go_on_.as<std::int64_t>() > 0);
    *best_.as<double>() = comm_.rank() == 0 ? best : 0.0;
    comm_.all_reduce_direct(best_, comm::Op::sum);
    graph::Op op;
    op.name = std::string(graph::name(call));
    op.kind = graph::OpKind::collective;
    op.call = call;
    op.bytes_sent = sent;
    op.calls = 1;
    ops_.push_back({.op = std::move(op), .ranks = comm_.size(), .seconds = Seconds(*best_.as<double>())});
  }

  comm::Communicator& comm_;
  const CollectiveOptions& options_;
  tensor::Arena arena_;
  tensor::Arena own_{Bytes(4096)};
  Tensor go_on_ = own_.take(DType::i64, {1});
  Tensor best_ = own_.take(DType::f64, {1});
  std::vector<graph::MeasuredOp> ops_;
};

}  // namespace

std::vector<graph::MeasuredOp> measure_collectives(comm::Communicator& comm,
                                                   const CollectiveOptions& options) {
  return Collectives(comm, options).run();
}

}  // namespace tessera::exec
