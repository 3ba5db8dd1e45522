#include "exec/measure_machine.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <utility>

#include "base/clock.h"
#include "base/random.h"
#include "comm/thread_world.h"
#include "comm/worker.h"
#include "exec/measure_collectives.h"
#include "kernels/kernels.h"
#include "kernels/peak.h"
#include "tensor/arena.h"

namespace tessera::exec {

namespace {

using graph::MeasuredOp;
using kernels::Weight;
using tensor::DType;
using tensor::Shape;
using tensor::Tensor;

constexpr std::int64_t kElement = 4;
// Sets of operands that take turns, so that a kernel finds its operands where training leaves them: in the
// last cache or in memory, not in the core's own.
constexpr std::int32_t kSets = 6;
constexpr double kShortest = 200e-6;  // of one timing

graph::Op memory_op(std::string name, std::int64_t elements) {
  graph::Op op;
  op.name = std::move(name);
  op.kind = graph::OpKind::memory;
  op.bytes_moved = Bytes(elements * kElement);
  return op;
}

graph::Op product_op(std::string name, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t groups) {
  graph::Op op;
  op.name = std::move(name);
  op.kind = graph::OpKind::gemm;
  op.gemm = {.m = m, .n = n, .k = k, .groups = groups};
  op.flops = Flops(2 * m * n * k * groups);
  op.bytes_moved = Bytes(groups * (m * n + m * k + n * k) * kElement);
  return op;
}

// Measures on one core; every core has one and all do the same, op by op.
class Core {
 public:
  Core(comm::Communicator& all, double seconds_per_op) : all_(all), seconds_(seconds_per_op) {}

  void run() {
    calls();
    products();
    experts();
    attention();
    rows();
    mixture_rows();
    losses();
    optimizer();
  }
  [[nodiscard]] const std::vector<MeasuredOp>& ops() const { return ops_; }

 private:
  // Best CPU seconds of one work(i); long kernels are called twice in a timing, short ones many times.
  template <class Work>
  void time(graph::Op op, Work work) {
    all_.barrier();
    const auto once = [&](std::int64_t repeats) {
      const std::int64_t start = thread_cpu_ns();
      for (std::int64_t i = 0; i < repeats; ++i) work(static_cast<std::int32_t>(i % kSets));
      return static_cast<double>(thread_cpu_ns() - start) * 1e-9 / static_cast<double>(repeats);
    };
    const double rough = std::max(1e-8, once(2));
    const std::int64_t sets = rough > kShortest ? 2 : kSets;
    const std::int64_t repeats =
        std::max<std::int64_t>(sets, static_cast<std::int64_t>(kShortest / rough / kSets) * kSets);
    double best = rough;
    const std::int64_t start = wall_ns();
    do {
      best = std::min(best, once(repeats));
    } while (static_cast<double>(wall_ns() - start) * 1e-9 < seconds_);
    ops_.push_back({.op = std::move(op), .ranks = 1, .seconds = Seconds(best)});
  }

  Tensor take(Shape shape, double scale = 1.0) {
    const Tensor t = arena_.take(DType::f32, shape);
    float* x = t.as<float>();
    for (std::int64_t i = 0; i < t.num_elements(); ++i) {
      x[i] = static_cast<float>(scale * (static_cast<double>(i * 2654435761 % 1000) * 0.002 - 1.0));
    }
    return t;
  }
  std::array<Tensor, kSets> sets(Shape shape) {
    std::array<Tensor, kSets> out;
    for (Tensor& t : out) t = take(shape);
    return out;
  }
  Weight weight(std::int64_t n, std::int64_t k) {
    Weight w{take({n, k}, 0.05), {}};
    const Bytes size = kernels_->packed_bytes(DType::f32, n, k);
    if (size.value > 0) w.packed = arena_.take(DType::u8, {size.value});
    kernels_->pack(w);
    return w;
  }

  void calls() {
    const tensor::Frame frame(arena_);
    const Tensor x = take({1, 16});
    time(memory_op("call", 0), [&](std::int32_t) { kernels_->fill(x, 0.0); });
  }

  void products() {
    struct Size {
      std::int64_t t, k, n;
    };
    for (const Size& s : {Size{256, 768, 2304}, Size{1024, 768, 4096}, Size{1024, 2048, 768},
                          Size{512, 512, 512}, Size{512, 512, 8192}, Size{128, 512, 2048}}) {
      const tensor::Frame frame(arena_);
      const std::array<Weight, 2> w = {weight(s.n, s.k), weight(s.n, s.k)};
      const std::array<Tensor, 2> x = {take({s.t, s.k}), take({s.t, s.k})};
      const std::array<Tensor, 2> y = {take({s.t, s.n}), take({s.t, s.n})};
      const auto turn = [](std::int32_t i) { return static_cast<std::size_t>(i % 2); };
      time(product_op("forward", s.t, s.n, s.k, 1),
           [&](std::int32_t i) { kernels_->linear(y[turn(i)], x[turn(i)], w[turn(i)]); });
      time(product_op("input gradient", s.t, s.k, s.n, 1),
           [&](std::int32_t i) { kernels_->linear_dgrad(x[turn(i)], y[turn(i)], w[turn(i)]); });
      const std::array<Tensor, 2> dw = {take({s.n, s.k}), take({s.n, s.k})};
      const Tensor dy = take({s.t, s.n}, 1e-3);
      time(product_op("weight gradient", s.n, s.k, s.t, 1),
           [&](std::int32_t i) { kernels_->linear_wgrad(dw[turn(i)], dy, x[turn(i)]); });
    }
  }

  // One product an expert, as mixtures run them.
  void experts() {
    constexpr std::int64_t kExperts = 8, kHidden = 512, kWide = 2048;
    for (const std::int64_t rows : {64, 256}) {
      const tensor::Frame frame(arena_);
      std::vector<Weight> w;
      std::vector<Tensor> dw;
      for (std::int64_t e = 0; e < kExperts; ++e) {
        w.push_back(weight(kWide, kHidden));
        dw.push_back(take({kWide, kHidden}));
      }
      const Tensor x = take({kExperts * rows, kHidden}), y = take({kExperts * rows, kWide}, 1e-3);
      const auto each = [&](const auto& f) {
        for (std::int64_t e = 0; e < kExperts; ++e) {
          f(static_cast<std::size_t>(e), x.narrow_rows(e * rows, rows), y.narrow_rows(e * rows, rows));
        }
      };
      time(product_op("weight gradient", kWide, kHidden, rows, kExperts), [&](std::int32_t) {
        each([&](std::size_t e, Tensor xs, Tensor ys) { kernels_->linear_wgrad(dw[e], ys, xs); });
      });
      time(product_op("forward", rows, kWide, kHidden, kExperts), [&](std::int32_t) {
        each([&](std::size_t e, Tensor xs, Tensor ys) { kernels_->linear(ys, xs, w[e]); });
      });
      time(product_op("input gradient", rows, kHidden, kWide, kExperts), [&](std::int32_t) {
        each([&](std::size_t e, Tensor xs, Tensor ys) { kernels_->linear_dgrad(xs, ys, w[e]); });
      });
    }
  }

  void attention() {
    constexpr std::int64_t kHeads = 8, kDim = 64;
    for (const auto& [batch, seq] : {std::pair<std::int64_t, std::int64_t>{8, 64}, {4, 256}, {1, 1024}}) {
      const tensor::Frame frame(arena_);
      const kernels::AttentionShape shape{
          .batch = batch, .seq = seq, .heads = kHeads, .kv_heads = kHeads, .head_dim = kDim, .scale = 0.125};
      const Tensor qkv = take({batch * seq, shape.qkv_dim()}), out = take({batch * seq, shape.q_dim()});
      const Tensor lse = take({batch * seq, kHeads}), dqkv = take({batch * seq, shape.qkv_dim()});
      const Tensor dout = take({batch * seq, shape.q_dim()});
      graph::Op op;
      op.name = "attention";
      op.kind = graph::OpKind::attention;
      op.attention = {.batch = batch,
                      .heads = kHeads,
                      .kv_heads = kHeads,
                      .queries = seq,
                      .keys = static_cast<double>(seq + 1) / 2.0,
                      .qk_dim = kDim,
                      .v_dim = kDim};
      time(op, [&](std::int32_t) { kernels_->attention(out, lse, qkv, shape); });
      op.name = "attention backward";
      time(op, [&](std::int32_t) { kernels_->attention_backward(dqkv, dout, qkv, out, lse, shape); });
    }
  }

  // Norm, rotation, activation and sums of a dense layer. Elements moved as the graph counts them.
  void rows() {
    constexpr std::int64_t kTokens = 512, kHidden = 768, kWide = 2048;
    const tensor::Frame frame(arena_);
    const kernels::AttentionShape shape{
        .batch = 2, .seq = 256, .heads = 12, .kv_heads = 12, .head_dim = 64, .scale = 0.125};
    const auto x = sets({kTokens, kHidden}), y = sets({kTokens, kHidden});
    const auto wide = sets({kTokens, 2 * kWide}), half = sets({kTokens, kWide});
    const auto qkv = sets({kTokens, 3 * kHidden});
    const Tensor rstd = take({kTokens}), w = take({kHidden}), dw = take({kHidden});
    const Tensor cos = take({shape.seq, 32}), sin = take({shape.seq, 32});
    const std::int64_t n = kTokens * kHidden;
    const auto set = [](const std::array<Tensor, kSets>& t, std::int32_t i) { return t[std::size_t(i)]; };
    time(memory_op("norm", 2 * n),
         [&](std::int32_t i) { kernels_->rms_norm(set(y, i), rstd, set(x, i), w, 1e-5); });
    time(memory_op("norm backward", 4 * n), [&](std::int32_t i) {
      kernels_->rms_norm_dgrad(set(y, i), set(x, i), set(x, (i + 1) % kSets), rstd, w,
                               kernels::Write::accumulate);
    });
    time(memory_op("norm wgrad", 2 * n),
         [&](std::int32_t i) { kernels_->rms_norm_wgrad(dw, set(y, i), set(x, i), rstd); });
    time(memory_op("rope", 2 * 2 * n),
         [&](std::int32_t i) { kernels_->rope(set(qkv, i), cos, sin, shape, false); });
    time(memory_op("swiglu", 3 * kTokens * kWide),
         [&](std::int32_t i) { kernels_->swiglu(set(half, i), set(wide, i)); });
    time(memory_op("swiglu backward", 5 * kTokens * kWide), [&](std::int32_t i) {
      kernels_->swiglu_backward(set(wide, (i + 1) % kSets), set(half, i), set(wide, i));
    });
    time(memory_op("add", 3 * n), [&](std::int32_t i) { kernels_->add(set(y, i), set(y, i), set(x, i)); });
  }

  void mixture_rows() {
    constexpr std::int64_t kTokens = 512, kTop = 2, kHidden = 512, kExperts = 8;
    const tensor::Frame frame(arena_);
    const auto x = sets({kTokens, kHidden}), rows = sets({kTokens * kTop, kHidden});
    const Tensor logits = take({kTokens, kExperts}), probs = take({kTokens, kExperts});
    const Tensor lse = take({kTokens}), weights = take({kTokens, kTop}), dweights = take({kTokens, kTop});
    const Tensor index = arena_.take(DType::i32, {kTokens, kTop});
    const Tensor token = arena_.take(DType::i32, {kTokens * kTop});
    for (std::int64_t r = 0; r < kTokens * kTop; ++r) {
      const auto position = static_cast<std::int32_t>(r * 5 % (kTokens * kTop));
      index.as<std::int32_t>()[r] = position;
      token.as<std::int32_t>()[position] = static_cast<std::int32_t>(r / kTop);
    }
    const std::int64_t n = kTokens * kHidden, sent = kTop * n;
    const auto set = [](const std::array<Tensor, kSets>& t, std::int32_t i) { return t[std::size_t(i)]; };
    time(memory_op("gather rows", 2 * sent),
         [&](std::int32_t i) { kernels_->gather_rows(set(rows, i), set(x, i), token); });
    time(memory_op("combine", 2 * n + sent), [&](std::int32_t i) {
      kernels_->combine(set(x, i), set(x, (i + 1) % kSets), set(rows, i), index, weights);
    });
    time(memory_op("combine backward", n + 2 * sent), [&](std::int32_t i) {
      kernels_->combine_backward(set(rows, i), dweights, set(x, i), set(rows, (i + 1) % kSets), index,
                                 weights);
    });
    time(memory_op("sum rows", sent + n), [&](std::int32_t i) {
      kernels_->sum_rows(set(x, i), set(rows, i), index, kernels::Write::overwrite);
    });
    const Tensor choice = arena_.take(DType::i32, {kTokens, kTop});
    time(memory_op("choose", 2 * kTokens * (kExperts + kTop)), [&](std::int32_t) {
      kernels_->router(probs, lse, choice, weights, logits,
                       {.top_k = 2, .score = kernels::RouterScore::softmax_then_topk, .renormalise = true});
    });
  }

  void losses() {
    constexpr std::int64_t kTokens = 512, kVocab = 8192;
    const tensor::Frame frame(arena_);
    const Tensor logits = take({kTokens, kVocab});
    const Tensor stats = take({3, kTokens}), lse = take({kTokens});
    const Tensor targets = arena_.take(DType::i32, {kTokens});
    std::ranges::fill(targets.span<std::int32_t>(), 7);
    time(memory_op("softmax statistics", kTokens * kVocab + 3 * kTokens),
         [&](std::int32_t) { kernels_->cross_entropy_stats(stats, logits, targets, 0); });
    std::ranges::fill(lse.span<float>(), 9.5F);
    time(memory_op("cross entropy backward", 2 * kTokens * kVocab),
         [&](std::int32_t) { kernels_->cross_entropy_backward(logits, lse, targets, 0, 1e-3); });
  }

  // Once a step: all from memory.
  void optimizer() {
    constexpr std::int64_t kRows = 2048, kColumns = 2048, n = kRows * kColumns;
    const tensor::Frame frame(arena_);
    const Tensor p = take({n}), g = take({n}), m = take({n}), v = take({n}), more = take({n});
    std::ranges::fill(v.span<float>(), 1.0F);
    Weight w = weight(kRows, kColumns);
    const kernels::AdamWOptions adam{.lr = 1e-6,
                                     .beta1 = 0.9,
                                     .beta2 = 0.95,
                                     .eps = 1e-8,
                                     .weight_decay = 0.1,
                                     .bias_correction1 = 0.5,
                                     .bias_correction2 = 0.5,
                                     .grad_scale = 1.0};
    time(memory_op("adamw", 7 * n), [&](std::int32_t) { kernels_->adamw(p, g, m, v, adam); });
    time(memory_op("clear", n), [&](std::int32_t i) { kernels_->fill(i % 2 == 0 ? g : more, 0.0); });
    volatile double sink = 0.0;
    time(memory_op("norm of gradients", n),
         [&](std::int32_t i) { sink = kernels_->sum_squares(i % 2 == 0 ? g : more); });
    time(memory_op("pack", 4 * n), [&](std::int32_t) { kernels_->pack(w); });
  }

  comm::Communicator& all_;
  double seconds_;
  std::unique_ptr<kernels::Kernels> kernels_ = kernels::make_cpu();
  tensor::Arena arena_{Bytes(std::int64_t{192} << 20)};
  std::vector<MeasuredOp> ops_;
};

std::vector<Rank> all_ranks(std::int32_t n) {
  std::vector<Rank> ranks;
  for (std::int32_t r = 0; r < n; ++r) ranks.emplace_back(r);
  return ranks;
}

// The mean over cores of what each measured.
std::vector<MeasuredOp> mean_over(const std::vector<std::vector<MeasuredOp>>& cores) {
  std::vector<MeasuredOp> out = cores.front();
  for (std::size_t i = 0; i < out.size(); ++i) {
    double sum = 0.0;
    for (const std::vector<MeasuredOp>& core : cores) sum += core[i].seconds.value;
    out[i].seconds = Seconds(sum / static_cast<double>(cores.size()));
  }
  return out;
}

constexpr double kNumKernels = 56.0, kNumCollectives = 25.0;

}  // namespace

graph::MeasuredMachine measure_machine(const MeasureOptions& options) {
  const auto say = [&](std::string_view what) {
    if (options.on_progress) options.on_progress(what);
  };
  graph::MeasuredMachine m;
  m.cores = options.cores;
  m.memory = Bytes(std::int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGE_SIZE));
  say("limits of one core");
  const kernels::Peaks alone = kernels::measure_peaks(kernels::Bandwidth::measure);
  m.fma_f32 = alone.fma_f32;
  m.triad = alone.triad;
  say("kernels on all cores at once");
  comm::ThreadWorld world({.size = options.cores});
  std::vector<std::vector<MeasuredOp>> measured(static_cast<std::size_t>(options.cores));
  std::vector<double> triads(measured.size()), peaks(measured.size());
  world.run([&](Rank rank) {
    const auto all = world.communicator(rank, all_ranks(options.cores), "all");
    const auto r = static_cast<std::size_t>(rank.value);
    all->barrier();
    const kernels::Peaks beside = kernels::measure_peaks(kernels::Bandwidth::measure);
    triads[r] = beside.triad.value;
    peaks[r] = beside.fma_f32.value;
    Core core(*all, 0.75 * options.budget.value / kNumKernels);
    core.run();
    measured[r] = core.ops();
  });
  for (const double t : triads) m.triad_all += BytesPerSecond(t / options.cores);
  // The clock may be lower when all cores work; the best a core did is its peak.
  for (const double p : peaks) m.fma_f32 = std::max(m.fma_f32, FlopsPerSecond(p));
  m.ops = mean_over(measured);
  const std::int32_t most = std::min(options.cores, 8);
  for (std::int32_t ranks = 2; ranks <= most; ranks *= 2) {
    say("collectives between threads");
    comm::ThreadWorld pair({.size = ranks});
    std::mutex mutex;
    pair.run([&](Rank rank) {
      const auto comm = pair.communicator(rank, all_ranks(ranks), "all");
      const std::vector<MeasuredOp> ops =
          measure_collectives(*comm, {.seconds = Seconds(0.2 * options.budget.value / kNumCollectives)});
      if (rank.value != 0) return;
      const std::lock_guard lock(mutex);
      m.ops.insert(m.ops.end(), ops.begin(), ops.end());
    });
  }
  return m;
}

}  // namespace tessera::exec
