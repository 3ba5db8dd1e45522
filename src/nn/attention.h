// Self-attention with grouped queries: y = x + o(attention(position(qkv(norm(x))))). In order, [] where the
// options say so; formulas and sources in docs/numerics.md:
//   n = RMSNorm or LayerNorm of x;  q|k|v = n W^T [+ bias];
//   [RMSNorm of q and of k, by head or over the whole projection];  [q, k, v clamped to +-clip_qkv];
//   [rope on q and k];  causal attention [within a window] [with a sink a head];  o W^T [+ bias];  + x.
//
// tp cuts heads. Bytes sent by one rank, b bytes per element, S = T H b, g = (tp - 1) / tp:
//   F: all_gather g S, reduce_scatter g S;   I: the same (selective: one more all_gather);   W: none.
//   RMSNorm over the whole projection: F and I each one all_reduce_direct of (tp - 1) 2 T b more (sums of
//   squares of q and k; the dot products of their gradients).
// cp cuts sequences: attention goes round a ring (context_ring.h has its bytes).
//
// Kept until W: what `Saved` lists. Selective recomputation makes n again, and q and k from what the
// projection gave. Gradients of q_norm, k_norm and sinks need values that only I has: I computes those of the
// micro-batch into the deferred slot, W adds them.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "nn/context_ring.h"
#include "nn/layer.h"
#include "nn/norm.h"

namespace tessera::nn {

enum class QkNorm : std::uint8_t {
  none,
  per_head,  // one weight vector of head_dim, shared by the heads (qwen3)
  whole,     // over all heads of all tp ranks at once (olmoe)
};

// Weights on this rank (heads, kv_heads: of this rank): qkv [(heads + 2 kv_heads) * head_dim, H] (rows
// q | k | v), o [H, heads * head_dim]; q_norm, k_norm: head_dim, or the columns of this rank's q and k.
class Attention : public Layer {
 public:
  struct Options {
    Dims dims;
    std::int64_t heads;     // on this rank
    std::int64_t kv_heads;  // on this rank
    std::int64_t head_dim;
    double norm_eps;  // of the norm in front, and of those of q and k
    Recompute recompute;
    NormKind norm = NormKind::rms;
    double scale = 0.0;       // of q k^T; 0: head_dim^-1/2
    std::int64_t window = 0;  // keys that a query sees, itself included; 0: all before it
    std::optional<kernels::RopePairs> rope = kernels::RopePairs::halves;
    QkNorm qk_norm = QkNorm::none;
    double clip_qkv = 0.0;   // 0: none
    std::int32_t layer = 0;  // of the model: its entry of a key-value cache
  };
  struct Params {
    Param norm_H, qkv, o;
    std::optional<Param> norm_bias_H = std::nullopt;  // LayerNorm
    std::optional<Param> qkv_bias = std::nullopt;
    std::optional<Param> q_norm = std::nullopt, k_norm = std::nullopt;
    std::optional<Param> sinks_h = std::nullopt;
    std::optional<Param> o_bias = std::nullopt;
  };
  // cos, sin: [seq, rotated columns of a head / 2] of the same dtype, of the positions of this rank's rows of
  // a sequence, outlive the layer; empty without rope.
  // Parameters that do not fit the options are Error{internal}.
  Attention(Options options, Params params, Tensor cos_SP, Tensor sin_SP);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

 private:
  // raw: q|k|v of the projection, where norms or clamps leave others in qkv; qkv: what attention reads.
  struct Saved {
    Tensor x_tH;  // view
    Norm::Saved norm;
    Tensor n_TH;     // Recompute::none only
    Tensor raw;      // with norms or clamps only
    Tensor squares;  // with norms: sums of squares, q [T, groups] then k
    Tensor qkv;      // selective with norms or clamps: not kept
    Tensor out, lse;
  };
  struct Deferred {
    Tensor n_TH, dout_TH, dqkv, dn_tH;  // n: selective only
    Tensor dq_norm, dk_norm, dsinks_h;
  };
  struct ForwardScratch;
  struct BackwardScratch;
  // measure_scratch and the calls take through the same functions, so they cannot differ.
  [[nodiscard]] ForwardScratch forward_scratch(Arena& arena) const;
  [[nodiscard]] BackwardScratch backward_scratch(Arena& arena) const;

  [[nodiscard]] kernels::AttentionShape shape() const;
  [[nodiscard]] kernels::RopeShape rope_shape() const;
  [[nodiscard]] bool selective() const { return o_.recompute == Recompute::selective; }
  // Norms or clamps stand between the projection and attention.
  [[nodiscard]] bool reworked() const { return o_.qk_norm != QkNorm::none || o_.clip_qkv > 0.0; }
  [[nodiscard]] Tensor take_groups(Arena& arena) const;

  // The steps of forward. positions_T: of each row, i32; empty: t % seq.
  void project(Kernels& k, Tensor raw, Tensor n_TH) const;
  void measure_heads(Context& ctx, Tensor squares, Tensor raw) const;
  void position(Kernels& k, Tensor qkv, Tensor raw, Tensor squares, Tensor positions_T) const;
  void attend(Context& ctx, const Saved& s, Tensor qkv, const Microbatch& mb,
              const ContextRing::Buffers& ring) const;
  // q and k of raw, normalised.
  void normalise_heads(Kernels& k, Tensor qkv, Tensor raw, Tensor squares) const;
  // d qkv becomes d raw; d q_norm and d k_norm.
  void position_backward(Context& ctx, const Deferred& f, const Saved& s,
                         const BackwardScratch& scratch) const;
  void normalise_backward(Context& ctx, const Deferred& f, const Saved& s, Tensor dots) const;

  Options o_;
  Params p_;
  Norm norm_;
  ContextRing ring_;
  Tensor cos_, sin_;
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
};

}  // namespace tessera::nn
