// Kernels: every numeric operation of the engine, behind one interface. A backend is a folder:
//   ref/  naive templates, the f64 truth of all tests    cpu/  fast f32 (AVX2, AVX-512), f64 through the same
//   code paths
// One object per rank: it owns a fixed workspace and counts FLOPs. Not thread safe; two objects never share
// state.
//
// Shapes: T tokens (rows), H hidden, N/K output/input features of a linear, D = heads * head_dim, E experts,
// K top-k, V vocabulary share, R dispatched rows. All matrices are row-major and contiguous, floating tensors
// of one call share one dtype (f64 or f32). Order of arguments: outputs, inputs, options. What is written:
// `=` overwrites, `+=` accumulates, stated per call. Outputs never alias inputs unless said.
//
// Every sum runs in an order that does not depend on the number of rows in the call, nor on how rows or
// columns of the output are split over ranks: one output element = one fixed-order sum over its reduction
// dim. Integer tensors (ids, targets, index, pos, unit) are i32.
// Errors: shape or dtype mismatch is Error{internal} naming the operation and both shapes; so is an index
// outside its tensor.
#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "base/quantity.h"
#include "tensor/arena.h"
#include "tensor/tensor.h"

namespace tessera::kernels {

using tensor::DType;
using tensor::Tensor;

// A linear weight [N, K] with the copy a backend packs from it. `packed` is opaque bytes (u8), may be empty
// (no packing); after every change of `value` call Kernels::pack.
struct Weight {
  Tensor value_NK;
  Tensor packed;
};

enum class Write : std::uint8_t { overwrite, accumulate };

struct AttentionShape {
  std::int64_t batch;  // sequences in the call; T = batch * seq, row t = b * seq + s
  std::int64_t seq;
  std::int64_t heads;     // query heads on this rank
  std::int64_t kv_heads;  // divides heads; query head h reads kv head h / (heads / kv_heads)
  std::int64_t head_dim;
  double scale;  // of q k^T, normally head_dim^-1/2
  [[nodiscard]] std::int64_t qkv_dim() const { return (heads + 2 * kv_heads) * head_dim; }
  [[nodiscard]] std::int64_t q_dim() const { return heads * head_dim; }
};

// How router logits become weights (engine of mixtral: softmax over E, top-k, renormalised).
enum class RouterScore : std::uint8_t {
  softmax_then_topk,  // w = softmax(z)[chosen]
  topk_then_softmax,  // w = softmax over the chosen logits
};
struct RouterOptions {
  std::int32_t top_k;
  RouterScore score;
  bool renormalise;  // softmax_then_topk only: w /= sum of chosen w (then equal to topk_then_softmax)
};

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
  double bias_correction1, bias_correction2;  // 1 - beta^step
  double grad_scale;                          // clipping coefficient, multiplies g
};

class Kernels {
 public:
  virtual ~Kernels() = default;

  // --- counters
  // ------------------------------------------------------------------------------------------------- FLOPs
  // of GEMMs and attention since the last reset (2 per multiply-add; causal attention counts the kept half:
  // seq * (seq + 1) / 2 pairs). Other operations count nothing.
  [[nodiscard]] Flops flops() const { return flops_; }
  void reset_flops() { flops_ = Flops(0); }
  [[nodiscard]] virtual Bytes workspace_bytes() const = 0;  // fixed, allocated at construction

  // --- linear: y_TN = x_TK w_NK^T
  // --------------------------------------------------------------------------------- Bytes of the packed
  // copy of an [N, K] weight (0: this backend does not pack this dtype).
  [[nodiscard]] virtual Bytes packed_bytes(DType dtype, std::int64_t n, std::int64_t k) const = 0;
  void pack(Weight& w_NK);
  void linear(Tensor y_TN, Tensor x_TK, const Weight& w_NK);  // =
  void linear_dgrad(Tensor dx_TK, Tensor dy_TN, const Weight& w_NK,
                    Write write = Write::overwrite);           // = or +=
  void linear_wgrad(Tensor dw_NK, Tensor dy_TN, Tensor x_TK);  // +=

  // --- RMSNorm (Zhang and Sennrich 2019): y = x * rstd * w, rstd = (mean(x^2) + eps)^-1/2
  // ----------------------------
  void rms_norm(Tensor y_TH, Tensor rstd_T, Tensor x_TH, Tensor w_H, double eps);
  // y again from saved rstd (recomputation): same bits as rms_norm.
  void rms_norm_apply(Tensor y_TH, Tensor x_TH, Tensor rstd_T, Tensor w_H);
  void rms_norm_dgrad(Tensor dx_TH, Tensor dy_TH, Tensor x_TH, Tensor rstd_T, Tensor w_H, Write write);
  void rms_norm_wgrad(Tensor dw_H, Tensor dy_TH, Tensor x_TH, Tensor rstd_T);  // +=

  // --- rotary embedding, rotate-half pairs (j, j + head_dim/2), in place on the q and k parts of
  // qkv_T[qkv_dim] ------ cos_SP, sin_SP: [seq, head_dim / 2]. inverse: rotate by the negative angle (the
  // backward pass).
  void rope(Tensor qkv, Tensor cos_SP, Tensor sin_SP, const AttentionShape& shape, bool inverse);

  // --- causal attention on qkv [T, q | k | v]
  // -------------------------------------------------------------------- out [T, heads * head_dim], lse [T,
  // heads] = log-sum-exp of the scaled scores (kept for backward).
  void attention(Tensor out, Tensor lse, Tensor qkv, const AttentionShape& shape);
  void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                          const AttentionShape& shape);

  // --- gated MLP: h = silu(gate) * up, gate_up [T, gate(I) | up(I)]
  // --------------------------------------------------
  void swiglu(Tensor h_TI, Tensor gate_up);
  void swiglu_backward(Tensor dgate_up, Tensor dh_TI, Tensor gate_up);

  // --- embedding table share [V, H] holding rows [vocab_begin, vocab_begin + V); other ids give zero rows
  // ------------
  void embedding(Tensor y_TH, Tensor ids_T, Tensor table_VH, std::int64_t vocab_begin);
  void embedding_wgrad(Tensor dtable_VH, Tensor dy_TH, Tensor ids_T,
                       std::int64_t vocab_begin);  // +=, ascending t

  // --- vocab-parallel cross entropy (Megatron-LM's decomposition)
  // ------------------------------------------------ Per row of this share: stats_3T rows = max, sum of exp(z
  // - max), logit of the target (0 when not in this share). Target ids below 0 are ignored tokens.
  void cross_entropy_stats(Tensor stats_3T, Tensor logits_TV, Tensor targets_T, std::int64_t vocab_begin);
  // Joins the stats of all shares [P, 3, T] in rank order: lse_T, and loss_T = lse - target logit (0 for
  // ignored rows).
  void cross_entropy_join(Tensor loss_T, Tensor lse_T, Tensor stats_P3T, Tensor targets_T);
  // logits become d loss / d logits = weight * (exp(z - lse) - 1[target]); ignored rows become 0. In place.
  void cross_entropy_backward(Tensor logits_TV, Tensor lse_T, Tensor targets_T, std::int64_t vocab_begin,
                              double weight);

  // --- MoE router
  // ------------------------------------------------------------------------------------------------ From
  // logits_TE: probs_TE = softmax over E, lse_T, chosen experts index_TK (i32; largest logit first, ties
  // to the lower index), and their weights_TK.
  void router(Tensor probs_TE, Tensor lse_T, Tensor index_TK, Tensor weights_TK, Tensor logits_TE,
              const RouterOptions& options);
  // dlogits_TE = through the weights (dweights_TK) + balancing loss + z-loss:
  //   balancing: P_te (a_ue - sum_j a_uj P_tj) with a = aux_UE[unit of token t]; unit_T (i32) is the row of
  //   aux_UE; z-loss:    z_scale * 2 * lse_t * P_te.
  // aux_UE may be an empty tensor (no balancing loss).
  void router_backward(Tensor dlogits_TE, Tensor dweights_TK, Tensor probs_TE, Tensor lse_T, Tensor index_TK,
                       Tensor weights_TK, Tensor aux_UE, Tensor unit_T, double z_scale,
                       const RouterOptions& options);

  // --- rows
  // ------------------------------------------------------------------------------------------------------
  void gather_rows(Tensor dst_RH, Tensor src_TH, Tensor index_R);  // dst[r] = src[index[r]]; i32 index
  // y_TH = x_TH + sum_k w_TK * rows[pos_TK], k ascending; pos < 0 is a dropped choice. x may be empty (0) or
  // alias y.
  void combine(Tensor y_TH, Tensor x_TH, Tensor rows_RH, Tensor pos_TK, Tensor weights_TK);
  // drows[pos_tk] = w_tk dy_t (rows not named stay untouched); dweights_tk = <dy_t, rows[pos_tk]>, 0 when
  // dropped.
  void combine_backward(Tensor drows_RH, Tensor dweights_TK, Tensor dy_TH, Tensor rows_RH, Tensor pos_TK,
                        Tensor weights_TK);
  // dx_TH = or += sum_k rows[pos_TK], k ascending; pos < 0 skipped.
  void sum_rows(Tensor dx_TH, Tensor rows_RH, Tensor pos_TK, Write write);

  // --- elementwise
  // -----------------------------------------------------------------------------------------------
  void add(Tensor y, Tensor a, Tensor b);      // y = a + b; y may alias a
  void accumulate(Tensor y, Tensor x);         // y += x
  void fill(Tensor y, double value);           // =
  [[nodiscard]] double sum(Tensor x);          // in f64, blocks of 256 then the blocks
  [[nodiscard]] double sum_squares(Tensor x);  // likewise

  // --- AdamW (Loshchilov and Hutter 2019), flat tensors; p, m, v in place
  // --------------------------------------------- g' = grad_scale g; m = b1 m + (1-b1) g'; v = b2 v + (1-b2)
  // g'^2; p -= lr (m/bc1 / (sqrt(v/bc2) + eps) + wd p)
  void adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options);

 protected:
  // Backends implement these; arguments are checked, FLOPs counted by the public functions.
  virtual void do_pack(Weight& w) = 0;
  virtual void do_linear(Tensor y, Tensor x, const Weight& w) = 0;
  virtual void do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) = 0;
  virtual void do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) = 0;
  virtual void do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) = 0;
  virtual void do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) = 0;
  virtual void do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) = 0;
  virtual void do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) = 0;
  virtual void do_rope(Tensor qkv, Tensor cos, Tensor sin, const AttentionShape& shape, bool inverse) = 0;
  virtual void do_attention(Tensor out, Tensor lse, Tensor qkv, const AttentionShape& shape) = 0;
  virtual void do_attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                     const AttentionShape& shape) = 0;
  virtual void do_swiglu(Tensor h, Tensor gate_up) = 0;
  virtual void do_swiglu_backward(Tensor dgate_up, Tensor dh, Tensor gate_up) = 0;
  virtual void do_embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) = 0;
  virtual void do_embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) = 0;
  virtual void do_cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets,
                                      std::int64_t vocab_begin) = 0;
  virtual void do_cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) = 0;
  virtual void do_cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                         double weight) = 0;
  virtual void do_router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits,
                         const RouterOptions& options) = 0;
  virtual void do_router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                                  Tensor weights, Tensor aux, Tensor unit, double z_scale,
                                  const RouterOptions& options) = 0;
  virtual void do_gather_rows(Tensor dst, Tensor src, Tensor index) = 0;
  virtual void do_combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) = 0;
  virtual void do_combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                                   Tensor weights) = 0;
  virtual void do_sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) = 0;
  virtual void do_add(Tensor y, Tensor a, Tensor b) = 0;
  virtual void do_accumulate(Tensor y, Tensor x) = 0;
  virtual void do_fill(Tensor y, double value) = 0;
  virtual double do_sum(Tensor x) = 0;
  virtual double do_sum_squares(Tensor x) = 0;
  virtual void do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options) = 0;

 private:
  Flops flops_;
};

// Naive templates over f32 and f64: kernels/ref. Does not pack.
[[nodiscard]] std::unique_ptr<Kernels> make_reference();
// Fast CPU kernels: kernels/cpu. The instruction set is chosen at run time from what the processor has.
[[nodiscard]] std::unique_ptr<Kernels> make_cpu();

}  // namespace tessera::kernels
