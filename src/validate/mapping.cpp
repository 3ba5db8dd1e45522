#include "validate/mapping.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/text.h"
#include "graph/block.h"
#include "validate/models.h"
#include "validate/sources.h"

namespace tessera::validate {
namespace {

// Fills one Case from one Row; the first fault ends it.
class Mapper {
 public:
  Mapper(const Row& row, const Library& library) : row_(row), library_(library), words_(row.words()) {}

  Mapped map() {
    const bool good = task() && accelerator() && practice() && layout() && model() && batch() && zero() &&
                      recompute() && schedule() && workload() && cluster();
    Mapped out;
    if (!good) {
      out.reason = reason_;
      out.detail = detail_;
      return out;
    }
    measured();
    case_.source = row_.prefix();
    case_.model = row_.model;
    case_.model_class = case_.setup.model.moe ? ModelClass::moe : ModelClass::dense;
    case_.axes = axes();
    out.value = std::move(case_);
    return out;
  }

 private:
  bool fail(std::string reason, std::string detail = "") {
    reason_ = std::move(reason);
    detail_ = std::move(detail);
    return false;
  }
  void assume(std::string what, bool guess) {
    case_.assumptions.push_back(std::move(what));
    case_.guessed = case_.guessed || guess;
  }
  static std::int32_t to_int(std::int64_t v) { return static_cast<std::int32_t>(v); }

  bool task() {
    const std::string task = to_lower(row_.task);
    if (has(task, {"lora"})) return fail("LoRA: the base has no weight gradients");
    if (has(task, {"sft"})) return fail("fine-tuning on packed sequences");
    if (has(task, {"single-layer"})) return fail("time of one layer, not of a step");
    if (has(words_, {"cpu offload", "offload_modules", "activation_offloading=true"}) &&
        !has(words_, {"cpu offload false"})) {
      return fail("activations offloaded to the CPU");
    }
    if (has(to_lower(row_.recompute), {"cpu offload"})) return fail("activations offloaded to the CPU");
    if (has(words_, {"parallel transformer block", "sliding-window attention", "sliding window attention"})) {
      return fail("parallel block and sliding window of unknown width");
    }
    return true;
  }

  bool accelerator() {
    case_.accelerator = accelerator_of(row_);
    if (case_.accelerator.empty()) return fail("no calibration of this accelerator", row_.gpu);
    const auto it = library_.calibrations.find(case_.accelerator);
    if (it == library_.calibrations.end())
      return fail("no calibration of this accelerator", case_.accelerator);
    case_.setup.calibration = it->second;
    return true;
  }

  bool practice() {
    if (row_.prefix() == "smartmoe" || (row_.prefix() == "fail" && has(to_lower(row_.model), {"gpt-moe"}))) {
      return fail("network of the cluster not stated");
    }
    if (row_.prefix() == "fireflyer") return fail("PCIe cluster with its own all-reduce (HFReduce)");
    std::string reason;
    const std::optional<graph::Practice> p = practice_of(row_, reason);
    if (!p) return fail(reason);
    case_.setup.practice = *p;
    return true;
  }

  // Degrees of the layout: an empty one is 1 where the others multiply to the devices.
  bool layout() {
    cost::Candidate& c = case_.candidate;
    if (has(to_lower(row_.notes), {"tp as printed", "ep_size>1 for the moe"})) {
      return fail("layout not printed in these terms");
    }
    if (!row_.tp && !row_.pp && !row_.dp) return fail("layout not printed");
    const std::int64_t tp = row_.tp.value_or(1), pp = row_.pp.value_or(1), cp = row_.cp.value_or(1);
    std::int64_t dp = row_.dp.value_or(0);
    const std::int64_t model_ranks = tp * pp * cp;
    if (dp == 0) {
      if (!row_.gpus) return fail("layout not printed");
      if (*row_.gpus % model_ranks != 0) {
        return fail("layout does not divide the devices", fmt::format("{} / {}", *row_.gpus, model_ranks));
      }
      dp = *row_.gpus / model_ranks;
    }
    const std::int64_t world = model_ranks * dp;
    if (row_.gpus && *row_.gpus != world) {
      return fail("layout does not multiply to the devices",
                  fmt::format("tp {} pp {} cp {} dp {}: {} of {}", tp, pp, cp, dp, world, *row_.gpus));
    }
    if (world > 1'000'000) return fail("more than a million devices");
    c.tp = to_int(tp);
    c.pp = to_int(pp);
    c.cp = to_int(cp);
    c.dp = to_int(dp);
    return experts();
  }

  bool experts() {
    cost::Candidate& c = case_.candidate;
    c.ep = to_int(row_.ep.value_or(1));
    c.etp = to_int(row_.etp.value_or(1));
    if (!row_.etp && c.tp > 1) {
      const std::optional<double> etp = number_after(words_, "etp ");
      c.etp = etp ? to_int(std::llround(*etp)) : c.tp;  // Megatron's default: as the dense layers
    }
    if (!row_.experts) c.etp = 1;
    const std::int32_t ranks = c.tp * c.cp * c.dp;
    if (c.ep < 1 || c.etp < 1 || ranks % (c.ep * c.etp) != 0) {
      return fail("ep x etp does not divide tp x cp x dp",
                  fmt::format("ep {} etp {} of {}", c.ep, c.etp, ranks));
    }
    const bool sp_no = row_.sp == "no" || row_.sp == "n" || row_.sp == "false";
    c.sequence_parallel = !sp_no;
    // Sources that print nothing: Megatron before 2022 and InternEvo's default have none.
    const std::string_view p = case_.setup.practice.name;
    if (row_.sp.empty() && (p == "internevo" || p == "megatron-2021" || p == "megatron-deepspeed-2022")) {
      c.sequence_parallel = false;
    }
    return true;
  }

  bool model() {
    NamedModel m = model_of(row_, library_);
    if (!m.value) return fail(m.reason, m.detail);
    case_.setup.model = std::move(*m.value);
    for (std::string& a : m.assumptions) assume(std::move(a), false);
    // Megatron pads the vocabulary to a multiple of 128 x tp.
    if (case_.candidate.tp > 1) {
      const std::int64_t unit = 128 * static_cast<std::int64_t>(case_.candidate.tp);
      std::int64_t& v = case_.setup.model.vocab_size;
      if (v % unit != 0) v = (v + unit - 1) / unit * unit;
    }
    if (!case_.setup.model.moe) case_.candidate.ep = case_.candidate.etp = 1;
    return true;
  }

  [[nodiscard]] std::optional<std::int64_t> microbatches() const {
    for (const std::string_view before : {"microbatches ", "grad accum ", "grad accumulation ", "ga "}) {
      const std::optional<double> v = number_after(words_, before);
      if (v && *v >= 1 && *v == std::floor(*v) && *v < 1e6) return static_cast<std::int64_t>(*v);
    }
    return std::nullopt;
  }

  bool batch() {
    cost::Workload& w = case_.setup.work;
    cost::Candidate& c = case_.candidate;
    std::optional<std::int64_t> seq = row_.seq_len;
    // The sources' own default where a table leaves the column out.
    if (!seq && has(words_, {"llama3 configs: 8192", "seq default 8192"})) {
      seq = 8192;
      assume("sequence length is the framework's default", false);
    }
    if (!seq) return fail("sequence length not printed");
    w.sequence_length = *seq;
    const std::optional<std::int64_t> m = microbatches();
    std::optional<std::int64_t> gbs = row_.gbs;
    if (!gbs && row_.mbs && m) gbs = *row_.mbs * *m * c.dp;
    if (!gbs && row_.step_time_s && row_.tokens_per_s_per_gpu) {
      const double tokens = *row_.step_time_s * *row_.tokens_per_s_per_gpu * c.world_size();
      gbs = std::llround(tokens / static_cast<double>(*seq));
    }
    if (!gbs || *gbs < 1) return fail("global batch not printed");
    w.global_batch_size = *gbs;
    return micro_batch(*gbs, m);
  }

  bool micro_batch(std::int64_t gbs, std::optional<std::int64_t> m) {
    cost::Candidate& c = case_.candidate;
    std::optional<std::int64_t> mbs = row_.mbs;
    if (!mbs && m && gbs % (*m * c.dp) == 0) mbs = gbs / (*m * c.dp);
    if (!mbs && gbs == c.dp) mbs = 1;
    if (!mbs) {
      // A pipeline of large models: one sequence is what the memory of the time allowed.
      mbs = 1;
      assume("micro-batch 1 (not printed)", true);
    }
    if (*mbs < 1 || *mbs > 100000) return fail("micro-batch not usable");
    c.micro_batch_size = to_int(*mbs);
    if (gbs % (*mbs * c.dp) != 0) {
      return fail("micro-batches do not come out whole",
                  fmt::format("global {} / (micro {} x dp {})", gbs, *mbs, c.dp));
    }
    return true;
  }

  bool zero() {
    cost::Candidate& c = case_.candidate;
    const std::string z = to_lower(row_.zero);
    const std::string prefix = row_.prefix();
    if (z.empty()) {
      const std::string_view p = case_.setup.practice.name;
      const bool old = p == "megatron-2021" || p == "megatron-2022" || prefix == "zb";
      c.zero_stage = old ? 0 : 1;
      if (p.substr(0, 4) == "fsdp") c.zero_stage = 3;
    } else if (has(z, {"distributed optimizer", "optimizer-sharded", "zero-1"})) {
      c.zero_stage = 1;
    } else if (has(z, {"zero-2", "shard_grad_op"})) {
      c.zero_stage = 2;
    } else if (has(z, {"zero-3", "full", "fsdp", "hsdp"})) {
      c.zero_stage = 3;
    } else if (has(z, {"none", "zero-0"})) {
      c.zero_stage = 0;
    } else {
      return fail("ZeRO stage not understood", row_.zero);
    }
    if (const auto n = number_after(z, "within ")) c.zero_group = to_int(std::llround(*n));
    if (z == "hsdp") c.zero_group = 8;  // shards within the node
    if (z.substr(0, 4) == "fsdp") {
      const std::size_t blank = z.find(' ');
      const auto n = blank == std::string::npos ? std::nullopt : number_after(z, z.substr(0, blank + 1));
      if (n && *n >= 1 && std::llround(*n) < c.dp * c.cp) c.zero_group = to_int(std::llround(*n));
    }
    if (c.zero_group >= c.dp) c.zero_group = 0;
    return true;
  }

  bool recompute() {
    cost::Candidate& c = case_.candidate;
    const std::string r = to_lower(row_.recompute);
    if (r.empty() || r.substr(0, 4) == "none" || r.substr(0, 7) == "not set" || r == "no") {
      c.recompute = spec::Recompute::none;
      if (r.empty() && row_.status == Status::ok) assume("no recomputation (not printed)", false);
      return true;
    }
    if (has(r, {"block"})) return fail("recomputation of some layers only", row_.recompute);
    if (r.substr(0, 4) == "full") {
      c.recompute = spec::Recompute::full;
      return true;
    }
    return selective(r);
  }

  bool selective(const std::string& r) {
    if (has(r, {"selective layer"})) return fail("recomputation of some layers only", row_.recompute);
    if (row_.prefix() == "fms") return fail("recomputation of some layers only", row_.recompute);
    if (has(r, {"in yaml", "gdn"})) return fail("recomputed modules not printed", row_.recompute);
    cost::Candidate& c = case_.candidate;
    c.recompute = spec::Recompute::selective;
    std::vector<std::string> names;
    const auto add = [&](std::string_view module) { names.emplace_back(module); };
    if (has(r, {"selective per-op", "selective op"})) {
      // torchtitan keeps every second matrix product and the attention (its op list): the MLP is the nearest.
      assume("recomputation per operator priced as norms, MLP", true);
      add("layernorm");
      add("mlp");
    }
    if (r == "selective" || has(r, {"core attention", "core_attn"})) add("core_attn");
    if (has(r, {"layernorm", "norm,", "rmsnorm"})) add("layernorm");
    if (has(r, {"mla_up_proj", "mla up-projection"})) add("mla_up_proj");
    if (has(r, {"moe_act", ",act", "swiglu"})) add("moe_act");
    if (has(r, {"shared_expert"})) add("shared_experts");
    for (const std::string& part : split(r.substr(std::min(r.size(), r.find(':') + 1)), ',')) {
      const std::string_view word = trim(part);
      if (word == "mlp" || word.substr(0, 4) == "mlp ") add("mlp");
      if (word == "moe" || word.substr(0, 4) == "moe ") add("moe");
    }
    if (names.empty()) return fail("recomputed modules not understood", row_.recompute);
    c.recompute_modules = graph::module_bits(names);
    return true;
  }

  bool schedule() {
    cost::Candidate& c = case_.candidate;
    const std::string text = to_lower(row_.overlap_notes);
    c.vpp = to_int(row_.vpp.value_or(1));
    if (c.pp == 1) {
      c.vpp = 1;
      return true;
    }
    if (has(text, {"zb-2p", "v-half", "v-min", "vmin", "vhalf"}))
      return fail("schedule ZB-2p is not modelled");
    if (has(text, {"zb-v", "zbv"})) {
      c.schedule = schedule::Kind::zb_v;
      c.vpp = 2;
      return true;
    }
    if (has(text, {"zb-1p", "zb-h1"})) {
      c.schedule = schedule::Kind::zb_h1;
      return true;
    }
    if (has(text, {"dualpipe"})) {
      c.schedule = schedule::Kind::zb_h1;
      assume("DualPipe priced as ZB-H1 (its idle time is near)", true);
      return true;
    }
    // Overlapped messages are the interleaved schedule's.
    const bool overlapped = !row_.vpp && has(text, {"overlap_p2p_comm"});
    const bool interleaved =
        overlapped || (has(text, {"interleaved", "1f1b-i"}) && !has(text, {"interleaved not stated"}));
    if (interleaved && c.vpp == 1) return fail("stages per rank of the interleaved schedule not printed");
    if (c.vpp > 1) c.schedule = schedule::Kind::interleaved;
    return true;
  }

  bool workload() {
    cost::Workload& w = case_.setup.work;
    const std::string p = to_lower(row_.precision);
    if (has(p, {"nvfp4"})) {
      w.precision = spec::Precision::nvfp4;
    } else if (has(p, {"mxfp8"})) {
      w.precision = spec::Precision::mxfp8;
    } else if (has(p, {"blockwise", "fine-grained"})) {
      w.precision = spec::Precision::fp8_block;
    } else if (has(p, {"fp8", "float8"})) {
      w.precision = spec::Precision::fp8;
    } else if (has(p, {"tf32", "int8"})) {
      return fail("precision not modelled", row_.precision);
    } else if (has(p, {"fp16", "16 bit"}) && !has(p, {"bf16"})) {
      w.precision = spec::Precision::fp16;
    }
    if (row_.prefix() == "dsv3") w.precision = spec::Precision::fp8_block;
    if (has(words_, {"capacity factor 1"})) w.capacity_factor = 1.0;
    const bool natural = has(words_, {"natural routing", "natural, ", "imbalanced"});
    if (case_.setup.model.moe && natural) {
      assume("natural routing without a histogram priced as balanced", true);
    }
    return true;
  }

  bool cluster() {
    case_.setup.cluster = cluster_of(row_, library_, case_.accelerator, case_.candidate.world_size());
    case_.setup.cluster.memory = case_.setup.calibration.memory;
    return true;
  }

  void measured() {
    if (row_.status != Status::ok) return;
    // The number of the layout's devices counts, also where the column is empty.
    Row full = row_;
    full.gpus = case_.candidate.world_size();
    full.gbs = case_.setup.work.global_batch_size;
    full.seq_len = case_.setup.work.sequence_length;
    case_.step_seconds = measured_step(full, case_.step_origin);
    if (row_.memory_gb) {
      const MemoryUnit unit = memory_unit(row_);
      case_.memory = MemoryMeasured{.bytes = *row_.memory_gb * unit.bytes, .kind = unit.kind};
    }
  }

  [[nodiscard]] std::string axes() const {
    const cost::Candidate& c = case_.candidate;
    std::string out;
    const auto add = [&](std::string_view axis, std::int32_t degree) {
      if (degree > 1) out += (out.empty() ? "" : "+") + std::string(axis);
    };
    add("tp", c.tp);
    add("cp", c.cp);
    add("ep", c.ep);
    add("pp", c.pp);
    add(c.zero_stage == 3 ? "fsdp" : "dp", c.dp);
    return out.empty() ? "one device" : out;
  }

  const Row& row_;
  const Library& library_;
  std::string words_, reason_, detail_;
  Case case_;
};

// 96 B s L h^2 (1 + s / 6h + V / 16Lh): arXiv 2104.04473 equation 3, the recomputed forward included.
std::optional<double> step_from_hardware_flops(const Row& row) {
  if (!row.tflops_per_gpu || !row.gbs || !row.seq_len || !row.gpus || !row.layers || !row.hidden ||
      !row.vocab) {
    return std::nullopt;
  }
  const auto value = [](const std::optional<std::int64_t>& v) { return static_cast<double>(*v); };
  const double h = value(row.hidden), l = value(row.layers), s = value(row.seq_len);
  const double flops =
      96 * value(row.gbs) * s * l * h * h * (1 + s / (6 * h) + value(row.vocab) / (16 * l * h));
  return flops / (value(row.gpus) * *row.tflops_per_gpu * 1e12);
}

}  // namespace

std::string_view name(ModelClass c) {
  switch (c) {
    case ModelClass::dense:
      return "dense";
    case ModelClass::moe:
      return "MoE";
  }
  return "?";
}

std::optional<double> measured_step(const Row& row, std::string& origin) {
  if (row.step_time_s) {
    origin = "printed";
    return row.step_time_s;
  }
  if (row.derived_step_time_s) {
    origin = "derived";
    return row.derived_step_time_s;
  }
  if (row.tokens_per_s_per_gpu && row.gbs && row.seq_len && row.gpus) {
    origin = "tokens/s";
    return static_cast<double>(*row.gbs) * static_cast<double>(*row.seq_len) /
           (*row.tokens_per_s_per_gpu * static_cast<double>(*row.gpus));
  }
  const std::string prefix = row.prefix();
  if (prefix == "dsazure" || prefix == "nar21" || prefix == "mtnlg") {
    origin = "hardware TFLOP/s";
    return step_from_hardware_flops(row);
  }
  return std::nullopt;
}

Mapped to_case(const Row& row, const Library& library) {
  return Mapper(row, library).map();
}

}  // namespace tessera::validate
