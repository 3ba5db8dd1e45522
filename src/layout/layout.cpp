#include "layout/layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/math.h"

namespace tessera::layout {

std::string_view name(Axis axis) {
  switch (axis) {
    case Axis::tp:
      return "tp";
    case Axis::cp:
      return "cp";
    case Axis::dp:
      return "dp";
    case Axis::pp:
      return "pp";
    case Axis::etp:
      return "etp";
    case Axis::ep:
      return "ep";
    case Axis::edp:
      return "edp";
  }
  return "unknown";
}

std::string_view name(GradGroup group) {
  switch (group) {
    case GradGroup::dp:
      return "dp";
    case GradGroup::tp_dp:
      return "tp_dp";
    case GradGroup::edp:
      return "edp";
  }
  return "unknown";
}

VocabShare vocab_share(std::int64_t vocab_size, std::int32_t part, std::int32_t parts) {
  const std::int64_t even = div_floor(vocab_size, parts);
  const std::int64_t more = vocab_size % parts;
  return {.begin = part * even + std::min<std::int64_t>(part, more), .size = even + (part < more ? 1 : 0)};
}

bool is_input(ParamKind kind) {
  return kind == ParamKind::embedding || kind == ParamKind::position;
}

namespace {

std::size_t index(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

std::size_t position(const std::array<Axis, 4>& axes, Axis axis) {
  const auto at = std::find(axes.begin(), axes.end(), axis);
  TESSERA_CHECK(at != axes.end(),
                fmt::format("axis {} is not one of this grid's ({}, {}, {}, {})", name(axis), name(axes[0]),
                            name(axes[1]), name(axes[2]), name(axes[3])));
  return static_cast<std::size_t>(at - axes.begin());
}

}  // namespace

RankGrid::RankGrid(std::array<Axis, 4> axes, std::array<std::int32_t, 4> sizes) : axes_(axes), sizes_(sizes) {
  for (const std::int32_t size : sizes_)
    TESSERA_CHECK(size >= 1, "every axis of a rank grid has a size >= 1");
}

std::int32_t RankGrid::world_size() const {
  return sizes_[0] * sizes_[1] * sizes_[2] * sizes_[3];
}

std::int32_t RankGrid::size(Axis axis) const {
  return sizes_[position(axes_, axis)];
}

std::int32_t RankGrid::coordinate(Rank rank, Axis axis) const {
  TESSERA_CHECK(rank.value >= 0 && rank.value < world_size(),
                fmt::format("rank {} is outside a world of {}", rank.value, world_size()));
  const std::size_t at = position(axes_, axis);
  std::int32_t stride = 1;
  for (std::size_t i = 0; i < at; ++i) stride *= sizes_[i];
  return rank.value / stride % sizes_[at];
}

std::vector<Rank> RankGrid::group(Rank rank, std::span<const Axis> axes) const {
  std::int32_t first = rank.value;
  std::array<bool, 4> varies{};
  std::int32_t stride = 1;
  for (const Axis axis : axes) varies[position(axes_, axis)] = true;
  for (std::size_t i = 0; i < axes_.size(); ++i) {
    if (varies[i]) first -= coordinate(rank, axes_[i]) * stride;
    stride *= sizes_[i];
  }
  // Later axes have larger strides, so appending whole shifted copies keeps the ranks ascending.
  std::vector<Rank> ranks{Rank(first)};
  stride = 1;
  for (std::size_t i = 0; i < axes_.size(); ++i) {
    const std::size_t before = ranks.size();
    for (std::int32_t c = 1; varies[i] && c < sizes_[i]; ++c)
      for (std::size_t j = 0; j < before; ++j) ranks.emplace_back(ranks[j].value + c * stride);
    stride *= sizes_[i];
  }
  return ranks;
}

std::vector<Rank> RankGrid::group(Rank rank, std::initializer_list<Axis> axes) const {
  return group(rank, std::span<const Axis>(axes.begin(), axes.size()));
}

std::vector<StageId> Layout::stages_of(Rank rank) const {
  const std::int32_t pp_rank = dense.coordinate(rank, Axis::pp);
  std::vector<StageId> result;
  for (std::size_t s = 0; s < stage_rank.size(); ++s)
    if (stage_rank[s] == pp_rank) result.emplace_back(static_cast<std::int32_t>(s));
  return result;
}

void place_experts(Layout& layout, const spec::ModelSpec& model, std::span<const std::int32_t> slots) {
  if (slots.empty()) return;
  const std::int64_t experts = model.moe->num_experts;
  const std::int32_t layers = model.num_hidden_layers + model.num_nextn_predict_layers;
  layout.expert_of_slot.resize(index(layers));
  layout.slot_of_expert.resize(index(layers));
  auto first = slots.begin();
  for (const std::int32_t l : spec::moe_layers(model)) {
    std::vector<std::int32_t>& inverse = layout.slot_of_expert[index(l)];
    layout.expert_of_slot[index(l)].assign(first, first + experts);
    inverse.resize(index(experts));
    for (std::int32_t s = 0; s < experts; ++s) inverse[index(first[s])] = s;
    first += experts;
  }
}

std::int32_t Layout::expert_at(std::int32_t layer, std::int32_t slot) const {
  return expert_of_slot.empty() ? slot : expert_of_slot[index(layer)][index(slot)];
}

std::int32_t Layout::slots_of(std::int32_t layer, std::int32_t num_experts) const {
  return expert_of_slot.empty() ? num_experts
                                : static_cast<std::int32_t>(expert_of_slot[index(layer)].size());
}

NodeGroups expert_nodes(const Layout& layout, Rank rank, std::int32_t nodes) {
  const std::vector<Rank> group = layout.expert.group(rank, {Axis::ep});
  const auto size = static_cast<std::int32_t>(group.size());
  TESSERA_CHECK_EQ(size % nodes, 0, "nodes share the ep ranks evenly");
  const std::int32_t per_node = size / nodes;
  const std::int32_t own = layout.expert.coordinate(rank, Axis::ep);
  NodeGroups g;
  for (std::int32_t i = 0; i < size; ++i) {
    if (i % per_node == own % per_node) g.across.push_back(group[index(i)]);
    if (i / per_node == own / per_node) g.inside.push_back(group[index(i)]);
  }
  return g;
}

Layout make_layout(const spec::ModelSpec& model, const spec::ParallelSpec& parallel, Placement placement) {
  const spec::ParallelSpec& p = parallel;
  TESSERA_CHECK_EQ(std::int64_t{p.tp} * p.cp * p.dp, std::int64_t{p.etp} * p.ep * p.edp(),
                   "tp * cp * dp must equal etp * ep * edp");
  Layout layout{
      .dense = RankGrid({Axis::tp, Axis::cp, Axis::dp, Axis::pp}, {p.tp, p.cp, p.dp, p.pp}),
      .expert = RankGrid({Axis::etp, Axis::ep, Axis::edp, Axis::pp}, {p.etp, p.ep, p.edp(), p.pp}),
      .stages = {},
      .stage_rank = {},
  };
  const std::int32_t num_stages = p.pp * p.vpp;
  TESSERA_CHECK(placement == Placement::loop || p.vpp == 2, "the vee placement has two stages per rank");
  TESSERA_CHECK(p.stage_layers.empty() || std::ssize(p.stage_layers) == num_stages,
                "stage_layers has one entry per stage");
  const std::int32_t remainder = model.num_hidden_layers % num_stages;
  std::int32_t next = 0;
  for (std::int32_t s = 0; s < num_stages; ++s) {
    const std::int32_t even = model.num_hidden_layers / num_stages + (s < remainder ? 1 : 0);
    const std::int32_t layers = p.stage_layers.empty() ? even : p.stage_layers[index(s)];
    layout.stages.push_back({.first_layer = next,
                             .num_layers = layers,
                             .has_embedding = s == 0,
                             .has_head = s == num_stages - 1});
    const bool upwards = placement == Placement::vee && s >= p.pp;
    layout.stage_rank.push_back(upwards ? 2 * p.pp - 1 - s : s % p.pp);
    next += layers;
  }
  TESSERA_CHECK_EQ(next, model.num_hidden_layers, "the stages hold every layer once");
  place_experts(layout, model, p.expert_slots);
  return layout;
}

namespace {

std::string stage_text(const StageCut& cut) {
  std::string text = cut.has_embedding ? "embedding + " : "";
  if (cut.num_layers == 0)
    text += "no layers";
  else if (cut.num_layers == 1)
    text += fmt::format("layer {}", cut.first_layer);
  else
    text += fmt::format("layers {}-{}", cut.first_layer, cut.first_layer + cut.num_layers - 1);
  if (cut.has_head) text += " + head";
  return text;
}

}  // namespace

std::string describe(const Layout& layout) {
  constexpr std::array<Axis, 4> dense = {Axis::tp, Axis::cp, Axis::dp, Axis::pp};
  constexpr std::array<Axis, 3> expert = {Axis::etp, Axis::ep, Axis::edp};
  std::string out =
      fmt::format("world of {} = tp {} x cp {} x dp {} x pp {} = etp {} x ep {} x edp {} x pp {}\n",
                  layout.world_size(), layout.dense.size(Axis::tp), layout.dense.size(Axis::cp),
                  layout.dense.size(Axis::dp), layout.dense.size(Axis::pp), layout.expert.size(Axis::etp),
                  layout.expert.size(Axis::ep), layout.expert.size(Axis::edp), layout.expert.size(Axis::pp));
  out += "rank";
  for (const Axis axis : dense) out += fmt::format(" {:>3}", name(axis));
  out += " |";
  for (const Axis axis : expert) out += fmt::format(" {:>3}", name(axis));
  out += " | stages\n";
  for (std::int32_t r = 0; r < layout.world_size(); ++r) {
    out += fmt::format("{:>4}", r);
    for (const Axis axis : dense) out += fmt::format(" {:>3}", layout.dense.coordinate(Rank(r), axis));
    out += " |";
    for (const Axis axis : expert) out += fmt::format(" {:>3}", layout.expert.coordinate(Rank(r), axis));
    out += " |";
    std::string separator = " ";
    for (const StageId s : layout.stages_of(Rank(r))) {
      out += fmt::format("{}{}: {}", separator, s.value, stage_text(layout.stages[index(s.value)]));
      separator = "; ";
    }
    out += '\n';
  }
  return out;
}

}  // namespace tessera::layout
