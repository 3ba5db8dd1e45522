// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1): y = x + o(attention(q, k, v)) with
//   n = RMSNorm(x);
//   q = RMSNorm(n Wqa^T [+ bias]) Wq^T, or n Wq^T without a latent; per head [nope | rope];
//   c | key = n Wkva^T [+ bias];  per head [k nope | v] = RMSNorm(c) Wkvb^T;  k of a head = [k nope | key];
//   rope on the rope columns of q and on the one key, which all heads share.
// The norms of the latents have their own eps. Formulas and sources in docs/numerics.md.
//
// tp cuts heads: Wqa, Wkva and the norms of the latents work on this rank's own rows; the latents are
// gathered, not the rows of n. Bytes sent by one rank, b bytes per element, S = T H b, g = (tp - 1) / tp,
// L = T (q_lora_rank + kv_lora_rank + rope_dim) b, with H for q_lora_rank where q has no latent:
//   F: all_gather g L, reduce_scatter g S;   I: all_gather g S, reduce_scatter g L (selective: all_gather g L
//   more);   W: none.
// cp cuts sequences: keys and values of all heads of this rank, as the up-projection made them, go round a
// ring (context_ring.h has its bytes).
//
// With a cache of keys and values only RMSNorm(c) and the turned key of a token are kept, once for all heads.
// The up-projection of keys goes into the query and that of values behind attention (section 2.1.2 of the
// paper):
//   q k = (q_nope Wk) RMSNorm(c) + q_rope key;   v = Wv (weights RMSNorm(c)).
//
// Kept until W: what `Saved` lists. Selective recomputation makes all norms and the up-projections Wq, Wkvb
// again from the latents (arXiv 2412.19437 section 3.2.3): q, k and v, by far the largest tensors, are not
// kept.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "nn/context_ring.h"
#include "nn/layer.h"
#include "nn/norm.h"

namespace tessera::nn {

// Weights on this rank: q_a [q_lora_rank, H], q [heads (nope + rope), q_lora_rank or H], kv_a [kv_lora_rank +
// rope, H], kv_b [heads (nope + v), kv_lora_rank], o [H, heads v].
class LatentAttention : public Layer {
 public:
  struct Options {
    Dims dims;
    std::int64_t heads;  // on this rank
    std::int64_t nope_dim, rope_dim, v_dim;
    std::int64_t q_lora_rank;  // 0: q has no latent
    std::int64_t kv_lora_rank;
    double norm_eps;
    Recompute recompute;
    double scale = 0.0;  // of q k^T; 0: (nope_dim + rope_dim)^-1/2
    double latent_eps = 1e-6;
    kernels::RopePairs pairs = kernels::RopePairs::interleaved;
    std::int32_t layer = 0;  // of the model: its entry of a key-value cache
    bool cached = false;     // runs with Microbatch::cache: its scratch memory is another
  };
  struct Params {
    Param norm_H, q, kv_a, kv_a_norm, kv_b, o;
    std::optional<Param> q_a = std::nullopt, q_a_norm = std::nullopt;  // with a latent of q
    std::optional<Param> q_a_bias = std::nullopt, kv_a_bias = std::nullopt, o_bias = std::nullopt;
  };
  // cos, sin: [seq, rope_dim / 2] of the same dtype, of the positions of this rank's rows of a sequence,
  // outlive the layer. Parameters that do not fit the options are Error{internal}.
  LatentAttention(Options options, Params params, Tensor cos_SP, Tensor sin_SP);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

 private:
  // Made again from Saved in backward where the recomputation is selective.
  struct Inputs {
    Tensor n;                          // of this rank's rows; of all rows where q has no latent
    Tensor q_latent_TL, kv_latent_TL;  // normalised, of all rows
  };
  struct Saved {
    Tensor x_tH;  // view
    Norm::Saved norm;
    Tensor q_raw_tL, q_squares_t1;    // latents as projected, and their sums of squares
    Tensor kv_raw_tL, kv_squares_t1;  // c | key
    Inputs inputs;                    // Recompute::none only
    Tensor qkv;                       // likewise
    Tensor out, lse;
  };
  struct Deferred {
    Inputs inputs;  // selective only
    Tensor dout_TH, dq, dkv, dq_raw_tL, dkv_raw_tL, dn_tH;
    Tensor dq_norm, dkv_norm;
  };
  struct UpScratch;
  struct BackwardScratch;
  // measure_scratch and the calls take through the same functions, so they cannot differ.
  [[nodiscard]] Inputs take_inputs(Arena& arena) const;
  [[nodiscard]] Tensor take_qkv(Arena& arena) const;
  [[nodiscard]] Tensor take_partial(Arena& arena) const;
  [[nodiscard]] UpScratch up_scratch(Arena& arena) const;
  [[nodiscard]] BackwardScratch backward_scratch(Arena& arena) const;

  [[nodiscard]] bool selective() const { return o_.recompute == Recompute::selective; }
  [[nodiscard]] bool q_has_latent() const { return o_.q_lora_rank > 0; }
  [[nodiscard]] std::int64_t qk_dim() const { return o_.nope_dim + o_.rope_dim; }
  [[nodiscard]] kernels::AttentionShape shape() const;
  void turn_queries(Kernels& k, Tensor qkv, bool adjoint, Tensor positions_T) const;
  void turn_key(Kernels& k, Tensor key_Tr, bool adjoint, Tensor positions_T) const;
  [[nodiscard]] Tensor local_n(const Context& ctx, const Inputs& in) const;

  // The steps of forward. positions_T: of each row, i32; empty: t % seq.
  void compress(Context& ctx, const Saved& s, const Inputs& in) const;   // latents of this rank's rows
  void normalise(Context& ctx, const Saved& s, const Inputs& in) const;  // and gathered
  void expand(Context& ctx, Tensor qkv, const Saved& s, const Inputs& in, Tensor positions_T) const;
  // Instead of expand and attend, with a cache (latent_decode.cpp).
  struct CachedScratch;
  [[nodiscard]] CachedScratch cached_scratch(Arena& arena) const;
  void attend_cached(Context& ctx, const Saved& s, const Inputs& in, const Microbatch& mb) const;
  void measure_cached(Arena& counting) const;
  // dqkv becomes the gradients of what the up-projections gave, and of the key.
  void take_apart(Kernels& k, const Deferred& f, Tensor dqkv, Tensor dkey_Tr) const;
  void latents_backward(Context& ctx, const Saved& s, const Deferred& f,
                        const BackwardScratch& scratch) const;

  Options o_;
  Params p_;
  Norm norm_;
  ContextRing ring_;
  Tensor cos_, sin_;
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
};

}  // namespace tessera::nn
