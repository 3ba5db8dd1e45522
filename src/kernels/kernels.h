// Kernels: every numeric operation of the engine, behind one interface. A backend is a folder:
//   ref/  naive templates, the f64 truth of all tests    cpu/  fast f32 (AVX2, AVX-512), f64 through the same
//   code paths
// One object per rank: it owns a fixed workspace and counts FLOPs. Not thread safe, but for accumulate, which
// a helper thread may call beside the others; two objects never share state.
//
// Tensors lie in memory() or on the host; on a GPU calls only queue their work there, and integer tensors are
// in shared memory (tensor/memory.h).
//
// Shapes: T tokens (rows), H hidden, N/K output/input features of a linear, D = heads * head_dim, E experts,
// K top-k, V vocabulary share, R dispatched rows. All matrices are row-major and contiguous. The activations
// of a call share one dtype: f64, f32 or, on backends that take it, bf16. What stands beside them is of
// tensor::stats_of it, f32 beside bf16: statistics (rstd, mean, lse, group sums and dots, cross entropy's
// stats and losses), tables of cos and sin, parameters and their gradients (norm weights, biases, sinks,
// embedding tables, a linear's value), and all of the router, whose logits a linear writes in that type from
// bf16 rows. Sums run in it too; a bf16 result is rounded once.
// Order of arguments: outputs, inputs, options. What is written:
// `=` overwrites, `+=` accumulates, stated per call. Outputs never alias inputs unless said.
//
// Every sum runs in an order that does not depend on the number of rows in the call, nor on how rows or
// columns of the output are split over ranks: one output element = one fixed-order sum over its reduction
// dim. Integer tensors (ids, targets, index, pos, unit) are i32.
// Errors: shape or dtype mismatch is Error{internal} naming the operation and both shapes; so is an index
// outside its tensor, where the indices are there when the call is made (not what queued work will write).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "base/quantity.h"
#include "tensor/arena.h"
#include "tensor/memory.h"
#include "tensor/tensor.h"

namespace tessera::kernels {

using tensor::DType;
using tensor::Tensor;

// A linear weight [N, K] with the copy a backend packs from it. `packed` is opaque bytes (u8), may be empty
// (no packing); after every change of `value` call Kernels::pack. Beside bf16 activations products take its
// elements rounded to bf16, with a copy or without.
struct Weight {
  Tensor value_NK;
  Tensor packed;
};

enum class Write : std::uint8_t { overwrite, accumulate };

// Causal attention on rows qkv_T = q (heads * head_dim) | k (kv_heads * head_dim) | v (kv_heads * v_dim).
// Rows of a cache of keys and values come in blocks of so many.
inline constexpr std::int64_t kCacheBlock = 64;

struct AttentionShape {
  std::int64_t batch;  // sequences in the call; T = batch * seq, row t = b * seq + s
  std::int64_t seq;
  std::int64_t heads;           // query heads on this rank
  std::int64_t kv_heads;        // divides heads; query head h reads kv head h / (heads / kv_heads)
  std::int64_t head_dim;        // of q and k
  double scale;                 // of q k^T, normally head_dim^-1/2
  std::int64_t v_head_dim = 0;  // of v and of the output; 0: head_dim
  std::int64_t window = 0;      // keys that a query sees, itself included: i - window < j <= i; 0: all before
  [[nodiscard]] std::int64_t v_dim() const { return v_head_dim > 0 ? v_head_dim : head_dim; }
  [[nodiscard]] std::int64_t q_dim() const { return heads * head_dim; }
  [[nodiscard]] std::int64_t k_dim() const { return kv_heads * head_dim; }
  [[nodiscard]] std::int64_t qkv_dim() const { return q_dim() + k_dim() + kv_heads * v_dim(); }
  [[nodiscard]] std::int64_t out_dim() const { return heads * v_dim(); }
  // Keys before query i that it does not see, and the (query, key) pairs of one sequence that are kept.
  [[nodiscard]] std::int64_t first_key(std::int64_t i) const {
    return window > 0 && i >= window ? i - window + 1 : 0;
  }
  [[nodiscard]] std::int64_t kept_pairs() const {
    const std::int64_t w = window > 0 && window < seq ? window : seq;
    return w * (w + 1) / 2 + (seq - w) * w;
  }
};

// `rows` queries of each sequence against as many keys that lie elsewhere: what context parallelism cuts
// attention into. All sequences have shape.seq rows, of queries and of keys.
struct AttentionPart {
  std::int64_t rows;
  std::int64_t q_first, k_first;  // their first rows of each sequence
  std::int64_t distance;  // position of the first query less that of the first key: 0, or at least rows
  // Pairs of one sequence that mask and window keep.
  [[nodiscard]] std::int64_t kept_pairs(const AttentionShape& shape) const;
};

// Which columns of a row turn by the position's angle, and which two form pair j.
enum class RopePairs : std::uint8_t {
  halves,       // (j, j + rotated / 2)
  interleaved,  // (2 j, 2 j + 1)
};
struct RopeShape {
  std::int64_t seq;    // positions of a sequence
  std::int64_t heads;  // head h turns the columns [first + h * stride, first + h * stride + rotated)
  std::int64_t first;
  std::int64_t stride;
  std::int64_t rotated;
  RopePairs pairs = RopePairs::halves;
};

// Groups of adjacent columns of a row, normalised one by one: the heads of q and k, a latent, or a whole
// part.
struct ColumnGroups {
  std::int64_t first;
  std::int64_t groups;
  std::int64_t width;
};
struct GroupNormOptions {
  double eps;
  std::int64_t count;  // terms of a sum: the width, or that of all ranks that hold a part of the group
};

// Blocks of columns moved between matrices with the same rows: heads that are taken apart and put together.
struct ColumnPlace {
  std::int64_t first = 0;
  std::int64_t stride = 0;  // from one block to the next
};
struct ColumnMove {
  std::int64_t blocks = 1;
  std::int64_t width = 0;
  ColumnPlace to, from;
};

enum class Activation : std::uint8_t {
  swiglu,          // silu(gate) up, silu(g) = g sigmoid(g)
  gelu,            // z Phi(z), Phi by the error function
  gelu_tanh,       // z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))
  clamped_swiglu,  // (u + 1) g sigmoid(1.702 g), g = min(gate, limit), u = up within +-limit
};
struct ActivationOptions {
  Activation kind;
  double limit = 0;  // of clamped_swiglu, positive
  [[nodiscard]] bool gated() const {
    return kind == Activation::swiglu || kind == Activation::clamped_swiglu;
  }
};

// How router logits become weights.
enum class RouterScore : std::uint8_t {
  softmax_then_topk,  // w = scale softmax(z)[chosen]
  topk_then_softmax,  // w = scale softmax over the chosen logits
  sigmoid,            // w = scale sigmoid(z)[chosen]
};
// The score of a group of experts: the largest choice score in it, or the sum of its two largest.
enum class GroupScore : std::uint8_t { max, top2_sum };
struct RouterOptions {
  std::int32_t top_k;
  RouterScore score;
  bool renormalise;  // w /= sum of chosen w, before the scale; topk_then_softmax is so already
  double scale = 1;
  std::int32_t n_group = 1;     // consecutive groups of E / n_group experts
  std::int32_t topk_group = 1;  // only experts of the best so many groups can be chosen
  GroupScore group_score = GroupScore::max;
  bool given_index = false;  // the choice is an input: only its weights are computed
};

// What became of a router's tokens: inputs of router_stats.
struct RoutedTokens {
  Tensor probs_TE, lse_T, logits_TE;
  Tensor index_TK, pos_TK;  // i32; pos below 0: the choice was dropped
};
struct RouterStatsOptions {
  RouterScore score;
  bool counts_kept_only = false;  // experts that choose: what they left counts as neither chosen nor dropped
  double z_scale = 0;
};
inline constexpr std::int64_t kRouterSums = 4;
inline constexpr std::int64_t kMostExperts = 16384;  // that sort_choices takes

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
  double bias_correction1, bias_correction2;  // 1 - beta^step
  double grad_scale;                          // clipping coefficient, multiplies g
};

class Kernels {
 public:
  virtual ~Kernels() = default;
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  // Where the tensors of this rank lie; copies there keep their place among the calls.
  [[nodiscard]] const std::shared_ptr<tensor::Memory>& memory() const { return memory_; }

  // Whether activations may be bf16.
  [[nodiscard]] virtual bool takes_bf16() const { return false; }

  // Counters. FLOPs of GEMMs and attention since the last reset: 2 per multiply-add; attention counts the
  // pairs that mask and window keep, 2 (head_dim + v_dim) each forward, twice that backward. Other operations
  // count nothing.
  [[nodiscard]] Flops flops() const { return flops_; }
  void reset_flops() { flops_ = Flops(0); }
  [[nodiscard]] virtual Bytes workspace_bytes() const = 0;  // fixed, allocated at construction

  // Linear: y_TN = x_TK w_NK^T.
  // Bytes of the packed copy of an [N, K] weight for activations of this dtype (0: it is not packed).
  [[nodiscard]] virtual Bytes packed_bytes(DType dtype, std::int64_t n, std::int64_t k) const = 0;
  void pack(Weight& w_NK);
  void linear(Tensor y_TN, Tensor x_TK, const Weight& w_NK);  // =
  void linear_dgrad(Tensor dx_TK, Tensor dy_TN, const Weight& w_NK,
                    Write write = Write::overwrite);           // = or +=
  void linear_wgrad(Tensor dw_NK, Tensor dy_TN, Tensor x_TK);  // +=

  // Bias: y_TN += b_N in place; db_N = or += the column sums of dy.
  void add_bias(Tensor y_TN, Tensor b_N);
  void bias_wgrad(Tensor db_N, Tensor dy_TN, Write write);

  // RMSNorm (Zhang and Sennrich 2019): y = x * rstd * w, rstd = (mean(x^2) + eps)^-1/2.
  void rms_norm(Tensor y_TH, Tensor rstd_T, Tensor x_TH, Tensor w_H, double eps);
  // y again from saved rstd (recomputation): same bits as rms_norm.
  void rms_norm_apply(Tensor y_TH, Tensor x_TH, Tensor rstd_T, Tensor w_H);
  void rms_norm_dgrad(Tensor dx_TH, Tensor dy_TH, Tensor x_TH, Tensor rstd_T, Tensor w_H, Write write);
  void rms_norm_wgrad(Tensor dw_H, Tensor dy_TH, Tensor x_TH, Tensor rstd_T);  // +=

  // LayerNorm (Ba et al. 2016): y = (x - mean) * rstd * w + b, rstd = (mean((x - mean)^2) + eps)^-1/2.
  void layer_norm(Tensor y_TH, Tensor mean_T, Tensor rstd_T, Tensor x_TH, Tensor w_H, Tensor b_H, double eps);
  void layer_norm_apply(Tensor y_TH, Tensor x_TH, Tensor mean_T, Tensor rstd_T, Tensor w_H, Tensor b_H);
  void layer_norm_dgrad(Tensor dx_TH, Tensor dy_TH, Tensor x_TH, Tensor mean_T, Tensor rstd_T, Tensor w_H,
                        Write write);
  void layer_norm_wgrad(Tensor dw_H, Tensor db_H, Tensor dy_TH, Tensor x_TH, Tensor mean_T,
                        Tensor rstd_T);  // +=

  // RMSNorm of each group of columns. The tensors of a call hold the same columns `cols` and may have
  // different numbers of columns in all; others are neither read nor written. The row sums stand apart, so
  // that a group cut over ranks can add them up between the calls. w_D has cols.width elements, the same for
  // all groups. With r = (sums / count + eps)^-1/2:
  void group_squares(Tensor sums_TG, Tensor x_TC, const ColumnGroups& cols);  // = sum of x^2
  void group_norm(Tensor y_TC, Tensor x_TC, Tensor sums_TG, Tensor w_D, const GroupNormOptions& options,
                  const ColumnGroups& cols);  // y = x r w; y may be x
  void group_norm_dots(Tensor dots_TG, Tensor dy_TC, Tensor x_TC, Tensor w_D,
                       const ColumnGroups& cols);  // = sum of dy w x
  // dx = r (w dy - x r^2 dots / count); dx may be dy
  void group_norm_dgrad(Tensor dx_TC, Tensor dy_TC, Tensor x_TC, Tensor sums_TG, Tensor dots_TG, Tensor w_D,
                        const GroupNormOptions& options, const ColumnGroups& cols);
  // dw = or += the sum over rows and groups of dy x r
  void group_norm_wgrad(Tensor dw_D, Tensor dy_TC, Tensor x_TC, Tensor sums_TG,
                        const GroupNormOptions& options, const ColumnGroups& cols, Write write);

  // x within +-limit, in place, columns [first, first + width); backward: dx = 0 where |x| >= limit, with x
  // from before or after. dx and x may have different numbers of columns.
  void clamp(Tensor x_TC, double limit, std::int64_t first, std::int64_t width);
  void clamp_backward(Tensor dx_TC, Tensor x_TC, double limit, std::int64_t first, std::int64_t width);

  // Rotary embedding (Su et al. 2021) in place: pair (a, b) becomes (a cos - b sin, b cos + a sin). cos_SP,
  // sin_SP: at least seq rows of rotated / 2; a factor in both stays in the result. The position of row t is
  // positions_T[t] (i32), or t % seq without them. adjoint: the transpose (sin negated), for backward.
  void rope(Tensor x_TC, Tensor cos_SP, Tensor sin_SP, const RopeShape& shape, bool adjoint,
            Tensor positions_T = {});
  // The q and k parts of qkv, all of each head, halves.
  void rope(Tensor qkv, Tensor cos_SP, Tensor sin_SP, const AttentionShape& shape, bool adjoint) {
    rope(qkv, cos_SP, sin_SP,
         RopeShape{.seq = shape.seq,
                   .heads = shape.heads + shape.kv_heads,
                   .first = 0,
                   .stride = shape.head_dim,
                   .rotated = shape.head_dim},
         adjoint);
  }

  // Causal attention on qkv [T, q | k | v]: out [T, heads * v_dim], lse [T, heads] = log-sum-exp of the
  // scaled scores (kept for backward; a library's attention may keep them in another order). sinks_h (may be
  // empty): one more score of each head, not scaled, whose value is nothing; the weights of a row then sum to
  // less than one, and lse includes it.
  void attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks_h, const AttentionShape& shape);
  void attention(Tensor out, Tensor lse, Tensor qkv, const AttentionShape& shape) {
    attention(out, lse, qkv, {}, shape);
  }
  // dsinks_h = -sum_t exp(sink_h - lse_th) <dout_th, out_th>, ascending t; empty without sinks.
  void attention_backward(Tensor dqkv, Tensor dsinks_h, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                          Tensor sinks_h, const AttentionShape& shape);

  // The same by parts of the keys, q_TN: the queries are its first columns; kv_TN: k | v. One part is written
  // with `overwrite` (a query without keys in it stays undefined), each further one joins what out and lse
  // hold: s = lse, o = out stand for the keys before, (s, o) := log-sum-exp of the two, their weighted mean.
  // The sinks join the first part. Rows outside of the part stay as they are.
  void attention_part(Tensor out, Tensor lse, Tensor q_TN, Tensor kv_TN, Tensor sinks_h,
                      const AttentionShape& shape, const AttentionPart& part, Write write);
  // With out and lse over all parts: dq (as q_TN, its first columns) and dkv += what the pairs of this part
  // give.
  void attention_part_backward(Tensor dq_TN, Tensor dkv_TN, Tensor dout, Tensor q_TN, Tensor kv_TN,
                               Tensor out, Tensor lse, const AttentionShape& shape,
                               const AttentionPart& part);
  // dsinks_h as above.
  void attention_sinks_backward(Tensor dsinks_h, Tensor dout, Tensor out, Tensor lse, Tensor sinks_h,
                                const AttentionShape& shape);

  // --- attention of single rows over cached keys and values (generation; no backward)
  // ----------------------------------- A cache [slots, kv_heads, C, width] keeps position p of a sequence in
  // row p % C, C a multiple of kCacheBlock. Row t of a call belongs to slots_T[t] at positions_T[t] (i32).
  // cache[slot, g, p % C] = columns first + g * width of x_TN; rows in ascending t.
  void cache_append(Tensor cache_SGCW, Tensor x_TN, std::int64_t first, Tensor slots_T, Tensor positions_T);
  // As attention(), each row over the keys of its slot from its window's begin to its own position, which are
  // in the cache already: =. T = batch * seq rows, in any order. q_TN: the queries are its first heads *
  // head_dim columns. values may be the keys: the first v_head_dim columns of a row are the value.
  void decode_attention(Tensor out, Tensor q_TN, Tensor keys_SGCK, Tensor values_SGCV, Tensor sinks_h,
                        Tensor slots_T, Tensor positions_T, const AttentionShape& shape);

  void attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                          const AttentionShape& shape) {
    attention_backward(dqkv, {}, dout, qkv, out, lse, {}, shape);
  }

  // Activation of the MLP: h_TI from z, which has gate(I) | up(I) for the gated kinds, else I columns.
  void activation(Tensor h_TI, Tensor z, const ActivationOptions& options);
  void activation_backward(Tensor dz, Tensor dh_TI, Tensor z, const ActivationOptions& options);
  void swiglu(Tensor h_TI, Tensor gate_up) { activation(h_TI, gate_up, {Activation::swiglu}); }
  void swiglu_backward(Tensor dgate_up, Tensor dh_TI, Tensor gate_up) {
    activation_backward(dgate_up, dh_TI, gate_up, {Activation::swiglu});
  }
  // The gate of a shared expert: y_TH += sigmoid(z_t) f_TH; df = sigmoid(z_t) dy, dz_t = s (1 - s) <dy, f>.
  void sigmoid_gate(Tensor y_TH, Tensor f_TH, Tensor z_T);
  void sigmoid_gate_backward(Tensor df_TH, Tensor dz_T, Tensor dy_TH, Tensor f_TH, Tensor z_T);

  // Embedding table share [V, H] holding rows [vocab_begin, vocab_begin + V); other ids give zero rows.
  void embedding(Tensor y_TH, Tensor ids_T, Tensor table_VH, std::int64_t vocab_begin);
  void embedding_wgrad(Tensor dtable_VH, Tensor dy_TH, Tensor ids_T,
                       std::int64_t vocab_begin);  // +=, ascending t

  // Vocab-parallel cross entropy (Megatron-LM's decomposition). Per row of this share: stats_3T rows = max,
  // sum of exp(z - max), logit of the target (0 when not in this share). Target ids below 0 are ignored
  // tokens.
  void cross_entropy_stats(Tensor stats_3T, Tensor logits_TV, Tensor targets_T, std::int64_t vocab_begin);
  // Joins the stats of all shares [P, 3, T] in rank order: lse_T, and loss_T = lse - target logit (0 for
  // ignored rows).
  void cross_entropy_join(Tensor loss_T, Tensor lse_T, Tensor stats_P3T, Tensor targets_T);
  // logits become d loss / d logits = weight * (exp(z - lse) - 1[target]); ignored rows become 0. In place.
  void cross_entropy_backward(Tensor logits_TV, Tensor lse_T, Tensor targets_T, std::int64_t vocab_begin,
                              double weight);

  // MoE router. From logits_TE: probs_TE = softmax over E, or the sigmoid scores; lse_T of the logits in any
  // case; the chosen experts index_TK (i32; best choice score first, ties to the lower index) and their
  // weights_TK. Choice score: the softmax or sigmoid score (topk_then_softmax: the logit), plus bias_E where
  // it is not empty. Experts outside the kept groups are never chosen; groups tie to the lower index as well.
  // The bias never enters a weight.
  void router(Tensor probs_TE, Tensor lse_T, Tensor index_TK, Tensor weights_TK, Tensor logits_TE,
              Tensor bias_E, const RouterOptions& options);
  void router(Tensor probs_TE, Tensor lse_T, Tensor index_TK, Tensor weights_TK, Tensor logits_TE,
              const RouterOptions& options) {
    router(probs_TE, lse_T, index_TK, weights_TK, logits_TE, {}, options);
  }
  // dlogits_TE = through the weights (dweights_TK) + balancing loss + z-loss; choice, groups and bias are
  // constants.
  //   balancing: P_te (a_ue - sum_j a_uj P_tj) with a = aux_UE[unit of token t]; unit_T (i32) is the row of
  //   aux_UE. Sigmoid scores s: P = s / sum_E s, and (a_ue - sum_j a_uj P_tj) / sum_E s * s (1 - s).
  //   z-loss:    z_scale * 2 * lse_t * softmax(z)_te.
  // aux_UE may be an empty tensor (no balancing loss). logits_TE: needed for the z-loss of sigmoid scores
  // only, else it may be empty.
  void router_backward(Tensor dlogits_TE, Tensor dweights_TK, Tensor probs_TE, Tensor lse_T, Tensor index_TK,
                       Tensor weights_TK, Tensor aux_UE, Tensor unit_T, double z_scale,
                       const RouterOptions& options, Tensor logits_TE = {});

  // Rows.
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

  // Choices, T K of them for E experts. A stable counting sort by (expert, token): pos_TK of a choice becomes
  // its row and token_N[row] its token, but a choice with pos below 0 is dropped and stays so; begin_E1 = the
  // first row of each expert, and the end. N is at least T K; tokens behind the last row stay untouched.
  void sort_choices(Tensor pos_TK, Tensor token_N, Tensor begin_E1, Tensor index_TK);
  // counts_UE = choices by unit (unit_T, i32) and expert.
  void count_choices(Tensor counts_UE, Tensor index_TK, Tensor unit_T);
  // a_UE = scale * share_UE, share i32 (counts) or f64, in f64 and rounded once: coefficients of a balancing
  // loss.
  void scale_counts(Tensor a_UE, Tensor share_UE, double scale);
  // All +=. sums [kRouterSums] (f64) of the tokens: entropy of P in nats, P the softmax or the sigmoid scores
  // over their sum; squares of the logits; the largest |logit| (joined by max); z_scale times the squares of
  // lse. counts [2 E + 1] (i64): chosen by expert, of these dropped, and tokens that no expert computes.
  void router_stats(Tensor sums, Tensor counts, const RoutedTokens& tokens,
                    const RouterStatsOptions& options);
  // value_1 (f64) += sum_t sum_e a_{unit(t) e} P_te: what a balancing loss is worth.
  void balance_value(Tensor value_1, Tensor probs_TE, Tensor aux_UE, Tensor unit_T, RouterScore score);

  // Products of experts: the rows [begin_E1[e], begin_E1[e + 1]) of a call belong to expert e, all R rows to
  // one, and each result has the bits of the operation of the same name on the rows of its expert alone. All
  // experts have weights of one shape, packed all or none. FLOPs count as there. begin_E1 (i32) is read in
  // its turn: on a GPU by the device, so the host need not know it.
  void experts_linear(Tensor y_RN, Tensor x_RK, std::span<const Weight> w_E, Tensor begin_E1);          // =
  void experts_linear_dgrad(Tensor dx_RK, Tensor dy_RN, std::span<const Weight> w_E, Tensor begin_E1);  // =
  void experts_linear_wgrad(std::span<const Tensor> dw_E, Tensor dy_RN, Tensor x_RK, Tensor begin_E1);  // +=
  void experts_add_bias(Tensor y_RN, std::span<const Tensor> b_E, Tensor begin_E1);      // in place
  void experts_bias_wgrad(std::span<const Tensor> db_E, Tensor dy_RN, Tensor begin_E1);  // +=

  // dst[t, to.first + b to.stride + j] = src[t, from.first + b from.stride + j], b < blocks, j < width. Other
  // columns stay untouched. from.stride 0: the same block goes to every place; to.stride 0: its adjoint, the
  // sum over b ascending. dst is not src.
  void move_columns(Tensor dst_TC, Tensor src_TD, const ColumnMove& move);

  // Elementwise.
  void add(Tensor y, Tensor a, Tensor b);      // y = a + b; y may alias a
  void accumulate(Tensor y, Tensor x);         // y += x; one of them may be of the other's stats_of
  void fill(Tensor y, double value);           // =
  [[nodiscard]] double sum(Tensor x);          // in f64, blocks of 256 then the blocks
  [[nodiscard]] double sum_squares(Tensor x);  // likewise
  // to_1 (f64) = or += these, scaled, in their turn: nobody waits for the number.
  void sum_to(Tensor to_1, Tensor x, double scale, Write write);
  void sum_squares_to(Tensor to_1, Tensor x, Write write);

  // AdamW (Loshchilov and Hutter 2019), flat tensors; p, m, v in place. g' = grad_scale g;
  // m = b1 m + (1-b1) g'; v = b2 v + (1-b2) g'^2; p -= lr (m/bc1 / (sqrt(v/bc2) + eps) + wd p)
  void adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options);

 protected:
  explicit Kernels(std::shared_ptr<tensor::Memory> memory = tensor::make_host_memory())
      : memory_(std::move(memory)) {}

  // Backends implement these; arguments are checked, FLOPs counted by the public functions.
  virtual void do_pack(Weight& w) = 0;
  virtual void do_linear(Tensor y, Tensor x, const Weight& w) = 0;
  virtual void do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) = 0;
  virtual void do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) = 0;
  virtual void do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) = 0;
  virtual void do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) = 0;
  virtual void do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) = 0;
  virtual void do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) = 0;
  virtual void do_add_bias(Tensor y, Tensor b) = 0;
  virtual void do_bias_wgrad(Tensor db, Tensor dy, Write write) = 0;
  virtual void do_layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b,
                             double eps) = 0;
  virtual void do_layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) = 0;
  virtual void do_layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                                   Write write) = 0;
  virtual void do_layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) = 0;
  virtual void do_group_squares(Tensor sums, Tensor x, const ColumnGroups& cols) = 0;
  virtual void do_group_norm(Tensor y, Tensor x, Tensor sums, Tensor w, const GroupNormOptions& options,
                             const ColumnGroups& cols) = 0;
  virtual void do_group_norm_dots(Tensor dots, Tensor dy, Tensor x, Tensor w, const ColumnGroups& cols) = 0;
  virtual void do_group_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor sums, Tensor dots, Tensor w,
                                   const GroupNormOptions& options, const ColumnGroups& cols) = 0;
  virtual void do_group_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor sums,
                                   const GroupNormOptions& options, const ColumnGroups& cols,
                                   Write write) = 0;
  virtual void do_clamp(Tensor x, double limit, std::int64_t first, std::int64_t width) = 0;
  virtual void do_clamp_backward(Tensor dx, Tensor x, double limit, std::int64_t first,
                                 std::int64_t width) = 0;
  virtual void do_rope(Tensor x, Tensor cos, Tensor sin, const RopeShape& shape, bool adjoint,
                       Tensor positions) = 0;
  virtual void do_attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks,
                            const AttentionShape& shape) = 0;
  virtual void do_attention_backward(Tensor dqkv, Tensor dsinks, Tensor dout, Tensor qkv, Tensor out,
                                     Tensor lse, Tensor sinks, const AttentionShape& shape) = 0;
  virtual void do_attention_part(Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor sinks,
                                 const AttentionShape& shape, const AttentionPart& part, Write write) = 0;
  virtual void do_attention_part_backward(Tensor dq, Tensor dkv, Tensor dout, Tensor q, Tensor kv, Tensor out,
                                          Tensor lse, const AttentionShape& shape,
                                          const AttentionPart& part) = 0;
  virtual void do_attention_sinks_backward(Tensor dsinks, Tensor dout, Tensor out, Tensor lse, Tensor sinks,
                                           const AttentionShape& shape) = 0;
  virtual void do_cache_append(Tensor cache, Tensor x, std::int64_t first, Tensor slots,
                               Tensor positions) = 0;
  virtual void do_decode_attention(Tensor out, Tensor q, Tensor keys, Tensor values, Tensor sinks,
                                   Tensor slots, Tensor positions, const AttentionShape& shape) = 0;
  virtual void do_activation(Tensor h, Tensor z, const ActivationOptions& options) = 0;
  virtual void do_activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& options) = 0;
  virtual void do_sigmoid_gate(Tensor y, Tensor f, Tensor z) = 0;
  virtual void do_sigmoid_gate_backward(Tensor df, Tensor dz, Tensor dy, Tensor f, Tensor z) = 0;
  virtual void do_embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) = 0;
  virtual void do_embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) = 0;
  virtual void do_cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets,
                                      std::int64_t vocab_begin) = 0;
  virtual void do_cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) = 0;
  virtual void do_cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                         double weight) = 0;
  virtual void do_router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits, Tensor bias,
                         const RouterOptions& options) = 0;
  virtual void do_router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                                  Tensor weights, Tensor aux, Tensor unit, double z_scale,
                                  const RouterOptions& options, Tensor logits) = 0;
  virtual void do_gather_rows(Tensor dst, Tensor src, Tensor index) = 0;
  virtual void do_combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) = 0;
  virtual void do_combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                                   Tensor weights) = 0;
  virtual void do_sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) = 0;
  // The host's ways over what is in its memory: src/kernels/kernels_experts.cpp.
  virtual void do_sort_choices(Tensor pos, Tensor token, Tensor begin, Tensor index);
  virtual void do_count_choices(Tensor counts, Tensor index, Tensor unit);
  virtual void do_scale_counts(Tensor a, Tensor share, double scale);
  virtual void do_router_stats(Tensor sums, Tensor counts, const RoutedTokens& tokens,
                               const RouterStatsOptions& options);
  virtual void do_balance_value(Tensor value, Tensor probs, Tensor aux, Tensor unit, RouterScore score);
  virtual void do_experts_linear(Tensor y, Tensor x, std::span<const Weight> w, Tensor begin);
  virtual void do_experts_linear_dgrad(Tensor dx, Tensor dy, std::span<const Weight> w, Tensor begin);
  virtual void do_experts_linear_wgrad(std::span<const Tensor> dw, Tensor dy, Tensor x, Tensor begin);
  virtual void do_experts_add_bias(Tensor y, std::span<const Tensor> b, Tensor begin);
  virtual void do_experts_bias_wgrad(std::span<const Tensor> db, Tensor dy, Tensor begin);
  virtual void do_move_columns(Tensor dst, Tensor src, const ColumnMove& move) = 0;
  virtual void do_add(Tensor y, Tensor a, Tensor b) = 0;
  virtual void do_accumulate(Tensor y, Tensor x) = 0;
  virtual void do_fill(Tensor y, double value) = 0;
  virtual double do_sum(Tensor x) = 0;
  virtual double do_sum_squares(Tensor x) = 0;
  virtual void do_sum_to(Tensor to, Tensor x, double scale, Write write);  // by do_sum
  virtual void do_sum_squares_to(Tensor to, Tensor x, Write write);
  virtual void do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options) = 0;

 private:
  // Whether integers of a call hold their values when it is made: a GPU's queue may still write them.
  [[nodiscard]] bool sees_values() const { return memory_->device() == tensor::Device::cpu; }

  std::shared_ptr<tensor::Memory> memory_;
  Flops flops_;
};

// Naive templates over f32 and f64: kernels/ref. Does not pack.
[[nodiscard]] std::unique_ptr<Kernels> make_reference();
// Fast CPU kernels: kernels/cpu. The instruction set is chosen at run time from what the processor has.
[[nodiscard]] std::unique_ptr<Kernels> make_cpu();

}  // namespace tessera::kernels
