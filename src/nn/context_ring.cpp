#include "nn/context_ring.h"

namespace tessera::nn {

namespace {

enum class Load : std::uint8_t { keys, gradients };

// Of the message that leaves in a step.
std::int64_t tag_of(Load load, std::int32_t step) {
  return 2 * step + (load == Load::keys ? 0 : 1);
}
std::int32_t next_rank(const comm::Communicator& cp) {
  return (cp.rank() + 1) % cp.size();
}
std::int32_t previous_rank(const comm::Communicator& cp) {
  return (cp.rank() + cp.size() - 1) % cp.size();
}

}  // namespace

Tensor ContextRing::take_block(Arena& arena) const {
  return arena.take(dtype_, {shape_.batch * shape_.seq, shape_.qkv_dim() - shape_.q_dim()});
}

ContextRing::Buffers ContextRing::forward_buffers(Arena& arena) const {
  Buffers b;
  if (cp_ == 1) return b;
  for (Tensor& kv : b.kv) kv = take_block(arena);
  return b;
}

ContextRing::Buffers ContextRing::backward_buffers(Arena& arena) const {
  Buffers b = forward_buffers(arena);
  if (cp_ == 1) return b;
  b.dkv[1] = take_block(arena);  // of the steps 1, 3, ...
  if (cp_ > 2) b.dkv[0] = take_block(arena);
  b.arrived_dkv = take_block(arena);
  b.own_dkv = take_block(arena);
  return b;
}

template <class Body>
void ContextRing::for_each_part(const comm::Communicator& cp, std::int32_t step, Body&& body) const {
  const SequenceCut mine{.length = shape_.seq * cp_, .cp = cp_, .rank = cp.rank()};
  SequenceCut theirs = mine;
  theirs.rank = (cp.rank() + cp_ - step) % cp_;
  const std::int64_t rows = mine.chunk();
  for (std::int32_t q = 0; q < 2; ++q) {
    for (const std::int32_t k : {1, 0}) {  // its own chunk is a query's first
      const std::int64_t distance = (mine.chunk_of_half(q) - theirs.chunk_of_half(k)) * rows;
      const kernels::AttentionPart part{
          .rows = rows, .q_first = q * rows, .k_first = k * rows, .distance = distance};
      if (distance < 0 || part.kept_pairs(shape_) == 0) continue;
      body(part, distance == 0 ? kernels::Write::overwrite : kernels::Write::accumulate);
    }
  }
}

void ContextRing::load_own(kernels::Kernels& k, const Buffers& b, Tensor qkv) const {
  k.move_columns(b.kv[0], qkv,
                 {.width = shape_.qkv_dim() - shape_.q_dim(), .to = {}, .from = {.first = shape_.q_dim()}});
}

void ContextRing::pass_on(comm::Communicator& cp, const Buffers& b, std::int32_t step) const {
  if (step + 1 < cp_)
    cp.send(b.kv[static_cast<std::size_t>(step % 2)], next_rank(cp), tag_of(Load::keys, step));
}

void ContextRing::fetch_next(comm::Communicator& cp, const Buffers& b, std::int32_t step) const {
  if (step > 0) cp.wait_send(next_rank(cp), tag_of(Load::keys, step - 1));
  if (step + 1 == cp_) return;
  cp.recv(b.kv[static_cast<std::size_t>((step + 1) % 2)], previous_rank(cp), tag_of(Load::keys, step));
}

void ContextRing::forward(Context& ctx, const Buffers& b, Tensor out, Tensor lse, Tensor qkv,
                          Tensor sinks_h) const {
  if (cp_ == 1) {
    ctx.kernels.attention(out, lse, qkv, sinks_h, shape_);
    return;
  }
  comm::Communicator& cp = context_group(ctx, cp_);
  load_own(ctx.kernels, b, qkv);
  for (std::int32_t step = 0; step < cp_; ++step) {
    pass_on(cp, b, step);
    const Tensor kv = b.kv[static_cast<std::size_t>(step % 2)];
    for_each_part(cp, step, [&](const kernels::AttentionPart& part, kernels::Write write) {
      ctx.kernels.attention_part(out, lse, qkv, kv, sinks_h, shape_, part, write);
    });
    fetch_next(cp, b, step);
  }
}

void ContextRing::backward(Context& ctx, const Buffers& b, Tensor dqkv, Tensor dsinks_h, Tensor dout,
                           Tensor qkv, Tensor out, Tensor lse, Tensor sinks_h) const {
  Kernels& k = ctx.kernels;
  if (cp_ == 1) {
    k.attention_backward(dqkv, dsinks_h, dout, qkv, out, lse, sinks_h, shape_);
    return;
  }
  comm::Communicator& cp = context_group(ctx, cp_);
  load_own(ctx.kernels, b, qkv);
  k.fill(dqkv, 0.0);
  for (std::int32_t step = 0; step < cp_; ++step) {
    pass_on(cp, b, step);
    const auto at = static_cast<std::size_t>(step % 2);
    if (step > 2) cp.wait_send(next_rank(cp), tag_of(Load::gradients, step - 2));
    const Tensor dkv = step == 0 ? b.own_dkv : b.dkv[at];
    k.fill(dkv, 0.0);
    for_each_part(cp, step, [&](const kernels::AttentionPart& part, kernels::Write /*write*/) {
      k.attention_part_backward(dqkv, dkv, dout, qkv, b.kv[at], out, lse, shape_, part);
    });
    if (step > 1) {
      cp.recv(b.arrived_dkv, previous_rank(cp), tag_of(Load::gradients, step - 1));
      k.accumulate(dkv, b.arrived_dkv);
    }
    if (step > 0) cp.send(dkv, next_rank(cp), tag_of(Load::gradients, step));
    fetch_next(cp, b, step);
  }
  cp.recv(b.arrived_dkv, previous_rank(cp), tag_of(Load::gradients, cp_ - 1));
  k.accumulate(b.own_dkv, b.arrived_dkv);
  ctx.kernels.move_columns(
      dqkv, b.own_dkv,
      {.width = shape_.qkv_dim() - shape_.q_dim(), .to = {.first = shape_.q_dim()}, .from = {}});
  if (cp_ > 2) cp.wait_send(next_rank(cp), tag_of(Load::gradients, cp_ - 2));
  cp.wait_send(next_rank(cp), tag_of(Load::gradients, cp_ - 1));
  if (!sinks_h.empty()) k.attention_sinks_backward(dsinks_h, dout, out, lse, sinks_h, shape_);
}

}  // namespace tessera::nn
