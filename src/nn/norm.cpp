#include "nn/norm.h"

namespace tessera::nn {

Norm::Norm(NormKind kind, double eps, Param weight_H, std::optional<Param> bias_H)
    : kind_(kind), eps_(eps), weight_(weight_H), bias_(bias_H) {
  TESSERA_CHECK(bias_.has_value() == (kind_ == NormKind::layer), "LayerNorm has a bias, RMSNorm has none");
}

Norm::Saved Norm::reserve(Arena& arena, DType dtype, std::int64_t rows) const {
  Saved s;
  s.rstd_t = arena.take(tensor::stats_of(dtype), {rows});
  if (kind_ == NormKind::layer) s.mean_t = arena.take(tensor::stats_of(dtype), {rows});
  return s;
}

void Norm::forward(Kernels& k, Tensor y_tH, const Saved& s, Tensor x_tH) const {
  switch (kind_) {
    case NormKind::rms:
      k.rms_norm(y_tH, s.rstd_t, x_tH, weight_.weight.value_NK, eps_);
      return;
    case NormKind::layer:
      k.layer_norm(y_tH, s.mean_t, s.rstd_t, x_tH, weight_.weight.value_NK, bias_->weight.value_NK, eps_);
      return;
  }
}

void Norm::apply(Kernels& k, Tensor y_tH, Tensor x_tH, const Saved& s) const {
  switch (kind_) {
    case NormKind::rms:
      k.rms_norm_apply(y_tH, x_tH, s.rstd_t, weight_.weight.value_NK);
      return;
    case NormKind::layer:
      k.layer_norm_apply(y_tH, x_tH, s.mean_t, s.rstd_t, weight_.weight.value_NK, bias_->weight.value_NK);
      return;
  }
}

void Norm::dgrad(Kernels& k, Tensor dx_tH, Tensor dy_tH, Tensor x_tH, const Saved& s,
                 kernels::Write write) const {
  switch (kind_) {
    case NormKind::rms:
      k.rms_norm_dgrad(dx_tH, dy_tH, x_tH, s.rstd_t, weight_.weight.value_NK, write);
      return;
    case NormKind::layer:
      k.layer_norm_dgrad(dx_tH, dy_tH, x_tH, s.mean_t, s.rstd_t, weight_.weight.value_NK, write);
      return;
  }
}

void Norm::wgrad(Kernels& k, Tensor dy_tH, Tensor x_tH, const Saved& s) const {
  switch (kind_) {
    case NormKind::rms:
      k.rms_norm_wgrad(weight_.grad, dy_tH, x_tH, s.rstd_t);
      return;
    case NormKind::layer:
      k.layer_norm_wgrad(weight_.grad, bias_->grad, dy_tH, x_tH, s.mean_t, s.rstd_t);
      return;
  }
}

}  // namespace tessera::nn
