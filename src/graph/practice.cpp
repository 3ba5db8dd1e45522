// Facts of training software. Sources beside each entry; a fact that a source does not state keeps the
// default of Practice.
#include "graph/practice.h"

#include "base/error.h"
#include "base/text.h"

namespace tessera::graph {

namespace {

// Megatron-LM before flash attention and sequence parallelism (arXiv 2104.04473 section 5; fused softmax and
// bias-GeLU kernels of its section 4.2). Gradients reduced once, after the last micro-batch.
Practice megatron_2021() {
  Practice p;
  p.name = "megatron-2021";
  p.flash_attention = false;
  p.fused_rope = false;
  p.dropout = true;
  p.grad_overlap = false;
  p.param_overlap = false;
  p.p2p_overlap = false;
  p.in_bucket_reduce = false;
  p.gradient_bytes = 4;
  p.gradient_reduce_bytes = 4;
  return p;
}

// arXiv 2205.05198: sequence parallelism, selective recomputation of the attention core.
Practice megatron_2022() {
  Practice p = megatron_2021();
  p.name = "megatron-2022";
  p.separate_sequence_gather = true;
  return p;
}

// Megatron-DeepSpeed of BLOOM (bigscience tr11): ZeRO-1, fp16, no overlap.
Practice megatron_deepspeed_2022() {
  Practice p = megatron_2021();
  p.name = "megatron-deepspeed-2022";
  p.p2p_scatter = false;
  p.gradient_bytes = 2;
  p.gradient_reduce_bytes = 2;
  return p;
}

// PipeDream-flush trainers with flash attention 1 and 2 (arXiv 2311.05610): 16-bit gradients (a layout of
// theirs that fits leaves no room for more), logits gathered over tp and copied several times in the loss
// (those that did not fit follow micro-batch and vocabulary, whatever tp).
Practice megatron_flash_2023() {
  Practice p = megatron_2021();
  p.name = "megatron-flash-2023";
  p.p2p_scatter = false;
  p.gradient_bytes = 2;
  p.loss_bytes = 24;
  p.gathered_logits = true;
  p.fused_rope = false;
  p.fused_accumulation = false;
  p.flash_attention = true;
  p.flash_generation = 2;
  p.fused_activation = false;
  p.tp_backward_overlap = false;
  p.dropout = false;
  p.separate_sequence_gather = true;
  return p;
}

// NeMo and Megatron-Core 2024-25 with Transformer Engine: docs of overlap_grad_reduce, overlap_param_gather,
// tp_comm_overlap; NeMo's performance recipes switch all three on.
Practice megatron_core() {
  Practice p;
  p.name = "megatron-core";
  p.fused_permute = false;
  p.fused_router = false;
  p.dummy_gradients = true;
  p.separate_sequence_gather = true;
  p.tp_overlap = true;
  p.fused_cross_entropy = true;
  return p;
}

// Megatron-Core as examples run it: no user-buffer overlap of tensor parallelism.
Practice megatron_core_plain() {
  Practice p = megatron_core();
  p.name = "megatron-core-plain";
  p.tp_overlap = false;
  p.grad_overlap = false;
  p.param_overlap = false;
  p.p2p_overlap = false;
  return p;
}

// Megatron-Bridge to 26.04 (April 2026): all-to-all or HybridEP dispatch as the recipe says, CUDA graphs of
// parts of a layer where it says so, permutation and router by chains of kernels.
Practice megatron_bridge() {
  Practice p = megatron_core();
  p.name = "megatron-bridge";
  p.ep_dedup = true;
  p.fused_permute = false;
  p.fused_router = false;
  return p;
}

// From 26.06 on: permutation and router fused, dispatch overlapped with another micro-batch's compute, whole
// iterations as CUDA graphs on Blackwell (recipes r0.5.0 and r0.6.0).
Practice megatron_bridge_2026() {
  Practice p = megatron_bridge();
  p.name = "megatron-bridge-2026";
  p.fused_permute = true;
  p.fused_router = true;
  p.ep_overlap = true;
  return p;
}

// PyTorch FSDP1 as in llm-foundry: eager, flash or Triton attention.
Practice fsdp1() {
  Practice p;
  p.name = "fsdp1";
  p.p2p_scatter = false;
  p.fused_rope = false;
  p.fused_accumulation = false;
  p.flash_generation = 1;
  p.fused_cross_entropy = true;  // llm-foundry's loss_fn, its gradient in place
  p.loss_bytes = 2;
  p.fused_activation = false;
  p.fused_norm = true;
  p.gradient_bytes = 2;
  p.gradient_reduce_bytes = 2;
  p.tp_overlap = false;
  return p;
}

// torchtitan: FSDP2, torch.compile of each layer.
Practice fsdp2_compile() {
  Practice p;
  p.name = "fsdp2-compile";
  p.p2p_scatter = false;
  p.fused_accumulation = false;
  p.flash_generation = 2;
  p.compiled = true;
  p.loss_bytes = 8;  // compiled with the loss: torchtitan's peaks fall by 2.7 bytes a logit
  p.gradient_bytes = 4;
  p.gradient_reduce_bytes = 4;
  return p;
}

// NeMo AutoModel: FSDP2, TE and Triton kernels, no compile; weights, gradients and moments in bf16 (its
// published peaks leave room for no more).
Practice fsdp2() {
  Practice p = fsdp2_compile();
  p.name = "fsdp2";
  p.compiled = false;
  p.flash_generation = 3;
  p.fused_cross_entropy = true;
  p.gradient_bytes = 2;
  p.gradient_reduce_bytes = 4;
  p.optimizer_bytes = 6;
  return p;
}

// DeepSpeed ZeRO-3 with Megatron-DeepSpeed's fp16 layers.
Practice deepspeed_zero3() {
  Practice p = megatron_2021();
  p.name = "deepspeed-zero3";
  p.gathers_per_layer = 4;  // each weight on its own
  p.fused_accumulation = false;
  p.grad_overlap = true;
  p.param_overlap = true;
  p.fsdp_prefetch = false;
  p.in_bucket_reduce = true;
  p.gradient_bytes = 2;
  p.gradient_reduce_bytes = 2;
  return p;
}

// InternEvo: flash attention, ZeRO-1 with bf16 gradients reduced in buckets, parameters broadcast after the
// step.
Practice internevo() {
  Practice p;
  p.name = "internevo";
  p.owner_broadcast = true;
  p.p2p_scatter = false;
  p.fused_activation = false;
  p.fused_rope = false;
  p.fused_accumulation = false;
  p.flash_generation = 2;
  p.loss_bytes = 10;
  p.gradient_bytes = 2;
  p.gradient_reduce_bytes = 2;
  p.param_overlap = false;
  p.separate_sequence_gather = true;
  return p;
}

// nanotron: flash attention 2, f32 gradient accumulation, gradients reduced after the last backward, stages
// cut by compute cost. Its charts (ultra-scale playbook, 2025) show a floor a micro-batch that is the same
// for models of 1.3B to 80B and every micro-batch size, and grows with tp and the layers of a stage alone.
Practice nanotron() {
  Practice p;
  p.name = "nanotron";
  p.grad_overlap = false;
  p.balanced_stages = true;
  p.tp_host = 0.2e-3;
  p.tp_host_pipelined = 2.7e-3;
  p.p2p_scatter = false;
  p.fused_rope = false;
  p.fused_accumulation = false;
  p.flash_generation = 2;
  p.fused_activation = false;
  p.p2p_overlap = false;
  p.param_overlap = false;
  p.loss_bytes = 10;
  p.gradient_copy_bytes = 4;
  return p;
}

// The engine of this repository.
Practice tessera() {
  Practice p;
  p.name = "tessera";
  p.param_overlap = false;
  p.p2p_overlap = true;
  p.optimizer_bytes = 8;
  return p;
}

std::vector<Practice> all() {
  return {deepspeed_zero3(),
          fsdp1(),
          fsdp2(),
          fsdp2_compile(),
          internevo(),
          megatron_2021(),
          megatron_2022(),
          megatron_bridge(),
          megatron_bridge_2026(),
          megatron_core(),
          megatron_core_plain(),
          megatron_deepspeed_2022(),
          megatron_flash_2023(),
          nanotron(),
          tessera()};
}

}  // namespace

namespace {
constexpr std::string_view kUlysses = "+ulysses";
}  // namespace

std::vector<std::string> practice_names() {
  std::vector<std::string> names;
  for (const Practice& p : all()) names.push_back(p.name);
  return names;
}

Practice practice(std::string_view name) {
  if (name.ends_with(kUlysses)) {
    Practice p = practice(name.substr(0, name.size() - kUlysses.size()));
    p.name = name;
    p.cp_all_to_all = true;
    return p;
  }
  for (Practice& p : all())
    if (p.name == name) return p;
  const std::vector<std::string> names = practice_names();
  const std::string near = nearest(name, names);
  std::string known;
  for (const std::string& n : names) known += (known.empty() ? "" : ", ") + n;
  throw Error(ErrorKind::config, "practice " + std::string(name) + " is not known", "practice",
              "known: " + known + (near.empty() ? "" : "; did you mean " + near + "?"));
}

}  // namespace tessera::graph
