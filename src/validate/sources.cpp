#include "validate/sources.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "spec/presets.h"

namespace tessera::validate {
namespace {

constexpr double kGiga = 1e9;
constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

// The shipped cluster that a run's machines are like: of the source where it says which machines it had, else
// the usual node of the accelerator.
struct Machines {
  std::string_view accelerator, cluster;
};
constexpr std::array kMachines = {
    Machines{"a100-sxm-40gb", "dgx-a100-40gb"},
    Machines{"a100-sxm-80gb", "dgx-a100"},
    Machines{"a100-pcie-40gb", "a100-pcie"},
    Machines{"a100-pcie-80gb", "a100-pcie"},
    Machines{"a800-sxm", "a800"},
    Machines{"h800-sxm", "h800"},
    Machines{"h100-sxm", "dgx-h100"},
    Machines{"h100-sxm-hbm2e-500w", "dgx-h100"},
    Machines{"h200-sxm", "dgx-h200"},
    Machines{"b200-sxm", "dgx-b200"},
    Machines{"b300-sxm", "dgx-b300"},
    Machines{"mi300x", "mi300x"},
    Machines{"mi325x", "mi300x"},
    Machines{"mi355x", "mi300x"},
};

// Racks of 72 are lent in parts of 64 to jobs of powers of two (Slurm segments of 16 nodes, as the launch
// scripts of these runs ask for).
std::string nvl_cluster(std::string_view accelerator, std::int32_t devices) {
  return std::string(accelerator) + (devices <= 72 || devices % 72 == 0 ? "-nvl72" : "-nvl64");
}

std::string cluster_name(const Row& row, std::string_view accelerator, std::int32_t devices) {
  if (accelerator == "gb200" || accelerator == "gb300") return nvl_cluster(accelerator, devices);
  // The playbook's runs are of a cluster on AWS.
  if (accelerator == "h100-sxm" && has(to_lower(row.overlap_notes + row.source), {"nanotron"}))
    return "aws-p5-shared";
  const auto it = std::find_if(kMachines.begin(), kMachines.end(),
                               [&](const Machines& m) { return m.accelerator == accelerator; });
  TESSERA_CHECK(it != kMachines.end(), "an accelerator of accelerator_of has a cluster");
  return std::string(it->cluster);
}

// Gb/s of a whole node as the row prints it: "4x100Gb", "inter-node 800 Gb/s"; 0 when it does not.
double printed_network(const Row& row) {
  const std::string text = to_lower(row.gpu + " ; " + row.overlap_notes + " ; " + row.notes);
  for (const std::string_view before : {"inter-node ", "internode "}) {
    if (const auto v = number_after(text, before); v && *v >= 10) return *v;
  }
  for (std::size_t at = text.find("x"); at != std::string::npos; at = text.find('x', at + 1)) {
    if (at == 0 || text[at - 1] < '1' || text[at - 1] > '9') continue;
    std::size_t end = at + 1;
    while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
    if (end == at + 1 || text.substr(end, 2) != "gb") continue;
    return (text[at - 1] - '0') * std::stod(text.substr(at + 1, std::min<std::size_t>(end - at - 1, 6)));
  }
  return 0;
}

struct SourcePractice {
  std::string_view prefix, practice;
};
// Software of the sources by id prefix; dates and frameworks are those of the rows.
constexpr std::array kPractices = {
    SourcePractice{"bridge", "megatron-bridge"},
    SourcePractice{"card", "megatron-bridge"},
    SourcePractice{"skill", "megatron-bridge"},
    SourcePractice{"zoo", "megatron-bridge"},         // Megatron-Core dev of 2025-26
    SourcePractice{"mlmrecipes", "megatron-bridge"},  // the same
    SourcePractice{"dgxc", "megatron-core"},
    SourcePractice{"nemo2407", "megatron-core"},
    SourcePractice{"nemodocs", "megatron-core"},
    SourcePractice{"nemolong", "megatron-core"},
    SourcePractice{"mlm", "megatron-core"},
    SourcePractice{"mpf", "megatron-core"},
    SourcePractice{"msmoe", "megatron-core"},
    SourcePractice{"mlmci", "megatron-core-plain"},
    SourcePractice{"simumax", "megatron-core-plain"},
    SourcePractice{"simumaxA", "megatron-core-plain"},
    SourcePractice{"flagperf", "megatron-core-plain"},
    SourcePractice{"dsv3", "megatron-bridge-2026"},  // DeepEP, fused permutation, overlapped dispatch
    SourcePractice{"nar21", "megatron-2021"},
    SourcePractice{"vtr1", "megatron-2021"},
    SourcePractice{"vtrm", "megatron-2021"},
    SourcePractice{"kor22", "megatron-2022"},
    SourcePractice{"launcher", "megatron-2022"},
    SourcePractice{"mtnlg", "megatron-deepspeed-2022"},
    SourcePractice{"bloom", "megatron-deepspeed-2022"},
    SourcePractice{"megascale", "megatron-flash-2023"},
    SourcePractice{"zb", "megatron-2022"},  // its memory shows the scores of attention written out
    SourcePractice{"aa", "megatron-flash-2023"},
    SourcePractice{"skywork", "megatron-flash-2023"},
    SourcePractice{"dsazure", "deepspeed-zero3"},
    SourcePractice{"mpt", "fsdp1"},
    SourcePractice{"mptold", "fsdp1"},
    SourcePractice{"fms", "fsdp1"},
    SourcePractice{"titan", "fsdp2-compile"},
    SourcePractice{"ao", "fsdp2-compile"},
    SourcePractice{"automodel", "fsdp2"},
    SourcePractice{"nano", "nanotron"},
    SourcePractice{"nanochart", "nanotron"},
    SourcePractice{"internevo", "internevo"},
};

// For files of one's own: by the framework's name, and the year for Megatron-LM.
std::string_view practice_by_framework(const Row& row) {
  const std::string f = to_lower(row.framework + " " + row.overlap_notes);
  if (has(f, {"automodel"})) return "fsdp2";
  if (has(f, {"bridge"})) return "megatron-bridge";
  if (has(f, {"torchtitan"})) return "fsdp2-compile";
  if (has(f, {"fsdp1", "llm-foundry"})) return "fsdp1";
  if (has(f, {"fsdp"})) return "fsdp2";
  if (has(f, {"nanotron"})) return "nanotron";
  if (has(f, {"internevo"})) return "internevo";
  if (has(f, {"tessera"})) return "tessera";
  if (has(f, {"megatron-core", "nemo"})) return "megatron-core";
  if (has(f, {"megatron-deepspeed"})) return "megatron-deepspeed-2022";
  if (has(f, {"pipedream-flush"})) return "megatron-flash-2023";
  if (has(f, {"megatron"})) {
    const std::string year = row.date.substr(0, 4);
    if (year.empty() || year >= "2024") return "megatron-core";
    if (year >= "2023") return "megatron-flash-2023";
    return year >= "2022" ? "megatron-2022" : "megatron-2021";
  }
  if (has(f, {"deepspeed"})) return "deepspeed-zero3";
  return "";
}

std::string_view practice_name(const Row& row) {
  const std::string prefix = row.prefix();
  if (prefix == "nar21" && has(to_lower(row.framework), {"zero-3"})) return "deepspeed-zero3";
  // Failed layouts carry an id of their own; their text names the trainer.
  if (prefix == "fail") {
    const std::string notes = to_lower(row.overlap_notes);
    if (has(notes, {"nanotron"})) return "nanotron";
    if (has(notes, {"pipedream-flush"})) return "megatron-flash-2023";
    if (has(notes, {"megatron-deepspeed"})) return "megatron-deepspeed-2022";
  }
  for (const SourcePractice& s : kPractices) {
    if (s.prefix == prefix) return s.practice;
  }
  return practice_by_framework(row);
}

void read_kernels(const std::string& text, graph::Practice& p) {
  if (has(text, {"kernel: torch", "kernel: fused"})) p.flash_attention = false;
  if (has(text, {"kernel: torch"})) p.fused_softmax = false;
  if (has(text, {"flash_attentionv1"})) p.flash_generation = 1;
  if (has(text, {"flash_attention", "flash attention", "flashattention"}) && !has(text, {"no flash"})) {
    p.flash_attention = true;
  }
  if (has(text, {"no flash", "unfused attention"})) p.flash_attention = false;
  if (has(text, {"kernel: "})) p.fused_norm = has(text, {"rms kernel"});
  if (has(text, {"torch.compile"}) && !has(text, {"torch.compile not stated"})) p.compiled = true;
  if (has(text, {"eager"})) p.compiled = false;
  if (has(text, {"cuda_graph", "cuda graph", "full-iteration graph", "graphs per recipe"}) &&
      !has(text, {"cuda_graph_impl=none", "no cuda graph"})) {
    p.cuda_graphs = true;
  }
  if (has(text, {"fused cross-entropy", "fused cross entropy"})) p.fused_cross_entropy = true;
}

void read_overlap(const std::string& text, graph::Practice& p) {
  if (has(text, {"no gradient bucketing overlap", "gradient all-reduce not overlapped"}))
    p.grad_overlap = false;
  if (has(text, {"grad/param sync overlap", "--overlap-grad-reduce", "tp/pp/dp overlap"})) {
    p.grad_overlap = p.param_overlap = p.in_bucket_reduce = true;
  }
  if (has(text, {"no tp/grad/param overlap"})) p.tp_overlap = p.grad_overlap = p.param_overlap = false;
  if (has(text, {"ub_tp_comm_overlap", "tp-comm-overlap", "async tp", "asynctp", "tp/pp/dp overlap"})) {
    p.tp_overlap = true;
  }
  if (has(text, {"vanilla tp"})) p.tp_overlap = false;
  if (has(text, {"overlap_p2p_comm"})) p.p2p_overlap = true;
  if (has(text, {"p2p sync", "synchronous p2p"})) p.p2p_overlap = false;
  if (has(text, {"moe_a2a_overlap=true", "overlap_moe_expert_parallel_comm", "ep overlap",
                 "ep communication overlap", "all-to-all overlapped"})) {
    p.ep_overlap = true;
  }
  if (has(text, {"no ep overlap", "no a2a overlap", "moe_a2a_overlap=false"})) p.ep_overlap = false;
  if (has(text, {"hybridep", "deepep"})) p.ep_dedup = true;
  if (has(text, {"alltoall", "all-to-all dispatcher", "dispatcher a2a"}) &&
      !has(text, {"hybridep", "deepep"})) {
    p.ep_dedup = false;
  }
  if (has(text, {"dualpipe"})) p.ep_dedup = p.ep_overlap = true;
}

void read_bytes(const Row& row, const std::string& text, graph::Practice& p) {
  const std::string framework = to_lower(row.framework);
  // NeMo 2 and Bridge performance recipes keep and reduce bf16 gradients (grad_reduce_in_fp32 off): the
  // memory logs of dgxc agree to one percent.
  if (has(framework, {"nemo", "bridge"}) && !has(framework, {"automodel"})) {
    p.gradient_bytes = 2;
    p.gradient_reduce_bytes = 2;
  }
  if (has(text, {"fp32 grads", "fp32 grad accumulation"})) p.gradient_bytes = p.gradient_reduce_bytes = 4;
  if (has(text, {"bf16 grads"})) p.gradient_bytes = p.gradient_reduce_bytes = 2;
  if (has(text, {"bf16 grad reduce"})) p.gradient_reduce_bytes = 2;
  // Megatron of 2021 and 2022 keeps gradients of mixed-precision runs in 16 bit.
  if (p.name.starts_with("megatron-202") && has(text, {"mixed 16 bit"})) p.gradient_bytes = 2;
  // Megatron's own defaults: dropout, its loss in f32.
  if (row.prefix() == "mlmci") {
    p.dropout = true;
    p.fused_cross_entropy = false;
  }
  if (has(text, {"bf16 adam moments", "reduced-precision adam moments"})) p.optimizer_bytes = 8;
}

}  // namespace

std::string accelerator_of(const Row& row) {
  const std::string g = to_lower(row.gpu);
  if (has(g, {"|", "text says", "power limited", "presumed"})) return "";  // which one is not clear
  if (has(g, {"h100"})) {
    if (has(g, {"pcie", "nvl"})) return "";
    return has(g, {"hbm2e", "96gb"}) ? "h100-sxm-hbm2e-500w" : "h100-sxm";
  }
  if (has(g, {"gh200"})) return "";
  if (has(g, {"h200"})) return "h200-sxm";
  if (has(g, {"h800"})) return "h800-sxm";
  if (has(g, {"a800"})) return "a800-sxm";
  if (has(g, {"a100"})) {
    const bool small = has(g, {"40gb"});
    if (has(g, {"pcie"})) return small ? "a100-pcie-40gb" : "a100-pcie-80gb";
    return small ? "a100-sxm-40gb" : "a100-sxm-80gb";
  }
  if (has(g, {"gb300"})) return "gb300";
  if (has(g, {"gb200"})) return "gb200";
  if (has(g, {"b300"})) return "b300-sxm";
  if (has(g, {"b200"})) return "b200-sxm";
  for (const std::string_view amd : {"mi300x", "mi325x", "mi355x"}) {
    if (has(g, {amd})) return std::string(amd);
  }
  return "";
}

spec::ClusterSpec cluster_of(const Row& row, const Library& library, std::string_view accelerator,
                             std::int32_t devices) {
  const auto it = library.clusters.find(cluster_name(row, accelerator, devices));
  TESSERA_CHECK(it != library.clusters.end(), "the clusters of these rows are shipped");
  spec::ClusterSpec c = it->second;
  c.device = std::string(accelerator);
  c.memory = Bytes(0);  // of the device's file
  const double whole = printed_network(row);
  if (whole > 0) {
    const BytesPerSecond each(whole / c.devices_per_node * kGiga / 8);
    for (std::size_t t = 1; t < c.tiers.size(); ++t) {
      c.tiers[t].bandwidth = each;
      c.tiers[t].nics = 0;
    }
  }
  return spec::with_devices(std::move(c), devices);
}

std::optional<graph::Practice> practice_of(const Row& row, std::string& reason) {
  const std::string framework = to_lower(row.framework);
  if (has(framework, {"paxml", "maxtext", "jax"}) || has(to_lower(row.recompute), {"remat_policy"})) {
    reason = "JAX and XLA are not modelled";
    return std::nullopt;
  }
  std::string_view name = practice_name(row);
  if (name == "megatron-bridge" && row.date >= "2026-06") name = "megatron-bridge-2026";
  if (name.empty()) {
    reason = "framework not known";
    return std::nullopt;
  }
  graph::Practice p = graph::practice(name);
  const std::string text = to_lower(row.overlap_notes + " ; " + row.notes);
  // From the 26.06 release on, recipes for Blackwell capture whole iterations, whether the row prints it or
  // not.
  const std::string accelerator = accelerator_of(row);
  if (p.name == "megatron-bridge-2026" && (accelerator.starts_with("b") || accelerator.starts_with("gb"))) {
    p.cuda_graphs = !has(text, {"cuda_graph_impl=none", "no cuda graph", "no graphs"});
  }
  read_kernels(to_lower(row.overlap_notes + " ; " + (row.prefix() == "mlmci" ? row.notes : "")), p);
  read_overlap(text, p);
  read_bytes(row, to_lower(row.precision) + " ; " + text, p);
  // The charts do not say the mode of tensor parallelism; their memory does: with a pipeline the gathered
  // inputs are made again in backward, without one they are kept (medians within 10 % at tp 16 and 32, else
  // off by 1.5 and 2.4).
  if (p.name == "nanotron" && row.pp.value_or(1) > 1) p.separate_sequence_gather = true;
  return p;
}

MemoryUnit memory_unit(const Row& row) {
  const std::string text = to_lower(row.memory_text);
  const std::string notes = to_lower(row.notes);
  MemoryUnit unit;
  if (has(text, {"gib"}) || has(notes, {"in gib", "allocated gib", "alloc gib"})) unit.bytes = kGib;
  if (has(text, {"allocated"})) {
    unit.kind = MemoryKind::allocated;
  } else if (has(text, {"reserved"}) || has(notes, {"peak reserved", "max_reserved"})) {
    unit.kind = MemoryKind::reserved;
  } else if (has(notes, {"nvidia-smi"})) {
    unit.kind = MemoryKind::process;
  } else if (has(notes, {"max allocated"})) {
    unit.kind = MemoryKind::allocated;
  }
  const std::string prefix = row.prefix();
  if (prefix == "titan" || prefix == "ao") unit.bytes = kGib;  // torchtitan prints GiB
  // nanotron logs torch's max_memory_allocated in GiB; the Zero Bubble tables agree with allocated 1e9 bytes.
  if (prefix == "nano" || prefix == "zb") unit.kind = MemoryKind::allocated;
  if (prefix == "nano") unit.bytes = kGib;
  return unit;
}

}  // namespace tessera::validate
