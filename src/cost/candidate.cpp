#include "cost/candidate.h"

#include <fmt/format.h>

#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "graph/block.h"

namespace tessera::cost {

namespace {

constexpr std::array<std::pair<graph::Module, std::string_view>, 7> kModules = {
    {{graph::Module::core_attn, "core_attn"},
     {graph::Module::layernorm, "layernorm"},
     {graph::Module::mlp, "mlp"},
     {graph::Module::moe, "moe"},
     {graph::Module::moe_act, "moe_act"},
     {graph::Module::mla_up_proj, "mla_up_proj"},
     {graph::Module::shared_experts, "shared_experts"}}};

std::vector<std::string> module_names(std::uint32_t bits) {
  std::vector<std::string> names;
  for (const auto& [module, name] : kModules)
    if ((bits & static_cast<std::uint32_t>(module)) != 0) names.emplace_back(name);
  return names;
}

std::string recompute_text(const Candidate& c) {
  switch (c.recompute) {
    case spec::Recompute::none:
      return "";
    case spec::Recompute::selective: {
      const std::vector<std::string> names = module_names(c.recompute_modules);
      return names.empty() ? " recompute selective" : " recompute " + join(names, "+");
    }
    case spec::Recompute::full:
      return " recompute full";
  }
  return "";
}

AxisOrder parse_order(std::string_view text) {
  for (const AxisOrder order : {AxisOrder::tp_cp_ep_dp_pp, AxisOrder::tp_cp_ep_pp_dp})
    if (text == name(order)) return order;
  throw Error(ErrorKind::config, fmt::format("order={} is not one that can be priced", text),
              "parallel.order",
              fmt::format("use {} or {}", name(AxisOrder::tp_cp_ep_dp_pp), name(AxisOrder::tp_cp_ep_pp_dp)));
}

}  // namespace

std::string_view name(AxisOrder order) {
  switch (order) {
    case AxisOrder::tp_cp_ep_dp_pp:
      return "tp-cp-ep-dp-pp";
    case AxisOrder::tp_cp_ep_pp_dp:
      return "tp-cp-ep-pp-dp";
  }
  return "";
}

std::string to_text(const Candidate& c) {
  std::string out = fmt::format("tp {}", c.tp);
  const auto add = [&](std::string_view word, std::int32_t degree) {
    if (degree != 1) out += fmt::format(" {} {}", word, degree);
  };
  add("cp", c.cp);
  out += fmt::format(" pp {}", c.pp);
  add("vpp", c.vpp);
  out += fmt::format(" dp {}", c.dp);
  add("ep", c.ep);
  add("etp", c.etp);
  out += fmt::format(" mbs {} zero {}", c.micro_batch_size, c.zero_stage);
  if (c.zero_group > 0) out += fmt::format(" in groups of {}", c.zero_group);
  out += fmt::format(" {}", schedule::name(c.schedule));
  out += recompute_text(c);
  if (c.tp > 1 && !c.sequence_parallel) out += " no-sp";
  if (c.order != AxisOrder::tp_cp_ep_dp_pp) out += fmt::format(" {}", name(c.order));
  return out;
}

std::int64_t num_microbatches(const Workload& w, const Candidate& c) {
  const std::int64_t together = std::int64_t{c.dp} * c.micro_batch_size;
  if (together < 1 || w.global_batch_size < 1 || w.global_batch_size % together != 0) return 0;
  return w.global_batch_size / together;
}

spec::Job to_job(const Setup& setup, const Candidate& c) {
  spec::Job job;
  job.model = setup.model;
  spec::Recipe& r = job.train;
  r.steps = 1;
  r.sequence_length = setup.work.sequence_length;
  r.global_batch_size = setup.work.global_batch_size;
  r.micro_batch_size = c.micro_batch_size;
  r.precision = setup.work.precision;
  r.recompute = c.recompute;
  if (c.recompute == spec::Recompute::selective) r.recompute_modules = module_names(c.recompute_modules);
  r.zero_stage = c.zero_stage;
  r.moe.capacity_factor = setup.work.capacity_factor;
  // As the reader of a job file.
  if (setup.model.moe) r.moe.aux_loss_coef = setup.model.moe->router_aux_loss_coef;
  spec::ParallelSpec& p = job.parallel;
  p.tp = c.tp;
  p.cp = c.cp;
  p.dp = c.dp;
  p.pp = c.pp;
  p.ep = c.ep;
  p.etp = c.etp;
  p.vpp = c.vpp;
  p.sequence_parallel = c.sequence_parallel;
  p.order = name(c.order);
  p.schedule = schedule::name(c.schedule);
  const std::int32_t stages = c.pp * c.vpp;
  const std::int32_t layers = setup.model.num_hidden_layers;
  if (stages > 1 && stages <= layers && layers % stages != 0) {
    const StageSplit split(setup.model, stages, setup.practice.balanced_stages);
    for (std::int32_t s = 0; s < stages; ++s) p.stage_layers.push_back(split.layers(s));
  }
  return job;
}

Candidate from_job(const spec::Job& job) {
  const spec::ParallelSpec& p = job.parallel;
  Candidate c{.tp = p.tp,
              .cp = p.cp,
              .dp = p.dp,
              .pp = p.pp,
              .ep = p.ep,
              .etp = p.etp,
              .vpp = p.vpp,
              .micro_batch_size = static_cast<std::int32_t>(job.train.micro_batch_size),
              .zero_stage = job.train.zero_stage,
              .recompute = job.train.recompute,
              .recompute_modules = 0,
              .schedule = schedule::parse_kind(p.schedule, "parallel.schedule"),
              .order = parse_order(p.order),
              .sequence_parallel = p.sequence_parallel,
              .zero_group = 0};
  if (c.recompute == spec::Recompute::selective) {
    const std::vector<std::string>& names = job.train.recompute_modules;
    c.recompute_modules =
        graph::module_bits(names.empty() ? std::vector<std::string>{"layernorm", "moe_act"} : names);
  }
  return c;
}

graph::Cut cut_of(const Setup& setup, const Candidate& c) {
  return {.micro_batch_size = c.micro_batch_size,
          .sequence_length = setup.work.sequence_length,
          .tp = c.tp,
          .cp = c.cp,
          .ep = c.ep,
          .etp = c.etp,
          .sequence_parallel = c.sequence_parallel,
          .precision = setup.work.precision};
}

}  // namespace tessera::cost
