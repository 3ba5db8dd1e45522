#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/backend.h"

// Bias, norms, attention, activations and the router on the CPU. See backend.h.
namespace tessera::kernels::cpu {

namespace {

template <class T>
T group_rstd(T sum, const GroupNormOptions& options) {
  return static_cast<T>(
      1.0 / std::sqrt(static_cast<double>(sum) / static_cast<double>(options.count) + options.eps));
}

}  // namespace

// --- bias and norms

void CpuKernels::do_add_bias(Tensor y, Tensor b) {
  with_scalar(y, [&]<class T>(T) {
    const std::int64_t n = y.dim(1);
    for (std::int64_t t = 0; t < y.dim(0); t++) {
      T* row = y.as<T>() + t * n;
      loops<T>().add(row, row, b.as<T>(), n);
    }
  });
}
void CpuKernels::do_bias_wgrad(Tensor db, Tensor dy, Write write) {
  with_scalar(dy, [&]<class T>(T) {
    loops<T>().column_sums(db.as<T>(), dy.as<T>(), dy.dim(0), dy.dim(1), write == Write::accumulate,
                           workspace<T>());
  });
}

void CpuKernels::do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) {
  with_scalar(y, [&]<class T>(T) {
    loops<T>().rms_norm(y.as<T>(), rstd.as<T>(), x.as<T>(), w.as<T>(), x.dim(0), x.dim(1), eps);
  });
}

void CpuKernels::do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) {
  with_scalar(y, [&]<class T>(T) {
    loops<T>().rms_norm_apply(y.as<T>(), x.as<T>(), rstd.as<T>(), w.as<T>(), x.dim(0), x.dim(1));
  });
}

void CpuKernels::do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) {
  with_scalar(dx, [&]<class T>(T) {
    loops<T>().rms_norm_dgrad(dx.as<T>(), dy.as<T>(), x.as<T>(), rstd.as<T>(), w.as<T>(), x.dim(0), x.dim(1),
                              write == Write::accumulate);
  });
}

void CpuKernels::do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) {
  with_scalar(dw, [&]<class T>(T) {
    loops<T>().rms_norm_wgrad(dw.as<T>(), dy.as<T>(), x.as<T>(), rstd.as<T>(), x.dim(0), x.dim(1),
                              workspace<T>());
  });
}

void CpuKernels::do_layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, double eps) {
  with_scalar(y, [&]<class T>(T) {
    loops<T>().layer_norm(y.as<T>(), mean.as<T>(), rstd.as<T>(), x.as<T>(), w.as<T>(), b.as<T>(), x.dim(0),
                          x.dim(1), eps);
  });
}
void CpuKernels::do_layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) {
  with_scalar(y, [&]<class T>(T) {
    loops<T>().layer_norm_apply(y.as<T>(), x.as<T>(), mean.as<T>(), rstd.as<T>(), w.as<T>(), b.as<T>(),
                                x.dim(0), x.dim(1));
  });
}
void CpuKernels::do_layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                                     Write write) {
  with_scalar(dx, [&]<class T>(T) {
    loops<T>().layer_norm_dgrad(dx.as<T>(), dy.as<T>(), x.as<T>(), mean.as<T>(), rstd.as<T>(), w.as<T>(),
                                x.dim(0), x.dim(1), write == Write::accumulate);
  });
}
void CpuKernels::do_layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) {
  with_scalar(dw, [&]<class T>(T) {
    loops<T>().layer_norm_wgrad(dw.as<T>(), db.as<T>(), dy.as<T>(), x.as<T>(), mean.as<T>(), rstd.as<T>(),
                                x.dim(0), x.dim(1), workspace<T>());
  });
}

void CpuKernels::do_group_squares(Tensor sums, Tensor x, const ColumnGroups& cols) {
  with_scalar(x, [&]<class T>(T) {
    for_groups(x.dim(0), cols, [&](std::int64_t t, std::int64_t g, std::int64_t at) {
      const T* from = x.as<T>() + t * x.dim(1) + at;
      sums.as<T>()[t * cols.groups + g] = loops<T>().dot(from, from, cols.width);
    });
  });
}
void CpuKernels::do_group_norm(Tensor y, Tensor x, Tensor sums, Tensor w, const GroupNormOptions& options,
                               const ColumnGroups& cols) {
  with_scalar(x, [&]<class T>(T) {
    for_groups(x.dim(0), cols, [&](std::int64_t t, std::int64_t g, std::int64_t at) {
      const T rstd = group_rstd(sums.as<T>()[t * cols.groups + g], options);
      loops<T>().rms_norm_apply(y.as<T>() + t * y.dim(1) + at, x.as<T>() + t * x.dim(1) + at, &rstd,
                                w.as<T>(), 1, cols.width);
    });
  });
}
void CpuKernels::do_group_norm_dots(Tensor dots, Tensor dy, Tensor x, Tensor w, const ColumnGroups& cols) {
  with_scalar(x, [&]<class T>(T) {
    for_groups(x.dim(0), cols, [&](std::int64_t t, std::int64_t g, std::int64_t at) {
      dots.as<T>()[t * cols.groups + g] = loops<T>().weighted_dot(
          x.as<T>() + t * x.dim(1) + at, w.as<T>(), dy.as<T>() + t * dy.dim(1) + at, cols.width);
    });
  });
}
void CpuKernels::do_group_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor sums, Tensor dots, Tensor w,
                                     const GroupNormOptions& options, const ColumnGroups& cols) {
  with_scalar(x, [&]<class T>(T) {
    for_groups(x.dim(0), cols, [&](std::int64_t t, std::int64_t g, std::int64_t at) {
      const T rstd = group_rstd(sums.as<T>()[t * cols.groups + g], options);
      const T mean = dots.as<T>()[t * cols.groups + g] / static_cast<T>(options.count);
      loops<T>().norm_gradient(dx.as<T>() + t * dx.dim(1) + at, dy.as<T>() + t * dy.dim(1) + at,
                               x.as<T>() + t * x.dim(1) + at, w.as<T>(), rstd, rstd * rstd * rstd * mean,
                               cols.width);
    });
  });
}
void CpuKernels::do_group_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor sums,
                                     const GroupNormOptions& options, const ColumnGroups& cols, Write write) {
  with_scalar(x, [&]<class T>(T) {
    loops<T>().group_norm_wgrad({.dw = dw.as<T>(),
                                 .dy = dy.as<T>() + cols.first,
                                 .x = x.as<T>() + cols.first,
                                 .sums = sums.as<T>(),
                                 .rows = x.dim(0),
                                 .groups = cols.groups,
                                 .width = cols.width,
                                 .dy_row = dy.dim(1),
                                 .x_row = x.dim(1),
                                 .eps = options.eps,
                                 .count = static_cast<double>(options.count),
                                 .accumulate = write == Write::accumulate,
                                 .workspace = workspace<T>()});
  });
}

void CpuKernels::do_clamp(Tensor x, double limit, std::int64_t first, std::int64_t width) {
  with_scalar(x, [&]<class T>(T) {
    for (std::int64_t t = 0; t < x.dim(0); t++) {
      loops<T>().clamp(x.as<T>() + t * x.dim(1) + first, static_cast<T>(limit), width);
    }
  });
}
void CpuKernels::do_clamp_backward(Tensor dx, Tensor x, double limit, std::int64_t first,
                                   std::int64_t width) {
  with_scalar(x, [&]<class T>(T) {
    for (std::int64_t t = 0; t < x.dim(0); t++) {
      loops<T>().clamp_backward(dx.as<T>() + t * dx.dim(1) + first, x.as<T>() + t * x.dim(1) + first,
                                static_cast<T>(limit), width);
    }
  });
}

// --- attention

void CpuKernels::do_rope(Tensor x, Tensor cos, Tensor sin, const RopeShape& shape, bool adjoint,
                         Tensor positions) {
  with_scalar(x, [&]<class T>(T) {
    const std::int64_t half = shape.rotated / 2;
    const T sign = adjoint ? T(-1) : T(1);
    const auto turn = shape.pairs == RopePairs::halves ? loops<T>().rope_halves : loops<T>().rope_interleaved;
    for (std::int64_t t = 0; t < x.dim(0); t++) {
      const std::int64_t at = (positions.empty() ? t % shape.seq : positions.as<std::int32_t>()[t]) * half;
      T* row = x.as<T>() + t * x.dim(1) + shape.first;
      for (std::int64_t h = 0; h < shape.heads; h++) {
        turn(row + h * shape.stride, cos.as<T>() + at, sin.as<T>() + at, half, sign);
      }
    }
  });
}

template <class T>
AttentionCall<T> CpuKernels::attention_call(const Tensor& q, const Tensor& out, const Tensor& lse,
                                            const Tensor& sinks, const AttentionShape& s) const {
  if (s.head_dim > kMaxHeadDim || s.v_dim() > kMaxHeadDim) {
    throw Error(ErrorKind::unsupported,
                fmt::format("head_dim={} is above {}", std::max(s.head_dim, s.v_dim()), kMaxHeadDim),
                "attention on the CPU", "use more, smaller heads");
  }
  AttentionCall<T> call{};
  call.batch = s.batch;
  call.rows = call.stride = s.seq;
  call.heads = s.heads;
  call.kv_heads = s.kv_heads;
  call.head_dim = s.head_dim;
  call.v_dim = s.v_dim();
  call.window = s.window;
  call.scale = s.scale;
  call.q = q.as<T>();
  call.q_row = q.row_elements();
  call.sinks = sinks.empty() ? nullptr : sinks.as<T>();
  call.out = out.as<T>();
  call.lse = lse.as<T>();
  call.workspace = workspace<T>();
  return call;
}

namespace {
// Keys and values behind the queries of the same rows.
template <class T>
void keys_in_rows(AttentionCall<T>& call, const AttentionShape& s) {
  call.k = call.q + s.q_dim();
  call.v = call.k + s.k_dim();
  call.kv_row = call.q_row;
}
template <class T>
void keys_apart(AttentionCall<T>& call, const Tensor& kv, const AttentionShape& s,
                const AttentionPart& part) {
  call.rows = part.rows;
  call.distance = part.distance;
  call.kv_row = kv.row_elements();
  call.k = kv.as<T>() + part.k_first * call.kv_row;
  call.v = call.k + s.k_dim();
  call.q += part.q_first * call.q_row;
  call.out += part.q_first * s.out_dim();
  call.lse += part.q_first * s.heads;
}
}  // namespace

void CpuKernels::do_attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks, const AttentionShape& shape) {
  with_scalar(out, [&]<class T>(T) {
    AttentionCall<T> call = attention_call<T>(qkv, out, lse, sinks, shape);
    keys_in_rows(call, shape);
    loops<T>().attention(call);
  });
}
void CpuKernels::do_attention_backward(Tensor dqkv, Tensor dsinks, Tensor dout, Tensor qkv, Tensor out,
                                       Tensor lse, Tensor sinks, const AttentionShape& shape) {
  with_scalar(out, [&]<class T>(T) {
    AttentionCall<T> call = attention_call<T>(qkv, out, lse, sinks, shape);
    keys_in_rows(call, shape);
    call.dout = dout.as<T>();
    call.dq = dqkv.as<T>();
    call.dk = call.dq + shape.q_dim();
    call.dv = call.dk + shape.k_dim();
    loops<T>().attention_backward(call);
  });
  if (!sinks.empty()) do_attention_sinks_backward(dsinks, dout, out, lse, sinks, shape);
}

void CpuKernels::do_attention_part(Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor sinks,
                                   const AttentionShape& shape, const AttentionPart& part, Write write) {
  with_scalar(out, [&]<class T>(T) {
    AttentionCall<T> call = attention_call<T>(q, out, lse, sinks, shape);
    keys_apart(call, kv, shape, part);
    call.joins = write == Write::accumulate;
    loops<T>().attention(call);
  });
}
void CpuKernels::do_attention_part_backward(Tensor dq, Tensor dkv, Tensor dout, Tensor q, Tensor kv,
                                            Tensor out, Tensor lse, const AttentionShape& shape,
                                            const AttentionPart& part) {
  with_scalar(out, [&]<class T>(T) {
    AttentionCall<T> call = attention_call<T>(q, out, lse, Tensor(), shape);
    keys_apart(call, kv, shape, part);
    call.joins = true;
    call.dout = dout.as<T>() + part.q_first * shape.out_dim();
    call.dq = dq.as<T>() + part.q_first * call.q_row;
    call.dk = dkv.as<T>() + part.k_first * call.kv_row;
    call.dv = call.dk + shape.k_dim();
    loops<T>().attention_backward(call);
  });
}
void CpuKernels::do_attention_sinks_backward(Tensor dsinks, Tensor dout, Tensor out, Tensor lse, Tensor sinks,
                                             const AttentionShape& shape) {
  with_scalar(out, [&]<class T>(T) {
    AttentionCall<T> call = attention_call<T>(out, out, lse, sinks, shape);
    call.dout = dout.as<T>();
    call.dsinks = dsinks.as<T>();
    loops<T>().attention_sinks_backward(call);
  });
}

// --- activations

void CpuKernels::do_activation(Tensor h, Tensor z, const ActivationOptions& options) {
  with_scalar(h, [&]<class T>(T) {
    loops<T>().activation[static_cast<int>(options.kind)](h.as<T>(), z.as<T>(), h.dim(0), h.dim(1),
                                                          static_cast<T>(options.limit));
  });
}
void CpuKernels::do_activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& options) {
  with_scalar(dh, [&]<class T>(T) {
    loops<T>().activation_backward[static_cast<int>(options.kind)](
        dz.as<T>(), dh.as<T>(), z.as<T>(), dh.dim(0), dh.dim(1), static_cast<T>(options.limit));
  });
}

void CpuKernels::do_sigmoid_gate(Tensor y, Tensor f, Tensor z) {
  with_scalar(y, [&]<class T>(T) {
    const std::int64_t h = y.dim(1);
    for (std::int64_t t = 0; t < y.dim(0); t++) {
      T* row = y.as<T>() + t * h;
      T s;
      loops<T>().sigmoid(&s, z.as<T>() + t, 1);
      loops<T>().add_scaled(row, row, s, f.as<T>() + t * h, h);
    }
  });
}
void CpuKernels::do_sigmoid_gate_backward(Tensor df, Tensor dz, Tensor dy, Tensor f, Tensor z) {
  with_scalar(dy, [&]<class T>(T) {
    const std::int64_t h = dy.dim(1);
    for (std::int64_t t = 0; t < dy.dim(0); t++) {
      const T* d = dy.as<T>() + t * h;
      T s;
      loops<T>().sigmoid(&s, z.as<T>() + t, 1);
      dz.as<T>()[t] = s * (T(1) - s) * loops<T>().dot(d, f.as<T>() + t * h, h);
      loops<T>().scale(df.as<T>() + t * h, s, d, h);
    }
  });
}

// --- router

namespace {

// The k largest of score[0, n), best first, the lower index first among equals; score is used up.
template <class T>
void choose(const Loops<T>& loops, std::int32_t* index, T* score, std::int64_t n, std::int64_t k) {
  constexpr T kTaken = -std::numeric_limits<T>::infinity();
  for (std::int64_t i = 0; i < k; i++) {
    auto best = static_cast<std::int32_t>(loops.largest(score, n));
    if (!(score[best] > kTaken)) {  // only what is taken, hidden or not a number is left: the first not taken
      best = 0;
      while (std::find(index, index + i, best) != index + i) best++;
    }
    index[i] = best;
    score[best] = kTaken;
  }
}

template <class T>
T group_score(const T* score, std::int64_t size, GroupScore how) {
  T first = score[0], second = -std::numeric_limits<T>::infinity();
  for (std::int64_t e = 1; e < size; e++) {
    second = std::max(second, std::min(first, score[e]));
    first = std::max(first, score[e]);
  }
  return how == GroupScore::max || size == 1 ? first : first + second;
}

// Scores outside the topk_group best groups become minus infinity. `groups` has space for n_group scores.
template <class T>
void hide_groups(const Loops<T>& loops, T* score, T* groups, std::int64_t num_e, const RouterOptions& o) {
  const std::int64_t size = num_e / o.n_group;
  for (std::int64_t g = 0; g < o.n_group; g++) groups[g] = group_score(score + g * size, size, o.group_score);
  // Taken groups are marked by minus infinity; what is left then is hidden.
  for (std::int32_t i = 0; i < o.topk_group; i++) {
    std::int64_t best = loops.largest(groups, o.n_group);
    groups[best] = -std::numeric_limits<T>::infinity();
  }
  for (std::int64_t g = 0; g < o.n_group; g++) {
    if (groups[g] == -std::numeric_limits<T>::infinity()) continue;
    loops.fill(score + g * size, -std::numeric_limits<T>::infinity(), size);
  }
}

// One token. `space` holds num_e + n_group scores.
template <class T>
struct RouterRow {
  const T *z, *bias;  // bias or null
  T *probs, *weights, *space;
  std::int32_t* index;
  std::int64_t num_e;
};

template <class T>
void choose_experts(const Loops<T>& loops, const RouterRow<T>& r, const RouterOptions& o) {
  const bool plain = r.bias == nullptr && o.n_group == 1 && o.score != RouterScore::sigmoid;
  const T* from = plain || o.score == RouterScore::topk_then_softmax ? r.z : r.probs;
  if (r.bias == nullptr) {
    copy(r.space, from, r.num_e);
  } else {
    loops.add(r.space, from, r.bias, r.num_e);
  }
  if (o.topk_group < o.n_group) hide_groups(loops, r.space, r.space + r.num_e, r.num_e, o);
  choose(loops, r.index, r.space, r.num_e, o.top_k);
}

template <class T>
void weigh_chosen(const Loops<T>& loops, const RouterRow<T>& r, const RouterOptions& o) {
  const bool over_chosen = o.score == RouterScore::topk_then_softmax;
  const T* from = over_chosen ? r.z : r.probs;
  T top = r.z[r.index[0]];
  T sum = o.score == RouterScore::sigmoid ? T(1e-20) : T(0);
  for (std::int32_t k = 0; k < o.top_k; k++) {
    r.weights[k] = from[r.index[k]];
    top = std::max(top, r.z[r.index[k]]);
  }
  if (over_chosen) {
    for (std::int32_t k = 0; k < o.top_k; k++) r.weights[k] -= top;
    loops.exp(r.weights, r.weights, o.top_k);
  }
  for (std::int32_t k = 0; k < o.top_k; k++) sum += r.weights[k];
  for (std::int32_t k = 0; k < o.top_k; k++) {
    if (over_chosen || o.renormalise) r.weights[k] /= sum;
    r.weights[k] *= static_cast<T>(o.scale);
  }
}

}  // namespace

void CpuKernels::do_router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits, Tensor bias,
                           const RouterOptions& options) {
  const std::int64_t num_e = logits.dim(1), num_k = options.top_k;
  with_scalar(probs, [&]<class T>(T) {
    if (2 * num_e * static_cast<std::int64_t>(sizeof(T)) > kWorkspaceBytes) {
      small_->router(probs, lse, index, weights, logits, bias, options);
      return;
    }
    for (std::int64_t t = 0; t < logits.dim(0); t++) {
      const RouterRow<T> row = {.z = logits.as<T>() + t * num_e,
                                .bias = bias.empty() ? nullptr : bias.as<T>(),
                                .probs = probs.as<T>() + t * num_e,
                                .weights = weights.as<T>() + t * num_k,
                                .space = workspace<T>(),
                                .index = index.as<std::int32_t>() + t * num_k,
                                .num_e = num_e};
      T max, sum;
      loops<T>().softmax_stats(row.z, num_e, &max, &sum);
      lse.as<T>()[t] = max + std::log(sum);
      if (options.score == RouterScore::sigmoid) {
        loops<T>().sigmoid(row.probs, row.z, num_e);
      } else {
        copy(row.probs, row.z, num_e);
        loops<T>().softmax_scaled(row.probs, num_e, max, T(1) / sum);
      }
      if (!options.given_index) choose_experts(loops<T>(), row, options);
      weigh_chosen(loops<T>(), row, options);
    }
  });
}

void CpuKernels::do_router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                                    Tensor weights, Tensor aux, Tensor unit, double z_scale,
                                    const RouterOptions& options, Tensor logits) {
  small_->router_backward(dlogits, dweights, probs, lse, index, weights, aux, unit, z_scale, options, logits);
}

}  // namespace tessera::kernels::cpu
