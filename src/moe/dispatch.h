// Dispatch: takes the rows of this rank's tokens to the experts that were chosen for them, and brings the
// weighted results back; in backward the gradients go the same ways. Forms (make_dispatch):
//   local       ep and etp of one rank: rows are only put in order;
//   all_to_all  a token's row goes once to each of its experts, the results come back and are weighted here;
//   all_gather  all rows go to all ep ranks; each weights and sums the results of its own experts for every
//               token, and these sums are added in the order of the ep ranks (reduce_scatter_v);
//   hierarchical  a token's row goes once to each node that has experts for it, to the rank in this one's
//   place
//               there; that rank takes it on inside the node by all_to_all and sends one weighted sum back.
//
// Orders of rows (n of all_to_all; N = ep t tokens of all ep ranks):
//   sent   (expert, token): the kept choices of this rank's tokens, n of them;
//   part   (ep rank of the token, local expert, token): what arrives for the local experts over ep;
//   full   (etp rank, part order of that rank): what the all_gather_v over etp brings;
//   expert (local expert, ep rank, etp rank, token): R rows, what the experts see. Ranks count etp
//          first, so inside an expert this is the order of the batch of the whole group, for any ep and etp,
//          and for every form but hierarchical (by the rank that takes a row on, then as above): the bits of
//          what experts compute do not depend on the form.
// Experts sliced over etp see the rows of all etp ranks; their results are summed over them in rank order.
// combine adds the results of a token in the order of its choices (local, all_to_all) or of the ranks.
//
//   Travel tr = dispatch->travel(ctx.scratch);                           // takes scratch; F and I each
//   dispatch->plan(ctx, slot, index_tK, weights_tK);                     // pos: < 0 dropped in
//   dispatch->begin_rows(ctx, tr, slot, n_tH);                           // rows travel ...
//   ... what leaves n_tH, ep and etp alone: a shared expert ...
//   dispatch->end_rows(ctx, tr, slot, rows_RH);                          // ... and are here
//   experts: dispatch->result_rows(tr, slot) = f(rows_RH)
//   dispatch->combine(ctx, tr, slot, y_tH, x_tH, weights_tK);            // y = x + sum w f
//   dispatch->begin_gradient(ctx, tr, slot, g_tH, weights_tK, dweights_tK);  // backward, likewise
//   dispatch->end_gradient(ctx, tr, slot, dy_RH, weights_tK, dweights_tK);
//   experts: drows_RH from dy_RH
//   dispatch->scatter(ctx, tr, slot, dn_tH, drows_RH, write);            // dn (+)= sum of the rows
//
// Collective: plan, and everything after it, are called by every rank of both groups, also without rows.
// Context::worker (may be null: in line) runs the collectives between begin and end; with Context::turn all
// of them, and the other pass computes while rows travel. The results are the same bits.
// Bytes that a rank sends over ep, b bytes an element, n_other rows for other ep ranks, m_other rows from
// them: all_to_all: plan (ep - 1) E * 4; each of F and I n_other H b there and m_other H b back.
// all_gather: plan (ep - 1) t K (4 + b); F 2 (ep - 1) t H b; I 2 (ep - 1) t H b + (ep - 1) t K b.
// hierarchical, N nodes, u_other rows to other nodes, l_other from them, over ep_inter: plan (N - 1) N 4 +
// u_other K (4 + b); F u_other H b + l_other H b; I the same and l_other K b; inside the node as all_to_all.
// Over etp all forms: plan (etp - 1) E * 4; F and I (etp - 1) R_own H b and (R - R_own) H b.
// No allocation after reserve. Errors: more rows than the buffers hold is Error{internal}.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "comm/worker.h"
#include "nn/layer.h"

namespace tessera::moe {

using nn::Arena;
using nn::Context;
using nn::Kernels;
using nn::Tensor;

enum class DispatchForm : std::uint8_t { all_to_all, all_gather, hierarchical };

// The plan of one micro-batch and what combine keeps for the gradient. Of index tensors only the first n, R,
// ... rows mean something. Forms leave empty what they do not use.
struct DispatchSlot {
  Tensor pos_tK;              // i32: below 0: dropped; else local, all_to_all: send row of the choice
  Tensor begin_e1;            // i32 [e + 1]: first row of each local expert in expert order; the last is R
  Tensor results;             // of the experts: sent order; all_gather: expert order, with etp > 1 part order
  std::int64_t received = 0;  // R

  // Local, all_to_all:
  Tensor token_n;         // i32: token of each send row
  std::int64_t sent = 0;  // n
  // all_to_all:
  Tensor sent_begin_E1;             // i32: first send row of each expert, and the end
  Tensor counts_PE;                 // i32: rows of each ep rank for each expert
  Tensor send_rows_P, recv_rows_P;  // i64: rows to and from each ep rank
  // all_gather:
  Tensor index_NK, weights_NK;  // choices (i32, below 0: dropped) and weights of all ep ranks' tokens
  Tensor pos_NK;                // i32: row of results of each choice, below 0: not an expert of this rank
  Tensor token_R;               // i32: token (of N) of each row in expert order, with etp > 1 in part order
  // hierarchical; the fields of all_to_all are then those of the rows that this rank takes on:
  Tensor node_pos_tN;               // i32: row sent to each node, below 0: none
  Tensor token_u;                   // i32: token of each row sent
  Tensor node_counts_NN;            // i32: rows from the ranks in this place on each node, for each node
  Tensor send_rows_N, recv_rows_N;  // i64
  Tensor index_uK, weights_uK;      // choices that the node serves, from its first expert, and weights
  Tensor taken_index_LK, taken_weights_LK, taken_pos_LK;
  std::int64_t unique = 0;  // u
  std::int64_t taken = 0;   // L
  // Rows exchanged:
  Tensor counts_QPe, start_QPe;       // i32: rows for the local experts by sender; their start in full order
  Tensor from_full_R, from_expert_R;  // i32: expert order by full index, and its inverse
  Tensor part_rows_Q;                 // i64: rows each etp rank holds in part order
};

// A transfer that was posted and not waited for. When an error unwinds what it reads and writes, it ends
// first.
struct InFlight {
  comm::CommWorker* worker = nullptr;  // null: nothing is on its way
  comm::CommWorker::Ticket ticket;
  InFlight() = default;
  InFlight(InFlight&& other) noexcept : worker(std::exchange(other.worker, nullptr)), ticket(other.ticket) {}
  InFlight& operator=(InFlight&& other) noexcept {
    std::swap(worker, other.worker);
    std::swap(ticket, other.ticket);
    return *this;
  }
  ~InFlight() {
    if (worker != nullptr) worker->drain();
  }
};

// Work space of one forward or one backward-input, and the transfer on its way.
struct Travel {
  Tensor sent_nH, part_RH, full_RH;                     // all_to_all
  Tensor gathered_NH, partial_NH, sum_tH, dweights_NK;  // all_gather
  Tensor y_RH;  // results, where combine does not keep them as they are
  Tensor x_tH;  // local: the view that end_rows reads
  Tensor unique_uH, taken_LH, dweights_uK, dweights_LK;  // hierarchical
  InFlight in_flight;
  std::int64_t hidden_ns = 0;  // for which rows travelled while this thread did something else
};

class Dispatch {
 public:
  struct Options {
    nn::DType dtype;
    std::int64_t hidden;
    std::int64_t tokens;        // t
    std::int32_t top_k;         // K: choices of a token
    std::int32_t num_experts;   // E
    std::int64_t max_rows;      // bound of R; more is Error{internal}
    std::int64_t max_sent = 0;  // bound of n; 0: t K
    DispatchForm form = DispatchForm::all_to_all;
    // own: nothing is dropped and the host reads none of the slot. Of one rank alone: the plan is then made
    // where the choices lie, without a wait.
    tensor::Reach reach = tensor::Reach::shared;
  };
  virtual ~Dispatch() = default;

  [[nodiscard]] virtual DispatchSlot reserve(Arena& arena) const = 0;
  [[nodiscard]] virtual Travel travel(Arena& scratch) const = 0;

  // Fills the slot from the chosen experts. In: pos_tK below 0 for dropped choices, else anything. Waits for
  // what is queued where the host has to know a count.
  virtual void plan(Context& ctx, DispatchSlot& slot, Tensor index_tK, Tensor weights_tK) const = 0;

  virtual void begin_rows(Context& ctx, Travel& tr, const DispatchSlot& slot, Tensor n_tH) const = 0;
  virtual void end_rows(Context& ctx, Travel& tr, const DispatchSlot& slot, Tensor rows_RH) const = 0;
  // Where the results of the experts go, [R, H].
  [[nodiscard]] virtual Tensor result_rows(const Travel& tr, const DispatchSlot& slot) const = 0;
  virtual void combine(Context& ctx, Travel& tr, const DispatchSlot& slot, Tensor y_tH, Tensor x_tH,
                       Tensor weights_tK) const = 0;

  // dy_RH = w dy at the experts, dweights_tK = <dy, results>.
  virtual void begin_gradient(Context& ctx, Travel& tr, const DispatchSlot& slot, Tensor g_tH,
                              Tensor weights_tK, Tensor dweights_tK) const = 0;
  virtual void end_gradient(Context& ctx, Travel& tr, const DispatchSlot& slot, Tensor dy_RH,
                            Tensor weights_tK, Tensor dweights_tK) const = 0;
  // dn_tH = or += sum over the choices of a token of their rows.
  virtual void scatter(Context& ctx, Travel& tr, const DispatchSlot& slot, Tensor dn_tH, Tensor drows_RH,
                       kernels::Write write) const = 0;
};

// The ranks that share the experts; all outlive what is made with them.
struct ExpertGroups {
  comm::Communicator& ep;
  comm::Communicator& etp;
  // hierarchical only: the ranks of ep in this one's place on each node (node n has the n-th block of
  // experts), and those on this node, in order of their experts.
  comm::Communicator* across = nullptr;
  comm::Communicator* inside = nullptr;
};
[[nodiscard]] std::unique_ptr<Dispatch> make_dispatch(const Dispatch::Options& options,
                                                      const ExpertGroups& groups);

}  // namespace tessera::moe
