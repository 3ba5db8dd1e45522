#include "sim/program.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "schedule/simulate.h"

namespace tessera::sim {
namespace {

using schedule::Action;
using schedule::ActionKind;
using schedule::LaneOp;

constexpr std::int32_t kNone = -1;
constexpr double kMaxSlowdown = 0.9;

std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}

double of_rank(const std::vector<double>& values, std::int32_t rank) {
  return values.empty() ? 0.0 : values[at(rank)];
}

std::int64_t picoseconds(double seconds) {
  return schedule::to_sim_time(Seconds(seconds)).value;
}

// The k-th of the borders 0 .. n that cut `whole` into n pieces.
std::int64_t border(std::int64_t whole, std::int64_t n, std::int64_t k) {
  return whole / n * k + whole % n * k / n;
}
std::int64_t piece(std::int64_t whole, std::int64_t n, std::int64_t k) {
  return border(whole, n, k + 1) - border(whole, n, k);
}

class Builder {
 public:
  Builder(const schedule::Schedule& schedule, const cost::StepWork& work, const Options& options,
          schedule::Record record)
      : schedule_(schedule),
        work_(work),
        options_(options),
        info_(record == schedule::Record::intervals),
        lowered_(schedule.is_lowered()),
        replicas_(std::max<std::int32_t>(1, static_cast<std::int32_t>(options.replica_slowdown.size()))),
        cells_(schedule.num_stages() * schedule.num_microbatches) {
    for (std::int32_t s = 0; s < schedule.num_stages(); ++s) {
      rank_of_.push_back(schedule.rank_of(StageId(s)));
      message_.push_back(picoseconds(work.stages[at(s)].p2p_seconds));
    }
  }

  Program whole() {
    program_.pp = schedule_.pp;
    program_.num_stages = schedule_.num_stages();
    make_shapes();
    const auto lanes = at(replicas_ * schedule_.pp * kNumLanes);
    program_.lanes.lanes.resize(lanes);
    if (info_) program_.info.resize(lanes);
    program_.lanes.signals.assign(at(replicas_) * 4 * at(cells_), 1);
    if (info_) program_.events.resize(program_.lanes.signals.size());
    // In and out of each rank; then the reductions and gathers of each rank, which never run at once.
    own_links_ =
        options_.shared_links ? 2 * schedule_.pp * (options_.replicas_share_links ? 1 : replicas_) : 0;
    program_.lanes.num_links = own_links_ + replicas_ * schedule_.pp;
    if (work_.overlap_slowdown > 0) {
      program_.lanes.num_rooms = replicas_ * schedule_.pp;
      program_.lanes.slowed = 1.0 / (1.0 - std::min(work_.overlap_slowdown, kMaxSlowdown));
    }
    make_common_events();
    for (replica_ = 0; replica_ < replicas_; ++replica_) {
      for (rank_ = 0; rank_ < schedule_.pp; ++rank_) rank();
    }
    return std::move(program_);
  }

 private:
  enum Table : std::uint8_t { forward_end, backward_end, forward_message, backward_message };

  void make_shapes() {
    for (std::int32_t q = 0; q < replicas_; ++q) {
      for (std::int32_t s = 0; s < schedule_.num_stages(); ++s) {
        const double slow =
            (options_.rank_slowdown.empty() ? 1.0 : options_.rank_slowdown[at(rank_of_[at(s)])]) *
            (options_.replica_slowdown.empty() ? 1.0 : options_.replica_slowdown[at(q)]);
        for (const ActionKind kind : {ActionKind::forward, ActionKind::backward_input,
                                      ActionKind::backward_weight, ActionKind::backward}) {
          program_.shapes.push_back(action_shape(work_.stages[at(s)], kind, slow));
        }
      }
    }
  }

  std::int32_t new_event(EventKind kind, std::int32_t signals) {
    program_.lanes.signals.push_back(signals);
    if (info_) program_.events.push_back({.kind = kind});
    return static_cast<std::int32_t>(program_.lanes.signals.size()) - 1;
  }
  std::int32_t new_events(EventKind kind, std::int32_t signals, std::int32_t count) {
    const std::int32_t first = new_event(kind, signals);
    for (std::int32_t i = 1; i < count; ++i) static_cast<void>(new_event(kind, signals));
    return first;
  }
  [[nodiscard]] std::int32_t event(Table table, std::int32_t stage, MicrobatchId k) {
    const std::int32_t e = (replica_ * 4 + table) * cells_ + stage * schedule_.num_microbatches + k.value;
    if (info_ && table >= forward_message) program_.events[at(e)].kind = EventKind::message;
    return e;
  }

  // Events in which several replicas take part: a bucket of gradients is there, a rank is done.
  void make_common_events() {
    per_stage_ = (options_.num_buckets + schedule_.vpp - 1) / schedule_.vpp;
    for (std::int32_t r = 0; r < schedule_.pp; ++r) {
      const bool reduces = of_rank(work_.grad_seconds, r) > 0;
      const std::int32_t units = num_units(work_.grad_repeats);
      gradients_there_.push_back(reduces ? new_events(EventKind::replicas, replicas_,
                                                      units * (work_.grad_overlapped ? per_stage_ : 1))
                                         : kNone);
    }
    if (options_.synchronized_optimizer) {
      all_ranks_ = new_event(EventKind::ranks, schedule_.pp * replicas_);
    }
  }
  // Actions of a rank that stand for one gather or reduction each.
  [[nodiscard]] std::int32_t num_units(std::int64_t repeats) const {
    return schedule_.vpp * static_cast<std::int32_t>(repeats);
  }

  // Writing a lane.
  void push(LaneKind kind, LaneOp op, const OpInfo& info) {
    const std::int32_t lane = program_.lane(replica_, rank_, kind);
    std::vector<LaneOp>& ops = program_.lanes.lanes[at(lane)];
    ops.push_back(op);
    if (!info_) return;
    program_.info[at(lane)].push_back(info);
    if (op.signal >= 0) own_event(op.signal, lane);
  }
  void own_event(std::int32_t event, std::int32_t lane) {
    program_.events[at(event)].lane = lane;
    program_.events[at(event)].op = static_cast<std::int32_t>(program_.lanes.lanes[at(lane)].size()) - 1;
  }
  // The next operation of the compute lane waits for `event`, too.
  void await(std::int32_t event) {
    flush();
    pending_ = event;
  }
  void flush() {
    if (pending_ == kNone) return;
    const std::int32_t event = pending_;
    pending_ = kNone;
    push(LaneKind::compute, {.wait = event}, {.action = action_, .stage = stage_, .microbatch = microbatch_});
  }
  void compute(LaneOp op, OpInfo info) {
    op.wait = pending_;
    pending_ = kNone;
    info.action = action_;
    info.stage = stage_;
    info.microbatch = microbatch_;
    push(LaneKind::compute, op, info);
  }
  // Signals `event` when the compute lane is here.
  void tell(std::int32_t event) {
    flush();
    const std::int32_t lane = program_.lane(replica_, rank_, LaneKind::compute);
    std::vector<LaneOp>& ops = program_.lanes.lanes[at(lane)];
    if (ops.empty() || ops.back().signal != kNone) {
      compute({.signal = event}, {});
      return;
    }
    ops.back().signal = event;
    if (info_) own_event(event, lane);
  }

  [[nodiscard]] bool shares(graph::Axis axis) const {
    return options_.shared_links && (options_.link_axes & axis_bit(axis)) != 0;
  }
  [[nodiscard]] std::int32_t node(std::int32_t rank) const {
    return options_.replicas_share_links ? rank : replica_ * schedule_.pp + rank;
  }
  // A collective of `axis`: in and out of this rank.
  [[nodiscard]] LaneOp collective(graph::Axis axis, std::int64_t duration) const {
    LaneOp op{.duration = duration};
    if (shares(axis)) {
      op.out_link = 2 * node(rank_);
      op.in_link = 2 * node(rank_) + 1;
    }
    return op;
  }
  // The k-th of n shares of the rank's gathers or reductions.
  [[nodiscard]] LaneOp share(double seconds, std::int64_t n, std::int64_t k) const {
    LaneOp op = collective(graph::Axis::dp, piece(picoseconds(seconds), n, k));
    if (op.out_link == kNone) op.out_link = own_links_ + replica_ * schedule_.pp + rank_;
    if (program_.lanes.num_rooms > 0) op.noise_in = replica_ * schedule_.pp + rank_;
    return op;
  }

  void rank() {
    pending_ = action_ = stage_ = microbatch_ = kNone;
    const schedule::ActionList& list = schedule_.ranks[at(rank_)];
    const auto reserve = [this](LaneKind kind, std::size_t n) {
      const auto lane = at(program_.lane(replica_, rank_, kind));
      program_.lanes.lanes[lane].reserve(n);
      if (info_) program_.info[lane].reserve(n);
    };
    reserve(LaneKind::compute, list.size() + 8);
    if (work_.p2p_overlapped) {
      reserve(LaneKind::send_forward, at(schedule_.vpp * schedule_.num_microbatches));
      reserve(LaneKind::send_backward, at(schedule_.vpp * schedule_.num_microbatches));
    }
    find_ends(list);
    num_gathers_ = num_reductions_ = 0;
    weights_here_ = weights_used_ = kNone;
    if (work_.param_overlapped && of_rank(work_.param_seconds, rank_) > 0) {
      const std::int32_t n = num_units(work_.param_repeats) * per_stage_;
      weights_here_ = new_events(EventKind::weights, 1, n);
      if (work_.param_repeats > 1) weights_used_ = new_events(EventKind::local, 1, n);
    }
    compute_so_far_ = 0;
    for (std::size_t i = 0; i < list.size(); ++i) {
      action_ = static_cast<std::int32_t>(i);
      stage_ = list[i].stage.value;
      microbatch_ = list[i].microbatch.value;
      action(list[i]);
    }
    action_ = stage_ = microbatch_ = kNone;
    end_of_step();
  }

  // First F and last W or B of each stage.
  void find_ends(const schedule::ActionList& list) {
    first_forward_.assign(at(schedule_.num_stages()), kNone);
    last_backward_.assign(at(schedule_.num_stages()), kNone);
    for (std::size_t i = 0; i < list.size(); ++i) {
      const auto s = at(list[i].stage.value);
      const ActionKind kind = list[i].kind;
      if (kind == ActionKind::forward && first_forward_[s] == kNone) {
        first_forward_[s] = static_cast<std::int32_t>(i);
      }
      if (kind == ActionKind::backward || kind == ActionKind::backward_weight) {
        last_backward_[s] = static_cast<std::int32_t>(i);
      }
    }
    first_end_ = static_cast<std::int32_t>(list.size());
    for (const StageId s : schedule_.stages_of(rank_)) {
      first_end_ = std::min(first_end_, last_backward_[at(s.value)]);
      if (first_forward_[at(s.value)] != kNone && last_backward_[at(s.value)] != kNone) continue;
      throw Error(ErrorKind::config, fmt::format("rank {} does not run F and B of stage {}", rank_, s.value),
                  "simulate: schedule", "run the checker on the schedule: it names the cause");
    }
  }

  // Does this action gather weights first, does it end with gradients to reduce?
  [[nodiscard]] bool gathers(const Action& a) const {
    if (of_rank(work_.param_seconds, rank_) <= 0) return false;
    const bool forward = a.kind == ActionKind::forward;
    if (work_.param_repeats == 1) {
      return work_.param_overlapped && forward && action_ == first_forward_[at(stage_)];
    }
    const bool backward = a.kind == ActionKind::backward || a.kind == ActionKind::backward_input;
    return forward || (backward && work_.param_repeats > schedule_.num_microbatches);
  }
  [[nodiscard]] bool reduces(const Action& a) const {
    if (a.kind != ActionKind::backward && a.kind != ActionKind::backward_weight) return false;
    if (of_rank(work_.grad_seconds, rank_) <= 0) return false;
    return work_.grad_repeats > 1 || (work_.grad_overlapped && action_ == last_backward_[at(stage_)]);
  }
  // May gathers or reductions run while this action does? Other actions keep their time.
  [[nodiscard]] bool may_be_slowed() const {
    if (program_.lanes.num_rooms == 0) return false;
    const double weights = work_.param_overlapped ? of_rank(work_.param_seconds, rank_) : 0.0;
    const double gradients = work_.grad_overlapped ? of_rank(work_.grad_seconds, rank_) : 0.0;
    if (gradients > 0 && (work_.grad_repeats > 1 || action_ >= first_end_)) return true;
    return weights > 0 &&
           (work_.param_repeats > 1 || options_.shared_links || compute_so_far_ <= picoseconds(weights));
  }

  void action(const Action& a) {
    const std::int32_t s = a.stage.value;
    switch (a.kind) {
      case ActionKind::forward:
        if (s > 0) input(s - 1, a, true);
        stretch_out(a);
        output(s + 1, a, true);
        return;
      case ActionKind::backward_input:
      case ActionKind::backward:
        if (schedule_.is_last(a.stage)) {
          await(event(forward_end, s, a.microbatch));
        } else {
          input(s + 1, a, false);
        }
        stretch_out(a);
        output(s - 1, a, false);
        return;
      case ActionKind::backward_weight:
        stretch_out(a);
        return;
      case ActionKind::recv_forward:
        await(event(forward_message, s - 1, a.microbatch));
        return;
      case ActionKind::recv_backward:
        await(event(backward_message, s + 1, a.microbatch));
        return;
      case ActionKind::send_forward:
        send(s + 1, a, true);
        return;
      case ActionKind::send_backward:
        send(s - 1, a, false);
        return;
      case ActionKind::reduce_grad:
        return;  // the last W or B of the stage says when its gradients are there
    }
  }

  void input(std::int32_t from, const Action& a, bool forward) {
    if (rank_of_[at(from)] == rank_) {
      await(event(forward ? forward_end : backward_end, from, a.microbatch));
    } else if (!lowered_) {
      await(event(forward ? forward_message : backward_message, from, a.microbatch));
    }
  }
  void output(std::int32_t to, const Action& a, bool forward) {
    const bool outside = to < 0 || to >= schedule_.num_stages();
    if (forward && outside) {
      tell(event(forward_end, a.stage.value, a.microbatch));  // its own backward waits for it
    } else if (!outside && rank_of_[at(to)] == rank_) {
      tell(event(forward ? forward_end : backward_end, a.stage.value, a.microbatch));
    } else if (!outside && !lowered_) {
      send(to, a, forward);
    }
  }

  void send(std::int32_t to, const Action& a, bool forward) {
    const cost::StageWork& edge = work_.stages[at(std::min(to, a.stage.value))];
    const std::int32_t sent =
        event(forward ? forward_message : backward_message, a.stage.value, a.microbatch);
    if (edge.p2p_seconds <= 0 && edge.p2p_bytes <= 0) {
      tell(sent);
      return;
    }
    LaneOp op{.duration = message_[at(std::min(to, a.stage.value))], .signal = sent};
    if (shares(graph::Axis::pp)) {
      op.out_link = 2 * node(rank_);
      op.in_link = 2 * node(rank_of_[at(to)]) + 1;
    }
    OpInfo info{.kind = OpKind::message, .forward = forward};
    if (!work_.p2p_overlapped) {
      compute(op, info);
      return;
    }
    op.wait = event(forward ? forward_end : backward_end, a.stage.value, a.microbatch);
    tell(op.wait);
    info.action = action_;
    info.stage = stage_;
    info.microbatch = microbatch_;
    push(forward ? LaneKind::send_forward : LaneKind::send_backward, op, info);
  }

  // Buckets of weights for this action: returns the event of the first.
  std::int32_t gather() {
    const double seconds = of_rank(work_.param_seconds, rank_);
    const std::int32_t units = num_units(work_.param_repeats);
    const std::int32_t n = units * per_stage_, first = num_gathers_++ * per_stage_;
    if (!work_.param_overlapped) {
      compute(share(seconds, units, num_gathers_ - 1), {.kind = OpKind::gather});
      return kNone;
    }
    for (std::int32_t k = first; k < first + per_stage_; ++k) {
      LaneOp op = share(seconds, n, k);
      // Gathered anew for every micro-batch: one bucket ahead of compute, as memory is short.
      if (weights_used_ != kNone && k >= 2) op.wait = weights_used_ + k - 2;
      op.signal = weights_here_ + k;
      push(LaneKind::gather, op, {.kind = OpKind::gather, .stage = stage_, .microbatch = microbatch_});
    }
    return weights_here_ + first;
  }
  // Gradients of this action: returns the event of the first bucket.
  std::int32_t reduce() {
    const std::int32_t units = num_units(work_.grad_repeats);
    const std::int32_t n = units * per_stage_, first = num_reductions_++ * per_stage_;
    for (std::int32_t k = first; k < first + per_stage_; ++k) {
      LaneOp op = share(of_rank(work_.grad_seconds, rank_), n, k);
      op.wait = gradients_there_[at(rank_)] + k;
      push(LaneKind::reduce, op, {.kind = OpKind::reduce, .stage = stage_, .microbatch = microbatch_});
    }
    return gradients_there_[at(rank_)] + first;
  }
  void reduce_now() {
    const std::int32_t event = gradients_there_[at(rank_)] + num_reductions_;
    tell(event);
    await(event);
    compute(share(of_rank(work_.grad_seconds, rank_), num_units(work_.grad_repeats), num_reductions_),
            {.kind = OpKind::reduce});
    ++num_reductions_;
  }

  void stretch_out(const Action& a) {
    const ActionShape& shape = program_.shape(replica_, a.stage, a.kind);
    Cuts cuts{.whole = shape.total, .n = per_stage_};
    if (gathers(a)) cuts.weights = gather();
    if (cuts.weights != kNone && weights_used_ != kNone)
      cuts.used = cuts.weights - weights_here_ + weights_used_;
    const bool reducing = reduces(a);
    if (reducing && work_.grad_overlapped) cuts.gradients = reduce();
    LaneOp op{.beside = may_be_slowed() ? replica_ * schedule_.pp + rank_ : kNone};
    if (cuts.none() && !options_.shared_links) {
      op.duration = shape.total;
      compute(op, {.kind = OpKind::action, .to = shape.total});
    } else {
      in_pieces(shape, cuts, op);
    }
    compute_so_far_ += shape.total;
    if (reducing && !work_.grad_overlapped) reduce_now();
  }

  // Where an action is cut into n equal buckets: first events of the weights that they wait for, of their
  // ends, of the gradients that they finish.
  struct Cuts {
    std::int64_t whole = 0, n = 1;
    std::int32_t weights = kNone, used = kNone, gradients = kNone;
    [[nodiscard]] bool none() const { return weights == kNone && gradients == kNone; }
    [[nodiscard]] std::int64_t at(std::int64_t k) const { return border(whole, n, k); }
  };

  // Writes an action as several operations: buckets, and segments that share a link.
  void in_pieces(const ActionShape& shape, const Cuts& cuts, const LaneOp& plain) {
    std::int64_t here = 0;
    std::int32_t begun = 0, ended = 0;
    auto flow = shape.stretches.begin();
    const auto end_bucket = [&] {
      if (cuts.used != kNone) tell(cuts.used + ended);
      if (cuts.gradients != kNone) tell(cuts.gradients + ended);
      ++ended;
    };
    do {
      for (; begun < cuts.n && cuts.at(begun) <= here; ++begun) {
        while (ended < begun) end_bucket();  // buckets of no length: the next gather may wait for them
        if (cuts.weights != kNone) await(cuts.weights + begun);
      }
      while (flow != shape.stretches.end() && !(flow->begin >= here && contends(*flow))) ++flow;
      std::int64_t next = begun < cuts.n && !cuts.none() ? cuts.at(begun) : shape.total;
      if (flow != shape.stretches.end() && flow->begin == here) {
        next = flow->end;
        compute(collective(flow->segment->axis, next - here),
                {.kind = OpKind::contended, .from = here, .to = next, .stretch = &*flow});
      } else {
        if (flow != shape.stretches.end()) next = std::min(next, flow->begin);
        LaneOp op = plain;
        op.duration = next - here;
        compute(op, {.kind = OpKind::action, .from = here, .to = next});
      }
      here = next;
      while (ended < cuts.n && cuts.at(ended + 1) <= here && ended < begun) end_bucket();
    } while (here < shape.total || begun < cuts.n);
  }
  [[nodiscard]] bool contends(const Stretch& s) const {
    return s.segment != nullptr && s.segment->communication && s.end > s.begin && shares(s.segment->axis);
  }

  void end_of_step() {
    flush();
    if (of_rank(work_.grad_seconds, rank_) > 0) {
      if (!work_.grad_overlapped && work_.grad_repeats == 1) reduce_at_end();
      if (work_.grad_overlapped) {
        const std::int32_t reduced = new_event(EventKind::gradients, 1);
        const std::int32_t lane = program_.lane(replica_, rank_, LaneKind::reduce);
        program_.lanes.lanes[at(lane)].back().signal = reduced;
        if (info_) own_event(reduced, lane);
        await(reduced);
      }
    }
    if (options_.synchronized_optimizer) {
      tell(all_ranks_);
      await(all_ranks_);
    }
    compute({.duration = picoseconds(of_rank(work_.optimizer_seconds, rank_))}, {.kind = OpKind::optimizer});
    const double weights = of_rank(work_.param_seconds, rank_);
    if (weights > 0 && !work_.param_overlapped && work_.param_repeats == 1) {
      compute(share(weights, 1, 0), {.kind = OpKind::gather});
    }
  }
  void reduce_at_end() {
    const std::int32_t event = gradients_there_[at(rank_)];
    tell(event);
    await(event);
    compute(share(of_rank(work_.grad_seconds, rank_), 1, 0), {.kind = OpKind::reduce});
  }

  const schedule::Schedule& schedule_;
  const cost::StepWork& work_;
  const Options& options_;
  bool info_, lowered_;
  std::int32_t replicas_, cells_;
  std::vector<std::int32_t> rank_of_;          // [stages]
  std::vector<std::int64_t> message_;          // [stages] to the next one
  std::vector<std::int32_t> gradients_there_;  // [pp] first event of the buckets
  std::int32_t all_ranks_ = kNone;
  std::int32_t own_links_ = 0, per_stage_ = 1;
  Program program_;
  // Of the rank being written.
  std::int32_t replica_ = 0, rank_ = 0;
  std::int32_t pending_ = kNone, action_ = kNone, stage_ = kNone, microbatch_ = kNone;
  std::int32_t weights_here_ = kNone, weights_used_ = kNone;  // first events of the buckets
  std::int32_t num_gathers_ = 0, num_reductions_ = 0;         // actions so far
  std::int64_t compute_so_far_ = 0;
  std::vector<std::int32_t> first_forward_, last_backward_;  // [stages] positions in the list
  std::int32_t first_end_ = 0;                               // smallest of last_backward_
};

}  // namespace

const ActionShape& Program::shape(std::int32_t replica, StageId stage, ActionKind kind) const {
  const auto k = static_cast<std::size_t>(kind);
  TESSERA_CHECK(k < 4, "only F, I, W and B have a shape");
  return shapes[(at(replica) * at(num_stages) + at(stage.value)) * 4 + k];
}

Program make_program(const schedule::Schedule& schedule, const cost::StepWork& work, const Options& options,
                     schedule::Record record) {
  return Builder(schedule, work, options, record).whole();
}

}  // namespace tessera::sim
