// Ring attention (Liu et al. 2023, arXiv 2310.01889) with zig-zag balance: causal attention of sequences that
// are cut over the ranks of a context-parallel group (base/sequence_cut.h). Keys and values travel round the
// ring, rank r sends to r + 1; in step s rank r has those of rank j = r - s (mod cp), s = 0 .. cp - 1, and
// adds what its queries see of them. Of a remote rank that is always two of the four pairs of chunks, so with
// full attention all ranks do the same work; pairs that a window hides are left out.
//
// Order of additions. Forward: a query joins its own rank's keys, then those of r - 1, r - 2, ... (mod cp);
// of one rank the later chunk first. Backward: the gradient of q in the same order; that of a key of rank j
// is ((c_{j+1} + c_{j+2}) + ...) + c_{j-1}, last its own rank's c_j (the sum travels behind the keys).
// With one rank: the kernel of the whole sequence, and no buffers.
//
// Bytes sent by one rank, T = tokens on this rank, w = kv_heads (head_dim + v_dim), b bytes an element:
//   forward (cp - 1) T w b in cp - 1 messages; backward twice that in twice as many.
// A send goes out before the block is computed that it carries, and is waited for one step later. All
// messages of a call have been received when it returns. No allocation.
#pragma once
#include <array>
#include <cstdint>

#include "base/sequence_cut.h"
#include "nn/layer.h"

namespace tessera::nn {

class ContextRing {
 public:
  // shape.seq: rows of a sequence on this rank.
  ContextRing(DType dtype, const kernels::AttentionShape& shape, std::int32_t cp)
      : dtype_(dtype), shape_(shape), cp_(cp) {}

  struct Buffers {
    std::array<Tensor, 2> kv;   // the block of this step and the next one
    std::array<Tensor, 2> dkv;  // gradients of a block: on their way, and computed now
    Tensor arrived_dkv, own_dkv;
  };
  [[nodiscard]] Buffers forward_buffers(Arena& arena) const;
  [[nodiscard]] Buffers backward_buffers(Arena& arena) const;

  // As kernels::attention and attention_backward on the rows of this rank. Collective over the group.
  void forward(Context& ctx, const Buffers& buffers, Tensor out, Tensor lse, Tensor qkv,
               Tensor sinks_h) const;
  void backward(Context& ctx, const Buffers& buffers, Tensor dqkv, Tensor dsinks_h, Tensor dout, Tensor qkv,
                Tensor out, Tensor lse, Tensor sinks_h) const;

 private:
  [[nodiscard]] Tensor take_block(Arena& arena) const;
  void load_own(kernels::Kernels& kernels, const Buffers& buffers, Tensor qkv) const;
  // Sends the block of this step on; afterwards the next one is here.
  void pass_on(comm::Communicator& cp, const Buffers& buffers, std::int32_t step) const;
  void fetch_next(comm::Communicator& cp, const Buffers& buffers, std::int32_t step) const;
  // body(part, write) for every pair of chunks of this rank's queries and the keys of a step that is not
  // hidden.
  template <class Body>
  void for_each_part(const comm::Communicator& cp, std::int32_t step, Body&& body) const;

  DType dtype_;
  kernels::AttentionShape shape_;
  std::int32_t cp_;
};

}  // namespace tessera::nn
