#include "exec/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "ckpt/checkpoint.h"
#include "comm/thread_world.h"
#include "exec/routing_dump.h"
#include "exec/run_state.h"
#include "exec/token_batches.h"
#include "exec/tracer.h"
#include "trace/chrome.h"
#include "trace/routing_file.h"

namespace tessera::exec {

namespace {

constexpr std::int64_t kSpansPerTracedStep = 1 << 14;

// What the rank threads share. Written by one rank at a time (rank 0, or under the mutex).
struct Run {
  const plan::Plan& plan;
  const TrainInputs& inputs;
  const TrainHooks& hooks;
  std::optional<comm::ThreadWorld> threads;
  comm::World& world;
  TokenBatches batches;
  std::optional<TokenBatches> validation;
  std::optional<ckpt::CheckpointWriter> writer;
  std::shared_ptr<const ckpt::CheckpointReader> resume;  // shared by the ranks: its checksums are read once
  std::ofstream metrics;
  RunSummary summary;
  std::vector<std::unique_ptr<Tracer>> tracers;  // [2 * local rank]: own thread, helper
  std::atomic<bool> diverged = false;            // set by every rank after the same step
  std::mutex mutex;

  Run(const plan::Plan& p, const TrainInputs& in, const TrainHooks& h);
  // Of several processes the first has rank 0, and writes what is not each rank's own.
  [[nodiscard]] bool leads() const { return world.process() == 0; }
};

[[noreturn]] void cannot_write(const std::filesystem::path& path) {
  throw Error(ErrorKind::io, "cannot write", path.string(), "check the folder's permissions and free space");
}

// Drops the lines of steps that the resumed run does again, and one that a kill cut short.
void keep_lines_before(const std::filesystem::path& path, std::int64_t step) {
  if (!std::filesystem::exists(path)) return;
  std::string kept;
  for (const std::string& line : split(read_text(path), '\n')) {
    const auto j = nlohmann::json::parse(line, nullptr, false);
    if (j.is_object() && j.value("step", step) < step) kept.append(line).append("\n");
  }
  write_atomically(path, kept);
}

Run::Run(const plan::Plan& p, const TrainInputs& in, const TrainHooks& h)
    : plan(p),
      inputs(in),
      hooks(h),
      world(in.world != nullptr ? *in.world
                                : threads.emplace(comm::ThreadWorld::Options{.size = p.layout.world_size()})),
      batches(in.train, p.job.train.sequence_length, p.job.train.seed) {
  if (in.validation != nullptr) {
    validation.emplace(in.validation, p.job.train.sequence_length, p.job.train.seed);
  }
  const spec::CheckpointSpec& c = p.job.checkpoint;
  if (!c.folder.empty()) {
    std::filesystem::create_directories(c.folder);
    resume = in.resume;
    if (!resume && c.resume) resume = ckpt::open_latest_checkpoint(c.folder);
    writer.emplace(ckpt::CheckpointWriter::Options{.folder = c.folder,
                                                   .keep = c.keep,
                                                   .world_size = p.layout.world_size(),
                                                   .first_rank = world.local_ranks().front().value,
                                                   .local_ranks = world.ranks_per_process(),
                                                   .process = world.process(),
                                                   .processes = world.processes(),
                                                   .first_process_id = world.first_process_id()});
  }
  if (!in.output.empty()) {
    std::filesystem::create_directories(in.output);
  }
  if (!in.output.empty() && leads()) {
    summary.metrics = in.output / "metrics.jsonl";
    if (resume) keep_lines_before(summary.metrics, resume->meta().step);
    metrics.open(summary.metrics, resume ? std::ios::app : std::ios::trunc);
    if (!metrics) cannot_write(summary.metrics);
  }
  for (const Rank r : world.local_ranks()) {
    const std::int64_t capacity = in.output.empty() ? 1 : kSpansPerTracedStep * p.job.output.trace_steps;
    tracers.push_back(std::make_unique<Tracer>(r, trace::Runner::rank, std::max<std::int64_t>(1, capacity)));
    tracers.push_back(
        std::make_unique<Tracer>(r, trace::Runner::helper, std::max<std::int64_t>(1, capacity / 8)));
  }
  summary.ranks.resize(static_cast<std::size_t>(p.layout.world_size()));
}

// Sums what the summary shows; the first step of a run pays for cold caches and is left out when there are
// others.
class Totals {
 public:
  void add(const StepMetrics& m, std::int64_t routing_from) {
    if (m.step >= routing_from) {
      routing_.resize(m.result.routing.size());
      routers_.resize(routing_.size());
      for (std::size_t l = 0; l < routing_.size(); ++l) {
        add_routing(routing_[l], m.result.routing[l]);
        add_router(routers_[l], m.routing[l], static_cast<double>(m.result.routing[l].tokens));
      }
    }
    if (steps_ == 0 || (steps_ == 1 && !dropped_first_)) {
      dropped_first_ = steps_ == 1;
      sum_ = {};
      counted_ = 0;
    }
    ++steps_;
    ++counted_;
    sum_.time += m.time;
    sum_.tokens += m.tokens;
    sum_.mfu += m.mfu * m.time.value;
    sum_.mfu_full += m.mfu_full * m.time.value;
    sum_.hfu += m.hfu * m.time.value;
    sum_.bubble += m.bubble;
    sum_.bubble_clock = m.bubble_clock;
    sum_.axes.resize(std::max(sum_.axes.size(), m.axes.size()));
    for (std::size_t a = 0; a < m.axes.size(); ++a) {
      sum_.axes[a].axis = m.axes[a].axis;
      sum_.axes[a].bytes += m.axes[a].bytes;
      sum_.axes[a].total += m.axes[a].total;
      sum_.axes[a].exposed += m.axes[a].exposed;
    }
    sum_.result = m.result;
  }
  // Bytes and seconds of the axes become means per step.
  void finish(RunSummary& summary) const {
    summary.mean = sum_;
    if (counted_ == 0) return;
    StepMetrics& m = summary.mean;
    m.step = counted_;
    m.tokens_per_second = static_cast<double>(m.tokens) / m.time.value;
    m.mfu /= m.time.value;
    m.mfu_full /= m.time.value;
    m.hfu /= m.time.value;
    m.bubble /= static_cast<double>(counted_);
    for (AxisUse& u : m.axes) {
      u.bytes = Bytes(u.bytes.value / counted_);
      u.total = Seconds(u.total.value / static_cast<double>(counted_));
      u.exposed = Seconds(u.exposed.value / static_cast<double>(counted_));
    }
    for (std::size_t l = 0; l < routing_.size(); ++l) {
      LayerRouting r = routing_[l];
      const auto tokens = static_cast<double>(std::max<std::int64_t>(1, r.tokens));
      r.entropy /= tokens;
      RoutingFigures f = routing_figures(r);
      f.logit_rms = std::sqrt(routers_[l].logit_rms / tokens);
      f.logit_max = routers_[l].logit_max;
      f.unserved_rate = routers_[l].unserved_rate / tokens;
      f.bias = routers_[l].bias;
      summary.routing.push_back(std::move(f));
    }
  }

 private:
  static void add_routing(LayerRouting& sum, const LayerRouting& r) {
    sum.layer = r.layer;
    sum.chosen.resize(r.chosen.size());
    sum.dropped.resize(r.dropped.size());
    for (std::size_t e = 0; e < r.chosen.size(); ++e) {
      sum.chosen[e] += r.chosen[e];
      sum.dropped[e] += r.dropped[e];
    }
    sum.tokens += r.tokens;
    sum.entropy += r.entropy * static_cast<double>(r.tokens);
  }
  // Until finish(): logit_rms is the sum of squares, unserved_rate that of tokens; bias is the last one.
  static void add_router(RoutingFigures& sum, const RoutingFigures& f, double tokens) {
    sum.logit_rms += f.logit_rms * f.logit_rms * tokens;
    sum.logit_max = std::max(sum.logit_max, f.logit_max);
    sum.unserved_rate += f.unserved_rate * tokens;
    sum.bias = f.bias;
  }
  StepMetrics sum_;
  std::vector<LayerRouting> routing_;
  std::vector<RoutingFigures> routers_;
  std::int64_t steps_ = 0, counted_ = 0;
  bool dropped_first_ = false;
};

void watch(RankEngine& engine, Tracer& own, Tracer& helper, bool on) {
  engine.set_observer(on ? &own : nullptr);
  const Communicators& c = engine.comms();
  for (Communicator* comm : c.all()) {
    const bool reduction = comm == c.dp.get() || comm == c.tp_dp.get() || comm == c.edp.get();
    const bool rows = engine.overlaps_dispatch() && (comm == c.ep.get() || comm == c.etp.get());
    comm->set_listener(on ? (reduction || rows ? &helper : &own) : nullptr);
  }
}

std::int64_t start_state(Run& run, RankEngine& engine) {
  if (run.resume) {
    load_state(engine, *run.resume, StateParts::weights_and_optimizer);
    return run.resume->meta().step;
  }
  engine.initialise();
  if (run.inputs.start_weights) load_state(engine, *run.inputs.start_weights, StateParts::weights);
  return 0;
}

void save(Run& run, RankEngine& engine, std::int64_t steps_done) {
  const spec::Job& job = run.plan.job;
  run.writer->stage(engine.rank(),
                    {.step = steps_done,
                     .tokens = steps_done * job.train.global_batch_size * job.train.sequence_length,
                     .job_yaml = spec::to_yaml(job),
                     .hf_config = spec::to_hf_config(job.model)},
                    owned_pieces(engine));
}

void validate(Run& run, RankEngine& engine) {
  if (!run.validation) return;
  const spec::Job& job = run.plan.job;
  const std::int64_t pass = std::int64_t{job.parallel.dp} * job.train.micro_batch_size;
  const std::int64_t count = std::min<std::int64_t>(run.validation->num_sequences(), 256) / pass * pass;
  if (count == 0) return;
  const double loss = engine.evaluate(*run.validation, 0, count);
  if (engine.rank().value != 0) return;
  run.summary.validation_loss = loss;
  run.summary.validation_sequences = count;
}

// On rank 0.
void report_step(Run& run, const StepMetrics& m) {
  run.summary.losses.push_back(m.result.ce_loss);
  if (run.metrics.is_open()) {
    run.metrics << to_json(m) << '\n';
    run.metrics.flush();
    if (!run.metrics) cannot_write(run.summary.metrics);
  }
  if (run.hooks.on_step) run.hooks.on_step(m);
}

std::unique_ptr<RoutingDump> start_dump(Run& run, RankEngine& engine, std::int64_t first) {
  if (run.inputs.dump_routing.empty()) return nullptr;
  return std::make_unique<RoutingDump>(run.plan, engine,
                                       RoutingDump::Options{.first_step = first,
                                                            .last_step = run.plan.job.train.steps,
                                                            .tokens = run.inputs.dump_routing_tokens});
}

// Collective.
void finish_dump(Run& run, RoutingDump* dump) {
  if (dump == nullptr) return;
  const trace::RoutingStats stats = dump->finish();
  if (stats.num_tokens == 0) return;  // not rank 0, or no step was run
  trace::write_routing(run.inputs.dump_routing, stats);
  run.summary.routing_dump = run.inputs.dump_routing;
}

// Collective: the memory of every rank, into the summary.
void gather_memory(Run& run, RankEngine& engine) {
  constexpr auto kKinds = static_cast<std::size_t>(plan::kNumMemoryKinds);
  std::array<std::int64_t, 2 * kKinds> mine{};
  for (std::size_t k = 0; k < kKinds; ++k) {
    mine[k] = engine.planned_memory().bytes[k].value;
    mine[kKinds + k] = engine.measured_memory().bytes[k].value;
  }
  Communicator& world = *engine.comms().world;
  const auto width = static_cast<std::int64_t>(mine.size());
  std::vector<std::int64_t> all(mine.size() * static_cast<std::size_t>(world.size()));
  world.all_gather({all.data(), tensor::DType::i64, {world.size(), width}},
                   {mine.data(), tensor::DType::i64, {width}});
  if (world.rank() != 0) return;
  for (std::size_t r = 0; r < run.summary.ranks.size(); ++r) {
    RankUse& use = run.summary.ranks[r];
    use.rank = Rank(static_cast<std::int32_t>(r));
    for (std::size_t k = 0; k < kKinds; ++k) {
      use.planned.bytes[k] = Bytes(all[r * mine.size() + k]);
      use.measured.bytes[k] = Bytes(all[r * mine.size() + kKinds + k]);
    }
  }
}

void train_rank(Run& run, Rank rank) {
  const spec::Job& job = run.plan.job;
  const auto index = static_cast<std::size_t>(rank.value - run.world.local_ranks().front().value);
  comm::CommWorker worker({.on_unwind = [&] { run.world.abort(rank, "left while its reductions ran"); }});
  RankEngine engine(
      {.plan = &run.plan,
       .data = &run.batches,
       .rank = rank,
       .kernels = kernels::make_cpu(),
       .communicators = [&](std::span<const Rank> members,
                            std::string_view label) { return run.world.communicator(rank, members, label); },
       .worker = &worker,
       .whereabouts = &run.world.whereabouts(rank)});
  const std::int64_t first = start_state(run, engine);
  StepGatherer gatherer(run.plan, run.inputs.cores, run.inputs.peak_per_core);
  const std::unique_ptr<RoutingDump> dump = start_dump(run, engine, first);
  Totals totals;
  const bool leader = rank.value == 0;
  if (leader) {
    run.summary.first_step = first;
    if (run.hooks.on_start) run.hooks.on_start(first);
  }
  Tracer& own = *run.tracers[2 * index];
  Tracer& helper = *run.tracers[2 * index + 1];
  const std::int64_t trace_from = job.train.steps - job.output.trace_steps;
  const std::int64_t routing_from = job.train.steps - std::max<std::int64_t>(1, job.train.steps / 10);
  for (std::int64_t step = first; step < job.train.steps; ++step) {
    const bool traced = !run.inputs.output.empty() && step >= trace_from;
    watch(engine, own, helper, traced);
    engine.set_wait_listener(traced ? &own : nullptr);
    own.start(step);
    helper.start(step);
    if (dump) dump->begin_step(step);
    const std::int64_t start = wall_ns();
    engine.train_step(step);
    const Seconds wall(static_cast<double>(wall_ns() - start) * 1e-9);
    watch(engine, own, helper, false);
    const StepMetrics m = gatherer.gather(engine, step, wall);
    if (dump) dump->end_step(m.result);
    const bool last = step + 1 == job.train.steps;
    // Equal on every rank, so all leave the loop together; the spoiled weights never reach a checkpoint.
    const bool diverged = !std::isfinite(m.result.loss()) || !std::isfinite(m.result.grad_norm);
    if (diverged) run.diverged = true;
    if (!diverged && run.writer &&
        (last || (job.checkpoint.every > 0 && (step + 1) % job.checkpoint.every == 0))) {
      save(run, engine, step + 1);
    }
    if (leader) {
      if (diverged) run.summary.diverged_at = step;
      totals.add(m, routing_from);
      report_step(run, m);
    }
    if (diverged) break;
  }
  finish_dump(run, dump.get());
  if (!run.diverged) validate(run, engine);
  if (leader) totals.finish(run.summary);
  gather_memory(run, engine);
}

void append(trace::Trace& to, const trace::Trace& from) {
  const auto names = static_cast<std::int32_t>(to.names.size());
  const auto streams = static_cast<std::int32_t>(to.streams.size());
  to.names.insert(to.names.end(), from.names.begin(), from.names.end());
  to.streams.insert(to.streams.end(), from.streams.begin(), from.streams.end());
  for (trace::Span span : from.spans) {
    span.name = trace::NameId(span.name.value + names);
    span.stream = trace::StreamId(span.stream.value + streams);
    to.spans.push_back(span);
  }
  to.dropped += from.dropped;
}

// Of several processes each leaves its part beside the trace, and the first puts them together. Collective.
void write_trace(Run& run) {
  if (run.inputs.output.empty() || run.plan.job.output.trace_steps == 0) return;
  // Nothing ran, or not to the steps that are traced: the trace of the run before stays.
  const std::int64_t steps = run.plan.job.train.steps;
  if (run.diverged || (run.resume && run.resume->meta().step >= steps)) return;
  std::vector<const trace::Recorder*> recorders;
  for (const auto& t : run.tracers) recorders.push_back(&t->recorder());
  trace::Trace trace = trace::collect(recorders, {{"source", "tessera train"}});
  const auto part = [&](std::int32_t process) {
    return run.inputs.output / fmt::format(".trace-{:05}.json", process);
  };
  if (!run.leads()) trace::write_chrome(part(run.world.process()), trace);
  if (run.world.spans_processes()) run.world.run([](Rank) {});
  if (!run.leads()) return;
  for (std::int32_t p = 1; p < run.world.processes(); ++p) {
    append(trace, trace::read_chrome(part(p)));
    std::filesystem::remove(part(p));
  }
  run.summary.trace = run.inputs.output / "trace.json";
  trace::write_chrome(run.summary.trace, trace::canonical(std::move(trace)));
}

}  // namespace

RunSummary train(const plan::Plan& plan, const TrainInputs& inputs, const TrainHooks& hooks) {
  spec::require_engine_runs(plan.job, "job");
  const std::int64_t start = wall_ns();
  Run run(plan, inputs, hooks);
  run.world.set_lands_messages(plan.job.parallel.overlap_p2p_comm);
  run.world.run([&](Rank rank) { train_rank(run, rank); });
  if (run.writer) {
    run.writer->wait();
    if (run.leads())
      run.summary.checkpoint = ckpt::latest_checkpoint(plan.job.checkpoint.folder).value_or("");
  }
  write_trace(run);
  run.summary.seconds = Seconds(static_cast<double>(wall_ns() - start) * 1e-9);
  return std::move(run.summary);
}

}  // namespace tessera::exec
