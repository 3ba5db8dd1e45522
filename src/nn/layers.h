// The dense layers of a decoder beside attention (attention.h, latent_attention.h). Each adds to the residual
// stream: y = x + f(rms_norm(x)).
// Sources: Megatron-LM (arXiv 1909.08053, 2205.05198) for the parallel forms; formulas in docs/numerics.md.
// Bytes sent by one rank, b bytes per element, S = T * H * b, g = (tp - 1) / tp:
//   mlp: F all_gather g S + reduce_scatter g S; I the same (selective: one more all_gather); W none.
//   embedding: F reduce_scatter g S; I all_gather g S; W none.
//   head: F all_gather g S + all_gather (tp - 1) * 3 T b (softmax statistics); I reduce_scatter g S; W none.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "nn/attention.h"
#include "nn/layer.h"
#include "nn/norm.h"

namespace tessera::nn {

// MLP: down(f(up(n))), gated (silu(gate(n)) * up(n)) or not (gelu), by ActivationOptions. Weights on this
// rank (I: of this rank): up [2 I or I, H] (rows gate | up), down [H, I], biases [2 I or I] and [H] where the
// model has them. The bias of down is added to this rank's own rows.
class Mlp : public Layer {
 public:
  struct Options {
    Dims dims;
    std::int64_t intermediate;  // on this rank
    kernels::ActivationOptions activation;
    double norm_eps;
    Recompute recompute;
    NormKind norm = NormKind::rms;
  };
  struct Params {
    Param norm_H, up, down;
    std::optional<Param> norm_bias_H = std::nullopt;  // LayerNorm
    std::optional<Param> up_bias = std::nullopt, down_bias = std::nullopt;
  };
  Mlp(Options options, Params params);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

 private:
  struct Saved {
    Tensor x_tH, n_TH, z_TZ, h_TI;  // x: view; n, h: Recompute::none only
    Norm::Saved norm;
  };
  struct Deferred {
    Tensor n_TH, dout_TH, dz_TZ, dn_tH;  // n: selective only
  };
  Options o_;
  Params p_;
  Norm norm_;
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
};

// Vocab-parallel embedding: table rows [vocab_begin, vocab_begin + rows), and learned positions [P, H] where
// the model has them, added to this rank's own rows. forward ignores x; backward_input ends the chain and
// leaves g unchanged.
class Embedding : public Layer {
 public:
  struct Params {
    Param table_VH;
    std::optional<Param> position_PH = std::nullopt;
  };
  Embedding(Dims dims, Params params, std::int64_t vocab_begin);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

 private:
  template <class Body>
  void for_each_run(const Context& ctx, Body&& body) const;
  Dims dims_;
  Params p_;
  std::int64_t vocab_begin_;
  std::vector<Tensor> deferred_;  // dy_TH
};

// Final norm, vocab-parallel head and cross entropy. forward ignores y; after it loss_T(slot) and loss(slot)
// are valid, logits(slot) hold this rank's share until backward_input overwrites them with their gradient.
// backward_input ignores what g holds on entry. Targets below 0 are ignored tokens: loss 0, gradient 0.
class Head : public Layer {
 public:
  struct Options {
    Dims dims;
    std::int64_t vocab;  // rows on this rank
    std::int64_t vocab_begin;
    double norm_eps;
    NormKind norm = NormKind::rms;
  };
  struct Params {
    Param norm_H, head_VH;
    std::optional<Param> norm_bias_H = std::nullopt;  // LayerNorm
  };
  Head(Options options, Params params);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

  // weights.ce * sum of the token losses of this micro-batch, the same on every tp rank: f64, in its turn
  // among the kernels; as a number once what is queued is done.
  [[nodiscard]] Tensor loss_1(std::int32_t saved_slot) const;
  [[nodiscard]] double loss(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor loss_T(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor logits(std::int32_t saved_slot) const;

 private:
  struct Saved {
    Tensor x_tH, n_TH, logits_TV, lse_T, loss_T, loss_1;
    Norm::Saved norm;
  };
  struct Deferred {
    Tensor dn_tH;
  };
  Options o_;
  Params p_;
  Norm norm_;
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
};

}  // namespace tessera::nn
