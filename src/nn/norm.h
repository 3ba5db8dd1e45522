// The norm in front of a layer: RMSNorm, or LayerNorm with a bias (arXiv 1607.06450), as a piece of a Layer.
//
//   Norm norm(NormKind::rms, eps, weight_H, std::nullopt);
//   Norm::Saved s = norm.reserve(arena, DType::f64, rows);   // in reserve_saved
//   norm.forward(k, n_tH, s, x_tH);                          // F
//   norm.apply(k, n_tH, x_tH, s);                            // n again from what F kept: the same bits
//   norm.dgrad(k, dx_tH, dn_tH, x_tH, s, Write::accumulate); // I
//   norm.wgrad(k, dn_tH, x_tH, s);                           // W: += in Param::grad
#pragma once
#include <cstdint>
#include <optional>

#include "nn/layer.h"

namespace tessera::nn {

enum class NormKind : std::uint8_t { rms, layer };

class Norm {
 public:
  struct Saved {
    Tensor rstd_t;
    Tensor mean_t;  // LayerNorm only
  };
  // bias_H: for LayerNorm and for it alone, else Error{internal}.
  Norm(NormKind kind, double eps, Param weight_H, std::optional<Param> bias_H);
  [[nodiscard]] Saved reserve(Arena& arena, DType dtype, std::int64_t rows) const;
  void forward(Kernels& k, Tensor y_tH, const Saved& saved, Tensor x_tH) const;
  void apply(Kernels& k, Tensor y_tH, Tensor x_tH, const Saved& saved) const;
  void dgrad(Kernels& k, Tensor dx_tH, Tensor dy_tH, Tensor x_tH, const Saved& saved,
             kernels::Write write) const;
  void wgrad(Kernels& k, Tensor dy_tH, Tensor x_tH, const Saved& saved) const;

 private:
  NormKind kind_;
  double eps_;
  Param weight_;
  std::optional<Param> bias_;
};

}  // namespace tessera::nn
