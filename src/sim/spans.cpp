// The trace of replica 0: compute segments on "compute", communication on a stream of its axis, messages on
// "send forward" and "send backward", gradients and weights on "weights".
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "sim/program.h"

namespace tessera::sim {
namespace {

using schedule::Action;
using schedule::Interval;

std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}

trace::Axis axis_of(graph::Axis axis) {
  switch (axis) {
    case graph::Axis::tp:
      return trace::Axis::tp;
    case graph::Axis::cp:
      return trace::Axis::cp;
    case graph::Axis::pp:
      return trace::Axis::pp;
    case graph::Axis::dp:
      return trace::Axis::dp;
    case graph::Axis::tp_dp:
      return trace::Axis::tp_dp;
    case graph::Axis::edp:
      return trace::Axis::edp;
    case graph::Axis::ep:
      return trace::Axis::ep;
    case graph::Axis::ep_inter:
      return trace::Axis::ep_inter;
    case graph::Axis::ep_intra:
      return trace::Axis::ep_intra;
    case graph::Axis::etp:
      return trace::Axis::etp;
    case graph::Axis::tie:
      return trace::Axis::pp;  // its two ranks are of one pipeline
    case graph::Axis::world:
      return trace::Axis::world;
  }
  return trace::Axis::none;
}

std::int64_t nanoseconds(std::int64_t picoseconds) {
  return (picoseconds + 500) / 1000;
}

class Writer {
 public:
  Writer(const Program& program, const schedule::LaneTimes& times, const schedule::Schedule& schedule,
         const cost::StepWork& work, SimTime jitter, Detail detail)
      : program_(program),
        times_(times),
        schedule_(schedule),
        work_(work),
        jitter_(jitter),
        detail_(detail) {}

  trace::Trace whole(const std::vector<Rank>& world_ranks) {
    for (rank_ = 0; rank_ < schedule_.pp; ++rank_) {
      world_rank_ = world_ranks[at(rank_)];
      compute_lane();
      for (const LaneKind kind :
           {LaneKind::send_forward, LaneKind::send_backward, LaneKind::gather, LaneKind::reduce}) {
        side_lane(kind);
      }
    }
    trace_.metadata = {{"source", "simulator"},
                       {"schedule", std::string(schedule::name(schedule_.kind))},
                       {"micro-batches", fmt::format("{}", schedule_.num_microbatches)},
                       {"makespan_ps", fmt::format("{}", (times_.makespan + jitter_).value)}};
    return trace::canonical(std::move(trace_));
  }

 private:
  trace::NameId name(std::string_view text) {
    const auto [it, added] = names_.try_emplace(std::string(text), static_cast<std::int32_t>(names_.size()));
    if (added) trace_.names.emplace_back(text);
    return trace::NameId(it->second);
  }
  trace::StreamId stream(std::string_view text) {
    const auto [it, added] =
        streams_.try_emplace(std::string(text), static_cast<std::int32_t>(streams_.size()));
    if (added) trace_.streams.emplace_back(text);
    return trace::StreamId(it->second);
  }

  trace::Span& span(std::string_view what, std::string_view on, std::int64_t start, std::int64_t end) {
    trace_.spans.push_back({.name = name(what),
                            .rank = world_rank_,
                            .stream = stream(on),
                            .start_ns = nanoseconds(start),
                            .end_ns = nanoseconds(end),
                            .step = 0});
    return trace_.spans.back();
  }
  trace::Span& communication(std::string_view what, std::string_view on, trace::Axis axis, Interval t,
                             double bytes) {
    trace::Span& s = span(what, on, t.start.value, t.end.value);
    s.category = trace::Category::communication;
    s.axis = axis;
    s.runner = trace::Runner::helper;
    s.bytes = Bytes(static_cast<std::int64_t>(bytes + 0.5));
    return s;
  }

  void compute_lane() {
    const auto l = at(program_.lane(0, rank_, LaneKind::compute));
    const std::vector<Interval>& ran = times_.ops[l];
    const std::vector<OpInfo>& info = program_.info[l];
    const auto count = [&](OpKind kind) {
      return std::count_if(info.begin(), info.end(), [kind](const OpInfo& i) { return i.kind == kind; });
    };
    const auto gathers = count(OpKind::gather), reductions = count(OpKind::reduce);
    SimTime before{};
    std::int32_t last_action = -1;
    for (std::size_t i = 0; i < ran.size(); ++i) {
      const OpInfo& what = program_.info[l][i];
      if (ran[i].start > before) {
        span("wait", "compute", before.value, ran[i].start.value).category = trace::Category::wait;
      }
      before = ran[i].end;
      switch (what.kind) {
        case OpKind::action:
        case OpKind::contended:
          if (what.action != last_action) axis_free_.fill(ran[i].start.value);
          last_action = what.action;
          action(what, ran[i]);
          break;
        case OpKind::message:
          message(what, ran[i]);
          break;
        case OpKind::moment:
          break;
        case OpKind::gather:
        case OpKind::reduce:
          weights(what, ran[i], what.kind == OpKind::gather ? gathers : reductions, "compute");
          break;
        case OpKind::optimizer:
          if (ran[i].end > ran[i].start) {
            span("optimizer", "compute", ran[i].start.value, ran[i].end.value).category =
                trace::Category::optimizer;
          }
          break;
      }
    }
    if (jitter_.value > 0) {
      span("stragglers", "compute", times_.makespan.value, (times_.makespan + jitter_).value).category =
          trace::Category::wait;
    }
  }

  void action(const OpInfo& what, const Interval& ran) {
    const Action& a = schedule_.ranks[at(rank_)][at(what.action)];
    const ActionShape& shape = program_.shape(0, a.stage, a.kind);
    if (detail_ == Detail::actions) {
      whole_action(what, ran, a, shape);
      return;
    }
    for (const Stretch& s : shape.stretches) {
      // The share of the stretch that lies in this operation; hidden ones at its end.
      const bool hidden = s.begin == s.end;
      if (hidden
              ? (s.end < what.from || s.end >= what.to) && !(s.end == shape.total && what.to == shape.total)
              : (s.end <= what.from || s.begin >= what.to)) {
        continue;
      }
      if (what.kind == OpKind::contended && &s != what.stretch) continue;
      stretch(a, s, moment(what, ran, std::max(s.begin, what.from)),
              moment(what, ran, std::min(s.end, what.to)), s.end <= what.to);
    }
  }
  // When an operation that may have been slowed down was at `offset` of its action.
  static std::int64_t moment(const OpInfo& what, const Interval& ran, std::int64_t offset) {
    const std::int64_t length = (ran.end - ran.start).value, plain = what.to - what.from;
    if (length == plain) return ran.start.value + offset - what.from;
    const double part =
        plain > 0 ? static_cast<double>(offset - what.from) / static_cast<double>(plain) : 1.0;
    return ran.start.value + std::llround(part * static_cast<double>(length));
  }

  // Counts of a stretch in several pieces stand on the last one.
  void stretch(const Action& a, const Stretch& s, std::int64_t begin, std::int64_t end, bool last) {
    const std::string_view text = s.segment == nullptr ? trace::name(s.category) : s.segment->name;
    if (s.segment == nullptr || !s.segment->communication) {
      if (end == begin) return;
      trace::Span& t = span(text, "compute", begin, end);
      t.category = s.category;
      t.stage = a.stage.value;
      t.microbatch = a.microbatch.value;
      if (s.segment != nullptr && last) t.flops = Flops(static_cast<std::int64_t>(s.segment->flops + 0.5));
      return;
    }
    std::int64_t& free = axis_free_[static_cast<std::size_t>(s.segment->axis)];
    const std::int64_t from = last ? std::clamp(end - s.communication, free, std::max(free, begin)) : begin;
    free = end;
    if (end <= from) return;
    trace::Span& t = communication(text, graph::name(s.segment->axis), axis_of(s.segment->axis),
                                   {SimTime(from), SimTime(end)}, last ? s.segment->bytes_sent : 0);
    t.stage = a.stage.value;
    t.microbatch = a.microbatch.value;
  }

  void whole_action(const OpInfo& what, const Interval& ran, const Action& a, const ActionShape& shape) {
    if (ran.end == ran.start) return;
    trace::Span& t =
        span(fmt::format("{}", schedule::name(a.kind)), "compute", ran.start.value, ran.end.value);
    t.category = shape.stretches.front().category;
    t.stage = a.stage.value;
    t.microbatch = a.microbatch.value;
    if (what.to == shape.total) t.flops = Flops(static_cast<std::int64_t>(shape.flops + 0.5));
  }

  void message(const OpInfo& what, const Interval& ran) {
    const std::int32_t border = what.forward ? what.stage : what.stage - 1;
    trace::Span& t = communication(what.forward ? "send activations" : "send gradients",
                                   what.forward ? "send forward" : "send backward", trace::Axis::pp, ran,
                                   work_.stages[at(border)].p2p_bytes);
    t.stage = what.stage;
    t.microbatch = what.microbatch;
  }
  void weights(const OpInfo& what, const Interval& ran, std::int64_t pieces, std::string_view on) {
    const bool gather = what.kind == OpKind::gather;
    const std::vector<double>& bytes = gather ? work_.param_bytes : work_.grad_bytes;
    const double whole = bytes.empty() ? 0.0 : bytes[at(rank_)];
    trace::Span& t = communication(gather ? "gather weights" : "reduce gradients", on, trace::Axis::dp, ran,
                                   whole / static_cast<double>(pieces));
    t.stage = what.stage;
    t.microbatch = what.microbatch;
  }

  void side_lane(LaneKind kind) {
    const auto l = at(program_.lane(0, rank_, kind));
    const std::vector<OpInfo>& info = program_.info[l];
    for (std::size_t i = 0; i < info.size(); ++i) {
      if (info[i].kind == OpKind::message) {
        message(info[i], times_.ops[l][i]);
      } else {
        weights(info[i], times_.ops[l][i], std::ssize(info), "weights");
      }
    }
  }

  const Program& program_;
  const schedule::LaneTimes& times_;
  const schedule::Schedule& schedule_;
  const cost::StepWork& work_;
  SimTime jitter_;
  Detail detail_;
  trace::Trace trace_;
  std::map<std::string, std::int32_t> names_, streams_;
  std::int32_t rank_ = 0;
  Rank world_rank_{};
  std::array<std::int64_t, graph::kNumAxes> axis_free_{};
};

}  // namespace

trace::Trace make_trace(const Program& program, const schedule::LaneTimes& times,
                        const schedule::Schedule& schedule, const cost::StepWork& work,
                        const std::vector<Rank>& world_ranks, SimTime jitter, Detail detail) {
  if (detail == Detail::none) return {};
  return Writer(program, times, schedule, work, jitter, detail).whole(world_ranks);
}

}  // namespace tessera::sim
