// Constants fitted to measurements that a known machine would give are those of that machine.
#include "cost/machine_fit.h"

#include <gmock/gmock.h>

#include <cmath>

#include "cost/kernel_time.h"
#include "cost/network.h"

namespace tessera::cost {
namespace {

using graph::MeasuredMachine;
using graph::MeasuredOp;
using graph::Op;
using graph::OpKind;

// Two cores whose every constant differs from cpu-generic's.
MachineModel truth() {
  MachineModel t{.calibration = calibration("cpu-generic"), .cluster = {}};
  Calibration& c = t.calibration;
  c.launch = Seconds(30e-9);
  c.kernel_latency = Seconds(0.0);
  c.memory_bandwidth = 24e9;
  c.memory_efficiency = 0.75;
  c.f32.peak = 77e9;
  c.f32.efficiency = 0.81;
  c.f32.k_half = 17.0;
  c.bf16 = c.f32;
  c.grouped_efficiency = 0.9;
  c.group_latency = Seconds(0.0);
  c.attention_forward = 0.55;
  c.attention_short = 33.0;
  c.attention_backward = 0.44;
  c.attention_short_backward = 21.0;
  c.optimizer_passes = 1.4;
  c.chunk_latency = c.collective_launch = c.inter_latency = Seconds(0.0);
  c.intra_latency = Seconds(2e-6);
  c.intra_efficiency = 0.6;
  c.all_to_all_efficiency = 0.7;
  t.cluster = {.name = "two", .device = "two", .num_devices = 2};
  t.cluster.devices_per_node = 2;
  t.cluster.tiers = {
      {.name = "threads", .size = 2, .bandwidth = gigabytes_per_second(20), .latency = Seconds(2e-6)}};
  return t;
}

Op memory_op(const char* name, std::int64_t bytes) {
  Op op;
  op.name = name;
  op.bytes_moved = Bytes(bytes);
  return op;
}

std::vector<MeasuredOp> operators() {
  std::vector<MeasuredOp> ops;
  const auto add = [&](Op op, std::int32_t ranks = 1) { ops.push_back({std::move(op), ranks, Seconds(0)}); };
  add(memory_op("call", 0));
  for (const std::int64_t k : {64, 256, 1024}) {
    for (const std::int64_t groups : {1, 8}) {
      Op op;
      op.name = "forward";
      op.kind = OpKind::gemm;
      op.gemm = {.m = 512, .n = 768, .k = k, .groups = groups};
      add(op);
    }
  }
  for (const char* name : {"attention", "attention backward"}) {
    for (const std::int64_t seq : {64, 256, 1024}) {
      Op op;
      op.name = name;
      op.kind = OpKind::attention;
      op.attention = {.batch = 2,
                      .heads = 8,
                      .kv_heads = 8,
                      .queries = seq,
                      .keys = static_cast<double>(seq + 1) / 2.0,
                      .qk_dim = 64,
                      .v_dim = 64};
      add(op);
    }
  }
  add(memory_op("norm", 4 << 20));
  add(memory_op("swiglu", 12 << 20));
  for (const char* name : {"adamw", "clear", "pack", "norm of gradients"}) add(memory_op(name, 64 << 20));
  for (const graph::Call call : {graph::Call::all_gather, graph::Call::all_reduce,
                                 graph::Call::reduce_scatter, graph::Call::all_to_all_v}) {
    for (const std::int64_t bytes : {1 << 10, 1 << 16, 1 << 22}) {
      Op op;
      op.name = std::string(graph::name(call));
      op.kind = OpKind::collective;
      op.call = call;
      op.bytes_sent = Bytes(bytes);
      add(op, 2);
    }
  }
  return ops;
}

MeasuredMachine measured_on(const MachineModel& t) {
  MeasuredMachine m{.cores = 2,
                    .memory = Bytes(16'000'000'000),
                    .fma_f32 = FlopsPerSecond(t.calibration.f32.peak),
                    .triad = gigabytes_per_second(30),
                    .triad_all = BytesPerSecond(t.calibration.memory_bandwidth),
                    .ops = operators()};
  for (MeasuredOp& op : m.ops) op.seconds = Seconds(predicted_seconds(t, op));
  return m;
}

TEST(MachineFit, FindsTheConstantsOfAKnownMachine) {
  const MachineModel t = truth();
  const MeasuredMachine machine = measured_on(t);
  const MachineModel fitted = fit_machine(machine, "two");
  const Calibration& c = fitted.calibration;
  const auto near = [](double got, double want) { return std::abs(got / want - 1.0) <= 0.05; };
  EXPECT_TRUE(near(c.launch.value, 30e-9)) << c.launch.value;
  EXPECT_TRUE(near(c.memory_bandwidth * c.memory_efficiency, 18e9)) << c.memory_efficiency;
  EXPECT_TRUE(near(c.f32.efficiency, 0.81)) << c.f32.efficiency;
  EXPECT_TRUE(near(c.f32.k_half, 17.0)) << c.f32.k_half;
  EXPECT_TRUE(near(c.grouped_efficiency, 0.9)) << c.grouped_efficiency;
  EXPECT_TRUE(near(c.attention_forward, 0.55)) << c.attention_forward;
  EXPECT_TRUE(near(c.attention_short_backward, 21.0)) << c.attention_short_backward;
  EXPECT_TRUE(near(c.optimizer_passes, 1.4)) << c.optimizer_passes;
  for (const FitRow& row : fit_rows(fitted, machine)) EXPECT_LE(row.worst_error, 0.05) << row.kernel;
  Problems problems;
  validate(c, "fitted", problems);
  spec::validate(fitted.cluster, "fitted", problems);
  EXPECT_TRUE(problems.empty());
  EXPECT_EQ(parse_calibration(to_yaml(c), "text", problems).f32.tile_m, c.f32.tile_m);
  EXPECT_TRUE(problems.empty());
}

TEST(MachineFit, EqualMeasurementsGiveEqualFiles) {
  const MeasuredMachine machine = measured_on(truth());
  EXPECT_EQ(to_yaml(fit_machine(machine, "a").calibration), to_yaml(fit_machine(machine, "a").calibration));
}

TEST(MachineFit, OneCoreKeepsTheLinksOfCpuGeneric) {
  MeasuredMachine machine = measured_on(truth());
  machine.cores = 1;
  std::erase_if(machine.ops, [](const MeasuredOp& m) { return m.op.kind == OpKind::collective; });
  const MachineModel m = fit_machine(machine, "one");
  EXPECT_EQ(m.calibration.intra_latency, calibration("cpu-generic").intra_latency);
  Problems problems;
  spec::validate(m.cluster, "one", problems);
  EXPECT_TRUE(problems.empty());
}

TEST(MachineFit, RefusesTimesThatAreNoneAndKernelsThatAreMissing) {
  MeasuredMachine machine = measured_on(truth());
  const auto problem_of = [](const MeasuredMachine& m) {
    try {
      (void)fit_machine(m, "x");
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  MeasuredMachine without = machine;
  std::erase_if(without.ops, [](const MeasuredOp& m) { return m.op.name == "attention"; });
  EXPECT_THAT(problem_of(without), ::testing::HasSubstr("no measurement of \"attention\""));
  machine.ops[3].seconds = Seconds(std::nan(""));
  EXPECT_THAT(problem_of(machine), ::testing::HasSubstr("took nan s"));
}

}  // namespace
}  // namespace tessera::cost
