#include "frameworks/launch.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>

#include "base/text.h"
#include "spec/value.h"

namespace tessera::frameworks {

namespace {

using graph::Practice;
using spec::Value;

constexpr std::array<Switch, 15> kSwitches = {
    {{"grad_overlap", &Practice::grad_overlap, "gradients are reduced under the backward pass"},
     {"param_overlap", &Practice::param_overlap, "weights are gathered under the forward pass"},
     {"tp_overlap", &Practice::tp_overlap, "tensor-parallel gathers go beside their products"},
     {"p2p_overlap", &Practice::p2p_overlap, "pipeline messages go beside compute"},
     {"ep_overlap", &Practice::ep_overlap, "all-to-all of experts goes under another micro-batch"},
     {"ep_dedup", &Practice::ep_dedup, "a token goes once to a node (DeepEP)"},
     {"cp_all_to_all", &Practice::cp_all_to_all, "context parallelism by all-to-all"},
     {"fused_cross_entropy", &Practice::fused_cross_entropy, "the loss in one kernel"},
     {"fused_permute", &Practice::fused_permute, "rows of experts sorted in one kernel"},
     {"fused_router", &Practice::fused_router, "the router in few kernels"},
     {"grouped_gemm", &Practice::grouped_gemm, "products of all experts in one kernel"},
     {"fused_rope", &Practice::fused_rope, "rotary positions in one kernel"},
     {"cuda_graphs", &Practice::cuda_graphs, "CUDA graphs"},
     {"compiled", &Practice::compiled, "torch.compile"},
     {"dropout", &Practice::dropout, "dropout"}}};

struct Size {
  std::string_view name;
  std::int32_t Practice::*member;
};
constexpr std::array<Size, 3> kSizes = {{{"gradient_bytes", &Practice::gradient_bytes},
                                         {"gradient_reduce_bytes", &Practice::gradient_reduce_bytes},
                                         {"optimizer_bytes", &Practice::optimizer_bytes}}};
constexpr std::array<std::string_view, 3> kSections = {"train", "moe", "parallel"};
constexpr std::string_view kZeroGroup = "zero_group", kPractice = "practice.";

std::string one_line(const Value& v) {
  std::string text = spec::to_json(v);
  std::string out;
  for (const std::string& line : split(text, '\n')) out += std::string(trim(line)) + " ";
  return std::string(trim(out));
}

Value tree(const Launch& l) {
  return spec::parse_json(spec::to_json(l.job), "job");
}

// A job only as far as arguments of frameworks speak of one.
void set_job(Launch& l, const Value& root, std::string_view file) {
  spec::Job job = spec::parse_job(spec::to_json(root), ".", file, {});
  job.data = l.job.data;
  job.checkpoint = l.job.checkpoint;
  job.output = l.job.output;
  job.model_config = l.job.model_config;
  l.job = std::move(job);
}

bool parse_int(std::string_view text, std::int32_t& out) {
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out);
  return code == std::errc() && end == text.data() + text.size();
}

bool apply_practice(const Carried& c, Launch& into) {
  const std::string_view key = std::string_view(c.key).substr(kPractice.size());
  for (const Switch& s : kSwitches) {
    if (s.name != key || (c.value != "true" && c.value != "false")) continue;
    into.practice.*s.member = c.value == "true";
    return true;
  }
  for (const Size& s : kSizes) {
    if (s.name == key) return parse_int(c.value, into.practice.*s.member);
  }
  return false;
}

}  // namespace

std::span<const Switch> switches() {
  return kSwitches;
}

Launch launch_of(const spec::Job& job, const Practice& practice, const Machine& machine) {
  Launch l{.job = job, .practice = practice, .machine = machine};
  spec::Recipe& t = l.job.train;
  spec::ParallelSpec& p = l.job.parallel;
  t.overlap_grad_reduce = l.practice.grad_overlap = t.overlap_grad_reduce && practice.grad_overlap;
  t.overlap_param_gather = l.practice.param_overlap = t.overlap_param_gather && practice.param_overlap;
  p.overlap_p2p_comm = l.practice.p2p_overlap = p.overlap_p2p_comm && practice.p2p_overlap;
  p.tp_comm_overlap = l.practice.tp_overlap;
  if (t.recompute == spec::Recompute::selective && t.recompute_modules.empty())
    t.recompute_modules = {"layernorm", "moe_act"};
  const bool even = std::ranges::adjacent_find(p.stage_layers, std::not_equal_to<>()) == p.stage_layers.end();
  if (even) p.stage_layers.clear();
  return l;
}

std::vector<Carried> differences(const Launch& want, const Launch& got) {
  std::vector<Carried> out;
  const Value a = tree(want), b = tree(got);
  for (const std::string_view section : kSections) {
    const Value* mine = a.find(section);
    const Value* theirs = b.find(section);
    if (mine == nullptr) continue;
    for (const auto& [key, value] : mine->members) {
      const Value* other = theirs == nullptr ? nullptr : theirs->find(key);
      const std::string text = one_line(value);
      if (other == nullptr || one_line(*other) != text)
        out.push_back({fmt::format("{}.{}", section, key), text});
    }
  }
  const auto add = [&](std::string_view key, auto mine, auto theirs) {
    if (mine != theirs) out.push_back({fmt::format("{}{}", kPractice, key), fmt::format("{}", mine)});
  };
  for (const Switch& s : kSwitches) add(s.name, want.practice.*s.member, got.practice.*s.member);
  for (const Size& s : kSizes) add(s.name, want.practice.*s.member, got.practice.*s.member);
  if (want.machine.zero_group != got.machine.zero_group)
    out.push_back({std::string(kZeroGroup), std::to_string(want.machine.zero_group)});
  return out;
}

void apply(std::span<const Carried> carried, std::string_view file, Launch& into, Problems& problems) {
  if (carried.empty()) return;
  Value root = tree(into);
  const std::vector<std::string> known = spec::job_keys();
  for (const Carried& c : carried) {
    const std::string where = c.line > 0 ? fmt::format("{}:{}", file, c.line) : std::string(file);
    const auto refuse = [&](const std::string& near) {
      problems.add(fmt::format("\"{} = {}\" is nothing that Tessera carries", c.key, c.value), where,
                   near.empty() ? "remove the line" : fmt::format("did you mean {}?", near));
    };
    if (c.key.starts_with(kPractice)) {
      if (!apply_practice(c, into)) refuse("");
    } else if (c.key == kZeroGroup) {
      if (!parse_int(c.value, into.machine.zero_group)) refuse("");
    } else {
      const std::size_t dot = c.key.find('.');
      const bool is_known = std::ranges::find(known, c.key) != known.end() &&
                            std::ranges::find(kSections, c.key.substr(0, dot)) != kSections.end();
      Value* section = is_known ? root.find(c.key.substr(0, dot)) : nullptr;
      if (section == nullptr) {
        refuse(nearest(c.key, known));
        continue;
      }
      try {
        const Value read = spec::parse_json("{\"v\": " + c.value + "}", where);
        section->set(c.key.substr(dot + 1), *read.find("v"));
      } catch (const Error& e) {
        if (e.kind() == ErrorKind::internal) throw;
        refuse("");
      }
    }
  }
  if (!problems.empty()) return;
  try {
    set_job(into, root, file);
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::internal) throw;
    for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
  }
}

}  // namespace tessera::frameworks
