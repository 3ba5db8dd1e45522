#include "cost/machine_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cost/fit_search.h"
#include "cost/kernel_time.h"
#include "cost/network.h"

namespace tessera::cost {

namespace {

using graph::Call;
using graph::MeasuredMachine;
using graph::MeasuredOp;
using graph::OpKind;

using Picked = std::vector<const MeasuredOp*>;

bool is_optimizer(const MeasuredOp& m) {
  const std::string& n = m.op.name;
  return n == "adamw" || n == "clear" || n == "pack" || n == "norm of gradients";
}
bool is_memory(const MeasuredOp& m) {
  return m.op.kind == OpKind::memory && m.op.name != "call" && !is_optimizer(m);
}
bool is_exchange(const MeasuredOp& m) {
  return m.op.call == Call::all_to_all_v || m.op.call == Call::send;
}

template <class Test>
Picked pick(const MeasuredMachine& machine, Test test) {
  Picked out;
  for (const MeasuredOp& m : machine.ops) {
    if (test(m)) out.push_back(&m);
  }
  return out;
}

Picked named(const MeasuredMachine& machine, std::string_view name) {
  Picked out = pick(machine, [&](const MeasuredOp& m) { return m.op.name == name; });
  if (out.empty()) {
    throw Error(ErrorKind::config, fmt::format("no measurement of \"{}\"", name), "calibration of a machine",
                "measure every kind of operator");
  }
  return out;
}

double sum_seconds(const Picked& ops) {
  double sum = 0.0;
  for (const MeasuredOp* m : ops) sum += m->seconds.value;
  return sum;
}
double sum_bytes(const Picked& ops) {
  double sum = 0.0;
  for (const MeasuredOp* m : ops) sum += static_cast<double>(m->op.bytes_moved.value);
  return sum;
}

// Mean |log(predicted / measured)|.
double error(const MachineModel& model, const Picked& ops) {
  double sum = 0.0;
  for (const MeasuredOp* m : ops) sum += std::abs(std::log(predicted_seconds(model, *m) / m->seconds.value));
  return ops.empty() ? 0.0 : sum / static_cast<double>(ops.size());
}

void check(const MeasuredMachine& machine) {
  for (const MeasuredOp& m : machine.ops) {
    if (m.seconds.value > 0.0 && m.seconds.value < 1e4) continue;
    throw Error(ErrorKind::config, fmt::format("\"{}\" took {} s", m.op.name, m.seconds.value),
                "calibration of a machine", "measure again; a time is above 0");
  }
}

void fit_memory(MachineModel& model, const MeasuredMachine& machine) {
  Calibration& c = model.calibration;
  const Picked ops = pick(machine, is_memory);
  named(machine, "norm");
  const double overhead = c.launch.value * static_cast<double>(ops.size());
  const double rate = sum_bytes(ops) / std::max(1e-12, sum_seconds(ops) - overhead);
  // Caches may beat memory: then the rate itself is the bandwidth.
  c.memory_bandwidth = std::max(machine.triad_all.value, rate);
  c.memory_efficiency = std::clamp(rate / c.memory_bandwidth, 0.01, 1.0);
}

void fit_products(MachineModel& model, const MeasuredMachine& machine) {
  Calibration& c = model.calibration;
  c.f32.peak = machine.fma_f32.value;
  const auto now = [&](const Picked& ops) {
    return [&model, &c, ops] {
      c.bf16 = c.f32;  // half-width types run as f32
      return error(model, ops);
    };
  };
  const Picked single =
      pick(machine, [](const MeasuredOp& m) { return m.op.kind == OpKind::gemm && m.op.gemm.groups == 1; });
  const Picked grouped =
      pick(machine, [](const MeasuredOp& m) { return m.op.kind == OpKind::gemm && m.op.gemm.groups > 1; });
  named(machine, "forward");
  c.f32.efficiency = 0.9;
  c.f32.k_half = 8.0;
  search(c.f32.efficiency, 0.05, 1.0, c.f32.k_half, 0.1, 300.0, now(single));
  c.bf16 = c.f32;
  c.group_latency = Seconds(0.0);
  if (grouped.empty()) return;
  // A group reads and writes its own weights or gradients: few rows do not pay for it.
  c.group_latency = Seconds(1e-6);
  search(c.grouped_efficiency, 0.2, 1.0, c.group_latency.value, 1e-9, 1e-3, now(grouped));
}

void fit_attention(MachineModel& model, const MeasuredMachine& machine) {
  Calibration& c = model.calibration;
  const auto fit = [&](std::string_view name, double& rate, double& length) {
    const Picked ops = named(machine, name);
    rate = 0.6;
    length = 16.0;
    search(rate, 0.02, 1.0, length, 0.1, 500.0, [&] { return error(model, ops); });
  };
  fit("attention", c.attention_forward, c.attention_short);
  fit("attention backward", c.attention_backward, c.attention_short_backward);
}

void fit_optimizer(MachineModel& model, const MeasuredMachine& machine) {
  Calibration& c = model.calibration;
  Picked all;
  for (const std::string_view name : {"adamw", "clear", "pack", "norm of gradients"}) {
    const Picked ops = named(machine, name);
    all.insert(all.end(), ops.begin(), ops.end());
  }
  const double once = sum_bytes(all) / (c.memory_bandwidth * c.memory_efficiency);
  c.optimizer_passes = std::clamp(sum_seconds(all) / once, 0.01, 100.0);
}

void fit_links(MachineModel& model, const MeasuredMachine& machine) {
  Calibration& c = model.calibration;
  spec::TierSpec& tier = model.cluster.tiers.front();
  const Picked all = pick(machine, [](const MeasuredOp& m) { return m.op.kind == OpKind::collective; });
  if (all.empty()) return;
  double fastest = 0.0;
  for (const MeasuredOp* m : all) {
    fastest = std::max(fastest, static_cast<double>(m->op.bytes_sent.value) / m->seconds.value);
  }
  tier.bandwidth = BytesPerSecond(fastest * 1.5);  // the own share is copied too
  c.chunk_latency = c.collective_launch = Seconds(0.0);
  c.inter_latency = Seconds(0.0);
  c.in_network_efficiency = 1.0;
  const auto ring = [](const MeasuredOp& m) { return m.op.kind == OpKind::collective && !is_exchange(m); };
  const auto exchange = [](const MeasuredOp& m) { return m.op.kind == OpKind::collective && is_exchange(m); };
  const Picked rings = pick(machine, ring), exchanges = pick(machine, exchange);
  const auto of_rings = [&] { return error(model, rings); };
  c.intra_efficiency = 0.5;
  c.intra_latency = Seconds(1e-6);
  search(c.intra_efficiency, 0.01, 1.0, c.intra_latency.value, 1e-8, 1e-3, of_rings);
  c.all_to_all_efficiency = 1.0;
  if (!exchanges.empty()) search(c.all_to_all_efficiency, 0.05, 2.0, [&] { return error(model, exchanges); });
  tier.latency = c.intra_latency;
}

std::string kernel_of(const MeasuredOp& m) {
  if (m.op.kind == OpKind::collective) return fmt::format("{} of {}", m.op.name, m.ranks);
  if (m.op.kind == OpKind::gemm && m.op.gemm.groups > 1) return m.op.name + ", one an expert";
  return m.op.name;
}

}  // namespace

double predicted_seconds(const MachineModel& model, const MeasuredOp& m) {
  const Calibration& c = model.calibration;
  if (m.op.kind == OpKind::collective) {
    return collective_time(model.cluster, c, group_shape(model.cluster, m.ranks, 1), m.op.call,
                           m.op.bytes_sent)
        .value;
  }
  const double passes = is_optimizer(m) ? c.optimizer_passes : 1.0;
  return passes * kernel_time(c, m.op, spec::Precision::f32).value + c.launch.value;
}

MachineModel fit_machine(const MeasuredMachine& machine, const std::string& name) {
  check(machine);
  MachineModel model{.calibration = calibration("cpu-generic"), .cluster = {}};
  Calibration& c = model.calibration;
  c.name = name;
  c.description = fmt::format("one core of {}, measured by tessera calibrate; half-width types run as f32",
                              machine.cores);
  c.processors = 1;
  c.memory = c.usable_memory = Bytes(machine.memory.value / machine.cores);
  c.launch = named(machine, "call").front()->seconds;
  c.kernel_latency = Seconds(0.0);
  c.sustained = c.sustained_low = 1.0;
  c.overlap_slowdown = c.straggler = 0.0;
  model.cluster = {.name = name, .device = name, .num_devices = machine.cores};
  model.cluster.devices_per_node = machine.cores;
  model.cluster.tiers = {
      {.name = "threads", .size = machine.cores, .bandwidth = machine.triad_all, .latency = c.intra_latency}};
  fit_memory(model, machine);
  fit_products(model, machine);
  fit_attention(model, machine);
  fit_optimizer(model, machine);
  fit_links(model, machine);
  Problems problems;  // a file that is written can be read
  validate(c, name, problems);
  spec::validate(model.cluster, name, problems);
  problems.throw_if_any();
  return model;
}

void fit_sustained(MachineModel& model, const EngineJob& job, double seconds) {
  model.calibration.sustained = 1.0;
  const EngineStep step = engine_step(job, model.cluster, model.calibration);
  double products = 0.0;
  for (const StageWork& stage : step.work.stages) {
    for (const auto* pass : {&stage.forward, &stage.backward_input, &stage.backward_weight}) {
      for (const Segment& s : *pass) products += s.part == Part::gemm ? s.seconds : 0.0;
    }
  }
  products *= static_cast<double>(step.work.num_microbatches);
  const double missing = seconds - step.cost.seconds();
  model.calibration.sustained = std::clamp(products / std::max(products, products + missing), 0.5, 1.0);
}

std::vector<FitRow> fit_rows(const MachineModel& model, const MeasuredMachine& machine) {
  std::vector<FitRow> rows;
  std::vector<std::vector<double>> errors;
  for (const MeasuredOp& m : machine.ops) {
    const std::string kernel = kernel_of(m);
    const auto found = std::ranges::find(rows, kernel, &FitRow::kernel);
    const std::size_t i = static_cast<std::size_t>(found - rows.begin());
    if (found == rows.end()) {
      rows.push_back({.kernel = kernel});
      errors.emplace_back();
    }
    const double predicted = predicted_seconds(model, m);
    rows[i].count += 1;
    rows[i].measured_seconds += m.seconds.value;
    rows[i].fitted_seconds += predicted;
    errors[i].push_back(std::abs(predicted / m.seconds.value - 1.0));
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::ranges::sort(errors[i]);
    rows[i].worst_error = errors[i].back();
    rows[i].median_error = errors[i][errors[i].size() / 2];
  }
  return rows;
}

}  // namespace tessera::cost
