// Seconds by cause, bytes and memory of replica 0, from the times of its operations; and the checks.
#include <algorithm>

#include "base/error.h"
#include "schedule/simulate.h"
#include "sim/program.h"

namespace tessera::sim {
namespace {

using cost::Part;
using schedule::Action;
using schedule::ActionKind;
using schedule::Interval;

std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}
std::size_t at(graph::Axis axis) {
  return static_cast<std::size_t>(axis);
}

class RankAccount {
 public:
  RankAccount(const Program& program, const schedule::LaneTimes& times, const schedule::Schedule& schedule,
              const cost::StepWork& work, SimTime jitter, std::int32_t rank)
      : program_(program), times_(times), schedule_(schedule), work_(work), jitter_(jitter), rank_(rank) {}

  RankResult whole() {
    out_.rank = Rank(rank_);
    actions();
    streams();
    operations();
    collectives();
    memory();
    check();
    return std::move(out_);
  }
  // Messages that crossed each border, by direction: [stages] sent from or received by the stage.
  std::vector<std::int64_t> sent_forward, sent_backward, received_forward, received_backward;

 private:
  [[nodiscard]] std::int32_t lane(LaneKind kind) const { return program_.lane(0, rank_, kind); }
  [[nodiscard]] const std::vector<Interval>& ops(LaneKind kind) const { return times_.ops[at(lane(kind))]; }
  [[nodiscard]] const std::vector<OpInfo>& info(LaneKind kind) const { return program_.info[at(lane(kind))]; }
  void spend(Part part, SimTime time) { out_.parts[static_cast<std::size_t>(part)] += time; }
  void expose(graph::Axis axis, Part part, SimTime time) {
    spend(part, time);
    out_.exposed[at(axis)] += time;
  }

  // What every action of a kind has in common, whenever it runs.
  void actions() {
    for (const Action& a : schedule_.ranks[at(rank_)]) {
      if (!schedule::is_compute(a.kind)) continue;
      const ActionShape& shape = program_.shape(0, a.stage, a.kind);
      for (std::size_t p = 0; p < shape.parts.size(); ++p) out_.parts[p] += SimTime(shape.parts[p]);
      out_.busy += SimTime(shape.busy);
      out_.idle += SimTime(shape.total - shape.busy);
      out_.flops += shape.flops;
      for (const Stretch& s : shape.stretches) {
        if (s.segment == nullptr || !s.segment->communication) continue;
        const std::size_t axis = at(s.segment->axis);
        out_.comm[axis] += SimTime(std::max(s.communication, s.end - s.begin));
        out_.exposed[axis] += SimTime(s.end - s.begin);
        out_.bytes_sent[axis] += s.segment->bytes_sent;
        out_.bytes_received[axis] += s.segment->bytes_sent;
      }
    }
  }

  // The streams beside compute: messages and collectives.
  void streams() {
    sent_forward.assign(at(schedule_.num_stages()), 0);
    sent_backward = received_forward = received_backward = sent_forward;
    for (const LaneKind kind : {LaneKind::send_forward, LaneKind::send_backward}) {
      for (std::size_t i = 0; i < ops(kind).size(); ++i) sent(info(kind)[i], ops(kind)[i]);
    }
    for (const LaneKind kind : {LaneKind::gather, LaneKind::reduce}) {
      for (const Interval& op : ops(kind)) out_.comm[at(graph::Axis::dp)] += op.end - op.start;
    }
  }
  void sent(const OpInfo& message, const Interval& op) {
    ++(message.forward ? sent_forward : sent_backward)[at(message.stage)];
    out_.comm[at(graph::Axis::pp)] += op.end - op.start;
    const std::int32_t border = message.forward ? message.stage : message.stage - 1;
    out_.bytes_sent[at(graph::Axis::pp)] += work_.stages[at(border)].p2p_bytes;
  }

  // The compute stream, operation by operation: what it waits for and what it does.
  void operations() {
    const std::vector<schedule::LaneOp>& code = program_.lanes.lanes[at(lane(LaneKind::compute))];
    const std::vector<Interval>& ran = ops(LaneKind::compute);
    SimTime before{};
    bool begun = false;
    for (std::size_t i = 0; i < ran.size(); ++i) {
      const OpInfo& what = info(LaneKind::compute)[i];
      if (code[i].wait >= 0) wait(code[i].wait, {before, ran[i].start});
      out_.idle += ran[i].start - before;
      work(what, ran[i]);
      if (what.kind == OpKind::action) {
        if (!begun) out_.begin = ran[i].start;
        begun = true;
        out_.end = ran[i].end;
      }
      before = ran[i].end;
    }
    spend(Part::bubble, times_.makespan - before);
    spend(Part::jitter, jitter_);
    out_.idle += times_.makespan + jitter_ - before;
  }

  void work(const OpInfo& what, const Interval& op) {
    const SimTime length = op.end - op.start;
    switch (what.kind) {
      case OpKind::moment:
        return;
      case OpKind::action: {  // what gathers and reductions beside it slowed it down
        const SimTime more = length - SimTime(what.to - what.from);
        expose(graph::Axis::dp, Part::dp, more);
        out_.idle += more;
        return;
      }
      case OpKind::contended: {
        const SimTime more = length - SimTime(what.to - what.from);
        expose(what.stretch->segment->axis, what.stretch->segment->part, more);
        out_.comm[at(what.stretch->segment->axis)] += more;
        out_.idle += more;
        return;
      }
      case OpKind::message:
        sent(what, op);
        expose(graph::Axis::pp, Part::pp, length);
        out_.idle += length;
        return;
      case OpKind::gather:
      case OpKind::reduce:
        out_.comm[at(graph::Axis::dp)] += length;
        expose(graph::Axis::dp, Part::dp, length);
        out_.idle += length;
        return;
      case OpKind::optimizer:
        spend(Part::optimizer, length);
        out_.busy += length;
        return;
    }
  }

  // A gap counts as communication while the transfer that ends it runs, as bubble or jitter before.
  void wait(std::int32_t event, const Interval& gap) {
    const EventInfo& cause = program_.events[at(event)];
    if (cause.kind == EventKind::message) received(cause);
    if (gap.end == gap.start) return;
    switch (cause.kind) {
      case EventKind::local:
        spend(Part::bubble, gap.end - gap.start);
        return;
      case EventKind::message: {
        const bool travels = program_.info[at(cause.lane)][at(cause.op)].kind == OpKind::message;
        const SimTime left = travels ? times_.ops[at(cause.lane)][at(cause.op)].start : gap.end;
        const SimTime from = std::clamp(left, gap.start, gap.end);
        spend(Part::bubble, from - gap.start);
        expose(graph::Axis::pp, Part::pp, gap.end - from);
        return;
      }
      case EventKind::weights:
        expose(graph::Axis::dp, Part::dp, gap.end - gap.start);
        return;
      case EventKind::gradients:
        wait_for_gradients(gap);
        return;
      case EventKind::replicas:
        spend(Part::jitter, gap.end - gap.start);
        return;
      case EventKind::ranks:
        wait_for_ranks(event, gap);
        return;
    }
  }
  void received(const EventInfo& cause) {
    const OpInfo& message = program_.info[at(cause.lane)][at(cause.op)];
    if (message.kind != OpKind::message) return;
    const std::int32_t border = message.forward ? message.stage : message.stage - 1;
    const std::int32_t to = message.forward ? message.stage + 1 : message.stage - 1;
    TESSERA_CHECK_EQ(schedule_.rank_of(StageId(to)), rank_, "a message reaches the rank it is for");
    ++(message.forward ? received_forward : received_backward)[at(to)];
    out_.bytes_received[at(graph::Axis::pp)] += work_.stages[at(border)].p2p_bytes;
  }
  // Reductions that run are communication; where they stand still, another replica is late.
  void wait_for_gradients(const Interval& gap) {
    SimTime running{};
    for (const Interval& op : ops(LaneKind::reduce)) {
      const SimTime from = std::max(op.start, gap.start), to = std::min(op.end, gap.end);
      if (to > from) running += to - from;
    }
    expose(graph::Axis::dp, Part::dp, running);
    spend(Part::jitter, gap.end - gap.start - running);
  }
  // Up to the last rank of this replica it is the pipeline; after that, another replica is late.
  void wait_for_ranks(std::int32_t event, const Interval& gap) {
    SimTime own{};
    for (std::int32_t r = 0; r < schedule_.pp; ++r) {
      const auto l = at(program_.lane(0, r, LaneKind::compute));
      const std::vector<schedule::LaneOp>& code = program_.lanes.lanes[l];
      for (std::size_t i = code.size(); i > 0; --i) {
        if (code[i - 1].signal != event) continue;
        own = std::max(own, times_.ops[l][i - 1].end);
        break;
      }
    }
    const SimTime to = std::clamp(own, gap.start, gap.end);
    spend(Part::bubble, to - gap.start);
    spend(Part::jitter, gap.end - to);
  }

  void collectives() {
    const auto of = [this](const std::vector<double>& v) { return v.empty() ? 0.0 : v[at(rank_)]; };
    out_.bytes_sent[at(graph::Axis::dp)] += of(work_.grad_bytes) + of(work_.param_bytes);
    out_.bytes_received[at(graph::Axis::dp)] += of(work_.grad_bytes) + of(work_.param_bytes);
  }

  void memory() {
    const schedule::ActionList& list = schedule_.ranks[at(rank_)];
    const std::vector<Interval>& ran = ops(LaneKind::compute);
    const std::vector<OpInfo>& what = info(LaneKind::compute);
    std::vector<std::int32_t> live(at(schedule_.num_stages()), 0);
    const std::vector<StageId> stages = schedule_.stages_of(rank_);
    const double fixed = work_.static_bytes.empty() ? 0.0 : work_.static_bytes[at(rank_)];
    note(SimTime(0), fixed);
    const auto bytes = [&] {
      double sum = fixed;
      for (const StageId s : stages) sum += live[at(s.value)] * work_.stages[at(s.value)].saved_bytes;
      return sum;
    };
    for (std::size_t i = 0; i < ran.size();) {
      if (what[i].kind != OpKind::action && what[i].kind != OpKind::contended) {
        ++i;
        continue;
      }
      const std::int32_t index = what[i].action;
      const SimTime start = ran[i].start;
      SimTime end{};
      for (; i < ran.size() && what[i].action == index && what[i].kind != OpKind::message; ++i)
        end = ran[i].end;
      const Action& a = list[at(index)];
      const auto s = at(a.stage.value);
      if (a.kind == ActionKind::forward) ++live[s];
      note(start, bytes() + work_.stages[s].transient_bytes);
      if (a.kind == ActionKind::backward || a.kind == ActionKind::backward_weight) --live[s];
      note(end, bytes());
    }
    for (const std::int32_t n : live) TESSERA_CHECK_EQ(n, 0, "memory returns to its start");
    TESSERA_CHECK(out_.memory.back().bytes == fixed, "memory returns to its start");
  }
  void note(SimTime time, double bytes) {
    if (bytes > out_.peak_bytes || out_.memory.empty()) {
      out_.peak_bytes = bytes;
      out_.peak_at = time;
    }
    if (!out_.memory.empty() && out_.memory.back().time == time) out_.memory.pop_back();
    if (out_.memory.empty() || out_.memory.back().bytes != bytes) out_.memory.push_back({time, bytes});
  }

  void check() const {
    SimTime sum{};
    for (const SimTime t : out_.parts) sum += t;
    TESSERA_CHECK_EQ(sum.value, (times_.makespan + jitter_).value, "the parts of a rank sum to the makespan");
    TESSERA_CHECK_EQ((out_.busy + out_.idle).value, (times_.makespan + jitter_).value,
                     "busy + idle = makespan");
    // Counted a second time, from what ran.
    SimTime ran{};
    for (std::size_t i = 0; i < ops(LaneKind::compute).size(); ++i) {
      const OpInfo& what = info(LaneKind::compute)[i];
      const Interval& op = ops(LaneKind::compute)[i];
      if (what.kind != OpKind::action && what.kind != OpKind::contended) continue;
      TESSERA_CHECK((op.end - op.start).value >= what.to - what.from, "nothing runs faster than alone");
      ran += SimTime(what.to - what.from);
    }
    SimTime shapes{};
    for (const Action& a : schedule_.ranks[at(rank_)]) {
      if (schedule::is_compute(a.kind)) shapes += SimTime(program_.shape(0, a.stage, a.kind).total);
    }
    TESSERA_CHECK_EQ(ran.value, shapes.value, "every action runs whole and once");
  }

  const Program& program_;
  const schedule::LaneTimes& times_;
  const schedule::Schedule& schedule_;
  const cost::StepWork& work_;
  SimTime jitter_;
  std::int32_t rank_;
  RankResult out_;
};

void add(std::vector<std::int64_t>& sum, const std::vector<std::int64_t>& more) {
  sum.resize(more.size());
  for (std::size_t i = 0; i < more.size(); ++i) sum[i] += more[i];
}

}  // namespace

Result account(const Program& program, const schedule::LaneTimes& times, const schedule::Schedule& schedule,
               const cost::StepWork& work, SimTime jitter) {
  Result result;
  result.makespan = times.makespan + jitter;
  std::vector<std::int64_t> sent_forward, sent_backward, received_forward, received_backward;
  SimTime busy{}, idle{};
  for (std::int32_t r = 0; r < schedule.pp; ++r) {
    RankAccount rank(program, times, schedule, work, jitter, r);
    result.ranks.push_back(rank.whole());
    busy += result.ranks.back().busy;
    idle += result.ranks.back().idle;
    add(sent_forward, rank.sent_forward);
    add(sent_backward, rank.sent_backward);
    add(received_forward, rank.received_forward);
    add(received_backward, rank.received_backward);
  }
  TESSERA_CHECK_EQ((busy + idle).value, result.makespan.value * schedule.pp,
                   "busy + idle = ranks x makespan");
  for (std::size_t s = 0; s + 1 < sent_forward.size(); ++s) {
    TESSERA_CHECK_EQ(sent_forward[s], received_forward[s + 1], "activations sent = received");
    TESSERA_CHECK_EQ(sent_backward[s + 1], received_backward[s], "gradients sent = received");
  }
  const double total = static_cast<double>(result.makespan.value) * schedule.pp;
  result.bubble_fraction = total > 0 ? static_cast<double>(idle.value) / total : 0;
  return result;
}

}  // namespace tessera::sim
