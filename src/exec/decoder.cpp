#include "exec/decoder.h"

#include <algorithm>
#include <cstring>

#include "base/math.h"

namespace tessera::exec {

namespace {
// Widths of calls: powers of two times tp, and `most` itself as a multiple of tp.
std::vector<std::int64_t> widths(std::int64_t most, std::int64_t tp) {
  std::vector<std::int64_t> out;
  for (std::int64_t w = tp; w < most; w *= 2) out.push_back(w);
  out.push_back(round_up(most, tp));
  return out;
}
}  // namespace

Decoder::Decoder(const DecoderOptions& options, Rank rank, const CommFactory& factory,
                 const ckpt::WeightSource& weights)
    : options_(options), model_(options.forward, rank, factory) {
  TESSERA_CHECK(options_.slots > 0 && options_.chunk > 0, "a decoder has slots and rows");
  model_.set_up([&](Arena& arena) { return build(arena); });
  std::ranges::fill(targets_.span<std::int32_t>(), -1);
  model_.load(weights);
}

nn::KvCache::Options Decoder::cache_options() const {
  const spec::ModelSpec& m = options_.forward.model;
  const std::int64_t tp = options_.forward.parallel.tp;
  nn::KvCache::Options o{
      .dtype = options_.forward.dtype,
      .slots = options_.slots + std::int64_t{1},  // one for ranks without rows
      .context = options_.forward.context,
      .rows_per_call = std::max(round_up(options_.chunk, tp), round_up(options_.slots, tp)),
      .layers = {}};
  for (std::int32_t l = 0; l < m.num_hidden_layers; ++l) {
    if (m.mla) {
      o.layers.push_back({.heads = 1, .key_width = m.mla->kv_lora_rank + m.mla->qk_rope_head_dim});
    } else {
      o.layers.push_back(
          {.heads = div_exact(m.num_key_value_heads, tp),
           .key_width = m.head_dim,
           .value_width = m.head_dim,
           .window = spec::layer_class(m, l).span == spec::AttentionSpan::sliding ? m.sliding_window : 0});
    }
  }
  return o;
}

ArenaSize Decoder::build_ladder(Arena& arena, std::vector<Rung>& ladder, std::int64_t most,
                                ForwardModel::Parts parts) {
  ladder.clear();
  ArenaSize scratch;
  for (const std::int64_t rows : widths(most, options_.forward.parallel.tp))
    ladder.push_back({.rows = rows, .stage = model_.make_stage(rows, 1, parts, true)});
  // Nothing lives from one call to the next, so all widths share their memory.
  const ArenaSize packed = arena.mark();
  ArenaSize end = packed;
  for (Rung& r : ladder) {
    r.stage->reserve_live({.live = 1, .deferred = 0, .gradient = 0}, arena);
    scratch = scratch.join(r.stage->scratch_size());
    end = end.join(arena.mark());
    arena.release(packed);
  }
  arena.cover(end);
  return scratch;
}

ArenaSize Decoder::build(Arena& arena) {
  using tensor::DType;
  const spec::ModelSpec& m = options_.forward.model;
  const ArenaSize prefill = build_ladder(arena, prefill_, options_.chunk, ForwardModel::Parts::without_head);
  const ArenaSize scratch =
      prefill.join(build_ladder(arena, decode_, options_.slots, ForwardModel::Parts::all));
  cache_ = std::make_unique<nn::KvCache>(cache_options(), arena);
  const std::int64_t rows = std::max(prefill_.back().rows, decode_.back().rows);
  for (Tensor* t : {&ids_, &targets_, &slots_, &positions_}) *t = arena.take(DType::i32, {rows});
  if (options_.forward.parallel.tp > 1) {
    gathered_ = arena.take(options_.forward.dtype, {decode_.back().rows * m.vocab_size});
    logits_ = arena.take(options_.forward.dtype, {decode_.back().rows, m.vocab_size});
  }
  return scratch;
}

std::int64_t Decoder::prefill_rows(std::int64_t waiting) const {
  waiting = std::min(waiting, options_.chunk);
  std::int64_t below = 0;
  for (const Rung& r : prefill_) {
    // Padding of up to a quarter costs less than another pass over the weights.
    if (r.rows >= waiting) return below == 0 || 4 * waiting >= 3 * r.rows ? waiting : below;
    below = r.rows;
  }
  return waiting;
}

Decoder::Rung& Decoder::rung(std::vector<Rung>& ladder, std::int64_t most) const {
  for (Rung& r : ladder) {
    if (r.rows >= most) return r;
  }
  throw Error(ErrorKind::internal, "a call of a decoder has more rows than it was built for", "decoder",
              "this is a defect of Tessera: please report it");
}

void Decoder::run(Rung& rung, std::span<const DecodeRow> rows) {
  TESSERA_CHECK(std::ssize(rows) <= rung.rows, "every rank knows the largest number of rows");
  // A rank without rows runs one of nobody's sequence.
  const DecodeRow last =
      rows.empty() ? DecodeRow{.id = 0, .slot = options_.slots, .position = 0} : rows.back();
  tensor::Memory& memory = *model_.kernels().memory();
  memory.use_here();     // each call may come from another thread
  memory.synchronise();  // the call before may still read its rows
  for (std::int64_t t = 0; t < rung.rows; ++t) {
    const DecodeRow r = t < std::ssize(rows) ? rows[static_cast<std::size_t>(t)] : last;
    TESSERA_CHECK(r.position >= 0 && r.position < options_.forward.context, "a row lies in the context");
    ids_.as<std::int32_t>()[t] = r.id;
    slots_.as<std::int32_t>()[t] = r.slot;
    positions_.as<std::int32_t>()[t] = r.position;
  }
  const auto part = [&](const Tensor& t) { return t.narrow_rows(0, rung.rows); };
  nn::Microbatch mb{.ids_T = part(ids_), .targets_T = part(targets_)};
  mb.cache = cache_.get();
  mb.slots_T = part(slots_);
  mb.positions_T = part(positions_);
  nn::Context ctx = model_.context();
  rung.stage->forward(ctx, {.live = 0, .deferred = 0, .gradient = 0}, mb);
}

void Decoder::prefill(std::span<const DecodeRow> rows, std::int64_t most) {
  run(rung(prefill_, most), rows);
}

Tensor Decoder::decode(std::span<const DecodeRow> rows, std::int64_t most) {
  Rung& r = rung(decode_, most);
  run(r, rows);
  return gather_logits(r.stage->head().logits(0), std::ssize(rows));
}

// Shares of the vocabulary may differ by one row, so each rank's block travels whole and is put in place
// here.
Tensor Decoder::gather_logits(Tensor local, std::int64_t rows) {
  const spec::ModelSpec& m = options_.forward.model;
  const Communicators& comms = model_.comms();
  const std::int32_t tp = comms.tp->size();
  if (tp == 1) return local.narrow_rows(0, rows);
  std::vector<std::int64_t> sizes;
  for (std::int32_t r = 0; r < tp; ++r)
    sizes.push_back(layout::vocab_share(m.vocab_size, r, tp).size * local.rows());
  comms.tp->all_gather_v(gathered_.narrow_rows(0, local.rows() * m.vocab_size), local.flat(), sizes);
  const std::int64_t width = local.rows();
  for (std::int32_t r = 0; r < tp; ++r) {
    const layout::VocabShare share = layout::vocab_share(m.vocab_size, r, tp);
    model_.kernels().move_columns(
        logits_.narrow_rows(0, width),
        gathered_.narrow_rows(share.begin * width, share.size * width).reshaped({width, share.size}),
        {.width = share.size, .to = {.first = share.begin}, .from = {}});
  }
  return logits_.narrow_rows(0, rows);
}

}  // namespace tessera::exec
