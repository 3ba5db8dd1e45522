#include <fmt/format.h>

#include "cost/step.h"

namespace tessera::cost {

namespace {

std::string not_divided(std::string_view part, std::int64_t a, std::string_view whole, std::int64_t b) {
  return fmt::format("{}={} does not divide {}={}", part, a, whole, b);
}

std::string why_invalid_experts(const Setup& setup, const Candidate& c) {
  if (!setup.model.moe) {
    if (c.ep != 1 || c.etp != 1) return fmt::format("ep={} etp={} with a dense model", c.ep, c.etp);
    return {};
  }
  const spec::MoeSpec& moe = *setup.model.moe;
  if (moe.num_experts % c.ep != 0) return not_divided("ep", c.ep, "num_experts", moe.num_experts);
  const std::int64_t width = spec::expert_intermediate_size(setup.model);
  if (width % c.etp != 0) return not_divided("etp", c.etp, "moe_intermediate_size", width);
  if (c.tp * c.cp * c.dp % (c.ep * c.etp) != 0)
    return not_divided("ep*etp", std::int64_t{c.ep} * c.etp, "tp*cp*dp", std::int64_t{c.tp} * c.cp * c.dp);
  return {};
}

std::string why_invalid_pipeline(const Setup& setup, const Candidate& c) {
  const std::int32_t needed = schedule::required_vpp(c.schedule);
  if (needed != 0 && c.vpp != needed)
    return fmt::format("vpp={} with schedule {} (it needs {})", c.vpp, schedule::name(c.schedule), needed);
  if (needed == 0 && c.vpp < 2) return fmt::format("vpp={} with schedule interleaved (2 or more)", c.vpp);
  if (c.pp == 1 && c.vpp != 1) return fmt::format("vpp={} without a pipeline (pp=1)", c.vpp);
  const std::int32_t stages = c.pp * c.vpp;
  // Embedding and head may stand on stages of their own.
  if (stages > setup.model.num_hidden_layers + 2)
    return fmt::format("pp*vpp={} stages for {} layers", stages, setup.model.num_hidden_layers);
  const std::int64_t m = num_microbatches(setup.work, c);
  if (m < 1) {
    return fmt::format("dp*micro_batch_size={} does not divide global_batch_size={}",
                       std::int64_t{c.dp} * c.micro_batch_size, setup.work.global_batch_size);
  }
  if (c.schedule == schedule::Kind::interleaved && m % c.pp != 0)
    return not_divided("pp", c.pp, "micro-batches", m);
  return {};
}

}  // namespace

std::string why_invalid(const Setup& setup, const Candidate& c) {
  const spec::ModelSpec& m = setup.model;
  for (const auto& [word, degree] : {std::pair{"tp", c.tp},
                                     {"cp", c.cp},
                                     {"dp", c.dp},
                                     {"pp", c.pp},
                                     {"ep", c.ep},
                                     {"etp", c.etp},
                                     {"vpp", c.vpp},
                                     {"micro_batch_size", c.micro_batch_size}}) {
    if (degree < 1) return fmt::format("{}={} is below 1", word, degree);
  }
  if (c.world_size() > setup.cluster.num_devices)
    return fmt::format("tp*cp*dp*pp={} ranks on {} devices", c.world_size(), setup.cluster.num_devices);
  if (m.num_attention_heads % c.tp != 0)
    return not_divided("tp", c.tp, "num_attention_heads", m.num_attention_heads);
  if (!m.mla && m.num_key_value_heads % c.tp != 0 && c.tp % m.num_key_value_heads != 0)
    return not_divided("tp", c.tp, "num_key_value_heads", m.num_key_value_heads);
  if (setup.practice.cp_all_to_all && m.num_attention_heads % (c.tp * c.cp) != 0)
    return not_divided("tp*cp", std::int64_t{c.tp} * c.cp, "num_attention_heads", m.num_attention_heads);
  if (m.intermediate_size % c.tp != 0)
    return not_divided("tp", c.tp, "intermediate_size", m.intermediate_size);
  // Zigzag cuts of a causal sequence need two pieces a rank.
  const std::int64_t pieces = std::int64_t{c.cp} * (c.cp > 1 ? 2 : 1) * (c.sequence_parallel ? c.tp : 1);
  if (setup.work.sequence_length % pieces != 0)
    return not_divided(c.cp > 1 ? "2*cp*tp" : "tp", pieces, "sequence_length", setup.work.sequence_length);
  std::string why = why_invalid_experts(setup, c);
  if (why.empty()) why = why_invalid_pipeline(setup, c);
  return why;
}

}  // namespace tessera::cost
