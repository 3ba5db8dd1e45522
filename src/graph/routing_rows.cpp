#include "graph/routing_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "base/math.h"
#include "graph/dispatch_form.h"

namespace tessera::graph {

namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

// Rows that an expert takes of one micro-batch.
std::int64_t expert_capacity(const spec::Job& job) {
  const spec::MoeRecipe& r = job.train.moe;
  const std::int64_t tokens = job.train.micro_batch_size * job.train.sequence_length;
  const double factor = r.capacity_factor > 0.0 ? r.capacity_factor : 1.0;
  const std::int64_t rows =
      capacity_rows(factor, tokens, job.model.moe->num_experts_per_tok, job.model.moe->num_experts);
  return r.router == spec::RouterChoice::expert_choice ? std::min(rows, tokens) : rows;
}

// Tokens of a micro-batch that this rank holds: runs (first token, count), ascending on the rank.
std::vector<std::pair<std::int64_t, std::int64_t>> token_runs(const spec::Job& job,
                                                              const layout::Layout& layout, Rank rank) {
  const SequenceCut cut{.length = job.train.sequence_length,
                        .cp = job.parallel.cp,
                        .rank = layout.dense.coordinate(rank, layout::Axis::cp)};
  const std::int64_t local = div_exact(job.train.micro_batch_size * cut.rows(), job.parallel.tp);
  const std::int64_t first = layout.dense.coordinate(rank, layout::Axis::tp) * local;
  std::vector<std::pair<std::int64_t, std::int64_t>> runs;
  for (std::int64_t t = first; t < first + local; t += runs.back().second)
    runs.emplace_back(cut.token(t), std::min(cut.run(t % cut.rows()), first + local - t));
  return runs;
}

// Of the balanced routing: tokens of this rank with a kept choice on each node.
std::vector<std::int64_t> balanced_node_rows(const spec::Job& job, const layout::Layout& layout,
                                             std::int32_t layer, Rank rank) {
  const std::int64_t num_experts = job.model.moe->num_experts;
  const std::int64_t top_k = job.model.moe->num_experts_per_tok;
  const std::int32_t nodes = dispatch_nodes(job);
  const std::int64_t per_node = div_exact(num_experts, nodes);
  if (job.train.moe.router == spec::RouterChoice::expert_choice) {  // a token has all experts or none
    return std::vector<std::int64_t>(at(nodes), balanced_routing(job, layout, rank).front());
  }
  const std::int64_t tokens = job.train.micro_batch_size * job.train.sequence_length;
  const std::int64_t capacity = job.train.moe.capacity_factor > 0.0 ? expert_capacity(job) : tokens * top_k;
  std::vector<std::int64_t> rows(at(nodes), 0);
  std::vector<std::int64_t> last(at(nodes), -1);  // token that was counted
  for (const auto& [first, count] : token_runs(job, layout, rank)) {
    for (std::int64_t i = first * top_k; i < (first + count) * top_k; ++i) {
      const std::size_t expert = at(i % num_experts);
      const bool in_order = layout.slot_of_expert.empty();
      const std::int64_t slot = in_order ? i % num_experts : layout.slot_of_expert[at(layer)][expert];
      const std::size_t node = at(slot / per_node);
      if (i / num_experts >= capacity || last[node] == i / top_k) continue;
      last[node] = i / top_k;
      ++rows[node];
    }
  }
  return rows;
}

}  // namespace

RoutingRows::RoutingRows(const spec::Job& job, const layout::Layout& layout, Rank rank,
                         const RoutingCounts& routing, const Sizes& sizes)
    : job_(job), layout_(layout), rank_(rank), routing_(routing), sizes_(sizes) {
  check_routing();
}

std::vector<Rank> RoutingRows::expert_group() const {
  return layout_.expert.group(rank_, {layout::Axis::etp, layout::Axis::ep});
}

void RoutingRows::check_routing() const {
  if (routing_.kept.empty() || !job_.model.moe) return;
  const auto refuse = [&](std::string what, std::string mend) {
    throw Error(ErrorKind::config, std::move(what), fmt::format("routing counts for rank {}", rank_.value),
                std::move(mend));
  };
  const std::int32_t num_layers = job_.model.num_hidden_layers + job_.model.num_nextn_predict_layers;
  if (std::ssize(routing_.kept) != num_layers) {
    refuse(fmt::format("{} layers of counts for {} layers", routing_.kept.size(), num_layers),
           "give counts for every layer, or none");
  }
  if (routing_.num_microbatches < 1 || sizes_.num_microbatches % routing_.num_microbatches != 0) {
    refuse(fmt::format("counts over {} micro-batches, a step has {}", routing_.num_microbatches,
                       sizes_.num_microbatches),
           fmt::format("use 1 or {}", sizes_.num_microbatches));
  }
  for (const StageId stage : layout_.stages_of(rank_)) {
    const layout::StageCut& cut = layout_.stages[at(stage.value)];
    const std::int32_t mtp = cut.has_head ? job_.model.num_nextn_predict_layers : 0;  // behind the last
    for (std::int32_t l = cut.first_layer; l < cut.first_layer + cut.num_layers + mtp; ++l) {
      if (!spec::layer_class(job_.model, l).moe) continue;
      for (const Rank r : expert_group()) {
        const auto& ranks = routing_.kept[at(l)];
        if (std::ssize(ranks) > r.value && std::ssize(ranks[at(r.value)]) == job_.model.moe->num_experts)
          continue;
        refuse(fmt::format("no counts of {} experts for layer {}, rank {}", job_.model.moe->num_experts, l,
                           r.value),
               "give one count an expert for every rank of the expert group");
      }
      const std::int32_t nodes = dispatch_nodes(job_);
      for (const Rank r : nodes > 1 ? expert_group() : std::vector<Rank>{}) {
        if (std::ssize(routing_.node_rows) == num_layers && std::ssize(routing_.node_rows[at(l)]) > r.value &&
            std::ssize(routing_.node_rows[at(l)][at(r.value)]) == nodes)
          continue;
        refuse(fmt::format("no rows for {} nodes of layer {}, rank {}", nodes, l, r.value),
               "give the rows that each rank sends to each node, or use moe.dispatch: all_to_all");
      }
    }
  }
}

std::vector<std::int64_t> RoutingRows::kept(std::int32_t layer, Rank r) const {
  if (routing_.kept.empty()) return balanced_routing(job_, layout_, r);
  return routing_.kept[at(layer)][at(r.value)];
}

std::vector<std::int64_t> RoutingRows::node_rows(std::int32_t layer, Rank r) const {
  if (routing_.kept.empty()) return balanced_node_rows(job_, layout_, layer, r);
  return routing_.node_rows[at(layer)][at(r.value)];
}

void RoutingRows::count_rows(MoeSizes& m, std::int32_t layer) const {
  const std::vector<Rank> group = expert_group();
  const std::int64_t local = div_exact(m.num_experts, sizes_.ep);
  const std::int32_t my_ep = layout_.expert.coordinate(rank_, layout::Axis::ep);
  const std::int32_t my_etp = layout_.expert.coordinate(rank_, layout::Axis::etp);
  const std::int32_t per_node = sizes_.ep / m.nodes;
  for (std::size_t g = 0; g < group.size(); ++g) {
    const std::vector<std::int64_t> rows = kept(layer, group[g]);
    const bool my_slice = static_cast<std::int32_t>(g) % sizes_.etp == my_etp;
    const auto ep = static_cast<std::int32_t>(g) / sizes_.etp;
    // Whose rows this rank sends to experts: its own, with nodes also those that it takes on.
    const bool mine = my_slice && (m.nodes > 1 ? ep % per_node == my_ep % per_node : ep == my_ep);
    for (std::int32_t slot = 0; slot < m.num_experts; ++slot) {
      const bool here = slot / local == my_ep;
      const bool my_node = m.nodes == 1 || slot / local / per_node == my_ep / per_node;
      const std::int64_t n = rows[at(layout_.expert_at(layer, slot))];
      if (mine && my_node) m.sent += n;
      if (mine && my_node && !here) m.sent_to_others += n;
      if (!here) continue;
      m.received += n;
      if (my_slice) m.part += n;
      if (my_slice && !mine) m.part_from_others += n;
    }
    if (m.nodes > 1 && mine) count_node_rows(m, layer, ep, group[g]);
  }
}

// Of rank r, ep rank `ep`, in this rank's place on its node.
void RoutingRows::count_node_rows(MoeSizes& m, std::int32_t layer, std::int32_t ep, Rank r) const {
  const std::vector<std::int64_t> rows = node_rows(layer, r);
  const std::int32_t my_node = layout_.expert.coordinate(rank_, layout::Axis::ep) / (sizes_.ep / m.nodes);
  if (r != rank_) {
    m.taken_from_others += rows[at(my_node)];
    return;
  }
  TESSERA_CHECK_EQ(ep / (sizes_.ep / m.nodes), my_node, "a rank is on its own node");
  for (std::int32_t n = 0; n < m.nodes; ++n) {
    m.unique += rows[at(n)];
    if (n != my_node) m.unique_to_others += rows[at(n)];
  }
}

// Replicas whose micro-batches meet in this rank's expert group.
std::int64_t RoutingRows::replicas_in_group() const {
  std::set<std::int32_t> replicas;
  for (const Rank r : expert_group()) replicas.insert(layout_.dense.coordinate(r, layout::Axis::dp));
  return std::ssize(replicas);
}

MoeSizes RoutingRows::of_layer(std::int32_t layer) const {
  const spec::MoeRecipe& r = job_.train.moe;
  MoeSizes m;
  m.num_experts = job_.model.moe->num_experts;
  m.top_k = job_.model.moe->num_experts_per_tok;
  m.intermediate = div_exact(spec::expert_intermediate_size(job_.model), sizes_.etp);
  m.shared_intermediate = div_exact(job_.model.moe->shared_intermediate_size, sizes_.tp);
  m.shared_gate = job_.model.moe->shared_expert_gate;
  m.keeps_logits = job_.model.moe->score == spec::RouterScore::sigmoid && r.z_loss_coef != 0.0;
  m.experts_choose = r.router == spec::RouterChoice::expert_choice;
  m.choices = m.experts_choose ? m.num_experts : m.top_k;
  m.num_units = r.aux_loss_unit == spec::BalanceUnit::sequence ? sizes_.batch : 1;
  const bool in_unit = r.aux_loss_unit != spec::BalanceUnit::global_batch;
  const bool joined = in_unit && r.aux_loss_normalisation == spec::AuxNormalisation::huggingface;
  m.balanced = r.aux_loss_coef != 0.0 && !joined;
  m.counts_units = r.aux_loss_coef != 0.0 && in_unit;
  m.drops = r.capacity_factor > 0.0 || m.experts_choose;
  m.drops_by_weight = r.drop_policy == spec::DropPolicy::probs || m.experts_choose;
  m.row_microbatches = routing_.kept.empty() ? 1 : routing_.num_microbatches;
  m.gathers = sizes_.ep > 1 && dispatch_form(job_) == spec::DispatchForm::all_gather;
  m.nodes = dispatch_nodes(job_);
  const std::int64_t local = div_exact(m.num_experts, sizes_.ep);
  m.max_rows = std::int64_t{sizes_.ep} * sizes_.etp * sizes_.local_tokens() * std::min(m.choices, local);
  m.max_sent = sizes_.local_tokens() * m.choices;
  if (m.drops) {
    const std::int64_t capacity = expert_capacity(job_);
    const std::int64_t meeting = local * capacity * replicas_in_group();
    m.max_rows = std::min(m.max_rows, meeting);
    m.max_sent = std::min(m.max_sent, m.num_experts * capacity);
    if (r.pad_to_capacity) m.padded = meeting;
  }
  if (m.nodes > 1) {
    m.max_sent = m.nodes * sizes_.local_tokens() * std::min(m.choices, div_exact(m.num_experts, m.nodes));
  }
  count_rows(m, layer);
  return m;
}

std::vector<std::int64_t> balanced_routing(const spec::Job& job, const layout::Layout& layout, Rank rank) {
  const std::int64_t num_experts = job.model.moe->num_experts;
  const std::int64_t top_k = job.model.moe->num_experts_per_tok;
  const std::int64_t tokens = job.train.micro_batch_size * job.train.sequence_length;
  const bool experts_choose = job.train.moe.router == spec::RouterChoice::expert_choice;
  const std::int64_t capacity = job.train.moe.capacity_factor > 0.0 ? expert_capacity(job) : tokens * top_k;
  // Choices below x that go to expert e, as far as there is room; an expert that chooses spreads its rows
  // evenly over the tokens.
  const auto below = [&](std::int64_t x, std::int64_t e) {
    if (experts_choose) return div_floor(expert_capacity(job) * x, tokens * top_k);
    return std::min(capacity, x > e ? div_floor(x - e - 1, num_experts) + 1 : 0);
  };
  std::vector<std::int64_t> kept(at(num_experts), 0);
  for (const auto& [first, count] : token_runs(job, layout, rank)) {
    for (std::int64_t e = 0; e < num_experts; ++e)
      kept[at(e)] += below((first + count) * top_k, e) - below(first * top_k, e);
  }
  return kept;
}

}  // namespace tessera::graph
