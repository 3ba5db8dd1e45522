#include "moe/routing.h"

#include <algorithm>
#include <cmath>

#include "base/math.h"

namespace tessera::moe {

namespace {

double read(const Tensor& x, std::int64_t i) {
  return x.dtype() == nn::DType::f64 ? x.as<double>()[i] : static_cast<double>(x.as<float>()[i]);
}
void write(const Tensor& x, std::int64_t i, double value) {
  if (x.dtype() == nn::DType::f64) {
    x.as<double>()[i] = value;
  } else {
    x.as<float>()[i] = static_cast<float>(value);
  }
}

// Tokens of one balancing unit.
std::int64_t unit_tokens(const Options& o) {
  return o.unit == BalanceUnit::sequence ? o.dims.seq * o.dims.cp : o.dims.all_tokens();
}

// The first C choices of each expert in (token, choice) order.
void mark_by_position(Tensor pos_tK, Tensor index_TK, Tensor count_E, std::int64_t capacity,
                      std::int64_t first_choice) {
  const std::int32_t* index = index_TK.as<std::int32_t>();
  std::int32_t* pos = pos_tK.as<std::int32_t>();
  std::int32_t* count = count_E.as<std::int32_t>();
  std::fill_n(count, count_E.num_elements(), 0);
  const std::int64_t end = first_choice + pos_tK.num_elements();
  for (std::int64_t i = 0; i < end; ++i) {
    const bool kept = count[index[i]]++ < capacity;
    if (i >= first_choice) pos[i - first_choice] = kept ? 0 : -1;
  }
}

// The C choices of highest weight of each expert, ties to the lower token.
void mark_by_weight(Tensor pos_tK, Tensor index_TK, Tensor weights_TK, const DropWork& work,
                    std::int64_t capacity, std::int64_t first_choice) {
  const std::int32_t* index = index_TK.as<std::int32_t>();
  std::int32_t* pos = pos_tK.as<std::int32_t>();
  std::int32_t* order = work.order_n.as<std::int32_t>();
  std::int32_t* start = work.start_E1.as<std::int32_t>();
  const std::int64_t choices = index_TK.num_elements();
  const std::int64_t experts = work.start_E1.num_elements() - 1;

  // Counting sort of the choices by expert: start[e] ends as the first place of expert e.
  std::fill_n(start, experts + 1, 0);
  for (std::int64_t i = 0; i < choices; ++i) ++start[index[i]];
  for (std::int64_t e = 1; e <= experts; ++e) start[e] += start[e - 1];
  for (std::int64_t i = choices - 1; i >= 0; --i) order[--start[index[i]]] = static_cast<std::int32_t>(i);

  std::fill_n(pos, pos_tK.num_elements(), 0);
  for (std::int64_t e = 0; e < experts; ++e) {
    if (start[e + 1] - start[e] <= capacity) continue;
    // A token chooses an expert once, so the order (weight, choice) is total.
    std::nth_element(order + start[e], order + start[e] + capacity, order + start[e + 1],
                     [&](std::int32_t a, std::int32_t b) {
                       const double wa = read(weights_TK, a);
                       const double wb = read(weights_TK, b);
                       return wa != wb ? wa > wb : a < b;
                     });
    for (std::int64_t i = start[e] + capacity; i < start[e + 1]; ++i) {
      const std::int64_t mine = order[i] - first_choice;
      if (mine >= 0 && mine < pos_tK.num_elements()) pos[mine] = -1;
    }
  }
}

}  // namespace

std::int64_t capacity_rows(double factor, std::int64_t tokens, std::int64_t top_k, std::int64_t num_experts) {
  const double exact = factor * static_cast<double>(tokens * top_k) / static_cast<double>(num_experts);
  const double nearest = std::round(exact);
  const double rounding = 1e-12 * std::max(1.0, exact);
  return static_cast<std::int64_t>(std::abs(exact - nearest) <= rounding ? nearest : std::ceil(exact));
}

std::int64_t choice_width(const Options& o) {
  return o.choice == Choice::expert_choice ? o.num_experts : o.router.top_k;
}

std::int32_t num_slots(const Options& o) {
  return o.expert_of_slot.empty() ? o.num_experts : static_cast<std::int32_t>(o.expert_of_slot.size());
}

std::int64_t capacity(const Options& o) {
  const bool experts_choose = o.choice == Choice::expert_choice;
  if (o.capacity_factor <= 0.0 && !experts_choose) return 0;
  const double factor = o.capacity_factor > 0.0 ? o.capacity_factor : 1.0;
  const std::int64_t rows = capacity_rows(factor, o.dims.all_tokens(), o.router.top_k, o.num_experts);
  return experts_choose ? std::min(rows, o.dims.all_tokens()) : rows;
}

RouterOptions kernel_options(const Options& o) {
  RouterOptions r = o.router;
  if (o.choice == Choice::scores) return r;
  r.given_index = true;
  r.n_group = 1;
  r.topk_group = 1;
  if (o.choice == Choice::hash) return r;
  r.top_k = o.num_experts;
  r.renormalise = false;
  if (r.score == kernels::RouterScore::topk_then_softmax) r.score = kernels::RouterScore::softmax_then_topk;
  return r;
}

void choose_all(Tensor index_tE) {
  std::int32_t* index = index_tE.as<std::int32_t>();
  const std::int64_t experts = index_tE.dim(1);
  for (std::int64_t i = 0; i < index_tE.num_elements(); ++i)
    index[i] = static_cast<std::int32_t>(i % experts);
}

std::int64_t num_units(const Options& o) {
  return o.unit == BalanceUnit::sequence ? o.dims.batch : 1;
}

void fill_units(Tensor unit_t, const Options& o, std::int64_t first_token) {
  std::int32_t* unit = unit_t.as<std::int32_t>();
  const bool by_sequence = o.unit == BalanceUnit::sequence;
  for (std::int64_t i = 0; i < unit_t.rows(); ++i) {
    unit[i] = by_sequence ? static_cast<std::int32_t>((first_token + i) / o.dims.seq) : 0;
  }
}

double balance_scale(const Options& o, double weight) {
  const auto tokens = static_cast<double>(unit_tokens(o));
  return weight * o.aux_loss_coef * o.num_experts / (o.router.top_k * tokens * tokens);
}

double frequency_scale(const Options& o, double token_weight) {
  return o.aux_loss_coef * o.num_experts * token_weight;
}

void balance_from_totals(Tensor aux_UE, std::span<const std::int64_t> totals, std::int32_t num_layers,
                         const Options& o, double weight) {
  const auto tokens = static_cast<double>(unit_tokens(o) * num_layers);
  const double scale = weight * o.aux_loss_coef * o.num_experts / (tokens * tokens);
  for (std::int64_t i = 0; i < aux_UE.num_elements(); ++i) {
    write(aux_UE, i, scale * static_cast<double>(totals[static_cast<std::size_t>(i)]));
  }
}

void mark_drops(Tensor pos_tK, Tensor index_TK, Tensor weights_TK, const DropWork& work, DropPolicy policy,
                std::int64_t capacity, std::int64_t first_token) {
  const std::int64_t first_choice = first_token * index_TK.dim(1);
  switch (policy) {
    case DropPolicy::position:
      mark_by_position(pos_tK, index_TK, work.start_E1, capacity, first_choice);
      return;
    case DropPolicy::probs:
      mark_by_weight(pos_tK, index_TK, weights_TK, work, capacity, first_choice);
      return;
  }
}

}  // namespace tessera::moe
