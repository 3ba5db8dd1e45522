// A token's row goes once to each node that has experts for it, to the rank in this one's place there, which
// takes it on to its experts inside the node and brings their weighted sum back. Legend: dispatch.h; N nodes,
// u rows that this rank sends to them, L rows that it takes on.
#include <algorithm>
#include <cstddef>

#include "base/math.h"
#include "moe/dispatch_rows.h"

namespace tessera::moe {

namespace {

constexpr nn::DType kIndex = nn::DType::i32;

// What the ranks of one node do with the rows that they take on.
Dispatch::Options inside_options(const Dispatch::Options& o, std::int64_t nodes) {
  Dispatch::Options inside = o;
  inside.tokens = nodes * o.tokens;
  inside.num_experts = static_cast<std::int32_t>(div_exact(o.num_experts, nodes));
  inside.max_sent = inside.tokens * std::min(o.top_k, inside.num_experts);
  inside.form = DispatchForm::all_to_all;
  return inside;
}

class Hierarchical final : public Dispatch {
 public:
  Hierarchical(const Options& options, const ExpertGroups& groups)
      : o_(options),
        across_(*groups.across),
        nodes_(groups.across->size()),
        inside_(make_dispatch(inside_options(options, nodes_), {*groups.inside, groups.etp})) {}

  [[nodiscard]] DispatchSlot reserve(Arena& arena) const override {
    DispatchSlot s = inside_->reserve(arena);
    s.taken_pos_LK = s.pos_tK;
    s.pos_tK = arena.take(kIndex, {o_.tokens, o_.top_k});
    s.node_pos_tN = arena.take(kIndex, {o_.tokens, nodes_});
    s.token_u = arena.take(kIndex, {most_unique()});
    s.node_counts_NN = arena.take(kIndex, {nodes_, nodes_});
    s.send_rows_N = arena.take(nn::DType::i64, {nodes_});
    s.recv_rows_N = arena.take(nn::DType::i64, {nodes_});
    s.index_uK = arena.take(kIndex, {most_unique(), o_.top_k});
    s.weights_uK = arena.take_shared(tensor::stats_of(o_.dtype), {most_unique(), o_.top_k});
    s.taken_index_LK = arena.take(kIndex, {most_taken(), o_.top_k});
    s.taken_weights_LK = arena.take_shared(tensor::stats_of(o_.dtype), {most_taken(), o_.top_k});
    return s;
  }

  [[nodiscard]] Travel travel(Arena& arena) const override {
    Travel tr = inside_->travel(arena);
    tr.unique_uH = arena.take(o_.dtype, {most_unique(), o_.hidden});
    tr.taken_LH = arena.take(o_.dtype, {most_taken(), o_.hidden});
    tr.sum_tH = arena.take(o_.dtype, {o_.tokens, o_.hidden});
    tr.dweights_uK = arena.take(tensor::stats_of(o_.dtype), {most_unique(), o_.top_k});
    tr.dweights_LK = arena.take(tensor::stats_of(o_.dtype), {most_taken(), o_.top_k});
    return tr;
  }

  void plan(Context& ctx, DispatchSlot& s, Tensor index_tK, Tensor weights_tK) const override {
    nn::host_turn(ctx);
    sort_by_node(s, index_tK, weights_tK);
    share_now(ctx, [this, s = &s] {
      across_.all_gather(s->node_counts_NN, s->node_counts_NN.narrow_rows(across_.rank(), 1));
    });
    const std::int32_t* counts = s.node_counts_NN.as<std::int32_t>();
    s.taken = 0;
    for (std::int64_t n = 0; n < nodes_; ++n) {
      s.send_rows_N.as<std::int64_t>()[n] = counts[across_.rank() * nodes_ + n];
      s.taken += s.recv_rows_N.as<std::int64_t>()[n] = counts[n * nodes_ + across_.rank()];
    }
    share_now(ctx, [this, s = &s] {
      there(s->taken_index_LK, s->index_uK, *s);
      there(s->taken_weights_LK, s->weights_uK, *s);
    });

    DispatchSlot in = inside(s);
    const std::int32_t* index = s.taken_index_LK.as<std::int32_t>();
    std::transform(index, index + s.taken * o_.top_k, in.pos_tK.as<std::int32_t>(),
                   [](std::int32_t e) { return e < 0 ? -1 : 0; });
    inside_->plan(ctx, in, s.taken_index_LK.narrow_rows(0, s.taken),
                  s.taken_weights_LK.narrow_rows(0, s.taken));
    s.sent = in.sent;
    s.received = in.received;
  }

  void begin_rows(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor n_tH) const override {
    send(ctx, tr, s, n_tH);
  }
  void end_rows(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor rows_RH) const override {
    finish(ctx, tr);
    const DispatchSlot in = inside(s);
    inside_->begin_rows(ctx, tr, in, taken(tr, s));
    inside_->end_rows(ctx, tr, in, rows_RH);
  }
  [[nodiscard]] Tensor result_rows(const Travel& tr, const DispatchSlot& s) const override {
    return inside_->result_rows(tr, s);
  }
  void combine(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor y_tH, Tensor x_tH,
               Tensor /*weights_tK*/) const override {
    inside_->combine(ctx, tr, inside(s), taken(tr, s), Tensor(), s.taken_weights_LK.narrow_rows(0, s.taken));
    transfer_now(ctx, tr, [this, tr = &tr, s = &s] { back(tr->unique_uH, tr->taken_LH, *s); });
    ctx.kernels.sum_rows(tr.sum_tH, tr.unique_uH.narrow_rows(0, s.unique), s.node_pos_tN,
                         kernels::Write::overwrite);
    ctx.kernels.add(y_tH, x_tH, tr.sum_tH);
  }

  void begin_gradient(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor g_tH, Tensor /*weights_tK*/,
                      Tensor /*dweights_tK*/) const override {
    send(ctx, tr, s, g_tH);
  }
  void end_gradient(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor dy_RH, Tensor /*weights_tK*/,
                    Tensor dweights_tK) const override {
    finish(ctx, tr);
    const DispatchSlot in = inside(s);
    const Tensor weights_LK = s.taken_weights_LK.narrow_rows(0, s.taken);
    const Tensor dweights_LK = tr.dweights_LK.narrow_rows(0, s.taken);
    inside_->begin_gradient(ctx, tr, in, taken(tr, s), weights_LK, dweights_LK);
    inside_->end_gradient(ctx, tr, in, dy_RH, weights_LK, dweights_LK);
    // One node has the product of a choice, the others 0.
    share_now(ctx, [this, tr = &tr, s = &s] { back(tr->dweights_uK, tr->dweights_LK, *s); });
    ctx.kernels.sum_rows(dweights_tK, tr.dweights_uK.narrow_rows(0, s.unique), s.node_pos_tN,
                         kernels::Write::overwrite);
  }
  void scatter(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor dn_tH, Tensor drows_RH,
               kernels::Write write) const override {
    inside_->scatter(ctx, tr, inside(s), taken(tr, s), drows_RH, kernels::Write::overwrite);
    transfer_now(ctx, tr, [this, tr = &tr, s = &s] { back(tr->unique_uH, tr->taken_LH, *s); });
    ctx.kernels.sum_rows(dn_tH, tr.unique_uH.narrow_rows(0, s.unique), s.node_pos_tN, write);
  }

 private:
  [[nodiscard]] std::int64_t most_unique() const {
    return o_.tokens * std::min<std::int64_t>(nodes_, o_.top_k);
  }
  [[nodiscard]] std::int64_t most_taken() const { return nodes_ * o_.tokens; }
  [[nodiscard]] Tensor taken(const Travel& tr, const DispatchSlot& s) const {
    return tr.taken_LH.narrow_rows(0, s.taken);
  }

  // The slot as the ranks of the node see it: its tokens are the rows that this rank took on.
  [[nodiscard]] DispatchSlot inside(const DispatchSlot& s) const {
    DispatchSlot in = s;
    in.pos_tK = s.taken_pos_LK.narrow_rows(0, s.taken);
    return in;
  }

  // Rows by (node, token) with the choices that the node serves, numbered from its first expert; below 0: not
  // of this node, or dropped.
  void sort_by_node(DispatchSlot& s, Tensor index_tK, Tensor weights_tK) const {
    const std::int64_t experts = div_exact(o_.num_experts, nodes_);
    const std::int32_t* index = index_tK.as<std::int32_t>();
    const std::int32_t* pos = s.pos_tK.as<std::int32_t>();
    std::int32_t* node_pos = s.node_pos_tN.as<std::int32_t>();
    std::int32_t* count = s.node_counts_NN.narrow_rows(across_.rank(), 1).as<std::int32_t>();
    s.unique = 0;
    for (std::int64_t n = 0; n < nodes_; ++n) {
      const std::int64_t before = s.unique;
      for (std::int64_t t = 0; t < o_.tokens; ++t) {
        bool here = false;
        std::int32_t* choices = s.index_uK.as<std::int32_t>() + s.unique * o_.top_k;  // maybe of the next row
        const bool room = s.unique < most_unique();
        for (std::int64_t k = 0; k < o_.top_k; ++k) {
          const std::int64_t local = index[t * o_.top_k + k] - n * experts;
          const bool served = pos[t * o_.top_k + k] >= 0 && local >= 0 && local < experts;
          here = here || served;
          if (room) choices[k] = served ? static_cast<std::int32_t>(local) : -1;
        }
        node_pos[t * nodes_ + n] = here ? static_cast<std::int32_t>(s.unique) : -1;
        if (here) s.token_u.as<std::int32_t>()[s.unique++] = static_cast<std::int32_t>(t);
      }
      count[n] = static_cast<std::int32_t>(s.unique - before);
    }
    const auto bytes = static_cast<std::size_t>(div_exact(weights_tK.bytes().value, o_.tokens));
    const std::byte* weights = static_cast<const std::byte*>(weights_tK.raw());
    std::byte* to = static_cast<std::byte*>(s.weights_uK.raw());
    for (std::int64_t u = 0; u < s.unique; ++u, to += bytes)
      std::copy_n(weights + static_cast<std::size_t>(s.token_u.as<std::int32_t>()[u]) * bytes, bytes, to);
  }

  void send(Context& ctx, Travel& tr, const DispatchSlot& s, Tensor x_tH) const {
    ctx.kernels.gather_rows(tr.unique_uH.narrow_rows(0, s.unique), x_tH, s.token_u.narrow_rows(0, s.unique));
    start(ctx, tr, [this, tr = &tr, s = &s] { there(tr->taken_LH, tr->unique_uH, *s); });
  }
  void there(Tensor taken_L, Tensor unique_u, const DispatchSlot& s) const {
    across_.all_to_all_v(taken_L.narrow_rows(0, s.taken), s.recv_rows_N.span<std::int64_t>(),
                         unique_u.narrow_rows(0, s.unique), s.send_rows_N.span<std::int64_t>());
  }
  void back(Tensor unique_u, Tensor taken_L, const DispatchSlot& s) const {
    across_.all_to_all_v(unique_u.narrow_rows(0, s.unique), s.send_rows_N.span<std::int64_t>(),
                         taken_L.narrow_rows(0, s.taken), s.recv_rows_N.span<std::int64_t>());
  }

  Options o_;
  comm::Communicator& across_;
  std::int64_t nodes_;
  std::unique_ptr<Dispatch> inside_;
};

}  // namespace

std::unique_ptr<Dispatch> make_hierarchical(const Dispatch::Options& options, const ExpertGroups& groups) {
  return std::make_unique<Hierarchical>(options, groups);
}

}  // namespace tessera::moe
