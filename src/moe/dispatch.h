// Dispatch: takes rows from the tokens of this rank to the experts that were chosen for them, and back.
//
// Orders of rows:
//   sent   (expert, token): the kept choices of this rank's tokens, n of them;
//   part   (ep rank of the sender, local expert, token): what the all_to_all_v over ep brings;
//   full   (etp rank, part order of that rank): what the all_gather_v over etp brings;
//   expert (local expert, ep rank, etp rank, token): R rows, what the experts see. Ranks count etp
//          first, so inside an expert this is the order of the batch of the whole group, for any ep and etp.
// to_experts and from_experts are linear and each other's adjoint: to_experts copies a row to the etp ranks,
// each of which computes with its slice of the expert, from_experts sums over them in rank order.
//
//   dispatch.plan(slot, index_tK);                             // pos: < 0 dropped in, send row out
//   k.gather_rows(sent, n_tH, slot.tokens());                  // n rows
//   dispatch.to_experts(k, scratch, slot, rows, sent);         // ... experts: y_RH = f(rows) ...
//   dispatch.from_experts(k, scratch, slot, sent, y_RH);
//   k.combine(y_tH, x_tH, sent, slot.pos_tK, weights_tK);
//
// plan, to_experts and from_experts are collective: every rank of both groups calls them, also with no rows.
// A group of one rank costs nothing; with both of one rank the orders are the same, and to_experts and
// from_experts must not be called (exchanges() is false).
#pragma once
#include <cstdint>
#include <span>

#include "nn/layer.h"

namespace tessera::moe {

using nn::Arena;
using nn::Kernels;
using nn::Tensor;

// The plan of one micro-batch. Index tensors live in an arena; only their first n, R rows mean something.
struct DispatchSlot {
  Tensor pos_tK;    // i32: send row of each choice; below 0: dropped
  Tensor token_n;   // i32 [t * K]: token of each send row
  Tensor begin_e1;  // i32 [e + 1]: first row of each local expert in expert order; the last is R
  // Only when rows are exchanged:
  Tensor counts_PE;                   // i32: rows of each ep rank for each expert
  Tensor counts_QPe, start_QPe;       // i32: rows for the local experts by sender; their start in full order
  Tensor from_full_R, from_expert_R;  // i32: expert order by full index, and its inverse
  Tensor send_rows_P, recv_rows_P;    // i64: rows to and from each ep rank
  Tensor part_rows_Q;                 // i64: rows each etp rank holds in part order
  std::int64_t sent = 0;              // n
  std::int64_t received = 0;          // R

  [[nodiscard]] Tensor tokens() const { return token_n.narrow_rows(0, sent); }
  [[nodiscard]] std::span<const std::int32_t> begins() const { return begin_e1.span<std::int32_t>(); }
};

class Dispatch {
 public:
  struct Options {
    nn::DType dtype;
    std::int64_t hidden;
    std::int64_t tokens;  // t
    std::int32_t top_k;
    std::int32_t num_experts;  // E
    std::int64_t max_rows;     // bound of R; more is Error{internal}
  };
  // ep and etp outlive the object.
  Dispatch(Options options, comm::Communicator& ep, comm::Communicator& etp);

  [[nodiscard]] bool exchanges() const { return ep_size_ * etp_size_ > 1; }
  [[nodiscard]] DispatchSlot reserve(Arena& arena) const;
  void measure_scratch(Arena& counting) const;

  // Fills the slot from the chosen experts. In: pos_tK below 0 for dropped choices, else anything.
  void plan(DispatchSlot& slot, Tensor index_tK) const;
  // rows_RH (expert order) = sent_nH (sent order), and back; R and n are those of the slot.
  void to_experts(Kernels& kernels, Arena& scratch, const DispatchSlot& slot, Tensor rows_RH,
                  Tensor sent_nH) const;
  void from_experts(Kernels& kernels, Arena& scratch, const DispatchSlot& slot, Tensor sent_nH,
                    Tensor rows_RH) const;

 private:
  struct Scratch {
    Tensor part, full;  // part: with ep > 1; full: with etp > 1
  };
  [[nodiscard]] Scratch take_scratch(Arena& arena) const;
  void sort_choices(DispatchSlot& slot, Tensor index_tK) const;
  void exchange_counts(DispatchSlot& slot) const;
  void index_rows(DispatchSlot& slot) const;
  [[nodiscard]] std::int64_t local_experts() const { return o_.num_experts / ep_size_; }

  Options o_;
  comm::Communicator& ep_;
  comm::Communicator& etp_;
  std::int64_t ep_size_;
  std::int64_t etp_size_;
};

}  // namespace tessera::moe
