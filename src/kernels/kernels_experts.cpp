// Choices of the router by expert, statistics of routing, and products of many experts at once: their checks,
// and how they are done where the host can read their integers. The products are then those of each expert in
// turn.
#include <algorithm>
#include <cmath>

#include "kernels/checks.h"

namespace tessera::kernels {

namespace {

double read(const Tensor& x, std::int64_t i) {
  return x.dtype() == DType::f64 ? x.as<double>()[i] : static_cast<double>(x.as<float>()[i]);
}

// The sum of a token's scores: P of statistics and balancing losses is the score over it.
double score_sum(const Tensor& probs_TE, RouterScore score, std::int64_t token) {
  if (score != RouterScore::sigmoid) return 1.0;
  const std::int64_t experts = probs_TE.dim(1);
  double sum = 0.0;
  for (std::int64_t e = 0; e < experts; ++e) sum += read(probs_TE, token * experts + e);
  return sum > 0.0 ? sum : 1.0;
}

struct LogitSums {
  double entropy = 0.0, squares = 0.0, largest = 0.0;
};
// Of one token's scores. Softmax: log p = z - lse, and no logarithm is needed.
template <class T>
LogitSums logit_sums(const T* scores, const T* logits, std::int64_t experts, bool softmax, double score_sum,
                     double lse) {
  LogitSums s;
  for (std::int64_t e = 0; e < experts; ++e) {
    const double p = static_cast<double>(scores[e]) / score_sum;
    const double z = static_cast<double>(logits[e]);
    if (softmax) {
      s.entropy += p * (lse - z);
    } else if (p > 0.0) {
      s.entropy -= p * std::log(p);
    }
    s.squares += z * z;
    s.largest = std::max(s.largest, std::abs(z));
  }
  return s;
}

void count_routes(const Tensor& counts, const RoutedTokens& r, bool kept_only) {
  const std::int32_t* index = r.index_TK.as<std::int32_t>();
  const std::int32_t* pos = r.pos_TK.as<std::int32_t>();
  const std::int64_t width = r.index_TK.dim(1), experts = r.probs_TE.dim(1);
  std::int64_t* chosen = counts.as<std::int64_t>();
  std::int64_t* dropped = chosen + experts;
  for (std::int64_t t = 0; t < r.index_TK.rows(); ++t) {
    bool served = false;
    for (std::int64_t i = t * width; i < (t + 1) * width; ++i) {
      const bool kept = pos[i] >= 0;
      served = served || kept;
      if (kept || !kept_only) ++chosen[index[i]];
      if (!kept && !kept_only) ++dropped[index[i]];
    }
    if (!served) ++dropped[experts];
  }
}

// body(expert, rows) for each expert with rows; rows(x) is its part of x.
template <class Body>
void for_each_expert(const Tensor& begin_E1, Body body) {
  const std::int32_t* begin = begin_E1.as<std::int32_t>();
  for (std::int64_t e = 0; e + 1 < begin_E1.num_elements(); ++e) {
    const std::int64_t first = begin[e], count = begin[e + 1] - first;
    if (count == 0) continue;
    body(static_cast<std::size_t>(e), [=](const Tensor& x) { return x.narrow_rows(first, count); });
  }
}

// Begins of as many experts as there are weights, and where they can be read, of exactly these rows.
void check_begin(const Call& call, const Tensor& begin, std::size_t experts, std::int64_t rows, bool read) {
  call.require(experts > 0, "there is at least one expert");
  call.is_index("begin", begin, {static_cast<std::int64_t>(experts) + 1});
  if (!read) return;
  const std::int32_t* at = begin.as<std::int32_t>();
  std::int64_t last = 0;
  for (std::size_t e = 0; e <= experts; ++e) {
    const bool good = e == 0 ? at[0] == 0 : at[e] >= last && at[e] <= rows;
    if (!good) call.fail(fmt::format("begin holds {} at {} of {} rows", at[e], e, rows));
    last = at[e];
  }
  if (last != rows) call.fail(fmt::format("begin ends at {} of {} rows", last, rows));
}

void check_weights(Call& call, std::span<const Weight> w) {
  call.require(!w.empty(), "there is at least one expert");
  call.num_dims("w", w[0].value_NK, 2);
  call.shapes("w", w[0].value_NK);
  for (const Weight& one : w) {
    call.is_stats("w", one.value_NK, w[0].value_NK.shape());
    call.require(one.packed.empty() == w[0].packed.empty(), "weights of experts are packed all or none");
  }
}

Flops experts_flops(const Tensor& rows, const Tensor& w_NK) {
  return Flops(2 * rows.dim(0) * w_NK.dim(0) * w_NK.dim(1));
}

}  // namespace

// --- choices

void Kernels::sort_choices(Tensor pos, Tensor token, Tensor begin, Tensor index) {
  Call call("sort_choices", takes_bf16());
  call.shapes("index", index);
  call.num_dims("index", index, 2);
  call.is_index("index", index, index.shape());
  call.is_index("pos", pos, index.shape());
  call.num_dims("token", token, 1);
  if (token.dim(0) < index.num_elements())
    call.fail(fmt::format("token {} is too short for index {}", shape_text(token), shape_text(index)));
  call.is_index("token", token, token.shape());
  call.num_dims("begin", begin, 1);
  call.is_index("begin", begin, begin.shape());
  const std::int64_t experts = begin.dim(0) - 1;
  if (experts < 1 || experts > kMostExperts)
    call.fail(fmt::format("begin {} is not of 1 .. {} experts", shape_text(begin), kMostExperts));
  for (std::int64_t i = 0; sees_values() && i < index.num_elements(); ++i) {
    const std::int32_t e = index.as<std::int32_t>()[i];
    if (pos.as<std::int32_t>()[i] >= 0 && (e < 0 || e >= experts))
      call.fail(fmt::format("index {} holds {} at {}, expected values in [0, {})", shape_text(index), e, i,
                            experts));
  }
  do_sort_choices(pos, token, begin, index);
}

void Kernels::do_sort_choices(Tensor pos_TK, Tensor token_N, Tensor begin_E1, Tensor index_TK) {
  const std::int32_t* index = index_TK.as<std::int32_t>();
  std::int32_t* pos = pos_TK.as<std::int32_t>();
  std::int32_t* token = token_N.as<std::int32_t>();
  std::int32_t* begin = begin_E1.as<std::int32_t>();
  const std::int64_t choices = index_TK.num_elements(), top_k = index_TK.dim(1);
  const std::int64_t experts = begin_E1.num_elements() - 1;
  std::fill_n(begin, experts + 1, 0);
  for (std::int64_t i = 0; i < choices; ++i) {
    if (pos[i] >= 0) ++begin[index[i]];
  }
  // Placed from the back, so that the ends of experts serve as the next place and become their begins.
  for (std::int64_t e = 1; e <= experts; ++e) begin[e] += begin[e - 1];
  for (std::int64_t i = choices - 1; i >= 0; --i) {
    if (pos[i] < 0) continue;
    const std::int32_t row = --begin[index[i]];
    pos[i] = row;
    token[row] = static_cast<std::int32_t>(i / top_k);
  }
}

void Kernels::count_choices(Tensor counts, Tensor index, Tensor unit) {
  Call call("count_choices", takes_bf16());
  call.shapes("index", index);
  call.num_dims("index", index, 2);
  call.is_index("index", index, index.shape());
  call.num_dims("counts", counts, 2);
  call.is_index("counts", counts, counts.shape());
  call.is_index("unit", unit, {index.dim(0)});
  if (sees_values()) {
    call.in_range("index", index, 0, counts.dim(1));
    call.in_range("unit", unit, 0, counts.dim(0));
  }
  do_count_choices(counts, index, unit);
}

void Kernels::do_count_choices(Tensor counts_UE, Tensor index_TK, Tensor unit_T) {
  std::int32_t* counts = counts_UE.as<std::int32_t>();
  const std::int32_t* index = index_TK.as<std::int32_t>();
  const std::int32_t* unit = unit_T.as<std::int32_t>();
  const std::int64_t top_k = index_TK.dim(1), experts = counts_UE.dim(1);
  std::fill_n(counts, counts_UE.num_elements(), 0);
  for (std::int64_t t = 0; t < index_TK.dim(0); ++t) {
    for (std::int64_t k = 0; k < top_k; ++k) ++counts[unit[t] * experts + index[t * top_k + k]];
  }
}

void Kernels::scale_counts(Tensor a, Tensor share, double scale) {
  Call call("scale_counts", takes_bf16());
  call.leads_stats("a", a, 2);
  call.is("share", share, share.dtype() == DType::f64 ? DType::f64 : DType::i32, a.shape());
  do_scale_counts(a, share, scale);
}

void Kernels::do_scale_counts(Tensor a, Tensor share, double scale) {
  for (std::int64_t i = 0; i < a.num_elements(); ++i) {
    const double value =
        scale * (share.dtype() == DType::f64 ? share.as<double>()[i]
                                             : static_cast<double>(share.as<std::int32_t>()[i]));
    if (a.dtype() == DType::f64) {
      a.as<double>()[i] = value;
    } else {
      a.as<float>()[i] = static_cast<float>(value);
    }
  }
}

// --- statistics

void Kernels::router_stats(Tensor sums, Tensor counts, const RoutedTokens& r,
                           const RouterStatsOptions& options) {
  Call call("router_stats", takes_bf16());
  call.leads_stats("probs", r.probs_TE, 2);
  const std::int64_t tokens = r.probs_TE.dim(0), experts = r.probs_TE.dim(1);
  call.is("sums", sums, DType::f64, {kRouterSums});
  call.is("counts", counts, DType::i64, {2 * experts + 1});
  call.is("lse", r.lse_T, {tokens});
  call.is("logits", r.logits_TE, r.probs_TE.shape());
  call.num_dims("index", r.index_TK, 2);
  call.is_index("index", r.index_TK, {tokens, r.index_TK.dim(1)});
  call.is_index("pos", r.pos_TK, r.index_TK.shape());
  if (sees_values()) call.in_range("index", r.index_TK, 0, experts);
  do_router_stats(sums, counts, r, options);
}

void Kernels::do_router_stats(Tensor sums, Tensor counts, const RoutedTokens& r,
                              const RouterStatsOptions& o) {
  const std::int64_t tokens = r.probs_TE.dim(0), experts = r.probs_TE.dim(1);
  const bool softmax = o.score != RouterScore::sigmoid;
  double* into = sums.as<double>();
  double lse_squares = 0.0;
  count_routes(counts, r, o.counts_kept_only);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double sum = score_sum(r.probs_TE, o.score, t);
    const double lse = read(r.lse_T, t);
    const auto of = [&]<class T>(T) {
      return logit_sums(r.probs_TE.as<T>() + t * experts, r.logits_TE.as<T>() + t * experts, experts, softmax,
                        sum, lse);
    };
    const LogitSums s = r.probs_TE.dtype() == DType::f64 ? of(double{}) : of(float{});
    into[0] += s.entropy;
    into[1] += s.squares;
    into[2] = std::max(into[2], s.largest);
    lse_squares += lse * lse;
  }
  into[3] += o.z_scale * lse_squares;
}

void Kernels::balance_value(Tensor value, Tensor probs, Tensor aux, Tensor unit, RouterScore score) {
  Call call("balance_value", takes_bf16());
  call.leads_stats("probs", probs, 2);
  call.is("value", value, DType::f64, {1});
  call.num_dims("aux", aux, 2);
  call.is("aux", aux, {aux.dim(0), probs.dim(1)});
  call.is_index("unit", unit, {probs.dim(0)});
  if (sees_values()) call.in_range("unit", unit, 0, aux.dim(0));
  do_balance_value(value, probs, aux, unit, score);
}

void Kernels::do_balance_value(Tensor value, Tensor probs, Tensor aux, Tensor unit, RouterScore score) {
  const std::int64_t experts = probs.dim(1);
  double all = 0.0;
  for (std::int64_t t = 0; t < probs.rows(); ++t) {
    const std::int64_t row = unit.as<std::int32_t>()[t];
    double sum = 0.0;
    for (std::int64_t e = 0; e < experts; ++e) {
      sum += read(aux, row * experts + e) * read(probs, t * experts + e);
    }
    all += sum / score_sum(probs, score, t);
  }
  *value.as<double>() += all;
}

// --- products

void Kernels::experts_linear(Tensor y, Tensor x, std::span<const Weight> w, Tensor begin) {
  Call call("experts_linear", takes_bf16());
  call.leads("x", x, 2);
  check_weights(call, w);
  const Tensor& value = w[0].value_NK;
  call.is("x", x, {x.dim(0), value.dim(1)});
  call.is("y", y, {x.dim(0), value.dim(0)});
  check_begin(call, begin, w.size(), x.dim(0), sees_values());
  flops_ += experts_flops(x, value);
  do_experts_linear(y, x, w, begin);
}

void Kernels::do_experts_linear(Tensor y, Tensor x, std::span<const Weight> w, Tensor begin) {
  for_each_expert(begin, [&](std::size_t e, auto rows) { do_linear(rows(y), rows(x), w[e]); });
}

void Kernels::experts_linear_dgrad(Tensor dx, Tensor dy, std::span<const Weight> w, Tensor begin) {
  Call call("experts_linear_dgrad", takes_bf16());
  call.leads("dx", dx, 2);
  check_weights(call, w);
  const Tensor& value = w[0].value_NK;
  call.num_dims("dy", dy, 2);
  call.is("dy", dy, {dy.dim(0), value.dim(0)});
  call.is("dx", dx, {dy.dim(0), value.dim(1)});
  check_begin(call, begin, w.size(), dy.dim(0), sees_values());
  flops_ += experts_flops(dx, value);
  do_experts_linear_dgrad(dx, dy, w, begin);
}

void Kernels::do_experts_linear_dgrad(Tensor dx, Tensor dy, std::span<const Weight> w, Tensor begin) {
  for_each_expert(
      begin, [&](std::size_t e, auto rows) { do_linear_dgrad(rows(dx), rows(dy), w[e], Write::overwrite); });
}

void Kernels::experts_linear_wgrad(std::span<const Tensor> dw, Tensor dy, Tensor x, Tensor begin) {
  Call call("experts_linear_wgrad", takes_bf16());
  call.leads("x", x, 2);
  call.require(!dw.empty(), "there is at least one expert");
  call.num_dims("dw", dw[0], 2);
  call.shapes("dw", dw[0]);
  for (const Tensor& one : dw) call.is_stats("dw", one, dw[0].shape());
  call.is("x", x, {x.dim(0), dw[0].dim(1)});
  call.is("dy", dy, {x.dim(0), dw[0].dim(0)});
  check_begin(call, begin, dw.size(), x.dim(0), sees_values());
  flops_ += experts_flops(x, dw[0]);
  do_experts_linear_wgrad(dw, dy, x, begin);
}

void Kernels::do_experts_linear_wgrad(std::span<const Tensor> dw, Tensor dy, Tensor x, Tensor begin) {
  for_each_expert(begin, [&](std::size_t e, auto rows) { do_linear_wgrad(dw[e], rows(dy), rows(x)); });
}

void Kernels::experts_add_bias(Tensor y, std::span<const Tensor> b, Tensor begin) {
  Call call("experts_add_bias", takes_bf16());
  call.leads("y", y, 2);
  for (const Tensor& one : b) call.is_stats("b", one, {y.dim(1)});
  check_begin(call, begin, b.size(), y.dim(0), sees_values());
  do_experts_add_bias(y, b, begin);
}

void Kernels::do_experts_add_bias(Tensor y, std::span<const Tensor> b, Tensor begin) {
  for_each_expert(begin, [&](std::size_t e, auto rows) { do_add_bias(rows(y), b[e]); });
}

void Kernels::experts_bias_wgrad(std::span<const Tensor> db, Tensor dy, Tensor begin) {
  Call call("experts_bias_wgrad", takes_bf16());
  call.leads("dy", dy, 2);
  for (const Tensor& one : db) call.is_stats("db", one, {dy.dim(1)});
  check_begin(call, begin, db.size(), dy.dim(0), sees_values());
  do_experts_bias_wgrad(db, dy, begin);
}

void Kernels::do_experts_bias_wgrad(std::span<const Tensor> db, Tensor dy, Tensor begin) {
  for_each_expert(begin,
                  [&](std::size_t e, auto rows) { do_bias_wgrad(db[e], rows(dy), Write::accumulate); });
}

}  // namespace tessera::kernels
