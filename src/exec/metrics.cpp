#include "exec/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "graph/dispatch_form.h"
#include "schedule/simulate.h"

namespace tessera::exec {

namespace {

// Columns of a rank's row: then bytes and nanoseconds per communicator, then start, end, cpu per action, then
// the routers.
enum Column : std::int64_t { kWall, kFlops, kExposedReduce, kHiddenDispatch, kLeave, kFixedColumns };
constexpr std::int64_t kNumComms = kNumCommunicators;  // in the order of Communicators::all()

// Which line of the table a communicator counts under. Gradients of all kinds are data parallelism.
constexpr std::array<std::string_view, 9> kAxes = {"tp",       "pp",       "dp",  "cp",   "ep",
                                                   "ep_inter", "ep_intra", "etp", "world"};
std::size_t axis_index(std::string_view label) {
  if (label == "tp_dp" || label == "edp") return 2;
  if (label == "tie") return 1;
  return static_cast<std::size_t>(std::ranges::find(kAxes, label) - kAxes.begin());
}
constexpr std::array<std::string_view, kNumComms> kLabels = {
    "tp", "cp", "pp", "dp", "tp_dp", "edp", "ep", "etp", "ep_inter", "ep_intra", "tie", "world"};
static_assert(!kLabels.back().empty());

// Of each MoE layer; all but kUnserved are the bits of an f64. A rank without the layer has its neutral
// values.
enum RouterColumn : std::int64_t {
  kUnserved,
  kLogitSquares,
  kLogitMax,
  kBiasLeast,
  kBiasMost,
  kRouterColumns
};

constexpr double kNano = 1e-9;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

StepGatherer::StepGatherer(const plan::Plan& plan, std::int32_t cores, FlopsPerSecond peak_per_core)
    : plan_(plan), watch_(plan.job.model.moe ? plan.job.model.moe->num_experts_per_tok : 1) {
  const std::int32_t world = plan.layout.world_size();
  peak_ = peak_per_core * static_cast<double>(std::min(cores, world));
  clock_ = world > cores ? BubbleClock::cpu : BubbleClock::wall;
  max_actions_ = 0;
  for (const auto& list : plan.schedule.ranks) {
    max_actions_ = std::max(max_actions_, static_cast<std::int64_t>(list.size()));
  }
  moe_layers_ = spec::moe_layers(plan.job.model);
  routers_ = kFixedColumns + 2 * kNumComms + 3 * max_actions_;
  width_ = routers_ + kRouterColumns * std::ssize(moe_layers_);
  buffer_ = tensor::Buffer(Bytes((1 + world) * width_ * 8));
  mine_ = Tensor(buffer_.data(), DType::i64, {1, width_});
  all_ = Tensor(buffer_.data() + width_ * 8, DType::i64, {world, width_});
}

const std::int64_t* StepGatherer::row(std::int32_t rank) const {
  return all_.as<std::int64_t>() + rank * width_;
}

void StepGatherer::put_row(RankEngine& engine, Seconds wall) {
  auto* r = mine_.as<std::int64_t>();
  r[kWall] = std::llround(wall.value * 1e9);
  r[kFlops] = engine.step_flops().value;
  r[kExposedReduce] = engine.exposed_reduce_ns();
  r[kHiddenDispatch] = engine.hidden_dispatch_ns();
  std::int64_t at = kFixedColumns;
  for (const Communicator* c : engine.comms().all()) {
    r[at++] = c->bytes_sent().value;
    r[at++] = c->size() > 1 ? c->wall_ns() : 0;
  }
  for (const ActionTime& t : engine.action_times()) {
    r[at++] = t.start_ns;
    r[at++] = t.end_ns;
    r[at++] = t.cpu_ns;
  }
  put_routers(engine);
}

void StepGatherer::put_routers(RankEngine& engine) {
  std::int64_t* first = mine_.as<std::int64_t>() + routers_;
  const auto put = [](std::int64_t* row, RouterColumn column, double value) {
    row[column] = std::bit_cast<std::int64_t>(value);
  };
  for (std::size_t l = 0; l < moe_layers_.size(); ++l) {
    std::int64_t* row = first + static_cast<std::int64_t>(l) * kRouterColumns;
    row[kUnserved] = 0;
    put(row, kLogitSquares, 0.0);
    put(row, kLogitMax, 0.0);
    put(row, kBiasLeast, kInfinity);
    put(row, kBiasMost, -kInfinity);
  }
  for (Stage& stage : engine.stages()) {
    for (const Stage::Mixture& m : stage.mixtures()) {
      const auto layer = std::ranges::find(moe_layers_, m.layer);
      if (layer == moe_layers_.end()) continue;
      std::int64_t* row = first + (layer - moe_layers_.begin()) * kRouterColumns;
      const moe::Stats& stats = m.moe->stats();
      row[kUnserved] = stats.unserved;
      put(row, kLogitSquares, stats.logit_squares);
      put(row, kLogitMax, stats.max_abs_logit);
      const Tensor bias = m.moe->correction_E();
      if (bias.empty()) continue;
      double least = kInfinity;
      double most = -kInfinity;
      on_host(*engine.kernels().memory(), bias, tensor::Access::read, [&](const Tensor& here) {
        for (std::int64_t e = 0; e < here.num_elements(); ++e) {
          const double b = here.dtype() == tensor::DType::f64 ? here.as<double>()[e] : here.as<float>()[e];
          least = std::min(least, b);
          most = std::max(most, b);
        }
      });
      put(row, kBiasLeast, least);
      put(row, kBiasMost, most);
    }
  }
}

void StepGatherer::fill_routers(StepMetrics& m) const {
  for (std::size_t l = 0; l < m.routing.size() && l < moe_layers_.size(); ++l) {
    RoutingFigures& f = m.routing[l];
    const auto tokens = static_cast<double>(std::max<std::int64_t>(1, m.result.routing[l].tokens));
    std::int64_t unserved = 0;
    double squares = 0.0;
    RoutingFigures::Range bias{kInfinity, -kInfinity};
    for (std::int32_t rank = 0; rank < plan_.layout.world_size(); ++rank) {
      const std::int64_t* r = row(rank) + routers_ + static_cast<std::int64_t>(l) * kRouterColumns;
      const auto value = [&](RouterColumn column) { return std::bit_cast<double>(r[column]); };
      unserved += r[kUnserved];
      squares += value(kLogitSquares);
      f.logit_max = std::max(f.logit_max, value(kLogitMax));
      bias.least = std::min(bias.least, value(kBiasLeast));
      bias.most = std::max(bias.most, value(kBiasMost));
    }
    f.unserved_rate = static_cast<double>(unserved) / tokens;
    f.logit_rms =
        std::sqrt(squares / (tokens * static_cast<double>(std::max<std::size_t>(1, f.chosen.size()))));
    if (bias.least <= bias.most) f.bias = bias;
  }
}

void StepGatherer::fill_axes(StepMetrics& m) const {
  std::array<AxisUse, kAxes.size()> use{};
  for (std::size_t a = 0; a < use.size(); ++a) use[a].axis = kAxes[a];
  for (std::int32_t rank = 0; rank < plan_.layout.world_size(); ++rank) {
    const std::int64_t* r = row(rank);
    const std::int64_t* at = r + kFixedColumns;
    for (const std::string_view label : kLabels) {
      AxisUse& u = use[axis_index(label)];
      u.bytes += Bytes(at[0]);
      const Seconds seconds(static_cast<double>(at[1]) * kNano);
      u.total += seconds;
      if (u.axis != "dp") u.exposed += seconds;
      at += 2;
    }
    use[2].exposed += Seconds(static_cast<double>(r[kExposedReduce]) * kNano);
    const std::size_t rows_axis = axis_index(graph::dispatch_nodes(plan_.job) > 1 ? "ep_inter"
                                             : plan_.job.parallel.ep > 1          ? "ep"
                                                                                  : "etp");
    const Seconds hidden(static_cast<double>(r[kHiddenDispatch]) * kNano);
    use[rows_axis].exposed = Seconds(use[rows_axis].exposed.value - hidden.value);
  }
  for (const AxisUse& u : use) {
    if (u.bytes.value > 0) m.axes.push_back(u);
  }
}

double StepGatherer::bubble_by_wall(const std::vector<Rank>& pipeline) const {
  std::int64_t first = INT64_MAX;
  std::int64_t last = 0;
  std::int64_t busy = 0;
  for (std::size_t p = 0; p < pipeline.size(); ++p) {
    const std::int64_t* t = row(pipeline[p].value) + kFixedColumns + 2 * kNumComms;
    for (const schedule::Action& a : plan_.schedule.ranks[p]) {
      if (schedule::is_compute(a.kind)) {
        first = std::min(first, t[0]);
        last = std::max(last, t[1]);
        busy += t[1] - t[0];
      }
      t += 3;
    }
  }
  const double window = static_cast<double>(last - first) * static_cast<double>(pipeline.size());
  return window > 0.0 ? 1.0 - static_cast<double>(busy) / window : 0.0;
}

double StepGatherer::bubble_by_cpu(const std::vector<Rank>& pipeline) const {
  std::vector<std::vector<Seconds>> durations(pipeline.size());
  for (std::size_t p = 0; p < pipeline.size(); ++p) {
    const std::int64_t* t = row(pipeline[p].value) + kFixedColumns + 2 * kNumComms;
    for (const schedule::Action& a : plan_.schedule.ranks[p]) {
      const double cpu = schedule::is_compute(a.kind) ? static_cast<double>(t[2]) * kNano : 0.0;
      durations[p].emplace_back(cpu);
      t += 3;
    }
  }
  return schedule::simulate(plan_.schedule, durations).bubble_fraction;
}

// Mean over the pipelines of the world.
double StepGatherer::bubble() const {
  const layout::Layout& layout = plan_.layout;
  double sum = 0.0;
  std::int32_t pipelines = 0;
  for (std::int32_t rank = 0; rank < layout.world_size(); ++rank) {
    if (layout.dense.coordinate(Rank(rank), layout::Axis::pp) != 0) continue;
    const std::vector<Rank> pipeline = layout.dense.group(Rank(rank), {layout::Axis::pp});
    sum += clock_ == BubbleClock::wall ? bubble_by_wall(pipeline) : bubble_by_cpu(pipeline);
    ++pipelines;
  }
  return sum / pipelines;
}

StepMetrics StepGatherer::gather(RankEngine& engine, std::int64_t step, Seconds wall, int leave) {
  put_row(engine, wall);
  mine_.as<std::int64_t>()[kLeave] = leave;
  engine.comms().world->all_gather(all_, mine_);
  const spec::Job& job = plan_.job;
  StepMetrics m;
  m.step = step;
  std::int64_t flops = 0;
  for (std::int32_t r = 0; r < plan_.layout.world_size(); ++r) {
    m.time = std::max(m.time, Seconds(static_cast<double>(row(r)[kWall]) * kNano));
    flops += row(r)[kFlops];
    m.leave = std::max(m.leave, static_cast<int>(row(r)[kLeave]));
  }
  m.tokens = job.train.global_batch_size * job.train.sequence_length;
  const auto tokens = static_cast<double>(m.tokens);
  m.tokens_per_second = tokens / m.time.value;
  const double available = peak_.value * m.time.value;
  const auto model_flops = [&](spec::AttentionFlops convention) {
    return tokens * spec::train_flops_per_token(job.model, job.train.sequence_length, convention);
  };
  m.model_flops = model_flops(spec::AttentionFlops::causal);
  m.mfu = m.model_flops / available;
  m.mfu_full = model_flops(spec::AttentionFlops::full) / available;
  m.hfu = static_cast<double>(flops) / available;
  m.bubble = bubble();
  m.bubble_clock = clock_;
  fill_axes(m);
  m.result = engine.last_result();
  for (const LayerRouting& r : m.result.routing) m.routing.push_back(routing_figures(r));
  fill_routers(m);
  m.warnings = watch_.look(m.routing);
  return m;
}

std::string to_json(const StepMetrics& m) {
  nlohmann::ordered_json j;
  j["step"] = m.step;
  j["loss"] = m.result.ce_loss;
  j["aux_loss"] = m.result.aux_loss;
  j["z_loss"] = m.result.z_loss;
  if (m.result.mtp_loss != 0.0) j["mtp_loss"] = m.result.mtp_loss;
  j["grad_norm"] = m.result.grad_norm;
  j["lr"] = m.result.lr;
  j["step_time_s"] = m.time.value;
  j["tokens"] = m.tokens;
  j["tokens_per_s"] = m.tokens_per_second;
  j["model_flops"] = m.model_flops;
  j["mfu"] = m.mfu;
  j["mfu_full_attention"] = m.mfu_full;
  j["hfu"] = m.hfu;
  j["bubble"] = m.bubble;
  j["bubble_clock"] = m.bubble_clock == BubbleClock::wall ? "wall" : "cpu";
  for (const AxisUse& u : m.axes) {
    j["axes"][std::string(u.axis)] = {
        {"sent_bytes", u.bytes.value}, {"total_s", u.total.value}, {"exposed_s", u.exposed.value}};
  }
  for (const RoutingFigures& f : m.routing) {
    j["layers"].push_back({{"layer", f.layer},
                           {"load", f.chosen},
                           {"load_max_over_mean", f.max_over_mean},
                           {"load_cv", f.cv},
                           {"load_entropy_nats", f.load_entropy},
                           {"effective_experts", f.effective_experts},
                           {"router_entropy_nats", f.entropy},
                           {"router_logit_rms", f.logit_rms},
                           {"router_logit_max", f.logit_max},
                           {"dead_experts", f.dead},
                           {"drop_rate", f.drop_rate},
                           {"unserved_rate", f.unserved_rate}});
    if (!f.bias) continue;
    j["layers"].back()["router_bias_min"] = f.bias->least;
    j["layers"].back()["router_bias_max"] = f.bias->most;
  }
  if (m.moved) {
    j["moved_experts"] = {{"slots", m.moved->slots},
                          {"layers", m.moved->layers},
                          {"fullest_rank_before", m.moved->fullest_before},
                          {"fullest_rank_after", m.moved->fullest_after},
                          {"time_s", m.moved->time.value}};
  }
  if (m.batch >= 0 && m.batch != m.step) j["batch"] = m.batch;
  if (!m.diverged.empty()) j["diverged"] = m.diverged;
  if (!m.warnings.empty()) j["warnings"] = m.warnings;
  return j.dump();
}

}  // namespace tessera::exec
