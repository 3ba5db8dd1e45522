// A row for every choice, there and back. Legend: dispatch.h.
#include "moe/dispatch_rows.h"

namespace tessera::moe {

namespace {

class AllToAll final : public Dispatch {
 public:
  AllToAll(const Options& options, comm::Communicator& ep, comm::Communicator& etp)
      : o_(options), ep_(ep), order_(options, ep, etp), crosses_(ep.size() > 1), sliced_(etp.size() > 1) {}

  [[nodiscard]] DispatchSlot reserve(Arena& arena) const override {
    DispatchSlot s;
    s.pos_tK = arena.take(nn::DType::i32, {o_.tokens, o_.top_k});
    s.token_n = arena.take(nn::DType::i32, {o_.tokens * o_.top_k});
    s.sent_begin_E1 = arena.take(nn::DType::i32, {o_.num_experts + 1});
    s.counts_PE = arena.take(nn::DType::i32, {order_.ep(), o_.num_experts});
    order_.reserve(s, arena);
    s.send_rows_P = arena.take(nn::DType::i64, {order_.ep()});
    s.recv_rows_P = arena.take(nn::DType::i64, {order_.ep()});
    s.results = arena.take(o_.dtype, {o_.max_sent, o_.hidden});
    return s;
  }

  [[nodiscard]] Travel travel(Arena& arena) const override {
    Travel tr;
    tr.sent_nH = arena.take(o_.dtype, {o_.max_sent, o_.hidden});
    if (crosses_) tr.part_RH = arena.take(o_.dtype, {order_.most_part_rows(), o_.hidden});
    if (sliced_) tr.full_RH = arena.take(o_.dtype, {o_.max_rows, o_.hidden});
    tr.y_RH = arena.take(o_.dtype, {o_.max_rows, o_.hidden});
    return tr;
  }

  void plan(Context& ctx, DispatchSlot& s, Tensor index_tK, Tensor /*weights_tK*/) const override {
    const Tensor own_1E = s.counts_PE.narrow_rows(ep_.rank(), 1);
    ctx.kernels.sort_choices(s.pos_tK, s.token_n, s.sent_begin_E1, index_tK);
    nn::host_turn(ctx);
    const std::int32_t* begin = s.sent_begin_E1.as<std::int32_t>();
    for (std::int64_t i = 0; i < o_.num_experts; ++i) own_1E.as<std::int32_t>()[i] = begin[i + 1] - begin[i];
    s.sent = begin[o_.num_experts];
    if (crosses_) share_now(ctx, [this, s = &s, &own_1E] { ep_.all_gather(s->counts_PE, own_1E); });
    const std::int64_t e = order_.local_experts();
    const std::int32_t* all = s.counts_PE.as<std::int32_t>();
    std::int32_t* mine = order_.own_counts(s).as<std::int32_t>();
    std::int64_t* send = s.send_rows_P.as<std::int64_t>();
    std::int64_t* recv = s.recv_rows_P.as<std::int64_t>();
    for (std::int64_t p = 0; p < order_.ep(); ++p) {
      send[p] = 0;
      recv[p] = 0;
      for (std::int64_t i = 0; i < e; ++i) {
        send[p] += all[ep_.rank() * o_.num_experts + p * e + i];
        const std::int32_t n = all[p * o_.num_experts + ep_.rank() * e + i];
        recv[p] += n;
        mine[p * e + i] = n;
      }
    }
    order_.index(ctx, s);
  }

  void begin_rows(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor n_tH) const override {
    ctx.kernels.gather_rows(tr.sent_nH.narrow_rows(0, s.sent), n_tH, s.token_n.narrow_rows(0, s.sent));
    send(ctx, tr, s);
  }
  void end_rows(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor rows_RH) const override {
    finish(ctx, tr);
    ctx.kernels.gather_rows(rows_RH, full(tr, s), s.from_full_R.narrow_rows(0, s.received));
  }

  [[nodiscard]] Tensor result_rows(const Travel& tr, const DispatchSlot& s) const override {
    return tr.y_RH.narrow_rows(0, s.received);
  }
  void combine(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor y_tH, Tensor x_tH,
               Tensor weights_tK) const override {
    const Tensor results = s.results.narrow_rows(0, s.sent);
    bring_back(ctx, tr, s, results, result_rows(tr, s));
    ctx.kernels.combine(y_tH, x_tH, results, s.pos_tK, weights_tK);
  }

  void begin_gradient(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor g_tH, Tensor weights_tK,
                      Tensor dweights_tK) const override {
    // Every row in send order belongs to one kept choice, so all of them are written.
    ctx.kernels.combine_backward(tr.sent_nH.narrow_rows(0, s.sent), dweights_tK, g_tH,
                                 s.results.narrow_rows(0, s.sent), s.pos_tK, weights_tK);
    send(ctx, tr, s);
  }
  void end_gradient(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor dy_RH, Tensor /*weights_tK*/,
                    Tensor /*dweights_tK*/) const override {
    end_rows(ctx, tr, s, dy_RH);
  }
  void scatter(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor dn_tH, Tensor drows_RH,
               kernels::Write write) const override {
    const Tensor sent_nH = tr.sent_nH.narrow_rows(0, s.sent);
    bring_back(ctx, tr, s, sent_nH, drows_RH);
    ctx.kernels.sum_rows(dn_tH, sent_nH, s.pos_tK, write);
  }

 private:
  [[nodiscard]] Tensor part(const Travel& tr, const DispatchSlot& s) const {
    return (crosses_ ? tr.part_RH : tr.sent_nH).narrow_rows(0, order_.part_rows(s));
  }
  [[nodiscard]] Tensor full(const Travel& tr, const DispatchSlot& s) const {
    return sliced_ ? tr.full_RH.narrow_rows(0, s.received) : part(tr, s);
  }

  void send(Context& ctx, Travel& tr, const DispatchSlot& s) const {
    start(ctx, tr, [this, tr = &tr, s = &s] {
      if (crosses_) {
        ep_.all_to_all_v(part(*tr, *s), s->recv_rows_P.span<std::int64_t>(),
                         tr->sent_nH.narrow_rows(0, s->sent), s->send_rows_P.span<std::int64_t>());
      }
      if (sliced_) order_.gather(full(*tr, *s), part(*tr, *s), *s);
    });
  }
  // back_nH (sent order) = rows_RH of the experts, summed over etp.
  void bring_back(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor back_nH, Tensor rows_RH) const {
    const Tensor all = full(tr, s);
    ctx.kernels.gather_rows(all, rows_RH, s.from_expert_R.narrow_rows(0, s.received));
    const Tensor own = crosses_ ? part(tr, s) : back_nH;
    transfer_now(ctx, tr, [this, s = &s, &all, &own, &back_nH] {
      if (sliced_) order_.sum(own, all, *s);
      if (!crosses_) return;
      ep_.all_to_all_v(back_nH, s->send_rows_P.span<std::int64_t>(), own,
                       s->recv_rows_P.span<std::int64_t>());
    });
  }

  Options o_;
  comm::Communicator& ep_;
  RowOrder order_;
  bool crosses_, sliced_;
};

}  // namespace

std::unique_ptr<Dispatch> make_all_to_all(const Dispatch::Options& options, comm::Communicator& ep,
                                          comm::Communicator& etp) {
  return std::make_unique<AllToAll>(options, ep, etp);
}

}  // namespace tessera::moe
