#include "cost/layer_table.h"

#include <algorithm>

#include "graph/block_size.h"

namespace tessera::cost {

namespace {
std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}
}  // namespace

LayerClasses::LayerClasses(const spec::ModelSpec& model) {
  for (std::int32_t l = 0; l < model.num_hidden_layers; ++l) {
    const spec::LayerClass layer = spec::layer_class(model, l);
    const auto found = std::find(classes_.begin(), classes_.end(), layer);
    class_of_.push_back(static_cast<std::int32_t>(found - classes_.begin()));
    if (found == classes_.end()) classes_.push_back(layer);
  }
  before_.assign(classes_.size(), std::vector<std::int32_t>(class_of_.size() + 1, 0));
  for (std::size_t c = 0; c < classes_.size(); ++c)
    for (std::size_t l = 0; l < class_of_.size(); ++l)
      before_[c][l + 1] = before_[c][l] + (class_of_[l] == static_cast<std::int32_t>(c) ? 1 : 0);
}

std::int32_t LayerClasses::count(std::int32_t i, std::int32_t first, std::int32_t end) const {
  return before_[at(i)][at(end)] - before_[at(i)][at(first)];
}

std::int32_t LayerClasses::class_of(std::int32_t layer) const {
  return class_of_[at(layer)];
}

BlockGroups block_groups(const Setup& setup, const Candidate& c) {
  const spec::ClusterSpec& k = setup.cluster;
  BlockGroups g;
  g.tp = group_shape(k, c.tp, 1);
  g.cp = group_shape(k, c.cp, c.tp);
  g.etp = group_shape(k, c.etp, 1);
  // ep folds over tp x cp x dp; when pp stands inside of dp it is cut in two runs.
  const std::int32_t inside = c.tp * c.cp;
  if (c.order == AxisOrder::tp_cp_ep_dp_pp || c.pp == 1 || c.ep * c.etp <= inside) {
    g.ep = group_shape(k, c.ep, c.etp);
  } else {
    const std::int32_t inner = std::max(1, inside / c.etp);
    g.ep = group_shape(k, inner, c.etp, c.ep / inner, std::int64_t{inside} * c.pp);
  }
  return g;
}

namespace {

graph::BlockWork sizes_of(const graph::BlockParams& params, const graph::SavedBytes& saved,
                          const graph::Transients& t) {
  graph::BlockWork work;
  work.params = params;
  work.saved = saved;
  work.transient_forward = t.forward;
  work.transient_backward = t.backward;
  return work;
}

// What the sizes of a table have beyond those of its blocks.
void finish_sizes(const Setup& setup, const LayerClasses& classes, const graph::Cut& cut, LayerTable& t) {
  const spec::ModelSpec& m = setup.model;
  for (std::int32_t i = 0; i < classes.size(); ++i) {
    t.layers[at(i)].distinct_gradients =
        static_cast<double>(graph::layer_distinct_weights(m, classes[i], cut));
  }
  // One micro-batch at a time is between the head's forward and backward.
  t.head.logits = head_peak(m, cut, setup.practice);
  t.head.saved = t.head.transient = 0.0;
  t.head.distinct_gradients = static_cast<double>(graph::head_distinct_weights(m, cut));
  t.shared_head = graph::head_params(m, cut, graph::TiedHead::shares_table);
}

}  // namespace

LayerTable layer_table(const Setup& setup, const LayerClasses& classes, const Candidate& c,
                       const LoadFigures& load) {
  const graph::Cut cut = cut_of(setup, c);
  const spec::ModelSpec& m = setup.model;
  BlockContext x{.setup = setup, .groups = block_groups(setup, c), .load = load, .expert_tokens = 0};
  const std::int64_t tokens = c.micro_batch_size * ((setup.work.sequence_length + c.cp - 1) / c.cp);
  x.expert_tokens = c.sequence_parallel ? (tokens + c.tp - 1) / c.tp : tokens;
  const auto cost = [&](const graph::BlockWork& work) {
    return block_cost(x, work, c.recompute, c.recompute_modules);
  };
  LayerTable t;
  if (c.tp > 1) x.host = c.tp * (c.pp > 1 ? setup.practice.tp_host_pipelined : setup.practice.tp_host);
  for (std::int32_t i = 0; i < classes.size(); ++i) {
    t.layers.push_back(cost(graph::layer_work(m, classes[i], cut, setup.practice)));
  }
  x.host = 0.0;
  // Recomputation is of transformer layers.
  t.embedding = block_cost(x, graph::embedding_work(m, cut, setup.practice), spec::Recompute::none, 0);
  t.head = block_cost(x, graph::head_work(m, cut, setup.practice), spec::Recompute::none, 0);
  if (m.num_nextn_predict_layers > 0) t.mtp = cost(graph::mtp_work(m, cut, setup.practice));
  finish_sizes(setup, classes, cut, t);
  return t;
}

LayerTable size_table(const Setup& setup, const LayerClasses& classes, const Candidate& c,
                      const LoadFigures& load) {
  const graph::Cut cut = cut_of(setup, c);
  const spec::ModelSpec& m = setup.model;
  const graph::Practice& p = setup.practice;
  const BlockContext x{.setup = setup, .groups = {}, .load = load, .expert_tokens = 0};
  const auto size = [&](const graph::BlockWork& work) {
    return block_cost(x, work, c.recompute, c.recompute_modules);
  };
  const graph::Transients head = graph::head_transients(m, cut, p);
  LayerTable t;
  for (std::int32_t i = 0; i < classes.size(); ++i) {
    t.layers.push_back(
        size(sizes_of(graph::layer_params(m, classes[i], cut), graph::layer_saved(m, classes[i], cut, p),
                      graph::layer_transients(m, classes[i], cut, p))));
  }
  t.embedding =
      block_cost(x, sizes_of(graph::embedding_params(m, cut), graph::embedding_saved(m, cut, p), {}),
                 spec::Recompute::none, 0);
  t.head = block_cost(x, sizes_of(graph::head_params(m, cut), graph::head_saved(m, cut, p), head),
                      spec::Recompute::none, 0);
  if (m.num_nextn_predict_layers > 0) {
    t.mtp = size(sizes_of(graph::mtp_params(m, cut), graph::mtp_saved(m, cut, p), head));
  }
  finish_sizes(setup, classes, cut, t);
  return t;
}

}  // namespace tessera::cost
