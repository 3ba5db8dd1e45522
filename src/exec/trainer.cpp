#include "exec/trainer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/clock.h"
#include "exec/routing_dump.h"
#include "exec/run_totals.h"
#include "exec/training_run.h"
#include "trace/routing_file.h"

namespace tessera::exec {

namespace {

void validate(TrainingRun& run, RankEngine& engine) {
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

std::unique_ptr<RoutingDump> start_dump(TrainingRun& run, RankEngine& engine, std::int64_t first) {
  if (run.inputs.dump_routing.empty()) return nullptr;
  return std::make_unique<RoutingDump>(run.plan, engine,
                                       RoutingDump::Options{.first_step = first,
                                                            .last_step = run.plan.job.train.steps,
                                                            .tokens = run.inputs.dump_routing_tokens});
}

// Collective.
void finish_dump(TrainingRun& run, RoutingDump* dump) {
  if (dump == nullptr) return;
  const trace::RoutingStats stats = dump->finish();
  if (stats.num_tokens == 0) return;  // not rank 0, or no step was run
  trace::write_routing(run.inputs.dump_routing, stats);
  run.summary.routing_dump = run.inputs.dump_routing;
}

// One rank from its first step to its last.
class RankTraining {
 public:
  RankTraining(TrainingRun& run, Rank rank)
      : run_(run),
        job_(run.plan.job),
        leader_(rank.value == 0),
        own_(*run.tracers[2 * index_of(rank)]),
        helper_(*run.tracers[2 * index_of(rank) + 1]),
        worker_({.on_unwind = [this, rank] { run_.world.abort(rank, "left while its reductions ran"); }}),
        engine_(engine_options(rank)),
        state_{DivergenceWatch(job_.train.divergence), Rebalancer(run.plan, run.inputs.rebalancing)},
        gatherer_(run.plan, run.inputs.cores, run.inputs.peak_per_core) {}

  void run() {
    std::int64_t step = start_state(run_, engine_, state_);
    dump_ = start_dump(run_, engine_, step);
    if (leader_) {
      run_.summary.first_step = step;
      if (run_.hooks.on_start) run_.hooks.on_start(step);
    }
    while (!left_ && step < job_.train.steps) step = run_step(step);
    finish_dump(run_, dump_.get());
    if (!left_) validate(run_, engine_);
    if (!left_ && run_.is_first_here(engine_.rank())) run_.complete = true;
    if (leader_) totals_.finish(run_.summary);
    gather_memory(run_, engine_);
  }

 private:
  [[nodiscard]] std::size_t index_of(Rank rank) const {
    return static_cast<std::size_t>(rank.value - run_.world.local_ranks().front().value);
  }

  [[nodiscard]] RankEngine::Options engine_options(Rank rank) {
    const Compute& compute = run_.inputs.compute;
    RankEngine::Options options{.plan = &run_.plan,
                                .data = &run_.batches,
                                .rank = rank,
                                .kernels = kernels_for(rank, compute.kernels),
                                .communicators =
                                    [this, rank](std::span<const Rank> members, std::string_view label) {
                                      return run_.world.communicator(rank, members, label);
                                    },
                                .network = nullptr,
                                .worker = &worker_,
                                .whereabouts = &run_.world.whereabouts(rank)};
    if (compute.network) options.network = compute.network(rank, options.kernels->memory());
    return options;
  }

  // Gives the next step.
  std::int64_t run_step(std::int64_t step) {
    const bool traced = !run_.inputs.output.empty() && step >= job_.train.steps - job_.output.trace_steps;
    watch(engine_, own_, helper_, traced);
    engine_.set_wait_listener(traced ? &own_ : nullptr);
    own_.start(step);
    helper_.start(step);
    if (dump_) dump_->begin_step(step);
    const std::int64_t start = wall_ns();
    const StepOrder order = state_.divergence.order(step);
    engine_.train_step(order, [this](const StepResult& r) { return state_.divergence.judge(r); });
    const Seconds wall(static_cast<double>(wall_ns() - start) * 1e-9);
    watch(engine_, own_, helper_, false);
    const int asked = run_.inputs.leave != nullptr ? run_.inputs.leave->load() : 0;
    StepMetrics m = gatherer_.gather(engine_, step, wall, asked);
    if (dump_) dump_->end_step(m.result);
    m.batch = order.batch;
    m.warnings.insert(m.warnings.begin(), news_.begin(), news_.end());
    news_.clear();
    // All of what follows is equal on every rank, so all go the same way.
    if (m.leave != 0 && step + 1 < job_.train.steps) leave(m.leave);
    return state_.divergence.fault().empty() ? finish_step(step, m) : diverged(step, m);
  }

  void leave(int signal) {
    left_ = true;
    if (leader_) run_.summary.left_by = signal;
  }

  void report(const StepMetrics& m) {
    if (m.moved) run_.summary.moves.push_back(*m.moved);
    totals_.add(m, job_.train.steps - std::max<std::int64_t>(1, job_.train.steps / 10));
    run_.report_step(m);
  }

  std::int64_t finish_step(std::int64_t step, StepMetrics& m) {
    const std::int64_t done = step + 1;
    if (!left_ && done < job_.train.steps) m.moved = state_.rebalancer.after_step(engine_, done);
    const bool due = job_.checkpoint.every > 0 && done % job_.checkpoint.every == 0;
    if (run_.writer && (due || left_ || done == job_.train.steps)) save(run_, engine_, state_, done);
    if (leader_) report(m);
    return done;
  }

  std::int64_t diverged(std::int64_t step, StepMetrics& m) {
    const Divergence event = describe(step);
    m.diverged = event.fault + "; " + event.where;
    if (leader_) run_.summary.divergences.push_back(event);
    switch (event.action) {
      case spec::OnDivergence::skip:
        m.warnings.push_back("left out: " + m.diverged);
        return finish_step(step, m);
      case spec::OnDivergence::rollback: {
        const std::int64_t to = roll_back(run_, engine_, state_, step);
        if (leader_) run_.summary.divergences.back().back_to = to;
        news_.push_back(fmt::format("after a rollback from step {}: {}", step + 1, m.diverged));
        return to;
      }
      case spec::OnDivergence::stop:
        break;
    }
    left_ = true;
    if (leader_) {
      run_.summary.left_by = 0;
      run_.summary.diverged_at = step;
      report(m);
    }
    return step;
  }

  // Collective.
  Divergence describe(std::int64_t step) {
    const StepOrder order = state_.divergence.order(step);
    const bool finite = state_.divergence.is_finite();
    const BadTensor bad = finite ? engine_.find_largest_gradient() : engine_.find_bad_tensor(order);
    Divergence event{.step = step, .fault = state_.divergence.fault()};
    event.action = state_.divergence.decide(step);
    if (bad.what.empty()) {
      event.where = "every tensor was finite when the step was run again: suspect the hardware";
    } else {
      event.where = fmt::format("{}{}, rank {}", finite ? "" : "first in ", bad.what, bad.rank.value);
    }
    return event;
  }

  TrainingRun& run_;
  const spec::Job& job_;
  const bool leader_;
  Tracer& own_;
  Tracer& helper_;
  comm::CommWorker worker_;
  RankEngine engine_;
  RankState state_;
  StepGatherer gatherer_;
  std::unique_ptr<RoutingDump> dump_;
  RunTotals totals_;
  std::vector<std::string> news_;  // for the next step's line
  bool left_ = false;              // before the last step: asked to, or diverged
};

}  // namespace

RunSummary train(const plan::Plan& plan, const TrainInputs& inputs, const TrainHooks& hooks) {
  spec::require_engine_runs(plan.job, "job", inputs.compute.on);
  const std::int64_t start = wall_ns();
  TrainingRun run(plan, inputs, hooks);
  run.world.set_lands_messages(plan.job.parallel.overlap_p2p_comm);
  run.world.run([&](Rank rank) { RankTraining(run, rank).run(); });
  if (run.writer) {
    run.writer->wait();
    if (run.leads())
      run.summary.checkpoint = ckpt::latest_checkpoint(plan.job.checkpoint.folder).value_or("");
  }
  run.write_trace();
  run.summary.seconds = Seconds(static_cast<double>(wall_ns() - start) * 1e-9);
  return std::move(run.summary);
}

}  // namespace tessera::exec
