// Runs one layer on any layout of in-process ranks, from one description of the whole problem, so that a
// layout can be held against one rank, a backward pass against central differences, and the counters against
// closed forms.
//
//   LayerProblem p = ...;                        // whole parameters, micro-batches, how to build a rank's
//   layer LayerResult one = run_layer(p, {});          // one rank
//   LayerResult two = run_layer(p, {.tp = 2});   // ThreadWorld
//   EXPECT_TRUE(near("y", two.y, one.y, 1e-12));
//
// Rank r of the world is tp rank r % tp, cp rank r / tp % cp, dp rank r / tp / cp; dp rank d runs the
// micro-batches d, d + dp, ... of the problem. Of the experts: etp rank r % etp, ep rank r / etp % ep. Every
// arena is filled with NaN before use, and scratch holds exactly what measure_scratch asked for.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "comm/thread_world.h"
#include "comm/worker.h"
#include "kernels/kernels.h"
#include "nn/layer.h"
#include "support/tensors.h"
#include "tensor/arena.h"

namespace tessera::test {

using Values = std::vector<double>;

struct RankLayout {
  std::int32_t tp = 1, dp = 1, ep = 1, etp = 1;
  bool worker = false;     // every rank has a helper thread for collectives
  std::int32_t nodes = 1;  // that the ep ranks are spread over, in order
  std::int32_t cp = 1;
  [[nodiscard]] std::int32_t world() const { return tp * cp * dp; }
};

// Part of a global parameter: ranges of rows (begin, count), and columns. One-dimensional parameters have
// one column.
struct Part {
  std::vector<std::pair<std::int64_t, std::int64_t>> rows;
  std::int64_t col_begin = 0;
  std::int64_t cols = -1;  // all
  bool counted = true;     // false: another rank's copy brings the gradient
};

struct GlobalParam {
  std::string name;
  Owned value;
};

// The parameters of one rank, in the order in which they were added.
class RankParams {
 public:
  explicit RankParams(const std::vector<GlobalParam>& all) : all_(&all) {}
  [[nodiscard]] nn::Param add(std::size_t global, Part part = {}) {
    const Tensor& whole = (*all_)[global].value.tensor();
    if (part.rows.empty()) part.rows = {{0, whole.rows()}};
    if (part.cols < 0) part.cols = whole.row_elements();
    std::int64_t rows = 0;
    for (const auto& range : part.rows) rows += range.second;
    const bool flat = whole.shape().num_dims() == 1;
    Local local{.global = global, .part = part};
    local.value = Owned(whole.dtype(), flat ? Shape{rows} : Shape{rows, part.cols});
    local.grad = zeros(whole.dtype(), local.value.tensor().shape());
    for_each(local,
             [&](std::int64_t here, std::int64_t there) { set(local.value, here, get(whole, there)); });
    list_.push_back(std::move(local));
    return {.weight = {.value_NK = list_.back().value}, .grad = list_.back().grad};
  }
  void add_gradients(std::vector<Values>& sums) const {
    for (const Local& local : list_) {
      if (!local.part.counted) continue;
      for_each(local, [&](std::int64_t here, std::int64_t there) {
        sums[local.global][static_cast<std::size_t>(there)] += get(local.grad, here);
      });
    }
  }
  [[nodiscard]] std::size_t count() const { return list_.size(); }
  [[nodiscard]] const std::string& name(std::size_t i) const { return (*all_)[list_[i].global].name; }
  [[nodiscard]] Tensor value(std::size_t i) const { return list_[i].value; }
  [[nodiscard]] Tensor grad(std::size_t i) const { return list_[i].grad; }

 private:
  struct Local {
    std::size_t global;
    Part part;
    Owned value, grad;
  };
  template <class Body>
  void for_each(const Local& local, Body body) const {
    const std::int64_t width = (*all_)[local.global].value.tensor().row_elements();
    std::int64_t here = 0;
    for (const auto& [begin, count] : local.part.rows) {
      for (std::int64_t r = begin; r < begin + count; ++r) {
        for (std::int64_t c = 0; c < local.part.cols; ++c) body(here++, r * width + local.part.col_begin + c);
      }
    }
  }
  const std::vector<GlobalParam>* all_;
  std::vector<Local> list_;
};

// What one rank needs to build its layer.
struct Place {
  RankLayout layout;
  std::int32_t rank = 0;
  comm::Communicator* tp = nullptr;
  comm::Communicator* ep = nullptr;
  comm::Communicator* etp = nullptr;
  comm::Communicator *across = nullptr, *inside = nullptr;  // ep ranks of other nodes, and of this one
  comm::CommWorker* worker = nullptr;
  comm::Communicator* cp = nullptr;
  [[nodiscard]] std::int32_t cp_rank() const { return rank / layout.tp % layout.cp; }
  [[nodiscard]] std::int32_t dp_rank() const { return rank / layout.tp / layout.cp; }
};

enum class PassOrder : std::uint8_t { fused, split, split_with_recompute };

struct LayerProblem {
  nn::Dims dims{};  // of the whole problem: tp, cp and with it seq are set by the layout
  std::vector<GlobalParam> params;
  std::vector<Owned> x, upstream;   // a micro-batch: [T, H]
  std::vector<Owned> ids, targets;  // a micro-batch: i32 [T]; may be empty
  nn::LossWeights weights;
  std::function<std::unique_ptr<nn::Layer>(const Place&, const nn::Dims&, RankParams&)> make;
  // Terms of the loss besides <upstream, y>, of this rank, of the forward passes since the last call.
  std::function<double(nn::Layer&, std::int32_t slots)> extra_loss;
  std::function<std::unique_ptr<kernels::Kernels>()> kernels = kernels::make_reference;
  bool has_output = true;  // the head has none besides its loss
  bool sum_loss = true;    // over the ranks; else it is the same on all of them
};

// Bytes this rank sent in all its forward, backward-input and backward-weight calls.
struct PhaseBytes {
  std::int64_t forward = 0, input = 0, weight = 0;
};

// One rank of a layout: its memory, its layer, its micro-batches.
class LayerRig {
 public:
  LayerRig(const LayerProblem& problem, const Place& place)
      : problem_(problem), place_(place), params_(problem.params), kernels_(problem.kernels()) {
    dims_ = problem.dims;
    dims_.tp = place.layout.tp;
    dims_.cp = place.layout.cp;
    dims_.seq = problem.dims.seq / place.layout.cp;
    cut_ = {.length = problem.dims.seq, .cp = place.layout.cp, .rank = place.cp_rank()};
    for (auto m = static_cast<std::size_t>(place.dp_rank()); m < problem.x.size();
         m += static_cast<std::size_t>(place.layout.dp)) {
      mine_.push_back(m);
      if (!problem.ids.empty()) ids_.push_back(rows_of(problem.ids[m], 0, dims_.tokens()));
      if (!problem.targets.empty()) targets_.push_back(rows_of(problem.targets[m], 0, dims_.tokens()));
    }
    RankParams unused(problem.params);
    const auto counted = problem.make(place, dims_, unused);
    Arena slots, scratch;
    reserve(*counted, slots);
    counted->measure_scratch(scratch);
    EXPECT_EQ(scratch.used().value, 0) << "measure_scratch keeps what it took";
    scratch_bytes_ = scratch.peak();
    slots_ = poisoned(slots.peak());
    scratch_ = poisoned(scratch_bytes_);
    layer_ = problem.make(place, dims_, params_);
    reserve(*layer_, slots_);
    for (const std::size_t m : mine_) {
      x_.push_back(local_rows(problem.x[m]));
      upstream_.push_back(local_rows(problem.upstream[m]));
      y_.push_back(zeros(dims_.dtype, {dims_.local_tokens(), dims_.hidden}));
      g_.emplace_back(dims_.dtype, Shape{dims_.local_tokens(), dims_.hidden});
    }
  }

  // Forward passes of all micro-batches; returns this rank's part of the loss.
  double forward() {
    for (std::int32_t i = 0; i < slots(); ++i) {
      if (problem_.has_output) poison(y_[at(i)]);
      call_forward(i, nn::Pass::forward);
    }
    double loss = 0;
    for (std::int32_t i = 0; i < slots() && problem_.has_output; ++i)
      loss += dot(upstream_[at(i)], y_[at(i)]);
    if (problem_.extra_loss) loss += problem_.extra_loss(*layer_, slots());
    return loss;
  }
  void backward(PassOrder order) {
    for (std::int32_t i = 0; i < slots(); ++i) set_values(g_[at(i)], values(upstream_[at(i)]));
    for (std::int32_t i = 0; i < slots(); ++i) {
      if (order == PassOrder::split_with_recompute) call_forward(i, nn::Pass::recompute);
      auto ctx = context();
      const std::int64_t before = bytes_sent();
      layer_->backward_input(ctx, {i, i}, microbatch(i), g_[at(i)]);
      bytes_.input += bytes_sent() - before;
      if (order == PassOrder::fused) call_weight(i);
    }
    for (std::int32_t i = 0; i < slots() && order != PassOrder::fused; ++i) call_weight(i);
    EXPECT_EQ(scratch_.used().value, 0) << "a call kept scratch";
    EXPECT_EQ(scratch_.peak().value, scratch_bytes_.value) << "measure_scratch differs from the use";
  }

  [[nodiscard]] std::int32_t slots() const { return static_cast<std::int32_t>(mine_.size()); }
  [[nodiscard]] std::size_t microbatch_of(std::int32_t slot) const { return mine_[at(slot)]; }
  [[nodiscard]] Tensor x(std::int32_t slot) const { return x_[at(slot)]; }
  [[nodiscard]] Tensor y(std::int32_t slot) const { return y_[at(slot)]; }
  [[nodiscard]] Tensor dx(std::int32_t slot) const { return g_[at(slot)]; }
  [[nodiscard]] RankParams& params() { return params_; }
  [[nodiscard]] nn::Layer& layer() { return *layer_; }
  [[nodiscard]] const kernels::Kernels& kernels() const { return *kernels_; }
  [[nodiscard]] const PhaseBytes& bytes() const { return bytes_; }
  [[nodiscard]] Bytes slot_bytes() const { return slots_.used(); }
  // Of row i of this rank's x: its row in the micro-batch.
  [[nodiscard]] std::int64_t row_of(std::int64_t i) const {
    return cut_.token(place_.tp->rank() * dims_.local_tokens() + i);
  }

 private:
  using Arena = tensor::Arena;
  static std::size_t at(std::int32_t i) { return static_cast<std::size_t>(i); }

  static Arena poisoned(Bytes size) {
    Arena arena(size);
    void* const begin = arena.take(DType::u8, {0}).raw();
    std::memset(begin, 0xff, static_cast<std::size_t>(size.value));  // f64, f32: NaN
    return arena;
  }
  void reserve(nn::Layer& layer, Arena& arena) const {
    for (std::int32_t i = 0; i < slots(); ++i) {
      layer.reserve_saved(arena);
      layer.reserve_deferred(arena);
    }
  }
  [[nodiscard]] Owned local_rows(const Tensor& whole) const {
    return rows_of(whole, place_.tp->rank() * dims_.local_tokens(), dims_.local_tokens());
  }
  // Rows [first, first + count) of this cp rank's part.
  [[nodiscard]] Owned rows_of(const Tensor& whole, std::int64_t first, std::int64_t count) const {
    Owned part = copy_of(whole.narrow_rows(0, count));
    const std::int64_t width = whole.row_elements();
    for (std::int64_t i = 0; i < count; ++i) {
      for (std::int64_t c = 0; c < width; ++c) {
        set(part, i * width + c, get(whole, cut_.token(first + i) * width + c));
      }
    }
    return part;
  }
  [[nodiscard]] nn::Context context() {
    return {.kernels = *kernels_,
            .tp = *place_.tp,
            .scratch = scratch_,
            .weights = problem_.weights,
            .worker = place_.worker,
            .cp = place_.cp};
  }
  [[nodiscard]] nn::Microbatch microbatch(std::int32_t i) const {
    const std::size_t m = mine_[at(i)];
    return {.ids_T = ids_.empty() ? Tensor() : ids_[at(i)].tensor(),
            .targets_T = targets_.empty() ? Tensor() : targets_[at(i)].tensor(),
            .index = i,
            .first_token = static_cast<std::int64_t>(m) * dims_.all_tokens()};
  }
  void call_forward(std::int32_t i, nn::Pass pass) {
    auto ctx = context();
    const std::int64_t before = bytes_sent();
    layer_->forward(ctx, {i, i}, microbatch(i), x_[at(i)], y_[at(i)], pass);
    bytes_.forward += bytes_sent() - before;
  }
  void call_weight(std::int32_t i) {
    auto ctx = context();
    const std::int64_t before = bytes_sent();
    layer_->backward_weight(ctx, {i, i}, microbatch(i));
    bytes_.weight += bytes_sent() - before;
  }
  [[nodiscard]] std::int64_t bytes_sent() const {
    return place_.tp->bytes_sent().value + place_.cp->bytes_sent().value + place_.ep->bytes_sent().value +
           place_.etp->bytes_sent().value;
  }

  const LayerProblem& problem_;
  Place place_;
  nn::Dims dims_{};
  SequenceCut cut_;
  RankParams params_;
  std::unique_ptr<kernels::Kernels> kernels_;
  std::vector<std::size_t> mine_;
  std::vector<Owned> ids_, targets_;
  Bytes scratch_bytes_;
  Arena slots_, scratch_;
  std::unique_ptr<nn::Layer> layer_;
  std::vector<Owned> x_, upstream_, y_, g_;
  PhaseBytes bytes_;
};

// Communicators of one rank: of the whole world, or of itself alone.
class RankGroups {
 public:
  RankGroups(const RankLayout& l, std::int32_t rank, comm::ThreadWorld* world) {
    place.layout = l;
    place.rank = rank;
    const auto make = [&](std::int32_t first, std::int32_t stride, std::int32_t size, const char* label) {
      if (world == nullptr) return comm::make_self(label);
      std::vector<Rank> members;
      for (std::int32_t i = 0; i < size; ++i) members.emplace_back(first + i * stride);
      return world->communicator(Rank(rank), members, label);
    };
    tp_ = make(rank - rank % l.tp, 1, l.tp, "tp");
    cp_ = make(rank - place.cp_rank() * l.tp, l.tp, l.cp, "cp");
    place.cp = cp_.get();
    etp_ = make(rank - rank % l.etp, 1, l.etp, "etp");
    const std::int32_t block = l.etp * l.ep;
    ep_ = make(rank - rank % block + rank % l.etp, l.etp, l.ep, "ep");
    place.tp = tp_.get();
    place.ep = ep_.get();
    place.etp = etp_.get();
    const std::int32_t per_node = l.ep / l.nodes;
    const std::int32_t ep_rank = ep_->rank();
    const std::int32_t first = rank - ep_rank * l.etp;
    across_ = make(first + ep_rank % per_node * l.etp, per_node * l.etp, l.nodes, "across");
    inside_ = make(first + ep_rank / per_node * per_node * l.etp, l.etp, per_node, "inside");
    place.across = across_.get();
    place.inside = inside_.get();
    if (!l.worker) return;
    comm::CommWorker::Options options;
    if (world != nullptr) options.on_unwind = [world, rank] { world->abort(Rank(rank), "left"); };
    worker_ = std::make_unique<comm::CommWorker>(std::move(options));
    place.worker = worker_.get();
  }
  Place place;

 private:
  std::unique_ptr<comm::Communicator> tp_, cp_, ep_, etp_, across_, inside_;
  std::unique_ptr<comm::CommWorker> worker_;  // last: it uses the communicators
};

// Runs body(groups) on every rank of the layout.
inline void on_every_rank(const RankLayout& layout, const std::function<void(RankGroups&)>& body) {
  if (layout.world() == 1) {
    RankGroups groups(layout, 0, nullptr);
    body(groups);
    return;
  }
  comm::ThreadWorld world({.size = layout.world(), .timeout = Seconds(20.0)});
  world.run([&](Rank rank) {
    RankGroups groups(layout, rank.value, &world);
    body(groups);
  });
}

struct LayerResult {
  Values y, dx;                   // of all micro-batches, in order
  std::vector<Values> gradients;  // of the whole parameters
  double loss = 0;                // summed over ranks
  std::vector<PhaseBytes> bytes;  // by rank
  std::vector<Bytes> slot_bytes;  // by rank
};

struct LayerRunOptions {
  PassOrder order = PassOrder::split;
  std::function<void(const Place&, LayerRig&)> inspect;  // after the backward pass, on every rank at once
};

[[nodiscard]] inline LayerResult run_layer(const LayerProblem& problem, const RankLayout& layout,
                                           const LayerRunOptions& options = {}) {
  const auto ranks = static_cast<std::size_t>(layout.world());
  const std::int64_t rows = problem.dims.tokens();
  const std::int64_t width = problem.dims.hidden;
  LayerResult out;
  out.y.resize(problem.x.size() * static_cast<std::size_t>(rows * width));
  out.dx.resize(out.y.size());
  out.bytes.resize(ranks);
  out.slot_bytes.resize(ranks);
  std::vector<double> loss(ranks);
  std::vector<std::vector<Values>> gradients(ranks);
  on_every_rank(layout, [&](RankGroups& groups) {
    LayerRig rig(problem, groups.place);
    const auto rank = static_cast<std::size_t>(groups.place.rank);
    loss[rank] = rig.forward();
    rig.backward(options.order);
    for (std::int32_t i = 0; i < rig.slots(); ++i) {
      const auto begin = static_cast<std::int64_t>(rig.microbatch_of(i)) * rows;
      const Values y = values(rig.y(i)), dx = values(rig.dx(i));
      for (std::int64_t row = 0; row < std::ssize(y) / width; ++row) {
        std::copy_n(y.begin() + row * width, width, out.y.begin() + (begin + rig.row_of(row)) * width);
        std::copy_n(dx.begin() + row * width, width, out.dx.begin() + (begin + rig.row_of(row)) * width);
      }
    }
    for (const GlobalParam& p : problem.params) {
      gradients[rank].emplace_back(static_cast<std::size_t>(p.value.tensor().num_elements()), 0.0);
    }
    rig.params().add_gradients(gradients[rank]);
    out.bytes[rank] = rig.bytes();
    out.slot_bytes[rank] = rig.slot_bytes();
    if (options.inspect) options.inspect(groups.place, rig);
  });
  out.gradients = gradients[0];
  out.loss = loss[0];
  for (std::size_t r = 1; r < ranks; ++r) {
    if (problem.sum_loss) out.loss += loss[r];
    for (std::size_t p = 0; p < out.gradients.size(); ++p) {
      for (std::size_t i = 0; i < out.gradients[p].size(); ++i) out.gradients[p][i] += gradients[r][p][i];
    }
  }
  return out;
}

// |got - want| <= bound * largest |want| for every element; NaN never passes.
[[nodiscard]] inline ::testing::AssertionResult near(const std::string& name, const Values& got,
                                                     const Values& want, double bound) {
  if (got.size() != want.size()) {
    return ::testing::AssertionFailure() << name << ": " << got.size() << " values, want " << want.size();
  }
  double largest = 0;
  for (const double w : want) largest = std::max(largest, std::abs(w));
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(got[i] - want[i]) <= bound * largest)) {
      return ::testing::AssertionFailure()
             << name << "[" << i << "]: got " << got[i] << ", want " << want[i] << ", apart "
             << std::abs(got[i] - want[i]) / largest << " of the largest, allowed " << bound;
    }
  }
  return ::testing::AssertionSuccess();
}

// The same problem in f32, on the fast kernels.
[[nodiscard]] inline LayerProblem fast_f32(LayerProblem p) {
  p.dims.dtype = DType::f32;
  p.kernels = kernels::make_cpu;
  for (GlobalParam& param : p.params) param.value = cast(param.value, DType::f32);
  for (Owned& x : p.x) x = cast(x, DType::f32);
  for (Owned& g : p.upstream) g = cast(g, DType::f32);
  return p;
}

// A result against another one in output, loss, input gradient and every parameter gradient.
inline void expect_near(const LayerProblem& problem, const LayerResult& got, const LayerResult& want,
                        double bound) {
  EXPECT_TRUE(near("y", got.y, want.y, bound));
  EXPECT_TRUE(near("dx", got.dx, want.dx, bound));
  EXPECT_TRUE(near("loss", {got.loss}, {want.loss}, bound));
  for (std::size_t p = 0; p < problem.params.size(); ++p) {
    EXPECT_TRUE(near("d " + problem.params[p].name, got.gradients[p], want.gradients[p], bound));
  }
}
inline void expect_same_bits(const LayerResult& got, const LayerResult& want) {
  EXPECT_EQ(got.y, want.y);
  EXPECT_EQ(got.dx, want.dx);
  EXPECT_EQ(got.gradients, want.gradients);
  EXPECT_EQ(got.loss, want.loss);
}

}  // namespace tessera::test
