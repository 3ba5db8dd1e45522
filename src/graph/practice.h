// Practice: how a training framework computes, stores and sends what the model asks for. Facts of the
// software, the one "software generation" knob of predictions; never of a model or a cluster. Named
// practices are in practice.cpp with the source of each fact.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::graph {

struct Practice {
  std::string name = "megatron-core";
  // Kernels.
  bool flash_attention = true;  // else scores are written out (and softmax, mask, dropout run over them)
  std::int32_t flash_generation = 3;  // 1: FlashAttention or Triton's, 2, 3: FlashAttention-3 or cuDNN
  bool fused_softmax = true;          // without flash attention: scale, mask and softmax in one kernel
  bool fused_norm = true;             // one kernel; else a chain of elementwise ones
  bool fused_activation = true;       // bias, GeLU or SwiGLU in one kernel
  bool fused_rope = true;
  bool fused_accumulation = true;    // the weight gradient's product adds to the main gradient itself
  bool fused_cross_entropy = false;  // logits are not held in f32 a second time
  bool dropout = false;              // masks are made and kept (GPT-2 and -3 recipes)
  bool compiled = false;             // torch.compile fuses elementwise chains
  bool cuda_graphs = false;          // no launch gaps
  bool fused_permute = true;         // rows are sorted, padded and scattered in one kernel each way
  bool fused_router = true;          // scores, top-k and counts in few kernels
  bool grouped_gemm = true;          // else one gemm an expert
  // Communication.
  bool balanced_stages = false;  // embedding and head count when stages are cut, also where layers divide
  // Host seconds that a layer spends on the collectives of tensor parallelism, a tp rank and micro-batch, all
  // passes together: without and with a pipeline. Lists of parts, one a rank, handled in Python.
  double tp_host = 0.0, tp_host_pipelined = 0.0;
  bool grad_overlap = true;         // gradient reduction runs under the backward of the last micro-batch
  bool param_overlap = true;        // ZeRO-1 weight gathers run under the forward of the first micro-batch
  bool tp_overlap = false;          // tensor-parallel gathers and scatters are chunked against their gemm
  bool tp_backward_overlap = true;  // sums of input gradients run beside the weight gradient's product
  bool p2p_overlap = true;          // pipeline sends run beside compute (interleaved schedules)
  bool p2p_scatter =
      true;  // a message is cut over the tp ranks and gathered behind it (arXiv 2104.04473 4.1)
  bool cp_all_to_all =
      false;  // heads for sequence (DeepSpeed-Ulysses, arXiv 2309.14509); else a ring of k and v
  bool ep_overlap = false;       // all-to-all of one micro-batch under the compute of another
  bool ep_dedup = false;         // a token goes once to a node (DeepEP, HybridEP)
  bool in_bucket_reduce = true;  // gradients are reduced in buckets; else one blocking call at the end
  bool owner_broadcast =
      false;                  // ZeRO-1: each rank reduces to and broadcasts its part alone, one after another
  bool fsdp_prefetch = true;  // ZeRO-3 gathers run under the layer before
  bool reshard_after_forward = true;      // ZeRO-3 weights are gathered again in backward
  bool separate_sequence_gather = false;  // the gathered input of a column-parallel layer is not stored
  // Elements of one gradient bucket, grown with the replicas as Megatron-Core does it; ZeRO-3 gathers a
  // layer at a time, or each of its weights (DeepSpeed).
  std::int64_t bucket_elements = 40'000'000;
  std::int64_t bucket_elements_per_replica = 1'000'000;
  std::int32_t gathers_per_layer = 1;
  // Bytes an element.
  std::int32_t gradient_bytes = 4;         // main gradients, accumulated
  std::int32_t gradient_reduce_bytes = 4;  // on the wire
  std::int32_t optimizer_bytes = 12;       // f32 master weight and two moments
  std::int32_t gradient_copy_bytes = 0;    // beside the main gradients: working gradients, buckets of DDP
  // Bytes of a logit at the peak of the loss: 2 in place, 4 fused (16 bit and its gradient), 6 the f32 copy
  // in place (Megatron), 10 where cast and softmax are tensors of their own (PyTorch).
  std::int32_t loss_bytes = 6;
  bool gathered_logits = false;  // over tp, before the loss
  // One buffer for each shape of a weight stands for gradients that kernels add elsewhere
  // (TransformerEngine).
  bool dummy_gradients = false;
  friend bool operator==(const Practice&, const Practice&) = default;
};

// What commands price when nothing else is said: the newest.
inline constexpr const char* kDefaultPractice = "megatron-bridge-2026";
[[nodiscard]] std::vector<std::string> practice_names();
// A name with "+ulysses" behind it is that software with context parallelism by all-to-all instead of a ring.
// Error{config} with the nearest name.
[[nodiscard]] Practice practice(std::string_view name);

}  // namespace tessera::graph
