#include "exec/mtp.h"

#include <algorithm>
#include <span>
#include <utility>

namespace tessera::exec {

using kernels::Write;
using nn::Arena;
using nn::Context;
using nn::DType;
using nn::Frame;
using nn::Microbatch;
using nn::Slots;
using nn::Tensor;

namespace {

// Ids and targets `depth` tokens further on, inside each sequence.
void shift(Tensor ids_T, Tensor targets_T, const Microbatch& mb, const SequenceCut& cut, std::int64_t depth) {
  const bool whole = cut.cp == 1;
  const std::span<const std::int32_t> from_ids = (whole ? mb.ids_T : mb.all_ids).span<std::int32_t>();
  const std::span<const std::int32_t> from_targets =
      (whole ? mb.targets_T : mb.all_targets).span<std::int32_t>();
  const auto ids = ids_T.span<std::int32_t>();
  const auto targets = targets_T.span<std::int32_t>();
  const std::int64_t tokens = std::ssize(ids);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t position = cut.position(t % cut.rows());
    const auto at =
        static_cast<std::size_t>(cut.token(t) - position + std::min(position + depth, cut.length - 1));
    ids[static_cast<std::size_t>(t)] = from_ids[at];
    targets[static_cast<std::size_t>(t)] = position + depth < cut.length ? from_targets[at] : -1;
  }
}

Microbatch shifted(const Microbatch& mb, Tensor ids_T, Tensor targets_T) {
  Microbatch m = mb;
  m.ids_T = ids_T;
  m.targets_T = targets_T;
  return m;
}

// Columns of one half of cat, or all of a matrix of H columns.
kernels::ColumnPlace half(std::int64_t which, std::int64_t width) {
  return {.first = which * width, .stride = width};
}

}  // namespace

HeadWithMtp::HeadWithMtp(const nn::Dims& dims, double coef, std::unique_ptr<nn::Head> main,
                         std::vector<MtpDepth> depths)
    : dims_(dims), coef_(coef), main_(std::move(main)), depths_(std::move(depths)) {}

void HeadWithMtp::reserve_saved(Arena& arena) {
  const std::int64_t t = dims_.local_tokens();
  const auto stream = [&] { return arena.take(dims_.dtype, {t, dims_.hidden}); };
  main_->reserve_saved(arena);
  std::vector<Saved> slot;
  for (MtpDepth& d : depths_) {
    Saved s;
    s.ids_T = arena.take(DType::i32, {dims_.tokens()});
    s.targets_T = arena.take(DType::i32, {dims_.tokens()});
    s.e_tH = stream();
    s.embedding_norm = d.embedding_norm.reserve(arena, dims_.dtype, t);
    s.stream_norm = d.stream_norm.reserve(arena, dims_.dtype, t);
    s.cat_tC = arena.take(dims_.dtype, {t, 2 * dims_.hidden});
    s.u_tH = stream();
    s.mid_tH = stream();
    s.h_tH = stream();
    d.embedding->reserve_saved(arena);
    d.attention->reserve_saved(arena);
    d.feed_forward->reserve_saved(arena);
    d.head->reserve_saved(arena);
    slot.push_back(s);
  }
  saved_.push_back(std::move(slot));
}

void HeadWithMtp::reserve_deferred(Arena& arena) {
  const auto stream = [&] { return arena.take(dims_.dtype, {dims_.local_tokens(), dims_.hidden}); };
  main_->reserve_deferred(arena);
  std::vector<Deferred> slot;
  for (MtpDepth& d : depths_) {
    Deferred f;
    f.g_tH = stream();
    f.de_tH = stream();
    f.dh_tH = stream();
    d.embedding->reserve_deferred(arena);
    d.attention->reserve_deferred(arena);
    d.feed_forward->reserve_deferred(arena);
    d.head->reserve_deferred(arena);
    slot.push_back(f);
  }
  deferred_.push_back(std::move(slot));
}

void HeadWithMtp::measure_scratch(Arena& counting) const {
  main_->measure_scratch(counting);
  for (const MtpDepth& d : depths_) {
    d.embedding->measure_scratch(counting);
    d.attention->measure_scratch(counting);
    d.feed_forward->measure_scratch(counting);
    d.head->measure_scratch(counting);
  }
  const Frame frame(counting);  // of part(), which takes the most
  (void)counting.take(dims_.dtype, {dims_.local_tokens(), 2 * dims_.hidden});
  (void)counting.take(dims_.dtype, {dims_.local_tokens(), dims_.hidden});
}

Context HeadWithMtp::weighted(const Context& ctx) const {
  Context mtp = ctx;
  mtp.weights.ce *= coef_ / static_cast<double>(depths_.size());
  return mtp;
}

void HeadWithMtp::forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH,
                          nn::Pass pass) {
  main_->forward(ctx, slots, mb, x_tH, y_tH, pass);
  if (!ctx.training) return;
  Context mtp = weighted(ctx);
  Tensor h_tH = x_tH;
  for (std::size_t k = 0; k < depths_.size(); ++k) {
    MtpDepth& d = depths_[k];
    Saved& s = nn::slot_at(saved_, slots.saved)[k];
    shift(s.ids_T, s.targets_T, mb, nn::sequence_cut(ctx, dims_), static_cast<std::int64_t>(k) + 1);
    const Microbatch own = shifted(mb, s.ids_T, s.targets_T);
    s.before_tH = h_tH;
    join(ctx, slots, own, d, s);
    d.attention->forward(ctx, slots, own, s.u_tH, s.mid_tH, pass);
    d.feed_forward->forward(ctx, slots, own, s.mid_tH, s.h_tH, pass);
    d.head->forward(mtp, slots, own, s.h_tH, {}, pass);
    h_tH = s.h_tH;
  }
}

// u = M [norm(e); norm(h)]
void HeadWithMtp::join(Context& ctx, Slots slots, const Microbatch& mb, MtpDepth& d, Saved& s) {
  const std::int64_t width = dims_.hidden;
  d.embedding->forward(ctx, slots, mb, {}, s.e_tH, nn::Pass::forward);
  const Frame frame(ctx.scratch);
  const Tensor n_tH = ctx.scratch.take(dims_.dtype, {dims_.local_tokens(), width});
  d.embedding_norm.forward(ctx.kernels, n_tH, s.embedding_norm, s.e_tH);
  ctx.kernels.move_columns(s.cat_tC, n_tH,
                           {.blocks = 1, .width = width, .to = half(0, width), .from = half(0, width)});
  d.stream_norm.forward(ctx.kernels, n_tH, s.stream_norm, s.before_tH);
  ctx.kernels.move_columns(s.cat_tC, n_tH,
                           {.blocks = 1, .width = width, .to = half(1, width), .from = half(0, width)});
  ctx.kernels.linear(s.u_tH, s.cat_tC, d.proj_HC.weight);
}

void HeadWithMtp::backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) {
  main_->backward_input(ctx, slots, mb, g_tH);
  Context mtp = weighted(ctx);
  const std::vector<Saved>& saved = nn::slot_at(saved_, slots.saved);
  const std::vector<Deferred>& deferred = nn::slot_at(deferred_, slots.deferred);
  for (std::size_t k = 0; k < depths_.size(); ++k) {
    const Microbatch own = shifted(mb, saved[k].ids_T, saved[k].targets_T);
    depths_[k].head->backward_input(mtp, slots, own, deferred[k].g_tH);
  }
  for (std::size_t k = depths_.size(); k-- > 0;) {
    const Microbatch own = shifted(mb, saved[k].ids_T, saved[k].targets_T);
    depths_[k].feed_forward->backward_input(ctx, slots, own, deferred[k].g_tH);
    depths_[k].attention->backward_input(ctx, slots, own, deferred[k].g_tH);
    part(ctx, slots, own, depths_[k], saved[k], deferred[k], k > 0 ? deferred[k - 1].g_tH : g_tH);
  }
}

// The gradient of u goes to the embedding and, added, to the stream before.
void HeadWithMtp::part(Context& ctx, Slots slots, const Microbatch& mb, MtpDepth& d, const Saved& s,
                       const Deferred& f, Tensor g_before_tH) {
  const std::int64_t width = dims_.hidden;
  const Frame frame(ctx.scratch);
  const Tensor dcat_tC = ctx.scratch.take(dims_.dtype, {dims_.local_tokens(), 2 * width});
  const Tensor g_embedding_tH = ctx.scratch.take(dims_.dtype, {dims_.local_tokens(), width});
  ctx.kernels.linear_dgrad(dcat_tC, f.g_tH, d.proj_HC.weight);
  ctx.kernels.move_columns(f.de_tH, dcat_tC,
                           {.blocks = 1, .width = width, .to = half(0, width), .from = half(0, width)});
  ctx.kernels.move_columns(f.dh_tH, dcat_tC,
                           {.blocks = 1, .width = width, .to = half(0, width), .from = half(1, width)});
  d.embedding_norm.dgrad(ctx.kernels, g_embedding_tH, f.de_tH, s.e_tH, s.embedding_norm, Write::overwrite);
  d.embedding->backward_input(ctx, slots, mb, g_embedding_tH);
  d.stream_norm.dgrad(ctx.kernels, g_before_tH, f.dh_tH, s.before_tH, s.stream_norm, Write::accumulate);
}

void HeadWithMtp::backward_weight(Context& ctx, Slots slots, const Microbatch& mb) {
  main_->backward_weight(ctx, slots, mb);
  const std::vector<Saved>& saved = nn::slot_at(saved_, slots.saved);
  const std::vector<Deferred>& deferred = nn::slot_at(deferred_, slots.deferred);
  for (std::size_t k = depths_.size(); k-- > 0;) {
    MtpDepth& d = depths_[k];
    const Saved& s = saved[k];
    const Deferred& f = deferred[k];
    const Microbatch own = shifted(mb, s.ids_T, s.targets_T);
    d.head->backward_weight(ctx, slots, own);
    d.feed_forward->backward_weight(ctx, slots, own);
    d.attention->backward_weight(ctx, slots, own);
    ctx.kernels.linear_wgrad(d.proj_HC.grad, f.g_tH, s.cat_tC);
    d.stream_norm.wgrad(ctx.kernels, f.dh_tH, s.before_tH, s.stream_norm);
    d.embedding_norm.wgrad(ctx.kernels, f.de_tH, s.e_tH, s.embedding_norm);
    d.embedding->backward_weight(ctx, slots, own);
  }
}

void HeadWithMtp::add_loss(nn::Kernels& kernels, nn::Tensor sum_1, std::int32_t saved_slot) const {
  for (const MtpDepth& d : depths_) kernels.accumulate(sum_1, d.head->loss_1(saved_slot));
}

double HeadWithMtp::loss(std::int32_t saved_slot) const {
  double sum = 0.0;
  for (const MtpDepth& d : depths_) sum += d.head->loss(saved_slot);
  return sum;
}

}  // namespace tessera::exec
