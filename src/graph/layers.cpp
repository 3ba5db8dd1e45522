#include "graph/layers.h"

#include <cmath>
#include <iterator>
#include <utility>

#include "graph/op_writer.h"

namespace tessera::graph {

namespace {
void append_list(OpList& to, OpList from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}
}  // namespace

void LayerOps::append(LayerOps other) {
  append_list(forward, std::move(other.forward));
  append_list(backward_input, std::move(other.backward_input));
  append_list(backward_weight, std::move(other.backward_weight));
}

LayerOps mlp_ops(const Sizes& s, const std::string& prefix) {
  const std::int64_t T = s.tokens();
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  const std::int64_t I = s.intermediate;
  const std::int64_t Z = (s.gated_mlp ? 2 : 1) * I;
  LayerOps ops;
  OpWriter f(ops.forward, s, prefix);
  f.norm("norm");
  if (!s.selective) f.keep(T * H);
  f.tp_gather_beside("gather", t * H);
  f.gemm("up", T, Z, H);
  f.keep(T * Z);
  if (s.mlp_bias) f.memory("up bias", 2 * T * Z);
  f.memory("activation", T * (Z + I));
  if (!s.selective) f.keep(T * I);
  f.gemm("down", T, H, I);
  f.tp_scatter_beside("scatter", t * H);
  f.memory("add", 3 * t * H);
  if (s.mlp_bias) f.memory("down bias", 2 * t * H);

  OpWriter i(ops.backward_input, s, prefix);
  if (s.selective) {
    i.memory("norm again", 2 * t * H);
    i.keep(T * H);
    i.tp_gather("gather again", t * H);
  }
  i.tp_gather_beside("gather gradient", t * H);
  i.gemm("down dgrad", T, I, H);
  i.keep(T * H);
  i.memory("activation backward", T * (2 * Z + I));
  i.keep(T * Z);
  i.gemm("up dgrad", T, H, Z);
  i.tp_scatter_beside("scatter gradient", t * H);
  i.memory("norm backward", 4 * t * H);
  i.keep(t * H);

  OpWriter w(ops.backward_weight, s, prefix);
  if (s.selective) w.memory("activation again", T * (Z + I));
  w.gemm("down wgrad", H, I, T);
  if (s.mlp_bias) w.memory("down bias wgrad", t * H);
  w.gemm("up wgrad", Z, H, T);
  if (s.mlp_bias) w.memory("up bias wgrad", T * Z);
  w.memory("norm wgrad", 2 * t * H);
  return ops;
}

LayerOps embedding_ops(const Sizes& s, const std::string& prefix) {
  const std::int64_t T = s.tokens();
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  LayerOps ops;
  OpWriter f(ops.forward, s, prefix);
  f.memory("lookup", 2 * T * H);
  f.tp_scatter("scatter", t * H);
  if (s.learned_positions) f.memory("positions", 3 * t * H);
  OpWriter i(ops.backward_input, s, prefix);
  i.memory("hand over", s.tp > 1 ? 0 : 2 * T * H);
  i.keep(T * H);
  i.tp_gather("gather gradient", t * H);
  OpWriter w(ops.backward_weight, s, prefix);
  w.memory("wgrad", 3 * T * H);
  if (s.learned_positions) w.memory("positions wgrad", 3 * t * H);
  return ops;
}

LayerOps head_ops(const Sizes& s, const std::string& prefix) {
  const std::int64_t T = s.tokens();
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  const std::int64_t V = s.vocab;
  LayerOps ops;
  OpWriter f(ops.forward, s, prefix);
  f.norm("norm");
  f.keep(T * H);
  f.tp_gather("gather", t * H);
  f.gemm("logits", T, V, H);
  f.keep(T * V);
  f.memory("softmax statistics", T * V + 3 * T);
  f.tp_gather("gather statistics", 3 * T);
  f.memory("loss", s.tp * 3 * T + 2 * T);
  f.keep(T);
  f.keep(T);
  f.keep(1, 8);  // the loss, in f64
  OpWriter i(ops.backward_input, s, prefix);
  i.memory("cross entropy backward", 2 * T * V);
  i.gemm("logits dgrad", T, H, V);
  i.tp_scatter("scatter gradient", t * H);
  i.memory("norm backward", 3 * t * H);
  i.keep(t * H);
  OpWriter w(ops.backward_weight, s, prefix);
  w.gemm("logits wgrad", V, H, T);
  w.memory("norm wgrad", 2 * t * H);
  return ops;
}

LayerOps mtp_join_ops(const Sizes& s, const std::string& prefix) {
  constexpr std::int64_t kIndex = 4;
  const std::int64_t T = s.tokens();
  const std::int64_t t = s.local_tokens();
  const std::int64_t H = s.hidden;
  LayerOps ops;
  LayerOps embedding = embedding_ops(s, prefix + "embedding.");
  OpWriter f(ops.forward, s, prefix);
  f.memory("shift", 0);
  f.keep(T, kIndex);
  f.keep(T, kIndex);
  append_list(ops.forward, std::move(embedding.forward));
  f.keep(t * H);
  f.norm("enorm");
  f.norm("hnorm");
  f.memory("concatenate", 4 * t * H);
  f.keep(2 * t * H);
  f.gemm("eh_proj", t, H, 2 * H);
  f.keep(t * H);
  OpWriter i(ops.backward_input, s, prefix);
  i.gemm("eh_proj dgrad", t, 2 * H, H);
  i.keep(t * H);
  i.memory("take apart", 4 * t * H);
  i.keep(t * H);
  i.keep(t * H);
  i.memory("enorm backward", 3 * t * H);
  append_list(ops.backward_input, std::move(embedding.backward_input));
  i.memory("hnorm backward", 4 * t * H);
  OpWriter w(ops.backward_weight, s, prefix);
  w.gemm("eh_proj wgrad", H, 2 * H, t);
  w.memory("hnorm wgrad", 2 * t * H);
  w.memory("enorm wgrad", 2 * t * H);
  append_list(ops.backward_weight, std::move(embedding.backward_weight));
  return ops;
}

LayerOps head_with_mtp_ops(LayerOps head, std::vector<MtpOps> depths) {
  LayerOps all = std::move(head);
  for (MtpOps& d : depths) {
    for (LayerOps* part : {&d.join, &d.layer, &d.head}) append_list(all.forward, std::move(part->forward));
    append_list(all.backward_input, std::move(d.head.backward_input));
  }
  for (auto d = depths.rbegin(); d != depths.rend(); ++d) {
    for (LayerOps* part : {&d->layer, &d->join})
      append_list(all.backward_input, std::move(part->backward_input));
    for (LayerOps* part : {&d->head, &d->layer, &d->join})
      append_list(all.backward_weight, std::move(part->backward_weight));
  }
  return all;
}

std::int64_t capacity_rows(double factor, std::int64_t tokens, std::int64_t top_k, std::int64_t num_experts) {
  const double exact = factor * static_cast<double>(tokens * top_k) / static_cast<double>(num_experts);
  const double nearest = std::round(exact);
  const double rounding = 1e-12 * std::max(1.0, exact);
  return static_cast<std::int64_t>(std::abs(exact - nearest) <= rounding ? nearest : std::ceil(exact));
}

}  // namespace tessera::graph
