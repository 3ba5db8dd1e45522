// One MoE layer (forward, backward-input, backward-weight) on one rank and 2,048 tokens of hidden 512: what
// of its time is not experts. `routing` = all of the layer but its experts and its norm: router, choice,
// balancing, plan of the rows, gather, combine and their gradients. The layer and its experts run in turn on
// the thread's CPU clock; medians.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "kernels/peak.h"
#include "moe/dispatch.h"
#include "moe/experts.h"
#include "moe/moe_layer.h"
#include "moe/routing.h"
#include "tensor/arena.h"

namespace tessera {
namespace {

using tensor::DType;
using tensor::Tensor;

constexpr std::int64_t kTokens = 2048, kHidden = 512;

struct Shape {
  std::int32_t experts, top_k;
  std::int64_t width;
};

double median(std::vector<double> v) {
  std::ranges::sort(v);
  return v[v.size() / 2];
}

class LayerBench {
 public:
  explicit LayerBench(Shape shape) : shape_(shape), kernels_(kernels::make_cpu()) {
    moe::Params params{.norm_H = weight(1, kHidden, kPlain),
                       .router_EH = weight(shape.experts, kHidden, kPacked)};
    params.norm_H.weight.value_NK = params.norm_H.weight.value_NK.reshaped({kHidden});
    params.norm_H.grad = params.norm_H.grad.reshaped({kHidden});
    kernels_->fill(params.norm_H.weight.value_NK, 1.0);
    for (std::int32_t e = 0; e < shape.experts; ++e) {
      params.experts.push_back({.gate_up = weight(2 * shape.width, kHidden, kPacked),
                                .down = weight(kHidden, shape.width, kPacked)});
    }
    experts_ = moe::ExpertTable(params.experts);
    norm_ = params.norm_H;
    router_ = params.router_EH;
    layer_options_ = moe::Options{
        .dims = {.dtype = DType::f32, .batch = 8, .seq = kTokens / 8, .hidden = kHidden, .tp = 1},
        .num_experts = shape.experts,
        .intermediate = shape.width,
        .router = {.top_k = shape.top_k,
                   .score = kernels::RouterScore::softmax_then_topk,
                   .renormalise = true},
        .norm_eps = 1e-5,
        .recompute = nn::Recompute::none,
        .aux_loss_coef = 0.01};
    layer_ = std::make_unique<moe::MoeLayer>(layer_options_, params, moe::ExpertGroups{*ep_, *etp_});
    dispatch_ = moe::make_dispatch(moe::Dispatch::Options{.dtype = DType::f32,
                                                          .hidden = kHidden,
                                                          .tokens = kTokens,
                                                          .top_k = shape.top_k,
                                                          .num_experts = shape.experts,
                                                          .max_rows = kTokens * shape.top_k},
                                   moe::ExpertGroups{*ep_, *etp_});
    slot_ = dispatch_->reserve(arena_);
    logits_ = filled({kTokens, shape.experts}, 1.0);
    probs_ = filled({kTokens, shape.experts}, 1.0);
    lse_ = filled({kTokens}, 1.0);
    index_ = arena_.take(DType::i32, {kTokens, shape.top_k});
    unit_ = arena_.take(DType::i32, {kTokens});
    counts_ = arena_.take(DType::i32, {1, shape.experts});
    sums_ = arena_.take(DType::f64, {kernels::kRouterSums});
    totals_ = arena_.take(DType::i64, {std::int64_t{2} * shape.experts + 1});
    begins_ = arena_.take(DType::i32, {shape.experts + 1});
    weights_ = filled({kTokens, shape.top_k}, 1.0);
    dweights_ = filled({kTokens, shape.top_k}, 1.0);
    aux_ = filled({1, shape.experts}, 1.0);
    tensor::Arena counting;
    layer_->measure_scratch(counting);
    scratch_ = tensor::Arena(counting.peak());
    layer_->reserve_saved(arena_);
    layer_->reserve_deferred(arena_);
    for (Tensor* t : {&x_, &y_, &g_, &n_, &dn_}) *t = filled({kTokens, kHidden}, 1.0);
    rstd_ = filled({kTokens}, 1.0);
    const std::int64_t rows = kTokens * shape.top_k;
    for (Tensor* t : {&rows_, &out_, &dout_, &drows_}) *t = filled({rows, kHidden}, 1.0);
    for (Tensor* t : {&gate_up_, &dgate_up_}) *t = filled({rows, 2 * shape.width}, 1.0);
    for (Tensor* t : {&h_, &dh_}) *t = filled({rows, shape.width}, 1.0);
  }

  void layer_step() {
    nn::Context ctx{.kernels = *kernels_, .tp = *tp_, .scratch = scratch_, .weights = {1e-4, 1.0, 1e-4}};
    layer_->forward(ctx, {0, 0}, {}, x_, y_, nn::Pass::forward);
    layer_->backward_input(ctx, {0, 0}, {}, g_);
    layer_->backward_weight(ctx, {0, 0}, {});
    layer_->reset_stats();
    if (!counted_) count_rows();
  }
  void experts_step() {
    moe::experts_forward(*kernels_, list(), begins_,
                         {.y_RH = out_, .h_RI = h_, .gate_up = gate_up_, .rows_RH = rows_});
    moe::experts_backward_input(
        *kernels_, list(), begins_,
        {.drows_RH = drows_, .dgate_up = dgate_up_, .dh_RI = dh_, .dy_RH = dout_, .gate_up = gate_up_});
    moe::experts_backward_weight(*kernels_, list(), begins_,
                                 {.dy_RH = dout_, .h_RI = h_, .dgate_up = dgate_up_, .rows_RH = rows_});
  }
  void norm_step() {
    kernels_->rms_norm(n_, rstd_, x_, norm_.weight.value_NK, 1e-5);
    kernels_->rms_norm_dgrad(dn_, n_, x_, rstd_, norm_.weight.value_NK, kernels::Write::accumulate);
    kernels_->rms_norm_wgrad(norm_.grad, n_, x_, rstd_);
  }
  using Timed = std::function<void(const char* name, const std::function<void()>& work)>;
  void routing_pieces(const Timed& timed) {
    kernels::Kernels& k = *kernels_;
    const kernels::RouterOptions& options = layer_options_.router;
    timed("router_product", [&] { k.linear(logits_, x_, router_.weight); });
    timed("router", [&] { k.router(probs_, lse_, index_, weights_, logits_, Tensor(), options); });
    timed("count", [&] { k.count_choices(counts_, index_, unit_); });
    nn::Context ctx{.kernels = *kernels_, .tp = *tp_, .scratch = scratch_, .weights = {}};
    timed("plan", [&] { dispatch_->plan(ctx, slot_, index_, weights_); });
    timed("stats", [&] {
      k.router_stats(sums_, totals_, {probs_, lse_, logits_, index_, slot_.pos_tK},
                     {.score = options.score, .z_scale = 1e-4});
      k.balance_value(sums_.narrow_rows(0, 1), probs_, aux_, unit_, options.score);
    });
    timed("gather", [&] { k.gather_rows(rows_, x_, slot_.token_n.narrow_rows(0, slot_.sent)); });
    timed("combine", [&] { k.combine(y_, x_, rows_, slot_.pos_tK, weights_); });
    timed("combine_backward",
          [&] { k.combine_backward(drows_, dweights_, g_, rows_, slot_.pos_tK, weights_); });
    timed("sum_rows", [&] { k.sum_rows(dn_, drows_, slot_.pos_tK, kernels::Write::overwrite); });
    timed("router_backward", [&] {
      k.router_backward(logits_, dweights_, probs_, lse_, index_, weights_, aux_, unit_, 0.0, options);
    });
    timed("router_products_backward", [&] {
      k.linear_dgrad(dn_, logits_, router_.weight, kernels::Write::accumulate);
      k.linear_wgrad(router_.grad, logits_, x_);
    });
  }
  [[nodiscard]] moe::ExpertList list() const {
    return {.experts = experts_,
            .form = {.activation = {.kind = kernels::Activation::swiglu}, .adds_down_bias = false}};
  }
  [[nodiscard]] double expert_flops() const {
    return 18.0 * static_cast<double>(kTokens * shape_.top_k * kHidden * shape_.width);
  }

 private:
  enum Packing { kPlain, kPacked };
  Tensor filled(tensor::Shape shape, double spread) {
    const Tensor t = arena_.take(DType::f32, shape);
    float* p = t.as<float>();
    for (std::int64_t i = 0; i < t.num_elements(); ++i) {
      p[i] = static_cast<float>(spread * (2.0 * uniform(7, stream_, static_cast<std::uint64_t>(i)) - 1.0));
    }
    ++stream_;
    return t;
  }
  nn::Param weight(std::int64_t n, std::int64_t k, Packing packing) {
    nn::Param p;
    p.weight.value_NK = filled({n, k}, 1.0 / 16);
    p.grad = filled({n, k}, 0.0);
    if (packing == kPacked) {
      p.weight.packed = arena_.take(DType::u8, {kernels_->packed_bytes(DType::f32, n, k).value});
      kernels_->pack(p.weight);
    }
    return p;
  }
  void count_rows() {  // the rows that the layer's experts had
    counted_ = true;
    const std::span<std::int32_t> begin = begins_.span<std::int32_t>();
    std::ranges::fill(begin, 0);
    for (const std::int32_t e : layer_->chosen_tK(0).span<std::int32_t>())
      ++begin[static_cast<std::size_t>(e) + 1];
    for (std::size_t e = 1; e < begin.size(); ++e) begin[e] += begin[e - 1];
  }

  Shape shape_;
  std::unique_ptr<kernels::Kernels> kernels_;
  tensor::Arena arena_ = tensor::Arena(Bytes(std::int64_t{3} << 30)), scratch_;
  std::unique_ptr<comm::Communicator> tp_ = comm::make_self("tp"), ep_ = comm::make_self("ep"),
                                      etp_ = comm::make_self("etp");
  moe::ExpertTable experts_;
  nn::Param norm_, router_;
  moe::Options layer_options_;
  std::unique_ptr<moe::Dispatch> dispatch_;
  moe::DispatchSlot slot_;
  Tensor logits_, probs_, lse_, index_, unit_, counts_, sums_, totals_, begins_, weights_, dweights_, aux_;
  std::unique_ptr<moe::MoeLayer> layer_;
  Tensor x_, y_, g_, n_, dn_, rstd_, rows_, out_, dout_, drows_, gate_up_, dgate_up_, h_, dh_;
  bool counted_ = false;
  std::uint64_t stream_ = 1;
};

double seconds(const std::function<void()>& work) {
  const std::int64_t start = thread_cpu_ns();
  work();
  return static_cast<double>(thread_cpu_ns() - start) * 1e-9;
}

void report_layer(benchmark::State& state, Shape shape) {
  LayerBench bench(shape);
  bench.layer_step();
  bench.experts_step();
  for (auto _ : state) {
    std::vector<double> layer, experts, norm, share;
    double peak = 0;
    for (int round = 0; round < 15; ++round) {
      peak = std::max(peak, kernels::measure_peaks().fma_f32.value);
      layer.push_back(seconds([&] { bench.layer_step(); }));
      experts.push_back(seconds([&] { bench.experts_step(); }));
      norm.push_back(seconds([&] { bench.norm_step(); }));
      share.push_back((layer.back() - experts.back() - norm.back()) / layer.back());
    }
    state.SetIterationTime(median(layer));
    state.counters["routing_percent"] = 100.0 * median(share);
    state.counters["experts_percent"] = 100.0 * median(experts) / median(layer);
    state.counters["experts_of_peak"] = bench.expert_flops() / median(experts) / peak;
  }
}

// Milliseconds of each piece of the routing, alone.
void report_pieces(benchmark::State& state, Shape shape) {
  LayerBench bench(shape);
  bench.layer_step();
  for (auto _ : state) {
    std::map<std::string, std::vector<double>> times;
    double whole = 0;
    for (int round = 0; round < 9; ++round) {
      bench.routing_pieces(
          [&](const char* name, const std::function<void()>& work) { times[name].push_back(seconds(work)); });
    }
    for (const auto& [name, list] : times) {
      state.counters[name] = 1e3 * median(list);
      whole += median(list);
    }
    state.SetIterationTime(whole);
  }
}

void Pieces_8_top2(benchmark::State& s) {
  report_pieces(s, {8, 2, 1024});
}
void Pieces_64_top8(benchmark::State& s) {
  report_pieces(s, {64, 8, 128});
}
BENCHMARK(Pieces_8_top2)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(Pieces_64_top8)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);

void Layer_8_top2_ffn1024(benchmark::State& s) {
  report_layer(s, {8, 2, 1024});
}
void Layer_64_top8_ffn128(benchmark::State& s) {
  report_layer(s, {64, 8, 128});
}
BENCHMARK(Layer_8_top2_ffn1024)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);
BENCHMARK(Layer_64_top8_ffn128)->UseManualTime()->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tessera
