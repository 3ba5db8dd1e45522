// All rows to all ep ranks; each sums the results of its own experts for every token. Legend: dispatch.h.
#include "moe/dispatch_rows.h"

namespace tessera::moe {

namespace {

class AllGather final : public Dispatch {
 public:
  AllGather(const Options& options, comm::Communicator& ep, comm::Communicator& etp)
      : o_(options),
        ep_(ep),
        order_(options, ep, etp),
        all_tokens_(options.tokens * ep.size()),
        sliced_(etp.size() > 1),
        token_rows_(static_cast<std::size_t>(ep.size()), options.tokens) {}

  [[nodiscard]] DispatchSlot reserve(Arena& arena) const override {
    DispatchSlot s;
    s.pos_tK = arena.take(nn::DType::i32, {o_.tokens, o_.top_k});
    order_.reserve(s, arena);
    s.index_NK = arena.take(nn::DType::i32, {all_tokens_, o_.top_k});
    s.weights_NK = arena.take(tensor::stats_of(o_.dtype), {all_tokens_, o_.top_k});
    s.pos_NK = arena.take(nn::DType::i32, {all_tokens_, o_.top_k});
    s.token_R = arena.take(nn::DType::i32, {most_results()});
    s.results = arena.take(o_.dtype, {most_results(), o_.hidden});
    return s;
  }

  [[nodiscard]] Travel travel(Arena& arena) const override {
    Travel tr;
    tr.gathered_NH = arena.take(o_.dtype, {all_tokens_, o_.hidden});
    tr.partial_NH = arena.take(o_.dtype, {all_tokens_, o_.hidden});
    tr.sum_tH = arena.take(o_.dtype, {o_.tokens, o_.hidden});
    tr.dweights_NK = arena.take(tensor::stats_of(o_.dtype), {all_tokens_, o_.top_k});
    if (!sliced_) return tr;
    tr.part_RH = arena.take(o_.dtype, {order_.most_part_rows(), o_.hidden});
    tr.full_RH = arena.take(o_.dtype, {o_.max_rows, o_.hidden});
    tr.y_RH = arena.take(o_.dtype, {o_.max_rows, o_.hidden});
    return tr;
  }

  void plan(Context& ctx, DispatchSlot& s, Tensor index_tK, Tensor weights_tK) const override {
    nn::host_turn(ctx);
    const std::int64_t own = ep_.rank() * o_.tokens;
    const std::int32_t* chosen = index_tK.as<std::int32_t>();
    const std::int32_t* pos = s.pos_tK.as<std::int32_t>();
    const Tensor own_tK = s.index_NK.narrow_rows(own, o_.tokens);
    std::int32_t* index = own_tK.as<std::int32_t>();
    for (std::int64_t i = 0; i < index_tK.num_elements(); ++i) index[i] = pos[i] < 0 ? -1 : chosen[i];
    share_now(ctx, [this, s = &s, &own_tK, &weights_tK] {
      ep_.all_gather(s->index_NK, own_tK);
      ep_.all_gather(s->weights_NK, weights_tK);
    });
    count_rows(s);
    order_.index(ctx, s);
    place_rows(s);
  }

  void begin_rows(Context& ctx, Travel& tr, const DispatchSlot& /*s*/, Tensor n_tH) const override {
    send(ctx, tr, n_tH);
  }
  void end_rows(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor rows_RH) const override {
    finish(ctx, tr);
    const Tensor to = sliced_ ? part(tr, s) : rows_RH;
    ctx.kernels.gather_rows(to, tr.gathered_NH, s.token_R.narrow_rows(0, to.rows()));
    if (sliced_) spread(ctx, tr, s, rows_RH);
  }

  [[nodiscard]] Tensor result_rows(const Travel& tr, const DispatchSlot& s) const override {
    return (sliced_ ? tr.y_RH : s.results).narrow_rows(0, s.received);
  }
  void combine(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor y_tH, Tensor x_tH,
               Tensor /*weights_tK*/) const override {
    if (sliced_) bring_back(ctx, tr, s, results(s), result_rows(tr, s));
    ctx.kernels.combine(tr.partial_NH, Tensor(), results(s), s.pos_NK, s.weights_NK);
    transfer_now(ctx, tr,
                 [this, tr = &tr] { ep_.reduce_scatter_v(tr->sum_tH, tr->partial_NH, token_rows_); });
    ctx.kernels.add(y_tH, x_tH, tr.sum_tH);
  }

  void begin_gradient(Context& ctx, Travel& tr, const DispatchSlot& /*s*/, Tensor g_tH, Tensor /*weights_tK*/,
                      Tensor /*dweights_tK*/) const override {
    send(ctx, tr, g_tH);
  }
  void end_gradient(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor dy_RH, Tensor /*weights_tK*/,
                    Tensor dweights_tK) const override {
    finish(ctx, tr);
    ctx.kernels.combine_backward(sliced_ ? part(tr, s) : dy_RH, tr.dweights_NK, tr.gathered_NH, results(s),
                                 s.pos_NK, s.weights_NK);
    // One rank has the product of a choice, the others 0.
    share_now(ctx, [this, tr = &tr, &dweights_tK] {
      ep_.reduce_scatter_v(dweights_tK, tr->dweights_NK, token_rows_);
    });
    if (sliced_) spread(ctx, tr, s, dy_RH);
  }
  void scatter(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor dn_tH, Tensor drows_RH,
               kernels::Write write) const override {
    if (sliced_) bring_back(ctx, tr, s, part(tr, s), drows_RH);
    ctx.kernels.sum_rows(tr.partial_NH, sliced_ ? part(tr, s) : drows_RH, s.pos_NK,
                         kernels::Write::overwrite);
    const bool accumulate = write == kernels::Write::accumulate;
    const Tensor own_tH = accumulate ? tr.sum_tH : dn_tH;
    transfer_now(ctx, tr,
                 [this, tr = &tr, &own_tH] { ep_.reduce_scatter_v(own_tH, tr->partial_NH, token_rows_); });
    if (accumulate) ctx.kernels.accumulate(dn_tH, tr.sum_tH);
  }

 private:
  [[nodiscard]] std::int64_t most_results() const { return sliced_ ? order_.most_part_rows() : o_.max_rows; }
  [[nodiscard]] Tensor results(const DispatchSlot& s) const {
    return s.results.narrow_rows(0, order_.part_rows(s));
  }
  [[nodiscard]] Tensor part(const Travel& tr, const DispatchSlot& s) const {
    return tr.part_RH.narrow_rows(0, order_.part_rows(s));
  }

  // Rows of the local experts by sender.
  void count_rows(DispatchSlot& s) const {
    const std::int64_t e = order_.local_experts();
    const std::int64_t first = ep_.rank() * e;
    const std::int32_t* index = s.index_NK.as<std::int32_t>();
    const std::int64_t choices = o_.tokens * o_.top_k;
    std::int32_t* count = order_.own_counts(s).as<std::int32_t>();
    std::fill_n(count, order_.ep() * e, 0);
    for (std::int64_t p = 0; p < order_.ep(); ++p) {
      for (std::int64_t i = p * choices; i < (p + 1) * choices; ++i) {
        const std::int64_t local = index[i] - first;
        if (index[i] >= 0 && local >= 0 && local < e) ++count[p * e + local];
      }
    }
  }

  // pos_NK and token_R: tokens ascend, so each block fills in order. `start` serves as the next place.
  void place_rows(DispatchSlot& s) const {
    const std::int64_t e = order_.local_experts();
    const std::int64_t first = ep_.rank() * e;
    const std::int64_t choices = o_.tokens * o_.top_k;
    const std::int32_t* index = s.index_NK.as<std::int32_t>();
    const std::int32_t* from_expert = s.from_expert_R.as<std::int32_t>();
    std::int32_t* pos = s.pos_NK.as<std::int32_t>();
    std::int32_t* token = s.token_R.as<std::int32_t>();
    std::int32_t* next = s.start_QPe.as<std::int32_t>();  // of the first etp rank: starts of part order
    std::int32_t before = 0;
    const std::int32_t* count = order_.own_counts(s).as<std::int32_t>();
    for (std::int64_t i = 0; i < order_.ep() * e; ++i) {
      next[i] = before;
      before += count[i];
    }
    for (std::int64_t i = 0; i < s.index_NK.num_elements(); ++i) {
      const std::int64_t local = index[i] - first;
      pos[i] = -1;
      if (index[i] < 0 || local < 0 || local >= e) continue;
      const std::int32_t row = next[i / choices * e + local]++;
      pos[i] = sliced_ ? row : from_expert[row];
      token[pos[i]] = static_cast<std::int32_t>(i / o_.top_k);
    }
  }

  void send(Context& ctx, Travel& tr, Tensor x_tH) const {
    start(ctx, tr, [this, to = tr.gathered_NH, x_tH] { ep_.all_gather(to, x_tH); });
  }
  // rows_RH (expert order) = the part_RH of all etp ranks; and back, summed.
  void spread(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor rows_RH) const {
    const Tensor full = tr.full_RH.narrow_rows(0, s.received);
    const Tensor own = part(tr, s);
    transfer_now(ctx, tr, [this, &full, &own, s = &s] { order_.gather(full, own, *s); });
    ctx.kernels.gather_rows(rows_RH, full, s.from_full_R.narrow_rows(0, s.received));
  }
  void bring_back(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor part_RH, Tensor rows_RH) const {
    const Tensor full = tr.full_RH.narrow_rows(0, s.received);
    ctx.kernels.gather_rows(full, rows_RH, s.from_expert_R.narrow_rows(0, s.received));
    transfer_now(ctx, tr, [this, &full, &part_RH, s = &s] { order_.sum(part_RH, full, *s); });
  }

  Options o_;
  comm::Communicator& ep_;
  RowOrder order_;
  std::int64_t all_tokens_;  // N
  bool sliced_;
  std::vector<std::int64_t> token_rows_;  // of each ep rank
};

}  // namespace

std::unique_ptr<Dispatch> make_all_gather(const Dispatch::Options& options, comm::Communicator& ep,
                                          comm::Communicator& etp) {
  return std::make_unique<AllGather>(options, ep, etp);
}

}  // namespace tessera::moe
