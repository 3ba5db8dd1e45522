// E experts, K choices of a token, t tokens of this rank in a micro-batch.
#include "exec/routing_dump.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/math.h"

namespace tessera::exec {

using layout::Axis;

namespace {

// Apart from the tags of a step's messages, which have all been received when these are sent.
constexpr std::int64_t kTag = std::int64_t{1} << 60;
constexpr std::int64_t kMostKept = std::int64_t{1} << 28;  // as the file's reader has it

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

// The same memory as bytes: communicators know no 16-bit integers.
Tensor bytes_of(std::vector<std::int16_t>& values) {
  return {values.data(), tensor::DType::u8, {2 * std::ssize(values)}};
}

}  // namespace

RoutingDump::RoutingDump(const plan::Plan& plan, RankEngine& engine, const Options& options)
    : plan_(plan), engine_(engine), options_(options), layers_(spec::moe_layers(plan.job.model)) {
  const spec::Job& job = plan.job;
  if (layers_.empty()) {
    throw Error(ErrorKind::config, "the model has no mixture of experts: there is no routing to write",
                "--dump-routing", "leave the flag out, or train a model with experts");
  }
  experts_ = job.model.moe->num_experts;
  experts_choose_ = job.train.moe.router == spec::RouterChoice::expert_choice;
  width_ = experts_choose_ ? experts_ : job.model.moe->num_experts_per_tok;
  microbatches_ = plan.num_microbatches();
  const std::int64_t tokens = std::int64_t{job.train.micro_batch_size} * job.train.sequence_length;
  local_tokens_ = div_exact(tokens, job.parallel.cp * job.parallel.tp);
  step_tokens_ = std::int64_t{job.train.global_batch_size} * job.train.sequence_length;
  const std::int64_t pairs = std::int64_t{experts_} * experts_;
  const std::int64_t steps = std::max<std::int64_t>(0, options.last_step - options.first_step);
  const std::int64_t kept_steps =
      std::min(steps, div_ceil(std::max<std::int64_t>(0, options.tokens), step_tokens_));
  const std::int64_t kept = std::ssize(layers_) * kept_steps * step_tokens_ * width_;
  if (std::ssize(layers_) * pairs > trace::kMaxRoutingPairs || kept > kMostKept ||
      width_ > trace::kMaxRoutingTopK) {
    throw Error(
        ErrorKind::config,
        fmt::format("{} layers of {} experts and the choices of {} tokens are more than a routing file "
                    "holds",
                    layers_.size(), experts_, kept_steps * step_tokens_),
        "--dump-routing", "keep the choices of fewer tokens");
  }
  keep_from_ = options.last_step - kept_steps;
  window_steps_ = std::max<std::int64_t>(1, div_ceil(steps, options.most_windows));
  for (const std::int32_t index : layers_of(engine.rank())) {
    Local l{.index = index};
    l.choices.assign(at(microbatches_ * local_tokens_ * width_), -1);
    l.within.assign(at(pairs), 0);
    if (index > 0) l.across.assign(at(pairs), 0);
    local_.push_back(std::move(l));
  }
  arrived_.assign(at(microbatches_ * local_tokens_ * width_), -1);
  stats_.model = spec::name(job.model.family);
  stats_.source = "tessera train";
  stats_.num_experts = experts_;
  stats_.top_k = width_;
  stats_.layers = layers_;
  if (engine.rank().value == 0) {
    stats_.chosen.assign(at(std::ssize(layers_) * experts_), 0);
    stats_.dropped = stats_.chosen;
    stats_.choices.assign(at(kept), -1);
  }
  for (Stage& stage : engine.stages()) stage.set_routing_listener(this);
}

RoutingDump::~RoutingDump() {
  for (Stage& stage : engine_.stages()) stage.set_routing_listener(nullptr);
}

// MTP layers stand behind the head.
bool RoutingDump::holds(const layout::StageCut& cut, std::int32_t layer) const {
  const bool mtp = layer >= plan_.job.model.num_hidden_layers;
  return mtp ? cut.has_head : layer >= cut.first_layer && layer < cut.first_layer + cut.num_layers;
}

std::vector<std::int32_t> RoutingDump::layers_of(Rank rank) const {
  std::vector<std::int32_t> out;
  for (const StageId id : plan_.layout.stages_of(rank)) {
    const layout::StageCut& cut = plan_.layout.stages[at(id.value)];
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (holds(cut, layers_[i])) out.push_back(static_cast<std::int32_t>(i));
    }
  }
  return out;
}

std::int32_t RoutingDump::owner(std::int32_t index) const {
  for (std::size_t s = 0; s < plan_.layout.stages.size(); ++s) {
    if (holds(plan_.layout.stages[s], layers_[at(index)])) return plan_.layout.stage_rank[s];
  }
  TESSERA_CHECK(false, "every layer is in a stage");
  return 0;
}

RoutingDump::Local* RoutingDump::local(std::int32_t index) {
  const auto found = std::ranges::find(local_, index, &Local::index);
  return found == local_.end() ? nullptr : &*found;
}

void RoutingDump::begin_step(std::int64_t step) {
  step_ = step;
  active_ = true;
  for (Local& l : local_) l.seen = 0;
}

void RoutingDump::on_routed(const Mixture& mixture, const nn::Microbatch& mb, std::int32_t saved_slot) {
  if (!active_) return;
  const auto layer = std::ranges::find(layers_, mixture.layer);
  if (layer == layers_.end()) return;  // of a part that is no layer of the model
  Local* l = local(static_cast<std::int32_t>(layer - layers_.begin()));
  TESSERA_CHECK(l != nullptr, "a rank hears of the layers of its stages");
  std::int16_t* to = &l->choices[at(mb.index * local_tokens_ * width_)];
  tensor::Memory& memory = *engine_.kernels().memory();
  on_host(memory, mixture.moe->chosen_tK(saved_slot), tensor::Access::read, [&](const Tensor& index) {
    TESSERA_CHECK_EQ(index.num_elements(), local_tokens_ * width_,
                     "every token of this rank has its choices");
    std::ranges::transform(index.span<std::int32_t>(), to,
                           [](std::int32_t e) { return static_cast<std::int16_t>(e); });
  });
  if (experts_choose_) {  // every expert stands there, those that took the token have kept it
    on_host(memory, mixture.moe->kept_tK(saved_slot), tensor::Access::read, [&](const Tensor& kept) {
      for (const std::int32_t place : kept.span<std::int32_t>()) {
        if (place < 0) *to = -1;
        ++to;
      }
    });
  }
  ++l->seen;
}

void RoutingDump::end_step(const StepResult& result) {
  active_ = false;
  for (const Local& l : local_) TESSERA_CHECK_EQ(l.seen, microbatches_, "each micro-batch was routed once");
  count_pairs();
  if (step_ >= keep_from_) keep_choices();
  if (engine_.rank().value == 0) count_windows(result);
  ++steps_done_;
}

// Sends go first and never block, so no order of the pipeline ranks can hang.
void RoutingDump::count_pairs() {
  Communicator& pp = *engine_.comms().pp;
  const auto last = static_cast<std::int32_t>(layers_.size()) - 1;
  for (Local& l : local_) {
    if (l.index < last && owner(l.index + 1) != pp.rank()) {
      pp.send(bytes_of(l.choices), owner(l.index + 1), kTag + l.index);
    }
  }
  for (Local& l : local_) {
    trace::count_within(l.within, l.choices, experts_, width_);
    if (l.index == 0) continue;
    const Local* before = local(l.index - 1);
    if (before == nullptr) pp.recv(bytes_of(arrived_), owner(l.index - 1), kTag + l.index - 1);
    trace::count_across(l.across, before == nullptr ? arrived_ : before->choices, l.choices, experts_,
                        width_);
  }
  for (Local& l : local_) {
    if (l.index < last && owner(l.index + 1) != pp.rank()) {
      pp.wait_send(owner(l.index + 1), kTag + l.index);
    }
  }
}

void RoutingDump::count_windows(const StepResult& result) {
  const std::int64_t window = (step_ - options_.first_step) / window_steps_;
  if (window == std::ssize(stats_.windows)) {
    trace::RoutingWindow w{.name = {}, .first_step = step_, .num_steps = 0, .chosen = {}};
    w.chosen.assign(stats_.chosen.size(), 0);
    stats_.windows.push_back(std::move(w));
  }
  trace::RoutingWindow& w = stats_.windows.back();
  ++w.num_steps;
  for (const LayerRouting& r : result.routing) {
    const auto layer = std::ranges::find(layers_, r.layer);
    if (layer == layers_.end()) continue;
    const std::size_t row = at((layer - layers_.begin()) * experts_);
    for (std::size_t e = 0; e < r.chosen.size(); ++e) {
      stats_.chosen[row + e] += r.chosen[e];
      stats_.dropped[row + e] += r.dropped[e];
      w.chosen[row + e] += r.chosen[e];
    }
  }
  stats_.num_tokens += step_tokens_;
}

// To rank 0, one rank after another.
void RoutingDump::keep_choices() {
  Communicator& world = *engine_.comms().world;
  if (world.rank() != 0) {
    for (Local& l : local_) world.send(bytes_of(l.choices), 0, kTag + l.index);
    for (const Local& l : local_) world.wait_send(0, kTag + l.index);
    return;
  }
  for (const Local& l : local_) place(Rank(0), l.index, l.choices);
  for (std::int32_t r = 1; r < world.size(); ++r) {
    for (const std::int32_t index : layers_of(Rank(r))) {
      world.recv(bytes_of(arrived_), r, kTag + index);
      place(Rank(r), index, arrived_);
    }
  }
}

// choices [micro-batches, t, K] of a rank into the order of the run.
void RoutingDump::place(Rank from, std::int32_t index, std::span<const std::int16_t> choices) {
  const spec::Job& job = plan_.job;
  const std::int64_t tp = plan_.layout.dense.coordinate(from, Axis::tp);
  const std::int64_t replica = plan_.layout.dense.coordinate(from, Axis::dp);
  const SequenceCut cut{.length = job.train.sequence_length,
                        .cp = job.parallel.cp,
                        .rank = plan_.layout.dense.coordinate(from, Axis::cp)};
  const std::int64_t tokens = job.train.micro_batch_size * cut.length;
  const std::int64_t all = stats_.choice_tokens();
  for (std::int64_t j = 0; j < microbatches_; ++j) {
    const std::int64_t first = (step_ - keep_from_) * step_tokens_ + (j * job.parallel.dp + replica) * tokens;
    for (std::int64_t t = 0; t < local_tokens_; ++t) {
      const std::int64_t token = first + cut.token(tp * local_tokens_ + t);
      std::ranges::copy(choices.subspan(at((j * local_tokens_ + t) * width_), at(width_)),
                        stats_.choices.begin() + (index * all + token) * width_);
    }
  }
}

// A layer's tables from their owners (those of all replicas and tp ranks add up) to every rank.
void RoutingDump::gather_pairs(trace::RoutingStats& stats) {
  const std::int64_t pairs = std::int64_t{experts_} * experts_;
  std::vector<std::int64_t> sum(at(pairs));
  const auto add = [&](std::vector<std::int64_t>* mine, std::vector<std::int64_t>& to) {
    std::ranges::fill(sum, 0);
    if (mine != nullptr) std::ranges::copy(*mine, sum.begin());
    engine_.comms().world->all_reduce_direct({sum.data(), tensor::DType::i64, {pairs}}, comm::Op::sum);
    if (engine_.rank().value == 0) to.insert(to.end(), sum.begin(), sum.end());
  };
  for (std::int32_t i = 0; i < std::ssize(layers_); ++i) {
    Local* l = local(i);
    add(l == nullptr ? nullptr : &l->within, stats.within);
    if (i > 0) add(l == nullptr ? nullptr : &l->across, stats.across);
  }
}

trace::RoutingStats RoutingDump::finish() {
  gather_pairs(stats_);
  if (engine_.rank().value != 0) return {};
  // A run that ended early kept fewer steps: what it kept are the first ones of those that were planned.
  const std::int64_t all = stats_.choice_tokens();
  const std::int64_t seq = plan_.job.train.sequence_length;
  const std::int64_t done = options_.first_step + steps_done_;
  const std::int64_t kept = std::max<std::int64_t>(0, done - keep_from_) * step_tokens_;
  if (kept < all) {
    std::vector<std::int16_t> cut;
    for (std::int64_t l = 0; l < std::ssize(layers_); ++l) {
      const auto begin = stats_.choices.begin() + l * all * width_;
      cut.insert(cut.end(), begin, begin + kept * width_);
    }
    stats_.choices = std::move(cut);
  }
  stats_.sequence_lengths.assign(stats_.choices.empty() ? 0 : at(kept / seq), seq);
  return std::move(stats_);
}

}  // namespace tessera::exec
