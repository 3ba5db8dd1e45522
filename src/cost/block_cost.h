// BlockCost: seconds and bytes of one block of a model, from its operators. Inside of this room.
#pragma once
#include <array>

#include "cost/network.h"
#include "cost/step.h"
#include "graph/block.h"

namespace tessera::cost {

// One pass over one block by one micro-batch. `parts` are seconds that the pass takes, exposed communication
// included; ideal, bubble, dp, optimizer and jitter stay 0 and the gemm and attention parts are whole times.
struct PassCost {
  std::array<double, kNumParts> parts{};
  double seconds = 0;  // sum of parts
  double gemm_flops = 0, attention_flops = 0;
  std::array<double, graph::kNumAxes> comm_seconds{};  // exposed or not
  std::array<double, graph::kNumAxes> bytes_sent{};
  double kernels = 0;
  PassCost& operator+=(const PassCost& other);
};

struct BlockCost {
  PassCost forward, backward_input, backward_weight;  // recomputation stands in backward_input
  graph::BlockParams params;
  double saved = 0;  // bytes a micro-batch, after recomputation
  double transient = 0;
  double logits = 0;
  double distinct_gradients = 0;
  double attention_ideal_flops = 0;  // model FLOPs of attention, forward and backward
  [[nodiscard]] double seconds() const {
    return forward.seconds + backward_input.seconds + backward_weight.seconds;
  }
};

// Groups that a block's collectives run over.
struct BlockGroups {
  GroupShape tp, cp, ep, etp;
};

struct BlockContext {
  const Setup& setup;
  BlockGroups groups;
  LoadFigures load;                // of the experts
  std::int64_t expert_tokens = 0;  // of this rank, that choose experts
  double host = 0.0;               // seconds of the host beside launches, all passes together
};

// `host`: seconds of this pass beside launches.
[[nodiscard]] PassCost pass_cost(const BlockContext& context, const graph::OpList& ops, double host);
[[nodiscard]] BlockCost block_cost(const BlockContext& context, const graph::BlockWork& work,
                                   spec::Recompute recompute, std::uint32_t modules);

}  // namespace tessera::cost
