#include "exec/training_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "exec/run_state.h"
#include "trace/chrome.h"

namespace tessera::exec {

namespace {

constexpr std::int64_t kSpansPerTracedStep = 1 << 14;

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

}  // namespace

TrainingRun::TrainingRun(const plan::Plan& p, const TrainInputs& in, const TrainHooks& h)
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

void TrainingRun::report_step(const StepMetrics& m) {
  summary.losses.push_back(m.result.ce_loss);
  if (metrics.is_open()) {
    metrics << to_json(m) << '\n';
    metrics.flush();
    if (!metrics) cannot_write(summary.metrics);
  }
  if (hooks.on_step) hooks.on_step(m);
}

void TrainingRun::forget_from(std::int64_t step) {
  summary.first_step = std::min(summary.first_step, step);
  summary.losses.resize(static_cast<std::size_t>(step - summary.first_step));
  if (!metrics.is_open()) return;
  metrics.close();
  keep_lines_before(summary.metrics, step);
  metrics.open(summary.metrics, std::ios::app);
  if (!metrics) cannot_write(summary.metrics);
}

void TrainingRun::write_trace() {
  if (inputs.output.empty() || plan.job.output.trace_steps == 0) return;
  // Nothing ran, or not to the steps that are traced: the trace of the run before stays.
  const std::int64_t steps = plan.job.train.steps;
  if (!complete || (resume && resume->meta().step >= steps)) return;
  std::vector<const trace::Recorder*> recorders;
  for (const auto& t : tracers) recorders.push_back(&t->recorder());
  trace::Trace trace = trace::collect(recorders, {{"source", "tessera train"}});
  const auto part = [&](std::int32_t process) {
    return inputs.output / fmt::format(".trace-{:05}.json", process);
  };
  if (!leads()) trace::write_chrome(part(world.process()), trace);
  if (world.spans_processes()) world.run([](Rank) {});
  if (!leads()) return;
  for (std::int32_t p = 1; p < world.processes(); ++p) {
    append(trace, trace::read_chrome(part(p)));
    std::filesystem::remove(part(p));
  }
  summary.trace = inputs.output / "trace.json";
  trace::write_chrome(summary.trace, trace::canonical(std::move(trace)));
}

void watch(RankEngine& engine, Tracer& own, Tracer& helper, bool on) {
  engine.set_observer(on ? &own : nullptr);
  const Communicators& c = engine.comms();
  for (Communicator* comm : c.all()) {
    const bool reduction = comm == c.dp.get() || comm == c.tp_dp.get() || comm == c.edp.get();
    const bool rows = engine.overlaps_dispatch() && (comm == c.ep.get() || comm == c.etp.get());
    comm->set_listener(on ? (reduction || rows ? &helper : &own) : nullptr);
  }
}

void gather_memory(TrainingRun& run, RankEngine& engine) {
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

std::int64_t start_state(TrainingRun& run, RankEngine& engine, RankState& state) {
  if (run.resume) {
    load_state(engine, *run.resume, StateParts::weights_and_optimizer);
    state.divergence.restore(load_numbers(*run.resume, kDivergenceState));
    state.rebalancer.restore(engine, load_numbers(*run.resume, kExpertSlots));
    return run.resume->meta().step;
  }
  engine.initialise();
  if (run.inputs.start_weights) load_state(engine, *run.inputs.start_weights, StateParts::weights);
  state.divergence.restore({});
  state.rebalancer.restore(engine, {});
  return 0;
}

void save(TrainingRun& run, RankEngine& engine, const RankState& state, std::int64_t steps_done) {
  const spec::Job& job = run.plan.job;
  std::vector<ckpt::Piece> pieces = owned_pieces(engine);
  std::vector<double> divergence = state.divergence.state(), slots = state.rebalancer.state();
  if (engine.rank().value == 0 && !divergence.empty())
    pieces.push_back(numbers_piece(kDivergenceState, divergence));
  if (engine.rank().value == 0 && !slots.empty()) pieces.push_back(numbers_piece(kExpertSlots, slots));
  run.writer->stage(engine.rank(),
                    {.step = steps_done,
                     .tokens = steps_done * job.train.global_batch_size * job.train.sequence_length,
                     .job_yaml = spec::to_yaml(job),
                     .hf_config = spec::to_hf_config(job.model)},
                    pieces, *engine.kernels().memory());
}

std::int64_t roll_back(TrainingRun& run, RankEngine& engine, RankState& state, std::int64_t step) {
  const std::int64_t batch = state.divergence.order(step).batch;
  Communicator& world = *engine.comms().world;
  run.writer->wait();  // what was staged is of good steps
  world.barrier();
  if (run.is_first_here(engine.rank())) {
    std::vector<std::string> skipped;
    run.resume = ckpt::open_latest_checkpoint(run.plan.job.checkpoint.folder, &skipped);
    for (const std::string& s : skipped) run.summary.notes.push_back("skipped a damaged checkpoint: " + s);
  }
  world.barrier();
  const std::int64_t to = start_state(run, engine, state);
  state.divergence.rolled_back(step, batch, to);
  if (engine.rank().value == 0) run.forget_from(to);
  return to;
}

}  // namespace tessera::exec
