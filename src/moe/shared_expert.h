// The shared expert: a gated MLP that every token passes beside the chosen experts (arXiv 2401.06066), on the
// same normed rows n, cut over tp like a dense MLP; as an option behind a gate of its own (qwen2_moe):
//   y += down(act(gate_up(n)))            or            y += sigmoid(<n, w_gate>) down(act(gate_up(n)))
// It stands beside the dispatch and knows nothing of it: forward() may run while rows travel, add() after
// the combine.
//
// Bytes sent by one rank, S = T H b, g = (tp - 1) / tp: F all_gather g S (n) and reduce_scatter g S;
// I all_gather g S and reduce_scatter g S, selective one more all_gather (by the owner, of n); W none.
//
// Example, slot 0: shared.forward(ctx, 0, n_TH, f_tH); ...combine into y...; shared.add(ctx, 0, y_tH, f_tH);
#pragma once
#include <cstdint>
#include <vector>

#include "nn/layer.h"

namespace tessera::moe {

class SharedExpert {
 public:
  using Tensor = nn::Tensor;
  using Arena = nn::Arena;
  using Context = nn::Context;

  struct Options {
    nn::Dims dims;
    std::int64_t intermediate;  // I, on this rank
    kernels::ActivationOptions activation;
    nn::Recompute recompute;
  };
  struct Params {
    nn::Param gate_up;  // [2 I, H], rows gate | up; without a gate in the activation [I, H]
    nn::Param down;     // [H, I]
    nn::Param gate_1H;  // empty: ungated
  };
  SharedExpert(Options options, Params params);

  // One slot more, as nn::Layer has them.
  void reserve_saved(Arena& arena);
  void reserve_deferred(Arena& arena);
  // Of the worst of forward and backward_input, and of backward_weight; nothing stays taken.
  void measure_scratch(Arena& counting) const;
  void measure_weight_scratch(Arena& counting) const;

  // In: this rank's rows of n_TH. Out: all of n_TH, f_tH = the ungated result. With recompute none n_TH keeps
  // its values until W.
  void forward(Context& ctx, std::int32_t slot, Tensor n_TH, Tensor f_tH);
  void add(Context& ctx, std::int32_t slot, Tensor y_tH, Tensor f_tH) const;
  // dn_tH += its part of d loss / d n, from dy_tH = d loss / d y.
  void backward_input(Context& ctx, nn::Slots slots, Tensor dn_tH, Tensor dy_tH);
  // Param::grad +=. n_TH: as after forward.
  void backward_weight(Context& ctx, nn::Slots slots, Tensor n_TH);

  // Where f_tH must live when the gate needs it again in I; empty: anywhere.
  [[nodiscard]] Tensor kept_result(std::int32_t slot) const { return nn::slot_at(saved_, slot).f_tH; }

 private:
  struct Saved {
    Tensor z, h_TI;       // h: Recompute::none only
    Tensor f_tH, gate_t;  // with a gate
  };
  struct Deferred {
    Tensor dout_TH, dz, dgate_t;
  };
  struct Scratch {
    Tensor h_TI, partial_TH;
  };
  [[nodiscard]] Scratch take_scratch(Arena& arena) const;
  [[nodiscard]] Tensor weight_scratch(Arena& arena) const;
  // By its shape: a dry run has parameters without memory.
  [[nodiscard]] bool gated() const { return p_.gate_1H.weight.value_NK.shape().num_dims() > 0; }
  [[nodiscard]] bool selective() const { return o_.recompute == nn::Recompute::selective; }
  [[nodiscard]] std::int64_t z_columns() const;

  Options o_;
  Params p_;
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
};

}  // namespace tessera::moe
