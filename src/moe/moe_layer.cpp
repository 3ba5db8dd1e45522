// Set-up and memory of the layer; its passes are in moe_passes.cpp.
// T tokens of the micro-batch, t of this rank, H hidden, I expert width of this rank, K top-k, E experts, U
// balancing units, n rows sent, R rows of the local experts (buffers hold their bounds).
#include "moe/moe_layer.h"

#include <algorithm>
#include <utility>

#include "base/math.h"
#include "moe/moe_scratch.h"
#include "moe/routing.h"

namespace tessera::moe {

using nn::DType;
using nn::Frame;

namespace {

// Rows that this rank's tokens can send.
std::int64_t max_sent(const Options& o) {
  const std::int64_t choices = o.dims.local_tokens() * choice_width(o);
  const std::int64_t limit = capacity(o);
  return limit > 0 ? std::min(choices, o.num_experts * limit) : choices;
}

Dispatch::Options dispatch_options(const Options& o, std::int64_t max_rows, tensor::Reach reach) {
  return {.dtype = o.dims.dtype,
          .hidden = o.dims.hidden,
          .tokens = o.dims.local_tokens(),
          .top_k = static_cast<std::int32_t>(choice_width(o)),
          .num_experts = num_slots(o),
          .max_rows = max_rows,
          .max_sent = max_sent(o),
          .form = o.dispatch,
          .reach = reach};
}

std::optional<SharedExpert> make_shared(const Options& o, const SharedExpert::Params& p) {
  if (o.shared_intermediate == 0) return std::nullopt;
  return SharedExpert({.dims = o.dims,
                       .intermediate = o.shared_intermediate,
                       .activation = o.activation,
                       .recompute = o.recompute},
                      p);
}

// Slots by expert, in their order, and where each expert's begin.
void sort_slots(const Options& o, std::vector<std::int32_t>& slots, std::vector<std::int32_t>& first) {
  for (std::int32_t e = 0; e < o.num_experts && !o.expert_of_slot.empty(); ++e) {
    first.push_back(static_cast<std::int32_t>(slots.size()));
    for (std::int32_t s = 0; s < num_slots(o); ++s) {
      if (o.expert_of_slot[static_cast<std::size_t>(s)] == e) slots.push_back(s);
    }
    TESSERA_CHECK(std::ssize(slots) > first.back(), "every expert has a slot");
  }
  first.push_back(static_cast<std::int32_t>(slots.size()));
}

std::int64_t z_columns(const Options& o) {
  return (o.activation.gated() ? 2 : 1) * o.intermediate;
}

}  // namespace

ExpertTable::ExpertTable(std::span<const ExpertParams> experts) {
  for (const ExpertParams& p : experts) {
    gate_up.push_back(p.gate_up.weight);
    gate_up_grad.push_back(p.gate_up.grad);
    down.push_back(p.down.weight);
    down_grad.push_back(p.down.grad);
    if (!p.gate_up_bias_Z.weight.value_NK.empty()) {
      gate_up_bias.push_back(p.gate_up_bias_Z.weight.value_NK);
      gate_up_bias_grad.push_back(p.gate_up_bias_Z.grad);
    }
    if (!p.down_bias_H.weight.value_NK.empty()) {
      down_bias.push_back(p.down_bias_H.weight.value_NK);
      down_bias_grad.push_back(p.down_bias_H.grad);
    }
  }
}

std::int64_t MoeLayer::max_rows(const Options& o, std::int32_t ep, std::int32_t etp) {
  const std::int64_t local_experts = div_exact(num_slots(o), ep);
  const std::int64_t dropless =
      std::int64_t{ep} * etp * o.dims.local_tokens() * std::min<std::int64_t>(choice_width(o), local_experts);
  const std::int64_t limit = capacity(o);
  return limit > 0 ? std::min(dropless, local_experts * limit * o.units_in_group) : dropless;
}

std::int64_t MoeLayer::buffer_rows(const Options& o, std::int32_t ep, std::int32_t etp) {
  if (o.padding == Padding::none) return max_rows(o, ep, etp);
  return div_exact(o.num_experts, ep) * capacity(o) * o.units_in_group;
}

MoeLayer::MoeLayer(Options options, Params params, const ExpertGroups& groups)
    : o_(options),
      p_(std::move(params)),
      experts_(p_.experts),
      kernel_options_(kernel_options(options)),
      width_(choice_width(options)),
      max_rows_(max_rows(options, groups.ep.size(), groups.etp.size())),
      buffer_rows_(buffer_rows(options, groups.ep.size(), groups.etp.size())),
      adds_down_bias_(groups.etp.rank() == 0),
      all_local_(groups.ep.size() == 1 && groups.etp.size() == 1),
      first_turn_(groups.ep.rank()),
      num_nodes_(options.dispatch == DispatchForm::hierarchical ? groups.across->size() : 0),
      dispatch_(make_dispatch(dispatch_options(options, max_rows_, reach()), groups)),
      shared_(make_shared(options, p_.shared)),
      frequency_(static_cast<std::size_t>(options.num_experts), 1.0 / options.num_experts) {
  TESSERA_CHECK_EQ(p_.experts.size(), num_slots(o_) / groups.ep.size(),
                   "an ep rank holds its share of slots");
  TESSERA_CHECK(num_slots(o_) == o_.num_experts || capacity(o_) == 0, "replicas have no capacity");
  sort_slots(o_, replicas_P_, first_E1_);
  TESSERA_CHECK(!padded() || capacity(o_) > 0, "rows are padded to a capacity");
  TESSERA_CHECK(o_.joined == nullptr || o_.unit != BalanceUnit::global_batch,
                "layers are joined within a micro-batch");
  reset_stats();
}

void MoeLayer::reset_stats() {
  std::vector<std::int64_t> chosen = std::move(stats_.chosen);
  std::vector<std::int64_t> dropped = std::move(stats_.dropped);
  std::vector<std::int64_t> node_rows = std::move(stats_.node_rows);
  chosen.assign(static_cast<std::size_t>(o_.num_experts), 0);
  dropped.assign(static_cast<std::size_t>(o_.num_experts), 0);
  stats_ = Stats{};
  stats_.chosen = std::move(chosen);
  stats_.dropped = std::move(dropped);
  node_rows.assign(static_cast<std::size_t>(num_nodes_), 0);
  stats_.node_rows = std::move(node_rows);
  if (sums_.empty()) return;
  std::ranges::fill(sums_.span<double>(), 0.0);
  std::ranges::fill(counts_.span<std::int64_t>(), 0);
}

const Stats& MoeLayer::stats() const {
  if (sums_.empty()) return stats_;
  const std::span<const double> sums = sums_.span<double>();
  const std::int64_t* counts = counts_.as<std::int64_t>();
  stats_.entropy = sums[0];
  stats_.logit_squares = sums[1];
  stats_.max_abs_logit = sums[2];
  stats_.z_loss = sums[3];
  stats_.aux_loss = sums[kernels::kRouterSums];
  std::copy_n(counts, o_.num_experts, stats_.chosen.begin());
  std::copy_n(counts + o_.num_experts, o_.num_experts, stats_.dropped.begin());
  stats_.unserved = counts[std::int64_t{2} * o_.num_experts];
  return stats_;
}

tensor::Reach MoeLayer::reach() const {
  const bool host_reads =
      !all_local_ || capacity(o_) > 0 || o_.choice != Choice::scores || !o_.expert_of_slot.empty();
  return host_reads ? tensor::Reach::shared : tensor::Reach::own;
}

void MoeLayer::place_experts(std::vector<std::int32_t> expert_of_slot) {
  TESSERA_CHECK(!o_.expert_of_slot.empty(), "slots were named when the layer was built");
  TESSERA_CHECK_EQ(expert_of_slot.size(), o_.expert_of_slot.size(), "as many slots as before");
  o_.expert_of_slot = std::move(expert_of_slot);
  replicas_P_.clear();
  first_E1_.clear();
  sort_slots(o_, replicas_P_, first_E1_);
}

void MoeLayer::set_global_frequency(std::span<const double> frequency) {
  TESSERA_CHECK_EQ(frequency.size(), frequency_.size(), "one frequency an expert");
  std::ranges::copy(frequency, frequency_.begin());
  if (!frequency_1E_.empty()) std::ranges::copy(frequency, frequency_1E_.as<double>());
}

std::int64_t MoeLayer::norm_rows() const {
  return shared_ ? o_.dims.tokens() : o_.dims.local_tokens();
}

// --- slots

void MoeLayer::reserve_routing(Arena& arena) {
  routing_reserved_ = true;
  sums_ = arena.take_shared(DType::f64, {kernels::kRouterSums + 1});
  counts_ = arena.take_shared(DType::i64, {std::int64_t{2} * o_.num_experts + 1});
  reset_stats();
  if (padded()) padded_begin_e1_ = arena.take(DType::i32, {std::ssize(p_.experts) + 1});
  for (std::int64_t i = 0; !padded_begin_e1_.empty() && i < padded_begin_e1_.num_elements(); ++i) {
    padded_begin_e1_.as<std::int32_t>()[i] = static_cast<std::int32_t>(i * capacity(o_) * o_.units_in_group);
  }
  if (!balanced()) return;
  unit_t_ = arena.take(DType::i32, {o_.dims.local_tokens()});
  if (counts_units()) return;
  frequency_1E_ = arena.take_shared(DType::f64, {1, o_.num_experts});
  if (!frequency_1E_.empty()) std::ranges::copy(frequency_, frequency_1E_.as<double>());
}

void MoeLayer::reserve_saved(Arena& arena) {
  if (!routing_reserved_) reserve_routing(arena);
  const nn::Dims& d = o_.dims;
  const std::int64_t t = d.local_tokens();
  Saved s;
  s.rstd_t = arena.take(d.stats(), {t});
  if (!selective()) s.n_H = arena.take(d.dtype, {norm_rows(), d.hidden});
  s.probs_tE = arena.take(d.stats(), {t, o_.num_experts});
  s.lse_t = arena.take(d.stats(), {t});
  s.index_tK = arena.take(reach(), DType::i32, {t, width_});
  s.weights_tK = arena.take(reach(), d.stats(), {t, width_});
  if (keeps_logits()) s.logits_tE = arena.take(d.stats(), {t, o_.num_experts});
  if (balanced() && !joined()) s.aux_UE = arena.take(d.stats(), {num_units(o_), o_.num_experts});
  s.rows_RH = arena.take(d.dtype, {buffer_rows_, d.hidden});
  s.gate_up = arena.take(d.dtype, {buffer_rows_, z_columns(o_)});
  if (!selective()) s.h_RI = arena.take(d.dtype, {buffer_rows_, o_.intermediate});
  s.dispatch = dispatch_->reserve(arena);
  if (shared_) shared_->reserve_saved(arena);
  saved_.push_back(s);
}

void MoeLayer::reserve_deferred(Arena& arena) {
  const nn::Dims& d = o_.dims;
  Deferred f;
  f.dy_RH = arena.take(d.dtype, {buffer_rows_, d.hidden});
  f.dgate_up = arena.take(d.dtype, {buffer_rows_, z_columns(o_)});
  f.dn_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  f.dlogits_tE = arena.take(d.stats(), {d.local_tokens(), o_.num_experts});
  if (shared_ && selective()) f.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  if (shared_) shared_->reserve_deferred(arena);
  deferred_.push_back(f);
}

// --- scratch: measure_scratch and the calls take through the same functions, so they cannot differ

MoeLayer::RouteScratch MoeLayer::route_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  RouteScratch s;
  s.logits_tE = arena.take(d.stats(), {d.local_tokens(), o_.num_experts});
  if (o_.router_jitter > 0.0) s.input_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  if (!o_.expert_of_slot.empty()) s.slots_tK = arena.take(DType::i32, {d.local_tokens(), width_});
  if (counts_units()) {
    s.counts_UE =
        arena.take(joined() ? tensor::Reach::shared : reach(), DType::i32, {num_units(o_), o_.num_experts});
  }
  if (capacity(o_) == 0) return s;
  const bool by_weight = drop_policy() == DropPolicy::probs;
  s.index = take_table(arena, DType::i32, d, width_);
  if (by_weight) s.weights = take_table(arena, d.stats(), d, width_);
  s.work.start_E1 = arena.take(DType::i32, {o_.num_experts + 1});
  if (by_weight) s.work.order_n = arena.take(DType::i32, {d.all_tokens() * width_});
  return s;
}

MoeLayer::ForwardScratch MoeLayer::forward_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  ForwardScratch s;
  if (selective()) {
    s.n_H = arena.take(d.dtype, {norm_rows(), d.hidden});
    s.h_RI = arena.take(d.dtype, {buffer_rows_, o_.intermediate});
  }
  s.travel = dispatch_->travel(arena);
  if (padded()) {
    s.arrived_RH = arena.take(d.dtype, {max_rows_, d.hidden});
    s.padded_RH = arena.take(d.dtype, {buffer_rows_, d.hidden});
  }
  if (shared_) s.shared_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  return s;
}

MoeLayer::BackwardScratch MoeLayer::backward_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  const std::int64_t t = d.local_tokens();
  BackwardScratch s;
  s.dweights_tK = arena.take(d.stats(), {t, width_});
  if (joined()) s.aux_UE = arena.take_shared(d.stats(), {num_units(o_), o_.num_experts});
  if (o_.router_jitter > 0.0) s.dinput_tH = arena.take(d.dtype, {t, d.hidden});
  s.dh_RI = arena.take(d.dtype, {buffer_rows_, o_.intermediate});
  s.drows_RH = arena.take(d.dtype, {buffer_rows_, d.hidden});
  if (padded()) s.compact_RH = arena.take(d.dtype, {max_rows_, d.hidden});
  s.travel = dispatch_->travel(arena);
  return s;
}

MoeLayer::WeightScratch MoeLayer::weight_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  WeightScratch s;
  if (o_.router_jitter > 0.0) s.input_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  if (!selective()) return s;
  if (!shared_) s.n_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  s.h_RI = arena.take(d.dtype, {buffer_rows_, o_.intermediate});
  return s;
}

void MoeLayer::measure_scratch(Arena& counting) const {
  {
    const Frame frame(counting);
    (void)forward_scratch(counting);
    {
      const Frame inner(counting);
      (void)route_scratch(counting);
    }
    if (shared_) shared_->measure_scratch(counting);
  }
  {
    const Frame frame(counting);
    (void)backward_scratch(counting);
    if (shared_) shared_->measure_scratch(counting);
  }
  const Frame frame(counting);
  (void)weight_scratch(counting);
  if (shared_) shared_->measure_weight_scratch(counting);
}

// --- what tools read

Tensor MoeLayer::chosen_tK(std::int32_t saved_slot) const {
  return nn::slot_at(saved_, saved_slot).index_tK;
}
Tensor MoeLayer::weights_tK(std::int32_t saved_slot) const {
  return nn::slot_at(saved_, saved_slot).weights_tK;
}
Tensor MoeLayer::kept_tK(std::int32_t saved_slot) const {
  return nn::slot_at(saved_, saved_slot).dispatch.pos_tK;
}
Tensor MoeLayer::probs_tE(std::int32_t saved_slot) const {
  return nn::slot_at(saved_, saved_slot).probs_tE;
}

}  // namespace tessera::moe
