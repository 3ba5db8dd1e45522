#include "kernels/profiled.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

namespace tessera::kernels {

namespace {

Bytes once(std::initializer_list<Tensor> tensors) {
  Bytes sum;
  for (const Tensor& t : tensors) sum += t.raw() == nullptr ? Bytes() : t.bytes();
  return sum;
}
Bytes elements(std::int64_t count, DType dtype) {
  return Bytes(count * size_of(dtype));
}
// What += reads besides.
Bytes before(Write write, const Tensor& t) {
  return write == Write::accumulate ? t.bytes() : Bytes();
}
// Rows that an index names, dropped ones too.
Bytes chosen_rows(const Tensor& index, const Tensor& rows) {
  return elements(index.num_elements() * rows.row_elements(), rows.dtype());
}
Bytes grouped(const Tensor& x, const ColumnGroups& cols) {
  return elements(x.dim(0) * cols.groups * cols.width, x.dtype());
}

constexpr std::size_t kMostSpans = 1024;  // that wait for their marks to be read

class Profiled final : public Kernels {
 public:
  Profiled(std::unique_ptr<Kernels> inner, Profile& profile)
      : Kernels(inner->memory()), inner_(std::move(inner)), profile_(profile) {}
  [[nodiscard]] bool takes_bf16() const override { return inner_->takes_bf16(); }
  [[nodiscard]] Bytes workspace_bytes() const override { return inner_->workspace_bytes(); }
  [[nodiscard]] Bytes packed_bytes(DType dtype, std::int64_t n, std::int64_t k) const override {
    return inner_->packed_bytes(dtype, n, k);
  }

 private:
  template <class Call>
  void timed(const char* name, std::string width, Bytes bytes, const Call& call) {
    const Flops flops = inner_->flops();
    Profile::Span span = profile_.begin(memory());
    span.start->record();
    call();
    span.end->record();
    span.name = name;
    span.width = std::move(width);
    span.bytes = bytes;
    span.flops = Flops(inner_->flops().value - flops.value);
    profile_.add(std::move(span));
  }
  template <class Call>
  void timed(const char* name, const Tensor& result, Bytes bytes, const Call& call) {
    timed(name, result.shape().num_dims() < 2 ? "" : fmt::format("{}", result.dim(1)), bytes, call);
  }
  static std::string product(const Tensor& w_NK) { return fmt::format("{} to {}", w_NK.dim(1), w_NK.dim(0)); }

  void do_pack(Weight& w) override {
    timed("pack", w.value_NK, once({w.value_NK, w.packed}), [&] { inner_->pack(w); });
  }
  void do_linear(Tensor y, Tensor x, const Weight& w) override {
    timed("linear", product(w.value_NK), once({y, x}) + elements(w.value_NK.num_elements(), x.dtype()),
          [&] { inner_->linear(y, x, w); });
  }
  void do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) override {
    timed("linear_dgrad", product(w.value_NK),
          once({dx, dy}) + before(write, dx) + elements(w.value_NK.num_elements(), dx.dtype()),
          [&] { inner_->linear_dgrad(dx, dy, w, write); });
  }
  void do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) override {
    timed("linear_wgrad", product(dw), once({dw, dw, dy, x}), [&] { inner_->linear_wgrad(dw, dy, x); });
  }
  void do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) override {
    timed("rms_norm", y, once({y, rstd, x, w}), [&] { inner_->rms_norm(y, rstd, x, w, eps); });
  }
  void do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) override {
    timed("rms_norm_apply", y, once({y, rstd, x, w}), [&] { inner_->rms_norm_apply(y, x, rstd, w); });
  }
  void do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) override {
    timed("rms_norm_dgrad", dx, once({dx, dy, x, rstd, w}) + before(write, dx),
          [&] { inner_->rms_norm_dgrad(dx, dy, x, rstd, w, write); });
  }
  void do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) override {
    timed("rms_norm_wgrad", x, once({dw, dw, dy, x, rstd}), [&] { inner_->rms_norm_wgrad(dw, dy, x, rstd); });
  }
  void do_add_bias(Tensor y, Tensor b) override {
    timed("add_bias", y, once({y, y, b}), [&] { inner_->add_bias(y, b); });
  }
  void do_bias_wgrad(Tensor db, Tensor dy, Write write) override {
    timed("bias_wgrad", dy, once({db, dy}) + before(write, db), [&] { inner_->bias_wgrad(db, dy, write); });
  }
  void do_layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, double eps) override {
    timed("layer_norm", y, once({y, mean, rstd, x, w, b}),
          [&] { inner_->layer_norm(y, mean, rstd, x, w, b, eps); });
  }
  void do_layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) override {
    timed("layer_norm_apply", y, once({y, mean, rstd, x, w, b}),
          [&] { inner_->layer_norm_apply(y, x, mean, rstd, w, b); });
  }
  void do_layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                           Write write) override {
    timed("layer_norm_dgrad", dx, once({dx, dy, x, mean, rstd, w}) + before(write, dx),
          [&] { inner_->layer_norm_dgrad(dx, dy, x, mean, rstd, w, write); });
  }
  void do_layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) override {
    timed("layer_norm_wgrad", x, once({dw, dw, db, db, dy, x, mean, rstd}),
          [&] { inner_->layer_norm_wgrad(dw, db, dy, x, mean, rstd); });
  }
  void do_group_squares(Tensor sums, Tensor x, const ColumnGroups& cols) override {
    timed("group_squares", sums, once({sums}) + grouped(x, cols),
          [&] { inner_->group_squares(sums, x, cols); });
  }
  void do_group_norm(Tensor y, Tensor x, Tensor sums, Tensor w, const GroupNormOptions& options,
                     const ColumnGroups& cols) override {
    timed("group_norm", y, once({sums, w}) + grouped(x, cols) + grouped(y, cols),
          [&] { inner_->group_norm(y, x, sums, w, options, cols); });
  }
  void do_group_norm_dots(Tensor dots, Tensor dy, Tensor x, Tensor w, const ColumnGroups& cols) override {
    timed("group_norm_dots", dots, once({dots, w}) + grouped(x, cols) + grouped(dy, cols),
          [&] { inner_->group_norm_dots(dots, dy, x, w, cols); });
  }
  void do_group_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor sums, Tensor dots, Tensor w,
                           const GroupNormOptions& options, const ColumnGroups& cols) override {
    timed("group_norm_dgrad", dx,
          once({sums, dots, w}) + grouped(x, cols) + grouped(dy, cols) + grouped(dx, cols),
          [&] { inner_->group_norm_dgrad(dx, dy, x, sums, dots, w, options, cols); });
  }
  void do_group_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor sums, const GroupNormOptions& options,
                           const ColumnGroups& cols, Write write) override {
    timed("group_norm_wgrad", x, once({dw, sums}) + before(write, dw) + grouped(x, cols) + grouped(dy, cols),
          [&] { inner_->group_norm_wgrad(dw, dy, x, sums, options, cols, write); });
  }
  void do_clamp(Tensor x, double limit, std::int64_t first, std::int64_t width) override {
    timed("clamp", x, elements(2 * x.dim(0) * width, x.dtype()),
          [&] { inner_->clamp(x, limit, first, width); });
  }
  void do_clamp_backward(Tensor dx, Tensor x, double limit, std::int64_t first, std::int64_t width) override {
    timed("clamp_backward", x, elements(3 * x.dim(0) * width, x.dtype()),
          [&] { inner_->clamp_backward(dx, x, limit, first, width); });
  }
  void do_rope(Tensor x, Tensor cos, Tensor sin, const RopeShape& shape, bool adjoint,
               Tensor positions) override {
    timed(adjoint ? "rope_backward" : "rope", x,
          elements(2 * x.dim(0) * shape.heads * shape.rotated, x.dtype()) +
              elements(std::min(x.dim(0), shape.seq) * shape.rotated, cos.dtype()),
          [&] { inner_->rope(x, cos, sin, shape, adjoint, positions); });
  }
  void do_attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks, const AttentionShape& shape) override {
    timed("attention", qkv, once({out, lse, qkv, sinks}),
          [&] { inner_->attention(out, lse, qkv, sinks, shape); });
  }
  void do_attention_backward(Tensor dqkv, Tensor dsinks, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                             Tensor sinks, const AttentionShape& shape) override {
    timed("attention_backward", qkv, once({dqkv, dsinks, dout, qkv, out, lse, sinks}),
          [&] { inner_->attention_backward(dqkv, dsinks, dout, qkv, out, lse, sinks, shape); });
  }
  // A part's rows of all that lies there, and of the result before it.
  static double share(const AttentionShape& shape, const AttentionPart& part) {
    return static_cast<double>(part.rows) / static_cast<double>(std::max<std::int64_t>(1, shape.seq));
  }
  static Bytes part_of(Bytes bytes, double share) {
    return Bytes(static_cast<std::int64_t>(static_cast<double>(bytes.value) * share));
  }
  void do_attention_part(Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor sinks,
                         const AttentionShape& shape, const AttentionPart& part, Write write) override {
    timed("attention_part", q,
          part_of(once({out, lse, q, kv}) + before(write, out) + before(write, lse), share(shape, part)),
          [&] { inner_->attention_part(out, lse, q, kv, sinks, shape, part, write); });
  }
  void do_attention_part_backward(Tensor dq, Tensor dkv, Tensor dout, Tensor q, Tensor kv, Tensor out,
                                  Tensor lse, const AttentionShape& shape,
                                  const AttentionPart& part) override {
    timed("attention_part_backward", q,
          part_of(once({dq, dq, dkv, dkv, dout, q, kv, out, lse}), share(shape, part)),
          [&] { inner_->attention_part_backward(dq, dkv, dout, q, kv, out, lse, shape, part); });
  }
  void do_attention_sinks_backward(Tensor dsinks, Tensor dout, Tensor out, Tensor lse, Tensor sinks,
                                   const AttentionShape& shape) override {
    timed("attention_sinks_backward", out, once({dsinks, dout, out, lse, sinks}),
          [&] { inner_->attention_sinks_backward(dsinks, dout, out, lse, sinks, shape); });
  }
  void do_cache_append(Tensor cache, Tensor x, std::int64_t first, Tensor slots, Tensor positions) override {
    timed("cache_append", x, elements(2 * x.dim(0) * cache.dim(1) * cache.dim(3), x.dtype()),
          [&] { inner_->cache_append(cache, x, first, slots, positions); });
  }
  // How many keys each row reads, only the device knows: without them.
  void do_decode_attention(Tensor out, Tensor q, Tensor keys, Tensor values, Tensor sinks, Tensor slots,
                           Tensor positions, const AttentionShape& shape) override {
    timed("decode_attention", q, once({out, q, sinks}),
          [&] { inner_->decode_attention(out, q, keys, values, sinks, slots, positions, shape); });
  }
  void do_activation(Tensor h, Tensor z, const ActivationOptions& options) override {
    timed("activation", h, once({h, z}), [&] { inner_->activation(h, z, options); });
  }
  void do_activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& options) override {
    timed("activation_backward", dh, once({dz, dh, z}),
          [&] { inner_->activation_backward(dz, dh, z, options); });
  }
  void do_sigmoid_gate(Tensor y, Tensor f, Tensor z) override {
    timed("sigmoid_gate", y, once({y, y, f, z}), [&] { inner_->sigmoid_gate(y, f, z); });
  }
  void do_sigmoid_gate_backward(Tensor df, Tensor dz, Tensor dy, Tensor f, Tensor z) override {
    timed("sigmoid_gate_backward", dy, once({df, dz, dy, f, z}),
          [&] { inner_->sigmoid_gate_backward(df, dz, dy, f, z); });
  }
  void do_embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) override {
    timed("embedding", y, once({y, ids}) + chosen_rows(ids, table),
          [&] { inner_->embedding(y, ids, table, vocab_begin); });
  }
  void do_embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) override {
    timed("embedding_wgrad", dy, once({dy, ids}) + 2 * chosen_rows(ids, dtable),
          [&] { inner_->embedding_wgrad(dtable, dy, ids, vocab_begin); });
  }
  void do_cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets,
                              std::int64_t vocab_begin) override {
    timed("cross_entropy_stats", logits, once({stats, logits, targets}),
          [&] { inner_->cross_entropy_stats(stats, logits, targets, vocab_begin); });
  }
  void do_cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) override {
    timed("cross_entropy_join", loss, once({loss, lse, stats, targets}),
          [&] { inner_->cross_entropy_join(loss, lse, stats, targets); });
  }
  void do_cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                 double weight) override {
    timed("cross_entropy_backward", logits, once({logits, logits, lse, targets}),
          [&] { inner_->cross_entropy_backward(logits, lse, targets, vocab_begin, weight); });
  }
  void do_router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits, Tensor bias,
                 const RouterOptions& options) override {
    timed("router", probs, once({probs, lse, index, weights, logits, bias}),
          [&] { inner_->router(probs, lse, index, weights, logits, bias, options); });
  }
  void do_router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                          Tensor weights, Tensor aux, Tensor unit, double z_scale,
                          const RouterOptions& options, Tensor logits) override {
    timed("router_backward", dlogits,
          once({dlogits, dweights, probs, lse, index, weights, aux, unit, logits}), [&] {
            inner_->router_backward(dlogits, dweights, probs, lse, index, weights, aux, unit, z_scale,
                                    options, logits);
          });
  }
  void do_gather_rows(Tensor dst, Tensor src, Tensor index) override {
    timed("gather_rows", dst, once({dst, dst, index}), [&] { inner_->gather_rows(dst, src, index); });
  }
  void do_combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) override {
    timed("combine", y, once({y, x, pos, weights}) + chosen_rows(pos, rows),
          [&] { inner_->combine(y, x, rows, pos, weights); });
  }
  void do_combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                           Tensor weights) override {
    timed("combine_backward", dy, once({dweights, dy, pos, weights}) + 2 * chosen_rows(pos, rows),
          [&] { inner_->combine_backward(drows, dweights, dy, rows, pos, weights); });
  }
  void do_sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) override {
    timed("sum_rows", dx, once({dx, pos}) + before(write, dx) + chosen_rows(pos, rows),
          [&] { inner_->sum_rows(dx, rows, pos, write); });
  }
  void do_sort_choices(Tensor pos, Tensor token, Tensor begin, Tensor index) override {
    timed("sort_choices", pos, once({pos, pos, token, begin, index}),
          [&] { inner_->sort_choices(pos, token, begin, index); });
  }
  void do_count_choices(Tensor counts, Tensor index, Tensor unit) override {
    timed("count_choices", index, once({counts, index, unit}),
          [&] { inner_->count_choices(counts, index, unit); });
  }
  void do_scale_counts(Tensor a, Tensor share, double scale) override {
    timed("scale_counts", a, once({a, share}), [&] { inner_->scale_counts(a, share, scale); });
  }
  void do_router_stats(Tensor sums, Tensor counts, const RoutedTokens& t,
                       const RouterStatsOptions& options) override {
    timed("router_stats", t.probs_TE,
          once({sums, counts, t.probs_TE, t.lse_T, t.logits_TE, t.index_TK, t.pos_TK}),
          [&] { inner_->router_stats(sums, counts, t, options); });
  }
  void do_balance_value(Tensor value, Tensor probs, Tensor aux, Tensor unit, RouterScore score) override {
    timed("balance_value", probs, once({value, probs, aux, unit}),
          [&] { inner_->balance_value(value, probs, aux, unit, score); });
  }
  // Of all experts, as activations of this type read them.
  static Bytes weights_of(std::span<const Weight> w, DType dtype) {
    return elements(std::ssize(w) * w[0].value_NK.num_elements(), dtype);
  }
  static Bytes tensors_of(std::span<const Tensor> all) {
    Bytes sum;
    for (const Tensor& t : all) sum += t.bytes();
    return sum;
  }
  void do_experts_linear(Tensor y, Tensor x, std::span<const Weight> w, Tensor begin) override {
    timed("experts_linear", product(w[0].value_NK), once({y, x}) + weights_of(w, x.dtype()),
          [&] { inner_->experts_linear(y, x, w, begin); });
  }
  void do_experts_linear_dgrad(Tensor dx, Tensor dy, std::span<const Weight> w, Tensor begin) override {
    timed("experts_linear_dgrad", product(w[0].value_NK), once({dx, dy}) + weights_of(w, dx.dtype()),
          [&] { inner_->experts_linear_dgrad(dx, dy, w, begin); });
  }
  void do_experts_linear_wgrad(std::span<const Tensor> dw, Tensor dy, Tensor x, Tensor begin) override {
    timed("experts_linear_wgrad", product(dw[0]), once({dy, x}) + 2 * tensors_of(dw),
          [&] { inner_->experts_linear_wgrad(dw, dy, x, begin); });
  }
  void do_experts_add_bias(Tensor y, std::span<const Tensor> b, Tensor begin) override {
    timed("experts_add_bias", y, once({y, y}) + tensors_of(b),
          [&] { inner_->experts_add_bias(y, b, begin); });
  }
  void do_experts_bias_wgrad(std::span<const Tensor> db, Tensor dy, Tensor begin) override {
    timed("experts_bias_wgrad", dy, once({dy}) + 2 * tensors_of(db),
          [&] { inner_->experts_bias_wgrad(db, dy, begin); });
  }
  void do_move_columns(Tensor dst, Tensor src, const ColumnMove& move) override {
    const std::int64_t read = move.from.stride == 0 ? 1 : move.blocks,
                       written = move.to.stride == 0 ? 1 : move.blocks;
    timed("move_columns", dst, elements((read + written) * dst.rows() * move.width, dst.dtype()),
          [&] { inner_->move_columns(dst, src, move); });
  }
  void do_add(Tensor y, Tensor a, Tensor b) override {
    timed("add", y, once({y, a, b}), [&] { inner_->add(y, a, b); });
  }
  void do_accumulate(Tensor y, Tensor x) override {
    timed("accumulate", y, once({y, y, x}), [&] { inner_->accumulate(y, x); });
  }
  void do_fill(Tensor y, double value) override {
    timed("fill", y, once({y}), [&] { inner_->fill(y, value); });
  }
  double do_sum(Tensor x) override {
    double sum = 0.0;
    timed("sum", x, once({x}), [&] { sum = inner_->sum(x); });
    return sum;
  }
  double do_sum_squares(Tensor x) override {
    double sum = 0.0;
    timed("sum_squares", x, once({x}), [&] { sum = inner_->sum_squares(x); });
    return sum;
  }
  void do_sum_to(Tensor to, Tensor x, double scale, Write write) override {
    timed("sum_to", x, once({to, x}), [&] { inner_->sum_to(to, x, scale, write); });
  }
  void do_sum_squares_to(Tensor to, Tensor x, Write write) override {
    timed("sum_squares_to", x, once({to, x}), [&] { inner_->sum_squares_to(to, x, write); });
  }
  void do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options) override {
    timed("adamw", p, once({p, p, m, m, v, v, g}), [&] { inner_->adamw(p, g, m, v, options); });
  }

  std::unique_ptr<Kernels> inner_;
  Profile& profile_;
};

}  // namespace

void Profile::clear() {
  const std::lock_guard lock(mutex_);
  read();
  uses_.clear();
}

Profile::Span Profile::begin(const std::shared_ptr<tensor::Memory>& memory) {
  {
    const std::lock_guard lock(mutex_);
    const auto it = std::ranges::find(free_, memory, &Span::memory);
    if (it != free_.end()) {
      std::iter_swap(it, free_.end() - 1);
      Span span = std::move(free_.back());
      free_.pop_back();
      return span;
    }
  }
  Span span;
  span.memory = memory;
  span.start = memory->make_mark();
  span.end = memory->make_mark();
  return span;
}

void Profile::add(Span span) {
  const std::lock_guard lock(mutex_);
  spans_.push_back(std::move(span));
  if (spans_.size() >= kMostSpans) read();
}

void Profile::read() {
  for (Span& span : spans_) {
    OperatorUse& use = uses_[{span.name, span.width}];
    ++use.calls;
    use.time = use.time + Seconds(static_cast<double>(span.end->ns_since(*span.start)) * 1e-9);
    use.bytes += span.bytes;
    use.flops += span.flops;
    use.name = std::move(span.name);
    use.width = std::move(span.width);
    free_.push_back(std::move(span));
  }
  spans_.clear();
}

std::vector<OperatorUse> Profile::uses() {
  const std::lock_guard lock(mutex_);
  read();
  std::vector<OperatorUse> list;
  for (const auto& [key, use] : uses_) list.push_back(use);
  std::ranges::stable_sort(list, [](const OperatorUse& a, const OperatorUse& b) { return a.time > b.time; });
  return list;
}

std::unique_ptr<Kernels> make_profiled(std::unique_ptr<Kernels> inner, Profile& profile) {
  return std::make_unique<Profiled>(std::move(inner), profile);
}

}  // namespace tessera::kernels
