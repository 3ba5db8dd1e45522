// The mixture of experts, split as the engine splits it: routing, rows there, experts, rows back.
#include <algorithm>

#include "base/math.h"
#include "graph/layers.h"
#include "graph/op_writer.h"

namespace tessera::graph {

namespace {

bool exchanges(const Sizes& s) {
  return s.ep * s.etp > 1;
}

// Of one linear layer of the local experts, over the micro-batches that the rows are of.
std::int64_t products(const Sizes& s, const MoeSizes& m) {
  return div_exact(m.num_experts, s.ep) * m.row_microbatches;
}

// Bytes of a tensor of all tokens of this rank, summed over the micro-batches that row numbers are sums of.
std::int64_t token_bytes(const Sizes& s, const MoeSizes& m, std::int64_t columns) {
  return m.row_microbatches * (s.ep - 1) * s.local_tokens() * columns * s.element;
}

// Row numbers are sums over m.row_microbatches micro-batches.
void to_experts(OpWriter& w, const Sizes& s, const MoeSizes& m) {
  const std::int64_t row = s.hidden * s.element;
  if (m.gathers) {
    w.collective("rows there", Axis::ep, Call::all_gather, token_bytes(s, m, s.hidden));
  } else if (s.ep > 1) {
    w.collective("rows there", Axis::ep, Call::all_to_all_v, m.sent_to_others * row);
  }
  if (s.etp > 1) w.collective("rows to slices", Axis::etp, Call::all_gather_v, (s.etp - 1) * m.part * row);
  w.memory("order rows", 2 * m.received * s.hidden);
}

void from_experts(OpWriter& w, const Sizes& s, const MoeSizes& m) {
  const std::int64_t row = s.hidden * s.element;
  if (!m.gathers || s.etp > 1) w.memory("order rows back", 2 * m.received * s.hidden);
  if (s.etp > 1) {
    w.collective("sum slices", Axis::etp, Call::reduce_scatter_v, (m.received - m.part) * row);
  }
  if (m.gathers) {
    w.memory("sums of own experts", (m.part + s.ep * m.row_microbatches * s.local_tokens()) * s.hidden);
    w.collective("rows back", Axis::ep, Call::reduce_scatter_v, token_bytes(s, m, s.hidden));
  } else if (s.ep > 1) {
    w.collective("rows back", Axis::ep, Call::all_to_all_v, m.part_from_others * row);
  }
}

// What a slot of the dispatch plan holds, the results of the experts included.
void keep_dispatch(OpWriter& w, const Sizes& s, const MoeSizes& m) {
  constexpr std::int64_t kIndex = 4;
  constexpr std::int64_t kCount = 8;
  const std::int64_t choices = s.local_tokens() * m.choices;
  const std::int64_t local = div_exact(m.num_experts, s.ep);
  w.keep(choices, kIndex);    // position of each choice
  w.keep(local + 1, kIndex);  // first row of each expert
  if (exchanges(s)) {
    w.keep(std::int64_t{s.etp} * s.ep * local, kIndex);  // counts by sender
    w.keep(std::int64_t{s.etp} * s.ep * local, kIndex);  // their starts
    w.keep(m.max_rows, kIndex);                          // order, there
    w.keep(m.max_rows, kIndex);                          // and back
    w.keep(s.etp, kCount);
  }
  if (m.gathers) {
    const std::int64_t part = s.ep * s.local_tokens() * std::min(m.choices, local);
    const std::int64_t results = s.etp > 1 ? std::min(m.max_rows, part) : m.max_rows;
    w.keep(s.ep * choices, kIndex);  // choices of all ep ranks
    w.keep(s.ep * choices);          // their weights
    w.keep(s.ep * choices, kIndex);  // and rows
    w.keep(results, kIndex);         // token of each row
    w.keep(results * s.hidden);
    return;
  }
  w.keep(choices, kIndex);               // token of each row
  w.keep(s.ep * m.num_experts, kIndex);  // counts by ep rank
  w.keep(m.max_sent * s.hidden);
  if (!exchanges(s)) return;
  w.keep(s.ep, kCount);
  w.keep(s.ep, kCount);
}

void plan_rows(OpWriter& f, const Sizes& s, const MoeSizes& m) {
  constexpr std::int64_t kIndex = 4;
  const std::int64_t choices = s.local_tokens() * m.choices;
  f.memory("plan rows", 0);
  keep_dispatch(f, s, m);
  if (m.gathers) {
    f.collective("choices of all", Axis::ep, Call::all_gather, (s.ep - 1) * choices * kIndex);
    f.collective("weights of all", Axis::ep, Call::all_gather, (s.ep - 1) * choices * s.element);
  } else if (s.ep > 1) {
    f.collective("row counts", Axis::ep, Call::all_gather, (s.ep - 1) * m.num_experts * kIndex);
  }
  if (s.etp > 1) {
    f.collective("row counts of slices", Axis::etp, Call::all_gather, (s.etp - 1) * m.num_experts * kIndex);
  }
}

void route(OpWriter& f, const Sizes& s, const MoeSizes& m) {
  constexpr std::int64_t kIndex = 4;
  const std::int64_t t = s.local_tokens();
  f.gemm("router", t, m.num_experts, s.hidden);
  f.memory("choose", 2 * t * m.num_experts + 2 * t * m.choices);
  f.keep(t * m.num_experts);
  f.keep(t);
  f.keep(t * m.choices, kIndex);
  f.keep(t * m.choices);
  if (m.keeps_logits) f.keep(t * m.num_experts);
  if (m.balanced) f.keep(m.num_units * m.num_experts);
  if (m.counts_units && s.tp > 1) {
    f.collective("unit counts", Axis::tp, Call::all_reduce_direct,
                 (s.tp - 1) * m.num_units * m.num_experts * kIndex);
  }
  if (m.drops && s.tp > 1) {
    if (!m.experts_choose) {
      f.collective("choices", Axis::tp, Call::all_gather, (s.tp - 1) * t * m.choices * kIndex);
    }
    if (m.drops_by_weight) {
      f.collective("choice weights", Axis::tp, Call::all_gather, (s.tp - 1) * t * m.choices * s.element);
    }
  }
  plan_rows(f, s, m);
}

// The shared experts: an MLP cut over tp on the same normed rows, beside the dispatch.
void shared_forward(OpWriter& f, const Sizes& s, const MoeSizes& m) {
  const std::int64_t T = s.tokens();
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  const std::int64_t I = m.shared_intermediate;
  f.tp_gather("shared gather", t * H);
  f.gemm("shared gate_up", T, 2 * I, H);
  f.keep(T * 2 * I);
  f.memory("shared activation", 3 * T * I);
  if (!s.selective) f.keep(T * I);
  f.gemm("shared down", T, H, I);
  f.tp_scatter("shared scatter", t * H);
  if (m.shared_gate) {
    f.gemm("shared gate", t, 1, H);
    f.keep(t * H);
    f.keep(t);
  }
}
void shared_backward_input(OpWriter& i, const Sizes& s, const MoeSizes& m) {
  const std::int64_t T = s.tokens();
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  const std::int64_t I = m.shared_intermediate;
  if (m.shared_gate) {
    i.memory("shared gate backward", 3 * t * H);
    i.keep(t);
  }
  i.tp_gather("shared gather gradient", t * H);
  if (m.shared_gate) i.gemm("shared gate dgrad", t, H, 1);
  i.gemm("shared down dgrad", T, I, H);
  i.keep(T * H);
  i.memory("shared activation backward", 5 * T * I);
  i.keep(T * 2 * I);
  i.gemm("shared gate_up dgrad", T, H, 2 * I);
  i.tp_scatter("shared scatter gradient", t * H);
  i.memory("shared sum", 3 * t * H);
}
void shared_backward_weight(OpWriter& w, const Sizes& s, const MoeSizes& m) {
  const std::int64_t T = s.tokens();
  const std::int64_t I = m.shared_intermediate;
  if (s.selective) w.memory("shared activation again", 3 * T * I);
  w.gemm("shared down wgrad", s.hidden, I, T);
  w.gemm("shared gate_up wgrad", 2 * I, s.hidden, T);
  if (m.shared_gate) w.gemm("shared gate wgrad", 1, s.hidden, s.local_tokens());
}

void forward(OpList& out, const Sizes& s, const MoeSizes& m, const std::string& prefix) {
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  const std::int64_t I = m.intermediate;
  OpWriter f(out, s, prefix);
  const bool shared = m.shared_intermediate > 0;
  f.memory("norm", 2 * t * H);
  f.keep(t);
  if (!s.selective) f.keep((shared ? s.tokens() : t) * H);
  route(f, s, m);
  if (shared) shared_forward(f, s, m);
  f.per_microbatches(m.row_microbatches);
  if (!m.gathers) f.memory("gather rows", 2 * m.sent * H);
  if (exchanges(s)) to_experts(f, s, m);
  const std::int64_t groups = products(s, m);
  f.grouped_gemm("experts gate_up", groups, OpWriter::RowsAre::m, m.computed(), 2 * I, H);
  f.memory("swiglu", 3 * m.computed() * I);
  f.grouped_gemm("experts down", groups, OpWriter::RowsAre::m, m.computed(), H, I);
  if (exchanges(s)) from_experts(f, s, m);
  f.memory("combine", (m.gathers ? 3 : 2) * t * H * m.row_microbatches + (m.gathers ? 0 : m.sent * H));
  f.keep(m.buffer_rows() * H);
  f.keep(m.buffer_rows() * 2 * I);
  if (!s.selective) f.keep(m.buffer_rows() * I);
}

void backward_input(OpList& out, const Sizes& s, const MoeSizes& m, const std::string& prefix) {
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  const std::int64_t I = m.intermediate;
  OpWriter i(out, s, prefix);
  const bool shared = m.shared_intermediate > 0;
  if (shared && s.selective) {
    i.memory("norm again", 2 * t * H);
    i.keep(s.tokens() * H);
    i.tp_gather("gather again", t * H);
  }
  if (shared) shared_backward_input(i, s, m);
  i.per_microbatches(m.row_microbatches);
  if (!m.gathers) i.memory("combine backward", t * H * m.row_microbatches + 2 * m.sent * H);
  if (exchanges(s)) to_experts(i, s, m);
  if (m.gathers) {
    i.memory("combine backward", s.ep * t * H * m.row_microbatches + 2 * m.part * H);
    i.collective("weight gradients", Axis::ep, Call::reduce_scatter_v, token_bytes(s, m, m.choices));
  }
  const std::int64_t groups = products(s, m);
  i.grouped_gemm("experts down dgrad", groups, OpWriter::RowsAre::m, m.computed(), I, H);
  i.keep(m.buffer_rows() * H);
  i.memory("swiglu backward", 5 * m.computed() * I);
  i.keep(m.buffer_rows() * 2 * I);
  i.grouped_gemm("experts gate_up dgrad", groups, OpWriter::RowsAre::m, m.computed(), H, 2 * I);
  if (exchanges(s)) from_experts(i, s, m);
  if (!m.gathers) i.memory("sum rows", m.sent * H + t * H * m.row_microbatches);
  i.per_microbatches(1);
  i.memory("router backward", 2 * t * m.num_experts);
  i.keep(t * m.num_experts);
  i.gemm("router dgrad", t, H, m.num_experts);
  i.memory("norm backward", 4 * t * H);
  i.keep(t * H);
}

void backward_weight(OpList& out, const Sizes& s, const MoeSizes& m, const std::string& prefix) {
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  const std::int64_t I = m.intermediate;
  OpWriter w(out, s, prefix);
  const bool shared = m.shared_intermediate > 0;
  if (s.selective && !shared) w.memory("norm again", 2 * t * H);
  if (shared) shared_backward_weight(w, s, m);
  w.per_microbatches(m.row_microbatches);
  if (s.selective) w.memory("swiglu again", 3 * m.computed() * I);
  const std::int64_t groups = products(s, m);
  w.grouped_gemm("experts down wgrad", groups, OpWriter::RowsAre::k, m.computed(), H, I);
  w.grouped_gemm("experts gate_up wgrad", groups, OpWriter::RowsAre::k, m.computed(), 2 * I, H);
  w.per_microbatches(1);
  w.gemm("router wgrad", m.num_experts, H, t);
  w.memory("norm wgrad", 2 * t * H);
}

}  // namespace

LayerOps moe_ops(const Sizes& s, const MoeSizes& m, const std::string& prefix) {
  LayerOps ops;
  forward(ops.forward, s, m, prefix);
  backward_input(ops.backward_input, s, m, prefix);
  backward_weight(ops.backward_weight, s, m, prefix);
  return ops;
}

}  // namespace tessera::graph
