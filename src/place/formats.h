// Placement files (docs/formats/placement.md): Tessera's own, and what inference engines read. Ours holds
// every number a reader needs; the others are written as their engines take them. Pure but for
// read_placement.
//
//   write: to_json(placement), to_sglang(placement, 61), to_vllm(placement), ...
//   read:  read_placement("placement.json")   ours, SGLang's, vLLM's list or vllm-ascend's
//
// Errors: Error{io} for a file that cannot be read, Error{config} with all faults for one that is no
// placement.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "place/placement.h"

namespace tessera::place {

[[nodiscard]] std::string to_json(const Placement& p);

// --init-expert-location: {"physical_to_logical_map": [layers of the model][slots]}; layers without a map
// (dense ones) hold expert s modulo E. model_layers 0: up to the last layer of the placement.
[[nodiscard]] std::string to_sglang(const Placement& p, std::int32_t model_layers);

// eplb_config.initial_expert_map_path (vllm-project/vllm pull request 49572): [MoE layers][slots].
[[nodiscard]] std::string to_vllm(const Placement& p);
// --expert-placement-file (pull request 34811): {"expert_to_ep_rank": [E]}, one map for all layers and no
// replicas. Error{config} where the placement is not of that kind.
[[nodiscard]] std::string to_vllm_ranks(const Placement& p);

// expert_map_path of vllm-ascend: moe_layer_count, layer_list of device_list of device_expert; layer_id
// counts MoE layers.
[[nodiscard]] std::string to_vllm_ascend(const Placement& p);

// moe_config.load_balancer of TensorRT-LLM, YAML: num_slots, initial_global_assignments by layer of the
// model.
[[nodiscard]] std::string to_tensorrt_llm(const Placement& p);

// What a foreign file does not say: the machine and the model's layers of its MoE layers. 0 in the machine:
// what our file says; of a foreign one 1 node, its slots, and as many GPUs as those.
struct ReadHints {
  Machine machine;
  std::int32_t num_experts = 0;
  std::vector<std::int32_t> layers;
};
// The kind is seen from the content. A foreign file must fit the hints; of ours, the layers of the hints are
// picked and the machine must be the same.
[[nodiscard]] Placement read_placement(const std::filesystem::path& path, const ReadHints& hints);
[[nodiscard]] Placement parse_placement(std::string_view json, std::string_view where,
                                        const ReadHints& hints);

}  // namespace tessera::place
