// The table of inner loops of one instruction set. Three translation units fill it from the same source
// (simd.inc, gemm.inc, attention.inc, rows.inc), each with its own vector width and compiler flags, each in
// its own namespace; the backend picks a table at run time. Only plain data crosses this border: an inline
// function shared with those units could be emitted with instructions that the processor does not have.
//
// Pointers need no alignment beyond the element's. Nothing allocates; `workspace` has kWorkspaceBytes.
#pragma once
#include <cstdint>

namespace tessera::kernels::cpu {

inline constexpr std::int64_t kWorkspaceBytes = std::int64_t{4} << 20;
inline constexpr std::int64_t kMaxHeadDim = 512;  // what fits the workspace of attention

enum class Order : std::uint8_t { rows, columns };

// C[m, n] = or += A[m, k] B[k, n]. C is row-major with row stride ldc.
template <class T>
struct Product {
  std::int64_t m, n, k;
  const T* a;
  std::int64_t lda;
  Order a_order;  // rows: A(i, p) = a[i * lda + p]; columns: A(i, p) = a[p * lda + i]
  const T* b;
  std::int64_t ldb;
  Order b_order;    // rows: B(p, j) = b[p * ldb + j]; columns: B(p, j) = b[j * ldb + p]
  const T* panels;  // B as written by pack_weight, or null
  T* c;
  std::int64_t ldc;
  bool accumulate;
  T* workspace;
};

// `rows` queries of each sequence and as many keys. Of the next sequence they lie `stride` rows behind; out,
// lse and dout have rows as q has.
template <class T>
struct AttentionCall {
  std::int64_t batch, rows, stride, heads, kv_heads, head_dim, v_dim, window;  // window 0: none
  std::int64_t distance;  // of the first query from the first key: 0, or at least rows
  bool joins;             // forward: out and lse hold what other keys gave; backward: gradients are added
  double scale;
  const T *q, *k, *v;
  std::int64_t q_row, kv_row;  // elements from one row to the next, of gradients as well
  const T* sinks;              // or null
  T* out;                      // backward: read only
  T* lse;                      // backward: read only
  const T* dout;
  T *dq, *dk, *dv;
  T* dsinks;
  T* workspace;
};

// dw [width] = or += the sum over rows and groups, in this order, of dy x rstd. Row t of dy and x starts at
// t * its row length, group g at g * width.
template <class T>
struct GroupWgradCall {
  T* dw;
  const T *dy, *x, *sums;  // sums [rows, groups] of x^2
  std::int64_t rows, groups, width, dy_row, x_row;
  double eps, count;
  bool accumulate;
  T* workspace;
};

inline constexpr std::int64_t kCacheRows = 64;       // kernels::kCacheBlock
inline constexpr std::int64_t kMaxValueDim = 16384;  // of a query over a cache

// See kernels.h: keys and values [slots, kv_heads, capacity, width], a query is a row and a head.
template <class T>
struct DecodeCall {
  std::int64_t rows, heads, kv_heads, head_dim, v_head_dim, window;
  double scale;
  const T* q;
  std::int64_t q_stride;
  T* out;
  const T* keys;
  std::int64_t key_width;
  const T* values;
  std::int64_t value_width, capacity;
  const T* sinks;  // or null
  const std::int32_t *slots, *positions;
  T* workspace;
};

template <class T>
struct AdamWCall {
  T *p, *m, *v;
  const T* g;
  std::int64_t n;
  double lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale;
};

template <class T>
struct Loops {
  std::int64_t panel_width;  // columns of a panel of packed B: round_up() below is to this multiple

  void (*product)(const Product<T>&);
  // The two packed copies of W [n, k]: B = W^T, of round_up(n) * k elements, and B = W, of round_up(k) * n.
  void (*pack_weight)(T* transposed, T* straight, const T* w, std::int64_t n, std::int64_t k);

  void (*attention)(const AttentionCall<T>&);
  void (*attention_backward)(const AttentionCall<T>&);
  void (*attention_sinks_backward)(const AttentionCall<T>&);
  void (*decode_attention)(const DecodeCall<T>&);
  // One head: `half` pairs, (j, half + j) or (2 j, 2 j + 1); sign -1 negates the sines.
  void (*rope_halves)(T* x, const T* cos, const T* sin, std::int64_t half, T sign);
  void (*rope_interleaved)(T* x, const T* cos, const T* sin, std::int64_t half, T sign);

  void (*rms_norm)(T* y, T* rstd, const T* x, const T* w, std::int64_t rows, std::int64_t h, double eps);
  void (*rms_norm_apply)(T* y, const T* x, const T* rstd, const T* w, std::int64_t rows, std::int64_t h);
  void (*rms_norm_dgrad)(T* dx, const T* dy, const T* x, const T* rstd, const T* w, std::int64_t rows,
                         std::int64_t h, bool accumulate);
  void (*rms_norm_wgrad)(T* dw, const T* dy, const T* x, const T* rstd, std::int64_t rows, std::int64_t h,
                         T* workspace);

  void (*layer_norm)(T* y, T* mean, T* rstd, const T* x, const T* w, const T* b, std::int64_t rows,
                     std::int64_t h, double eps);
  void (*layer_norm_apply)(T* y, const T* x, const T* mean, const T* rstd, const T* w, const T* b,
                           std::int64_t rows, std::int64_t h);
  void (*layer_norm_dgrad)(T* dx, const T* dy, const T* x, const T* mean, const T* rstd, const T* w,
                           std::int64_t rows, std::int64_t h, bool accumulate);
  void (*layer_norm_wgrad)(T* dw, T* db, const T* dy, const T* x, const T* mean, const T* rstd,
                           std::int64_t rows, std::int64_t h, T* workspace);
  void (*group_norm_wgrad)(const GroupWgradCall<T>&);
  T (*weighted_dot)(const T* x, const T* w, const T* y, std::int64_t n);  // sum of x (w y)
  // dx = a (w dy) - b x; dx may be dy
  void (*norm_gradient)(T* dx, const T* dy, const T* x, const T* w, T a, T b, std::int64_t n);
  void (*column_sums)(T* sums, const T* x, std::int64_t rows, std::int64_t n, bool accumulate, T* workspace);
  void (*clamp)(T* x, T limit, std::int64_t n);
  void (*clamp_backward)(T* dx, const T* x, T limit, std::int64_t n);

  // By kind, in the order of kernels::Activation; z has rows of gate(I) | up(I), or of I.
  void (*activation[4])(T* h, const T* z, std::int64_t rows, std::int64_t i, T limit);
  void (*activation_backward[4])(T* dz, const T* dh, const T* z, std::int64_t rows, std::int64_t i, T limit);

  // One row of logits: its maximum and the sum of exp(z - maximum); and z = weight * exp(z - lse).
  void (*softmax_stats)(const T* z, std::int64_t v, T* max, T* sum);
  void (*softmax_scaled)(T* z, std::int64_t v, T lse, T weight);

  void (*exp)(T* y, const T* x, std::int64_t n);
  void (*add)(T* y, const T* a, const T* b, std::int64_t n);
  void (*fill)(T* y, T value, std::int64_t n);
  void (*scale)(T* y, T s, const T* x, std::int64_t n);  // y = s x
  // The same past the caches where y is aligned to the vector; finish_streams before another thread reads it.
  void (*stream_scale)(T* y, T s, const T* x, std::int64_t n);
  void (*finish_streams)();
  void (*add_scaled)(T* y, const T* a, T s, const T* x, std::int64_t n);  // y = a + s x; y may be a
  // y = base + sum_k s[k] x[k], in the order of k; base may be y, or null: nothing. s null: factors of one.
  // All rows are read side by side.
  void (*sum_scaled)(T* y, const T* base, const T* s, const T* const* x, std::int64_t count, std::int64_t n);
  T (*dot)(const T* x, const T* y, std::int64_t n);
  void (*sigmoid)(T* y, const T* x, std::int64_t n);
  std::int64_t (*largest)(const T* x, std::int64_t n);  // the first of the largest; NaN: any
  double (*sum)(const T* x, std::int64_t n);
  double (*sum_squares)(const T* x, std::int64_t n);
  void (*adamw)(const AdamWCall<T>&);

  // `count` rounds of independent multiply-adds in registers; returns the number of operations (2 each).
  std::int64_t (*peak)(std::int64_t count, T* sink);
};

struct Isa {
  const char* name;
  const Loops<float>* f32;
  const Loops<double>* f64;
  double (*read)(const float* x, std::int64_t n);                                    // sums x: memory reads
  void (*triad)(float* y, const float* a, const float* b, float s, std::int64_t n);  // y = a + s b, streamed
};

[[nodiscard]] const Isa& avx512();
[[nodiscard]] const Isa& avx2();
[[nodiscard]] const Isa& generic();
[[nodiscard]] bool supported(const Isa& isa);  // by this processor and its system
[[nodiscard]] const Isa& best();               // the widest supported one

}  // namespace tessera::kernels::cpu
