// All experts are here: send order is expert order.
#include "moe/dispatch_rows.h"

namespace tessera::moe {

namespace {

class Local final : public Dispatch {
 public:
  explicit Local(const Options& options) : o_(options) {}

  [[nodiscard]] DispatchSlot reserve(Arena& arena) const override {
    DispatchSlot s;
    s.pos_tK = arena.take(o_.reach, nn::DType::i32, {o_.tokens, o_.top_k});
    s.token_n = arena.take(o_.reach, nn::DType::i32, {o_.tokens * o_.top_k});
    s.begin_e1 = arena.take(o_.reach, nn::DType::i32, {o_.num_experts + 1});
    s.results = arena.take(o_.dtype, {o_.max_sent, o_.hidden});
    return s;
  }
  [[nodiscard]] Travel travel(Arena& /*scratch*/) const override { return {}; }

  void plan(Context& ctx, DispatchSlot& s, Tensor index_tK, Tensor /*weights_tK*/) const override {
    ctx.kernels.sort_choices(s.pos_tK, s.token_n, s.begin_e1, index_tK);
    s.sent = o_.tokens * o_.top_k;
    if (o_.reach == tensor::Reach::shared) {  // some may be dropped
      nn::host_turn(ctx);
      s.sent = s.begin_e1.as<std::int32_t>()[o_.num_experts];
    }
    s.received = s.sent;
  }

  void begin_rows(Context& /*ctx*/, Travel& tr, const DispatchSlot& /*s*/, Tensor n_tH) const override {
    tr.x_tH = n_tH;
  }
  void end_rows(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor rows_RH) const override {
    ctx.kernels.gather_rows(rows_RH, tr.x_tH, s.token_n.narrow_rows(0, s.sent));
  }
  [[nodiscard]] Tensor result_rows(const Travel& /*tr*/, const DispatchSlot& s) const override {
    return s.results.narrow_rows(0, s.sent);
  }
  void combine(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor y_tH, Tensor x_tH,
               Tensor weights_tK) const override {
    ctx.kernels.combine(y_tH, x_tH, result_rows(tr, s), s.pos_tK, weights_tK);
  }

  void begin_gradient(Context& /*ctx*/, Travel& tr, const DispatchSlot& /*s*/, Tensor g_tH,
                      Tensor /*weights_tK*/, Tensor /*dweights_tK*/) const override {
    tr.x_tH = g_tH;
  }
  // Every row belongs to one kept choice, so all of them are written.
  void end_gradient(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor dy_RH, Tensor weights_tK,
                    Tensor dweights_tK) const override {
    ctx.kernels.combine_backward(dy_RH, dweights_tK, tr.x_tH, result_rows(tr, s), s.pos_tK, weights_tK);
  }
  void scatter(Context& ctx, Travel& /*tr*/, const DispatchSlot& s, Tensor dn_tH, Tensor drows_RH,
               kernels::Write write) const override {
    ctx.kernels.sum_rows(dn_tH, drows_RH, s.pos_tK, write);
  }

 private:
  Options o_;
};

}  // namespace

std::unique_ptr<Dispatch> make_local(const Dispatch::Options& options) {
  return std::make_unique<Local>(options);
}

}  // namespace tessera::moe
