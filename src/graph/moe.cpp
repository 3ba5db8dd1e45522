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

bool by_node(const MoeSizes& m) {
  return m.nodes > 1;
}

// Ranks that exchange rows by all_to_all_v, and the experts that they share: all of ep, or those of a node.
std::int64_t exchanging_ranks(const Sizes& s, const MoeSizes& m) {
  return div_exact(std::int64_t{s.ep}, std::int64_t{m.nodes});
}
std::int64_t exchanged_experts(const MoeSizes& m) {
  return div_exact(m.num_experts, std::int64_t{m.nodes});
}
Axis exchange_axis(const MoeSizes& m) {
  return by_node(m) ? Axis::ep_intra : Axis::ep;
}

// Row numbers are sums over m.row_microbatches micro-batches.
void to_experts(OpWriter& w, const Sizes& s, const MoeSizes& m) {
  const std::int64_t row = s.hidden * s.element;
  if (m.gathers) {
    w.collective("rows there", Axis::ep, Call::all_gather, token_bytes(s, m, s.hidden));
  } else if (by_node(m)) {
    w.collective("rows to nodes", Axis::ep_inter, Call::all_to_all_v, m.unique_to_others * row);
  }
  if (!m.gathers && exchanging_ranks(s, m) > 1) {
    w.collective("rows there", exchange_axis(m), Call::all_to_all_v, m.sent_to_others * row);
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
    return;
  }
  if (exchanging_ranks(s, m) > 1) {
    w.collective("rows back", exchange_axis(m), Call::all_to_all_v, m.part_from_others * row);
  }
  if (!by_node(m)) return;
  w.collective("rows from nodes", Axis::ep_inter, Call::all_to_all_v, m.taken_from_others * row);
  w.memory("sum of nodes", (m.unique + 2 * m.row_microbatches * s.local_tokens()) * s.hidden);
}

constexpr std::int64_t kIndex = 4;
constexpr std::int64_t kCount = 8;

// Of hierarchical dispatch: which rows go to which node, and the choices of those that this rank takes on.
void keep_nodes(OpWriter& w, const Sizes& s, const MoeSizes& m) {
  const std::int64_t t = s.local_tokens();
  const std::int64_t unique = t * std::min<std::int64_t>(m.nodes, m.choices);
  const std::int64_t taken = m.nodes * t;
  w.keep(t * m.choices, kIndex);  // position of each choice
  w.keep(t * m.nodes, kIndex);    // row for each node
  w.keep(unique, kIndex);         // token of each row
  w.keep(std::int64_t{m.nodes} * m.nodes, kIndex);
  w.keep(m.nodes, kCount);
  w.keep(m.nodes, kCount);
  w.keep(unique * m.choices, kIndex);
  w.keep(unique * m.choices);
  w.keep(taken * m.choices, kIndex);
  w.keep(taken * m.choices);
}

// What a slot of the dispatch plan holds, the results of the experts included.
void keep_dispatch(OpWriter& w, const Sizes& s, const MoeSizes& m) {
  const std::int64_t choices = m.nodes * s.local_tokens() * m.choices;
  const std::int64_t local = div_exact(m.num_experts, s.ep);
  const std::int64_t ranks = exchanging_ranks(s, m);
  if (by_node(m)) keep_nodes(w, s, m);
  w.keep(choices, kIndex);    // position of each choice
  w.keep(local + 1, kIndex);  // first row of each expert
  if (ranks * s.etp > 1) {
    w.keep(s.etp * ranks * local, kIndex);  // counts by sender
    w.keep(s.etp * ranks * local, kIndex);  // their starts
    w.keep(m.max_rows, kIndex);             // order, there
    w.keep(m.max_rows, kIndex);             // and back
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
  w.keep(choices, kIndex);  // token of each row
  w.keep(m.max_sent * s.hidden);
  if (ranks * s.etp == 1) return;
  w.keep(exchanged_experts(m) + 1, kIndex);      // first row sent to each expert
  w.keep(ranks * exchanged_experts(m), kIndex);  // counts by ep rank
  w.keep(ranks, kCount);
  w.keep(ranks, kCount);
}

void plan_rows(OpWriter& f, const Sizes& s, const MoeSizes& m) {
  const std::int64_t choices = s.local_tokens() * m.choices;
  f.memory("plan rows", 0);
  keep_dispatch(f, s, m);
  if (by_node(m)) {
    const std::int64_t others = m.nodes - 1;
    f.collective("row counts of nodes", Axis::ep_inter, Call::all_gather, others * m.nodes * kIndex);
    f.per_microbatches(m.row_microbatches);
    const std::int64_t sent = m.unique_to_others * m.choices;
    f.collective("choices to nodes", Axis::ep_inter, Call::all_to_all_v, sent * kIndex);
    f.collective("weights to nodes", Axis::ep_inter, Call::all_to_all_v, sent * s.element);
    f.per_microbatches(1);
  }
  const std::int64_t ranks = exchanging_ranks(s, m);
  if (m.gathers) {
    f.collective("choices of all", Axis::ep, Call::all_gather, (s.ep - 1) * choices * kIndex);
    f.collective("weights of all", Axis::ep, Call::all_gather, (s.ep - 1) * choices * s.element);
  } else if (ranks > 1) {
    f.collective("row counts", exchange_axis(m), Call::all_gather,
                 (ranks - 1) * exchanged_experts(m) * kIndex);
  }
  if (s.etp > 1) {
    f.collective("row counts of slices", Axis::etp, Call::all_gather,
                 (s.etp - 1) * exchanged_experts(m) * kIndex);
  }
}

// Capacity is of the whole micro-batch: over tp, then over cp.
void gather_choices(OpWriter& f, const Sizes& s, const MoeSizes& m) {
  const auto gather = [&](const std::string& name, std::int64_t bytes) {  // of one token
    if (s.tp > 1) f.collective(name, Axis::tp, Call::all_gather, (s.tp - 1) * s.local_tokens() * bytes);
    if (s.cp > 1)
      f.collective(name + " of parts", Axis::cp, Call::all_gather, (s.cp - 1) * s.tokens() * bytes);
  };
  if (!m.experts_choose) gather("choices", m.choices * kIndex);
  if (m.drops_by_weight) gather("choice weights", m.choices * s.element);
}

void route(OpWriter& f, const Sizes& s, const MoeSizes& m) {
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
  if (m.counts_units && s.cp > 1) {
    f.collective("unit counts of parts", Axis::cp, Call::all_reduce_direct,
                 (s.cp - 1) * m.num_units * m.num_experts * kIndex);
  }
  if (m.drops) gather_choices(f, s, m);
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
  if (by_node(m)) f.memory("pack rows", 2 * m.unique * H);
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
  if (by_node(m)) {
    i.collective("weight gradients", Axis::ep_inter, Call::all_to_all_v,
                 m.taken_from_others * m.choices * s.element);
  }
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
