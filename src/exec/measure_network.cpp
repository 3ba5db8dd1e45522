#include "exec/measure_network.h"

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>

#include "base/clock.h"
#include "base/math.h"
#include "comm/worker.h"
#include "exec/measure_collectives.h"
#include "kernels/kernels.h"
#include "tensor/arena.h"

namespace tessera::exec {

namespace {

using tensor::DType;
using tensor::Tensor;

// Rate of a matrix product, and of an all-reduce on the helper thread, each alone and both at once.
class Beside {
 public:
  Beside(comm::Communicator& pair, comm::CommWorker& worker) : pair_(pair), worker_(worker) {
    kernels_->pack(w_);
  }

  void run(graph::MeasuredNetwork& out) {
    (void)products(0.05);
    pair_.barrier();
    const double alone = products(0.3);
    // So many that the reductions last about half a second.
    const double one = reduce(1);
    const double count = std::clamp(0.5 / one, 1.0, 16.0);
    pair_.barrier();
    const auto calls = static_cast<std::int32_t>(sum(count) / 2.0);
    const double reduced_alone = reduce(calls);
    pair_.barrier();
    const comm::CommWorker::Ticket ticket = post(calls);
    const double beside = products_until(ticket);
    worker_.wait(ticket);
    const comm::CommWorker::Timing t = worker_.timing(ticket);
    const double reduced_beside = static_cast<double>(t.end_ns - t.start_ns) * 1e-9;
    out.compute_slowdown = std::max(0.0, 1.0 - sum(beside) / sum(alone));
    out.transfer_slowdown = std::max(0.0, sum(reduced_beside) / sum(reduced_alone) - 1.0);
  }

 private:
  static constexpr std::int64_t kRows = 256, kWide = 512;
  static constexpr std::int64_t kReduced = std::int64_t{4} << 20;  // bytes, as a bucket of gradients

  // Products a second.
  double products(double seconds) {
    const std::int64_t start = wall_ns();
    std::int64_t n = 0;
    do {
      kernels_->linear(y_, x_, w_);
      ++n;
    } while (static_cast<double>(wall_ns() - start) * 1e-9 < seconds);
    return static_cast<double>(n) / (static_cast<double>(wall_ns() - start) * 1e-9);
  }
  double products_until(comm::CommWorker::Ticket ticket) {
    const std::int64_t start = wall_ns();
    std::int64_t n = 0;
    for (; !worker_.done(ticket); ++n) kernels_->linear(y_, x_, w_);
    return static_cast<double>(n) / (static_cast<double>(wall_ns() - start) * 1e-9);
  }
  comm::CommWorker::Ticket post(std::int32_t calls) {
    return worker_.post([comm = &pair_, x = reduced_, calls] {
      for (std::int32_t i = 0; i < calls; ++i) comm->all_reduce(x);
    });
  }
  double reduce(std::int32_t calls) {
    pair_.barrier();
    const comm::CommWorker::Ticket ticket = post(calls);
    worker_.wait(ticket);
    const comm::CommWorker::Timing t = worker_.timing(ticket);
    return static_cast<double>(t.end_ns - t.start_ns) * 1e-9;
  }
  // Over both ranks.
  double sum(double value) {
    *one_.as<double>() = value;
    pair_.all_reduce_direct(one_, comm::Op::sum);
    return *one_.as<double>();
  }

  comm::Communicator& pair_;
  comm::CommWorker& worker_;
  std::unique_ptr<kernels::Kernels> kernels_ = kernels::make_cpu();
  tensor::Arena arena_{Bytes(std::int64_t{16} << 20)};
  Tensor x_ = arena_.take(DType::f32, {kRows, kWide}), y_ = arena_.take(DType::f32, {kRows, kWide});
  Tensor reduced_ = arena_.take(DType::f32, {kReduced / 4});
  Tensor one_ = arena_.take(DType::f64, {1});
  kernels::Weight w_{arena_.take(DType::f32, {kWide, kWide}),
                     arena_.take(DType::u8, {kernels_->packed_bytes(DType::f32, kWide, kWide).value})};
};

// The fastest of a few all-reduces of all ranks: one ring, and by hosts.
class AllReduces {
 public:
  AllReduces(comm::Communicator& all, comm::Communicator& inside, comm::Communicator& across)
      : all_(all), inside_(inside), across_(across) {}

  void run(graph::MeasuredNetwork& out) {
    out.reduced = Bytes(kReduced);
    out.flat_all_reduce = fastest([&] { all_.all_reduce(x_); });
    const Tensor own = x_.narrow_rows(inside_.rank() * part_, part_);
    out.hierarchical_all_reduce = fastest([&] {
      inside_.reduce_scatter(own, x_);
      across_.all_reduce(own);
      inside_.all_gather(x_, own);
    });
  }

 private:
  static constexpr std::int64_t kReduced = std::int64_t{4} << 20;  // bytes, as a bucket of gradients

  template <class Reduce>
  Seconds fastest(const Reduce& reduce) {
    std::int64_t best = 0;
    for (std::int32_t i = 0; i < 8; ++i) {
      all_.barrier();
      const std::int64_t start = wall_ns();
      reduce();
      const std::int64_t took = wall_ns() - start;
      best = i == 0 ? took : std::min(best, took);
    }
    return Seconds(static_cast<double>(best) * 1e-9);
  }

  comm::Communicator& all_;
  comm::Communicator& inside_;
  comm::Communicator& across_;
  tensor::Arena arena_{Bytes(kReduced + 4096)};
  std::int64_t part_ = kReduced / 4 / inside_.size();
  Tensor x_ = arena_.take(DType::f32, {part_ * inside_.size()});
};

}  // namespace

graph::MeasuredNetwork measure_network(comm::World& world, std::int32_t hosts,
                                       const NetworkOptions& options) {
  graph::MeasuredNetwork out;
  out.hosts = hosts;
  out.ranks_per_host = static_cast<std::int32_t>(div_exact(world.size(), hosts));
  const std::array<Rank, 2> pair = {Rank(0), Rank(out.ranks_per_host)};
  std::mutex mutex;
  world.run([&](Rank rank) {
    std::vector<Rank> everyone;
    for (std::int32_t r = 0; r < world.size(); ++r) everyone.emplace_back(r);
    const auto all = world.communicator(rank, everyone, "all");
    graph::MeasuredNetwork mine;
    if (rank == pair[0] || rank == pair[1]) {
      comm::CommWorker worker({.on_unwind = [&] { world.abort(rank, "left while its reductions ran"); }});
      const auto comm = world.communicator(rank, pair, "pair");
      mine.ops = measure_collectives(
          *comm,
          {.seconds = options.seconds, .kib = {4, 256, 512, 1024, 4096}, .repeats = 1, .acknowledged = true});
      Beside(*comm, worker).run(mine);
    }
    all->barrier();
    if (out.ranks_per_host > 1) {
      const std::int32_t host = rank.value / out.ranks_per_host, seat = rank.value % out.ranks_per_host;
      std::vector<Rank> inside, across;
      for (std::int32_t r = 0; r < out.ranks_per_host; ++r)
        inside.emplace_back(host * out.ranks_per_host + r);
      for (std::int32_t h = 0; h < hosts; ++h) across.emplace_back(h * out.ranks_per_host + seat);
      AllReduces(*all, *world.communicator(rank, inside, "inside"),
                 *world.communicator(rank, across, "across"))
          .run(mine);
    }
    const std::lock_guard lock(mutex);
    if (rank == pair[0] || rank == pair[1]) {
      out.ops = std::move(mine.ops);
      out.compute_slowdown = mine.compute_slowdown;
      out.transfer_slowdown = mine.transfer_slowdown;
    }
    if (rank.value == 0) {
      out.reduced = mine.reduced;
      out.flat_all_reduce = mine.flat_all_reduce;
      out.hierarchical_all_reduce = mine.hierarchical_all_reduce;
    }
  });
  return out;
}

}  // namespace tessera::exec
