// The dense layers of a decoder beside attention (attention.h, latent_attention.h). Each adds to the residual
// stream: y = x + f(rms_norm(x)).
// Sources: Megatron-LM (arXiv 1909.08053, 2205.05198) for the parallel forms; formulas in docs/numerics.md.
// Bytes sent by one rank, b bytes per element, S = T * H * b, g = (tp - 1) / tp:
//   mlp: F all_gather g S + reduce_scatter g S; I the same (selective: one more all_gather); W none.
//   embedding: F reduce_scatter g S; I all_gather g S; W none.
//   head: F all_gather g S + all_gather (tp - 1) * 3 T b (softmax statistics); I reduce_scatter g S; W none.
#pragma once
#include <cstdint>
#include <vector>

#include "nn/attention.h"
#include "nn/layer.h"

namespace tessera::nn {

// Gated MLP: down(silu(gate(n)) * up(n)). Weights on this rank (I: of this rank): gate_up [2 I, H] (rows
// gate | up), down [H, I], norm [H].
class Mlp : public Layer {
 public:
  struct Options {
    Dims dims;
    std::int64_t intermediate;  // on this rank
    double norm_eps;
    Recompute recompute;
  };
  struct Params {
    Param norm_H, gate_up, down;
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
    Tensor x_tH, rstd_t, n_TH, gate_up, h_TI;  // x: view; n, h: Recompute::none only
  };
  struct Deferred {
    Tensor n_TH, dout_TH, dgate_up, dn_tH;  // n: selective only
  };
  Options o_;
  Params p_;
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
};

// Vocab-parallel embedding: table rows [vocab_begin, vocab_begin + rows). forward ignores x; backward_input
// ends the chain and leaves g unchanged.
class Embedding : public Layer {
 public:
  Embedding(Dims dims, Param table_VH, std::int64_t vocab_begin);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

 private:
  Dims dims_;
  Param table_;
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
  };
  struct Params {
    Param norm_H, head_VH;
  };
  Head(Options options, Params params);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

  // weights.ce * sum of the token losses of this micro-batch, the same on every tp rank.
  [[nodiscard]] double loss(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor loss_T(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor logits(std::int32_t saved_slot) const;

 private:
  struct Saved {
    Tensor x_tH, rstd_t, n_TH, logits_TV, lse_T, loss_T;
    double loss = 0.0;
  };
  struct Deferred {
    Tensor dn_tH;
  };
  Options o_;
  Params p_;
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
};

}  // namespace tessera::nn
