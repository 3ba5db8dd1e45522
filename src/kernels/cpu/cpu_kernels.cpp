#include "kernels/cpu/cpu_kernels.h"

#include <fmt/format.h>

#include "kernels/cpu/backend.h"

namespace tessera::kernels::cpu {

// Panels of W^T for linear, then panels of W for linear_dgrad.
Bytes CpuKernels::packed_bytes(DType dtype, std::int64_t n, std::int64_t k) const {
  const std::int64_t width = dtype == DType::f64 ? isa_.f64->panel_width : isa_.f32->panel_width;
  return Bytes((round_up(n, width) * k + round_up(k, width) * n) * tensor::size_of(dtype));
}

void CpuKernels::do_pack(Weight& w) {
  if (w.packed.empty()) return;
  with_scalar(w.value_NK, [&]<class T>(T) {
    const std::int64_t n = w.value_NK.dim(0), k = w.value_NK.dim(1);
    loops<T>().pack_weight(forward_panels<T>(w), dgrad_panels<T>(w), w.value_NK.as<T>(), n, k);
  });
}

void CpuKernels::do_linear(Tensor y, Tensor x, const Weight& w) {
  with_scalar(y, [&]<class T>(T) {
    const std::int64_t n = w.value_NK.dim(0), k = w.value_NK.dim(1);
    loops<T>().product({.m = x.dim(0),
                        .n = n,
                        .k = k,
                        .a = x.as<T>(),
                        .lda = k,
                        .a_order = Order::rows,
                        .b = w.value_NK.as<T>(),
                        .ldb = k,
                        .b_order = Order::columns,
                        .panels = w.packed.empty() ? nullptr : forward_panels<T>(w),
                        .c = y.as<T>(),
                        .ldc = n,
                        .accumulate = false,
                        .workspace = workspace<T>()});
  });
}

void CpuKernels::do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) {
  with_scalar(dx, [&]<class T>(T) {
    const std::int64_t n = w.value_NK.dim(0), k = w.value_NK.dim(1);
    loops<T>().product({.m = dy.dim(0),
                        .n = k,
                        .k = n,
                        .a = dy.as<T>(),
                        .lda = n,
                        .a_order = Order::rows,
                        .b = w.value_NK.as<T>(),
                        .ldb = k,
                        .b_order = Order::rows,
                        .panels = w.packed.empty() ? nullptr : dgrad_panels<T>(w),
                        .c = dx.as<T>(),
                        .ldc = k,
                        .accumulate = write == Write::accumulate,
                        .workspace = workspace<T>()});
  });
}

void CpuKernels::do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) {
  with_scalar(dw, [&]<class T>(T) {
    const std::int64_t n = dw.dim(0), k = dw.dim(1);
    loops<T>().product({.m = n,
                        .n = k,
                        .k = x.dim(0),
                        .a = dy.as<T>(),
                        .lda = n,
                        .a_order = Order::columns,
                        .b = x.as<T>(),
                        .ldb = k,
                        .b_order = Order::rows,
                        .panels = nullptr,
                        .c = dw.as<T>(),
                        .ldc = k,
                        .accumulate = true,
                        .workspace = workspace<T>()});
  });
}

void CpuKernels::do_embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) {
  with_scalar(y, [&]<class T>(T) {
    const std::int32_t* id = ids.as<std::int32_t>();
    const std::int64_t h = y.dim(1), vocab = table.dim(0);
    for (std::int64_t t = 0; t < y.dim(0); t++) {
      const std::int64_t row = id[t] - vocab_begin;
      T* to = y.as<T>() + t * h;
      if (row >= 0 && row < vocab) {
        copy(to, table.as<T>() + row * h, h);
      } else {
        loops<T>().fill(to, T(0), h);
      }
    }
  });
}

void CpuKernels::do_embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) {
  with_scalar(dy, [&]<class T>(T) {
    const std::int32_t* id = ids.as<std::int32_t>();
    const std::int64_t h = dy.dim(1), vocab = dtable.dim(0);
    for (std::int64_t t = 0; t < dy.dim(0); t++) {
      const std::int64_t row = id[t] - vocab_begin;
      if (row < 0 || row >= vocab) continue;
      T* to = dtable.as<T>() + row * h;
      loops<T>().add(to, to, dy.as<T>() + t * h, h);
    }
  });
}

void CpuKernels::do_cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets,
                                        std::int64_t vocab_begin) {
  with_scalar(logits, [&]<class T>(T) {
    const std::int32_t* target = targets.as<std::int32_t>();
    const std::int64_t tokens = logits.dim(0), vocab = logits.dim(1);
    T* s = stats.as<T>();
    for (std::int64_t t = 0; t < tokens; t++) {
      const T* z = logits.as<T>() + t * vocab;
      loops<T>().softmax_stats(z, vocab, s + t, s + tokens + t);
      const std::int64_t at = target[t] - vocab_begin;
      s[2 * tokens + t] = target[t] >= 0 && at >= 0 && at < vocab ? z[at] : T(0);
    }
  });
}

void CpuKernels::do_cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) {
  small_->cross_entropy_join(loss, lse, stats, targets);
}

void CpuKernels::do_cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets,
                                           std::int64_t vocab_begin, double weight) {
  with_scalar(logits, [&]<class T>(T) {
    const std::int32_t* target = targets.as<std::int32_t>();
    const std::int64_t vocab = logits.dim(1);
    for (std::int64_t t = 0; t < logits.dim(0); t++) {
      T* z = logits.as<T>() + t * vocab;
      if (target[t] < 0) {
        loops<T>().fill(z, T(0), vocab);
        continue;
      }
      loops<T>().softmax_scaled(z, vocab, lse.as<T>()[t], static_cast<T>(weight));
      const std::int64_t at = target[t] - vocab_begin;
      if (at >= 0 && at < vocab) z[at] -= static_cast<T>(weight);
    }
  });
}

void CpuKernels::do_gather_rows(Tensor dst, Tensor src, Tensor index) {
  with_scalar(dst, [&]<class T>(T) {
    const std::int32_t* from = index.as<std::int32_t>();
    const std::int64_t h = src.dim(1);
    for (std::int64_t r = 0; r < dst.dim(0); r++) {
      loops<T>().stream_scale(dst.as<T>() + r * h, T(1), src.as<T>() + from[r] * h, h);
    }
    loops<T>().finish_streams();
  });
}

namespace {
// The rows of a token's choices, a few at a time.
template <class T>
struct ChosenRows {
  static constexpr std::int64_t kMost = 16;
  const T* rows[kMost];
  T weights[kMost];
  std::int64_t count = 0;
};

// y = base + sum of the token's rows, weighted or not. base: may be y, or null.
template <class T>
void sum_choices(const Loops<T>& loops, T* y, const T* base, Tensor rows, const std::int32_t* at,
                 const T* weights, std::int64_t top_k, std::int64_t h) {
  ChosenRows<T> chosen;
  for (std::int64_t k = 0; k < top_k; k++) {
    if (at[k] >= 0) {
      chosen.rows[chosen.count] = rows.as<T>() + at[k] * h;
      if (weights != nullptr) chosen.weights[chosen.count] = weights[k];
      chosen.count++;
    }
    if (k + 1 < top_k && chosen.count < ChosenRows<T>::kMost) continue;
    loops.sum_scaled(y, base, weights == nullptr ? nullptr : chosen.weights, chosen.rows, chosen.count, h);
    base = y;
    chosen.count = 0;
  }
}
}  // namespace

void CpuKernels::do_combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) {
  with_scalar(y, [&]<class T>(T) {
    const std::int64_t h = y.dim(1), top_k = pos.dim(1);
    for (std::int64_t t = 0; t < y.dim(0); t++) {
      sum_choices(loops<T>(), y.as<T>() + t * h, x.empty() ? nullptr : x.as<T>() + t * h, rows,
                  pos.as<std::int32_t>() + t * top_k, weights.as<T>() + t * top_k, top_k, h);
    }
  });
}

void CpuKernels::do_combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                                     Tensor weights) {
  with_scalar(dy, [&]<class T>(T) {
    const std::int32_t* at = pos.as<std::int32_t>();
    const std::int64_t h = dy.dim(1), top_k = pos.dim(1);
    for (std::int64_t i = 0; i < pos.num_elements(); i++) {
      const T* d = dy.as<T>() + i / top_k * h;
      T* dw = dweights.as<T>() + i;
      *dw = T(0);
      if (at[i] < 0) continue;
      *dw = loops<T>().dot(d, rows.as<T>() + at[i] * h, h);
      loops<T>().stream_scale(drows.as<T>() + at[i] * h, weights.as<T>()[i], d, h);
    }
    loops<T>().finish_streams();
  });
}

void CpuKernels::do_sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) {
  with_scalar(dx, [&]<class T>(T) {
    const std::int64_t h = dx.dim(1), top_k = pos.dim(1);
    for (std::int64_t t = 0; t < dx.dim(0); t++) {
      T* to = dx.as<T>() + t * h;
      sum_choices<T>(loops<T>(), to, write == Write::accumulate ? to : nullptr, rows,
                     pos.as<std::int32_t>() + t * top_k, nullptr, top_k, h);
    }
  });
}

void CpuKernels::do_add(Tensor y, Tensor a, Tensor b) {
  with_scalar(y, [&]<class T>(T) { loops<T>().add(y.as<T>(), a.as<T>(), b.as<T>(), y.num_elements()); });
}

void CpuKernels::do_accumulate(Tensor y, Tensor x) {
  do_add(y, y, x);
}

void CpuKernels::do_fill(Tensor y, double value) {
  with_scalar(y, [&]<class T>(T) { loops<T>().fill(y.as<T>(), static_cast<T>(value), y.num_elements()); });
}

double CpuKernels::do_sum(Tensor x) {
  return with_scalar(x, [&]<class T>(T) { return loops<T>().sum(x.as<T>(), x.num_elements()); });
}

double CpuKernels::do_sum_squares(Tensor x) {
  return with_scalar(x, [&]<class T>(T) { return loops<T>().sum_squares(x.as<T>(), x.num_elements()); });
}

void CpuKernels::do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& o) {
  with_scalar(p, [&]<class T>(T) {
    loops<T>().adamw({.p = p.as<T>(),
                      .m = m.as<T>(),
                      .v = v.as<T>(),
                      .g = g.as<T>(),
                      .n = p.num_elements(),
                      .lr = o.lr,
                      .beta1 = o.beta1,
                      .beta2 = o.beta2,
                      .eps = o.eps,
                      .weight_decay = o.weight_decay,
                      .bias_correction1 = o.bias_correction1,
                      .bias_correction2 = o.bias_correction2,
                      .grad_scale = o.grad_scale});
  });
}

std::unique_ptr<Kernels> make_cpu(const Isa& isa) {
  if (!supported(isa)) {
    throw Error(ErrorKind::unsupported, fmt::format("this processor has no {}", isa.name), "CPU kernels",
                "let Tessera choose the instruction set");
  }
  return std::make_unique<CpuKernels>(isa);
}

}  // namespace tessera::kernels::cpu

namespace tessera::kernels {

std::unique_ptr<Kernels> make_cpu() {
  return cpu::make_cpu(cpu::best());
}

}  // namespace tessera::kernels
