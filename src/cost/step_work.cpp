// The pieces of a step for the simulator, from the same tables as predict().
#include <algorithm>
#include <utility>

#include "base/error.h"
#include "cost/step_impl.h"

namespace tessera::cost {

namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

graph::Axis axis_of(Part part) {
  switch (part) {
    case Part::cp:
      return graph::Axis::cp;
    case Part::ep:
      return graph::Axis::ep;
    case Part::pp:
      return graph::Axis::pp;
    case Part::dp:
      return graph::Axis::dp;
    case Part::ideal:
    case Part::gemm:
    case Part::attention:
    case Part::memory_bound:
    case Part::launch:
    case Part::recompute:
    case Part::imbalance:
    case Part::tp:
    case Part::bubble:
    case Part::optimizer:
    case Part::jitter:
      return graph::Axis::tp;
  }
  return graph::Axis::tp;
}

bool is_communication(Part part) {
  return part == Part::tp || part == Part::cp || part == Part::ep;
}

double of_axis(Part part, const std::array<double, graph::kNumAxes>& values) {
  const auto value = [&](graph::Axis a) { return values[static_cast<std::size_t>(a)]; };
  if (part == Part::ep) {
    return value(graph::Axis::ep) + value(graph::Axis::ep_inter) + value(graph::Axis::ep_intra) +
           value(graph::Axis::etp);
  }
  return value(axis_of(part));
}

// One pass of one block as segments, a segment a part that takes time or sends bytes.
void add_segments(const char* block, const PassCost& pass, std::vector<Segment>& out) {
  for (std::int32_t i = 0; i < kNumParts; ++i) {
    const Part part = static_cast<Part>(i);
    const double exposed = pass.parts[at(i)];
    Segment s;
    s.part = part;
    s.axis = axis_of(part);
    s.communication = is_communication(part);
    s.exposed = exposed;
    s.seconds = s.communication ? of_axis(part, pass.comm_seconds) : exposed;
    s.bytes_sent = s.communication ? of_axis(part, pass.bytes_sent) : 0.0;
    if (part == Part::gemm) s.flops = pass.gemm_flops;
    if (part == Part::attention) s.flops = pass.attention_flops;
    if (s.seconds == 0.0 && s.exposed == 0.0) continue;
    s.name = std::string(block) + " " + std::string(name(part));
    out.push_back(std::move(s));
  }
}

void add_block(const char* block, const BlockCost& cost, StageWork& stage) {
  add_segments(block, cost.forward, stage.forward);
  add_segments(block, cost.backward_input, stage.backward_input);
  add_segments(block, cost.backward_weight, stage.backward_weight);
  stage.forward_seconds += cost.forward.seconds;
  stage.backward_input_seconds += cost.backward_input.seconds;
  stage.backward_weight_seconds += cost.backward_weight.seconds;
  stage.saved_bytes += cost.saved;
  stage.transient_bytes = std::max({stage.transient_bytes, cost.transient, cost.logits});
}

}  // namespace

StepWork StepModel::work(const Candidate& c, std::span<const std::int32_t> stage_layers) {
  const Impl& impl = *impl_;
  const LayerTable& t = impl_->table(c);
  const std::int32_t num_stages = c.pp * c.vpp;
  const StageSplit split = stage_layers.empty() ? impl.split_of(c) : StageSplit(stage_layers);
  TESSERA_CHECK(stage_layers.empty() || std::ssize(stage_layers) == num_stages,
                "one number of layers for every stage");
  StepWork w;
  w.num_microbatches = num_microbatches(impl.setup.work, c);
  const double message = impl.message_seconds(c);
  std::int32_t layer = 0;
  for (std::int32_t s = 0; s < num_stages; ++s) {
    StageWork stage;
    const std::int32_t end = layer + split.layers(s);
    if (s == 0) add_block("embedding", t.embedding, stage);
    for (; layer < end; ++layer) add_block("layer", t.layers[at(impl.classes.class_of(layer))], stage);
    if (s == num_stages - 1) {
      for (std::int32_t i = 0; i < impl.setup.model.num_nextn_predict_layers; ++i)
        add_block("mtp", t.mtp, stage);
      add_block("head", t.head, stage);
    }
    // Backward goes from the last block to the first.
    std::reverse(stage.backward_input.begin(), stage.backward_input.end());
    std::reverse(stage.backward_weight.begin(), stage.backward_weight.end());
    if (s + 1 < num_stages && c.pp > 1) {
      stage.p2p_seconds = message;
      stage.p2p_bytes = static_cast<double>(impl.message_bytes(c).value);
    }
    w.stages.push_back(std::move(stage));
  }
  for (std::int32_t r = 0; r < c.pp; ++r) {
    const RankHolding holding = impl.rank_holding(t, split, c, r);
    const PipelineRank seconds = impl.rank_seconds(t, split, c, r);
    const Reduction reduction = reduction_cost(
        impl.setup, c, holding,
        {.forward = seconds.forward, .backward = seconds.backward_input + seconds.backward_weight},
        w.num_microbatches);
    const MemoryCost memory = rank_memory(impl.setup, c, holding, r);
    w.static_bytes.push_back(memory[MemoryPart::weights] + memory[MemoryPart::gradients] +
                             memory[MemoryPart::optimizer] + memory[MemoryPart::buffers]);
    w.grad_seconds.push_back(reduction.gradient_seconds);
    w.param_seconds.push_back(reduction.weight_seconds);
    w.grad_bytes.push_back(reduction.gradient_bytes);
    w.param_bytes.push_back(reduction.weight_bytes);
    w.optimizer_seconds.push_back(reduction.optimizer);
  }
  w.jitter_share = impl.jitter_share(c);
  w.p2p_overlapped = impl.messages_hidden(c);
  w.grad_overlapped = impl.setup.practice.grad_overlap;
  w.param_overlapped = impl.setup.practice.param_overlap;
  if (c.zero_stage >= 2) w.grad_repeats = w.num_microbatches;
  if (c.zero_stage == 3) {
    w.param_repeats = w.num_microbatches * (impl.setup.practice.reshard_after_forward ? 2 : 1);
    w.grad_overlapped = w.param_overlapped = impl.setup.practice.fsdp_prefetch;
  }
  w.overlap_slowdown = impl.setup.calibration.overlap_slowdown;
  return w;
}

}  // namespace tessera::cost
