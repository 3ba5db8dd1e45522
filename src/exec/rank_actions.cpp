// The actions of a schedule, as the rank engine runs them: which slots, which messages.
#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "base/clock.h"
#include "exec/rank_engine.h"

namespace tessera::exec {

using schedule::ActionKind;

namespace {
// One number per (direction, stage, micro-batch); the world sum at the end of a step separates the steps.
std::int64_t tag_of(bool forward, StageId sender, MicrobatchId mb) {
  return (std::int64_t{sender.value} * 2 + (forward ? 0 : 1)) << 32 | mb.value;
}
}  // namespace

std::int32_t RankEngine::live_slot(const StageState& s, MicrobatchId mb) const {
  return options_.plan->proof.slot_of(s.stage->id(), mb);
}

std::int32_t RankEngine::gradient_slot(const StageState& s, MicrobatchId mb) const {
  return mb.value % s.counts.gradient;
}

std::int32_t RankEngine::take_deferred(StageState& s, MicrobatchId mb) {
  const auto free = std::ranges::find(s.deferred_used, false);
  TESSERA_CHECK(free != s.deferred_used.end(), "the plan has a deferred slot for every outstanding W");
  *free = true;
  const auto slot = static_cast<std::int32_t>(free - s.deferred_used.begin());
  s.deferred_of[static_cast<std::size_t>(mb.value)] = slot;
  return slot;
}

void RankEngine::free_deferred(StageState& s, MicrobatchId mb) {
  std::int32_t& slot = s.deferred_of[static_cast<std::size_t>(mb.value)];
  s.deferred_used[static_cast<std::size_t>(slot)] = false;
  slot = -1;
}

namespace {
comm::Phase phase_of(ActionKind kind) {
  switch (kind) {
    case ActionKind::forward:
    case ActionKind::send_forward:
    case ActionKind::recv_forward:
      return comm::Phase::forward;
    case ActionKind::backward_input:
      return comm::Phase::backward_input;
    case ActionKind::backward_weight:
    case ActionKind::reduce_grad:
      return comm::Phase::backward_weight;
    case ActionKind::backward:
    case ActionKind::send_backward:
    case ActionKind::recv_backward:
      return comm::Phase::backward;
  }
  return comm::Phase::none;
}
}  // namespace

void RankEngine::at(comm::Phase phase, std::int32_t microbatch) {
  if (options_.whereabouts != nullptr) options_.whereabouts->set_action(microbatch, phase);
}

void RankEngine::run(const schedule::Action& a) {
  at(phase_of(a.kind), a.microbatch.value);
  if (probe_) probe_action(a);
  StageState& s = state(a.stage);
  const MicrobatchId mb = a.microbatch;
  switch (a.kind) {
    case ActionKind::forward:
      run_forward(s, mb);
      return;
    case ActionKind::backward_input:
      run_backward_input(s, mb);
      return;
    case ActionKind::backward_weight:
      run_backward_weight(s, mb);
      return;
    case ActionKind::backward:
      run_backward(s, mb, *ctx_);
      return;
    case ActionKind::send_forward: {
      const std::int32_t slot = live_slot(s, mb);
      const std::int64_t tag = tag_of(true, a.stage, mb);
      comms_.pp->send(s.stage->output(slot), s.next_rank, tag);
      s.sent_output[static_cast<std::size_t>(slot)] = tag;
      return;
    }
    case ActionKind::recv_forward:
      comms_.pp->recv(s.stage->input(live_slot(s, mb)), s.previous_rank,
                      tag_of(true, StageId(a.stage.value - 1), mb));
      return;
    case ActionKind::send_backward: {
      const std::int32_t slot = gradient_slot(s, mb);
      const std::int64_t tag = tag_of(false, a.stage, mb);
      comms_.pp->send(s.stage->gradient(slot), s.previous_rank, tag);
      s.sent_gradient[static_cast<std::size_t>(slot)] = tag;
      return;
    }
    case ActionKind::recv_backward:
      claim_gradient(s, mb);
      comms_.pp->recv(s.stage->gradient(gradient_slot(s, mb)), s.next_rank,
                      tag_of(false, StageId(a.stage.value + 1), mb));
      return;
    case ActionKind::reduce_grad:
      // The buckets of the stage went out one by one as their last weight gradient was done.
      TESSERA_CHECK_EQ(s.num_weight_done, options_.plan->num_microbatches(), "all weight gradients are done");
      return;
  }
}

bool RankEngine::runs_pairs() const {
  const spec::Job& job = options_.plan->job;
  return (options_.worker != nullptr || options_.dry_run) && job.train.moe.overlap_dispatch &&
         job.model.moe && comms_.ep->size() * comms_.etp->size() > 1 &&
         job.train.recompute != spec::Recompute::full && job.train.zero_stage < 3 &&
         options_.plan->schedule.kind == schedule::Kind::combined;
}

std::int64_t RankEngine::pair_at(std::size_t i) const {
  const schedule::ActionList& list = actions();
  if (!pair_ || probe_ || list[i].kind != ActionKind::forward) return -1;
  std::size_t next = i + 1;
  if (next < list.size() && list[next].kind == ActionKind::send_forward) ++next;
  if (next >= list.size() || !schedule::may_run_beside(list[i], list[next])) return -1;
  return static_cast<std::int64_t>(next);
}

// With ZeRO-3 the values of the next pass's first unit travel while this pass ends.
void RankEngine::expect_after(std::size_t i) {
  if (options_.plan->job.train.zero_stage < 3) return;
  const schedule::ActionList& list = actions();
  std::size_t next = i + 1;
  while (next < list.size() && !schedule::is_compute(list[next].kind)) ++next;
  if (next >= list.size()) return;
  const Stage& stage = *state(list[next].stage).stage;
  switch (list[next].kind) {
    case ActionKind::forward:
      return shards_->expect(stage.id(), UnitPass::forward, stage.first_position());
    case ActionKind::backward_input:
      return shards_->expect(stage.id(), UnitPass::backward_input, stage.last_position());
    case ActionKind::backward:
      return shards_->expect(stage.id(), UnitPass::backward, stage.last_position());
    case ActionKind::backward_weight:
    case ActionKind::send_forward:
    case ActionKind::recv_forward:
    case ActionKind::send_backward:
    case ActionKind::recv_backward:
    case ActionKind::reduce_grad:
      return;
  }
}

void RankEngine::run_timed(std::size_t i) {
  if (schedule::is_compute(actions()[i].kind)) expect_after(i);
  ActionTime& t = times_[i];
  t.start_ns = wall_ns();
  const std::int64_t cpu = thread_cpu_ns();
  run(actions()[i]);
  if (observer_ != nullptr) options_.kernels->memory()->synchronise();  // what a GPU has queued belongs to it
  t.cpu_ns = thread_cpu_ns() - cpu;
  t.end_ns = wall_ns();
  if (observer_ != nullptr) observer_->action(actions()[i], t);
}

// The two share the wall time by their CPU times, F first, so that the actions of a rank do not overlap.
void RankEngine::run_pair(std::size_t forward, std::size_t backward) {
  const schedule::ActionList& list = actions();
  const std::int64_t start = wall_ns();
  std::int64_t cpu_f = 0, cpu_b = 0;
  comm::CommWorker* const worker = std::exchange(ctx_->worker, rows_worker_.get());
  ctx_->turn = pair_.get();
  pair_ctx_->weights = ctx_->weights;
  const auto run_first = [&] {
    const std::int64_t before = thread_cpu_ns();
    for (std::size_t i = forward; i < backward; ++i) run(list[i]);  // and its send
    cpu_f = thread_cpu_ns() - before;
  };
  const auto run_second = [&] {
    const std::int64_t before = thread_cpu_ns();
    options_.kernels->memory()->use_here();  // the pair's own thread
    run_backward(state(list[backward].stage), list[backward].microbatch, *pair_ctx_);
    cpu_b = thread_cpu_ns() - before;
  };
  pair_->run(std::cref(run_first), std::cref(run_second));  // by reference: nothing is allocated
  ctx_->turn = nullptr;
  ctx_->worker = worker;
  const std::int64_t end = wall_ns();
  const double share =
      static_cast<double>(cpu_f) / static_cast<double>(std::max<std::int64_t>(1, cpu_f + cpu_b));
  const std::int64_t middle = start + std::llround(share * static_cast<double>(end - start));
  std::fill(&times_[forward], &times_[backward], ActionTime{middle, middle, 0});
  times_[forward] = {start, middle, cpu_f};
  times_[backward] = {middle, end, cpu_b};
  if (observer_ == nullptr) return;
  for (const std::size_t i : {forward, backward}) observer_->action(list[i], times_[i]);
}

void RankEngine::claim_output(StageState& s, std::int32_t live) {
  std::int64_t& tag = s.sent_output[static_cast<std::size_t>(live)];
  if (tag != kNoMessage) comms_.pp->wait_send(s.next_rank, tag);
  tag = kNoMessage;
}

void RankEngine::claim_gradient(StageState& s, MicrobatchId mb) {
  std::int64_t& tag = s.sent_gradient[static_cast<std::size_t>(gradient_slot(s, mb))];
  if (tag != kNoMessage) comms_.pp->wait_send(s.previous_rank, tag);
  tag = kNoMessage;
}

void RankEngine::run_forward(StageState& s, MicrobatchId mb) {
  const std::int32_t live = live_slot(s, mb);
  claim_output(s, live);
  if (s.previous_here != nullptr) {
    options_.kernels->memory()->copy(s.stage->input(live),
                                     s.previous_here->stage->output(live_slot(*s.previous_here, mb)));
  }
  s.stage->forward(*ctx_, {.live = live, .deferred = 0, .gradient = 0}, microbatch(mb));
  if (probe_) probe_forward(s, mb);
  if (!s.stage->cut().has_head) return;
  s.stage->add_losses(*options_.kernels, local_losses_2_, live);
}

// The gradient of the stage's output is in its slot when the head or a receive put it there; a neighbour on
// this rank left it in its own.
void RankEngine::pull_gradient(StageState& s, MicrobatchId mb) {
  if (s.next_here == nullptr && !s.stage->cut().has_head) return;
  claim_gradient(s, mb);
  if (s.next_here == nullptr) return;
  options_.kernels->memory()->copy(s.stage->gradient(gradient_slot(s, mb)),
                                   s.next_here->stage->gradient(gradient_slot(*s.next_here, mb)));
}

void RankEngine::run_backward_input(StageState& s, MicrobatchId mb) {
  pull_gradient(s, mb);
  const StageSlot slot{
      .live = live_slot(s, mb), .deferred = take_deferred(s, mb), .gradient = gradient_slot(s, mb)};
  s.stage->backward_input(*ctx_, slot, microbatch(mb));
  if (probe_) probe_backward(s, mb);
}

void RankEngine::run_backward_weight(StageState& s, MicrobatchId mb) {
  const StageSlot slot{.live = live_slot(s, mb),
                       .deferred = s.deferred_of[static_cast<std::size_t>(mb.value)],
                       .gradient = gradient_slot(s, mb)};
  ++s.num_weight_done;
  s.stage->backward_weight(*ctx_, slot, microbatch(mb),
                           [this, &s](std::int32_t position) { weight_done(s, position); });
  free_deferred(s, mb);
}

void RankEngine::run_backward(StageState& s, MicrobatchId mb, nn::Context& ctx) {
  pull_gradient(s, mb);
  const StageSlot slot{
      .live = live_slot(s, mb), .deferred = take_deferred(s, mb), .gradient = gradient_slot(s, mb)};
  ++s.num_weight_done;
  s.stage->backward(ctx, slot, microbatch(mb),
                    [this, &s](std::int32_t position) { weight_done(s, position); });
  if (probe_) probe_backward(s, mb);
  free_deferred(s, mb);
}

double RankEngine::evaluate(const BatchSource& data, std::int64_t first, std::int64_t count) {
  const spec::Job& job = options_.plan->job;
  const std::int64_t per_pass = std::int64_t{job.parallel.dp} * job.train.micro_batch_size;
  TESSERA_CHECK(count > 0 && count % per_pass == 0, "evaluate takes whole micro-batches of all replicas");
  double sum = 0.0;
  ctx_->weights = loss_weights(data.num_targets(first, count), count);
  ctx_->training = false;
  for (std::int64_t at = 0; at < count; at += per_pass) {
    load_batch(data, first + at, 1);
    for (StageState& s : states_) {
      const MicrobatchId mb(0);
      const std::int32_t live = live_slot(s, mb);
      if (s.previous_rank >= 0 && s.previous_here == nullptr) {
        run({ActionKind::recv_forward, s.stage->id(), mb});
      }
      run_forward(s, mb);
      options_.kernels->memory()->synchronise();
      if (s.stage->cut().has_head && comms_.tp->rank() == 0) sum += s.stage->loss(live);
      if (s.next_rank >= 0 && s.next_here == nullptr) run({ActionKind::send_forward, s.stage->id(), mb});
    }
  }
  for (StageState& s : states_) claim_output(s, live_slot(s, MicrobatchId(0)));
  std::ranges::fill(sums_.span<double>(), 0.0);
  sums_.span<double>()[0] = sum;
  comms_.world->all_reduce_direct(sums_, comm::Op::sum);
  return sums_.span<double>()[0];
}

}  // namespace tessera::exec
