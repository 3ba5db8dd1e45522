#include "schedule/lanes.h"

#include <algorithm>
#include <cmath>
#include <queue>

namespace tessera::schedule {
namespace {

constexpr std::int32_t kNobody = -1;

struct Event {
  std::int64_t time = 0;
  std::int32_t missing = 0;       // signals
  std::int32_t waiter = kNobody;  // first lane of a list through LaneState::next_waiter
};

struct LaneState {
  std::int64_t free_at = 0;
  std::size_t next = 0;
  std::int32_t next_waiter = kNobody;
};

// A flow in flight; a lane has at most one.
struct Flow {
  double left = 0;         // picoseconds at full pace
  std::int64_t since = 0;  // when `left` was right
  std::int64_t begin = 0;
  double stretch = 0;  // time it takes for one of full pace; 0: not begun
  std::int32_t version = 0;
};

struct Room {
  std::int32_t noisy = 0;            // flows that keep it busy
  std::vector<std::int32_t> slowed;  // lanes with a flow beside it
};

// A flow's start or end; ends that a later change has overtaken carry an old version.
struct FlowEvent {
  std::int64_t time = 0;
  bool starts = false;
  std::int32_t lane = 0;
  std::int32_t version = 0;
};
struct Later {
  bool operator()(const FlowEvent& a, const FlowEvent& b) const {
    if (a.time != b.time) return a.time > b.time;
    if (a.starts != b.starts) return a.starts;  // ends first
    return a.lane > b.lane;
  }
};

class Run {
 public:
  Run(const Lanes& lanes, Record record) : lanes_(lanes), record_(record == Record::intervals) {
    events_.resize(lanes.signals.size());
    for (std::size_t e = 0; e < events_.size(); ++e) events_[e].missing = lanes.signals[e];
    state_.resize(lanes.lanes.size());
    if (lanes.num_links > 0 || lanes.num_rooms > 0) flows_.resize(lanes.lanes.size());
    on_link_.resize(static_cast<std::size_t>(lanes.num_links));
    rooms_.resize(static_cast<std::size_t>(lanes.num_rooms));
    if (!record_) return;
    times_.ops.resize(lanes.lanes.size());
    for (std::size_t l = 0; l < lanes.lanes.size(); ++l) times_.ops[l].resize(lanes.lanes[l].size());
  }

  // Lanes run ahead as long as nothing they wait for depends on a flow. When none can move, every later step
  // follows from an event of a flow, so the earliest of these may happen.
  LaneTimes whole() {
    for (std::size_t l = state_.size(); l > 0; --l) runnable_.push_back(static_cast<std::int32_t>(l - 1));
    for (;;) {
      while (!runnable_.empty()) {
        const std::int32_t lane = runnable_.back();
        runnable_.pop_back();
        advance(lane);
      }
      if (queue_.empty()) break;
      const FlowEvent e = queue_.top();
      queue_.pop();
      if (e.starts) {
        start_flow(e);
      } else if (e.version == flow(e.lane).version) {
        end_flow(e);
      }
    }
    for (std::size_t l = 0; l < state_.size(); ++l) {
      times_.makespan = std::max(times_.makespan, SimTime(state_[l].free_at));
      times_.hangs = times_.hangs || state_[l].next < lanes_.lanes[l].size();
      times_.reached.push_back(state_[l].next);
    }
    return std::move(times_);
  }

 private:
  Flow& flow(std::int32_t lane) { return flows_[static_cast<std::size_t>(lane)]; }
  std::vector<std::int32_t>& users(std::int32_t link) { return on_link_[static_cast<std::size_t>(link)]; }
  Room& room(std::int32_t i) { return rooms_[static_cast<std::size_t>(i)]; }
  [[nodiscard]] const LaneOp& op_of(std::int32_t lane) const {
    return lanes_.lanes[static_cast<std::size_t>(lane)][state_[static_cast<std::size_t>(lane)].next];
  }

  void advance(std::int32_t lane) {
    const auto l = static_cast<std::size_t>(lane);
    const std::vector<LaneOp>& ops = lanes_.lanes[l];
    LaneState& s = state_[l];
    while (s.next < ops.size()) {
      const LaneOp& op = ops[s.next];
      std::int64_t begin = s.free_at;
      if (op.wait >= 0) {
        Event& e = events_[static_cast<std::size_t>(op.wait)];
        if (e.missing > 0) {
          s.next_waiter = e.waiter;
          e.waiter = lane;
          return;
        }
        begin = std::max(begin, e.time + op.delay);
      }
      if (is_flow(op)) {
        queue_.push({.time = begin, .starts = true, .lane = lane});
        return;
      }
      finish(lane, begin, begin + op.duration);
    }
  }

  void finish(std::int32_t lane, std::int64_t begin, std::int64_t end) {
    const auto l = static_cast<std::size_t>(lane);
    LaneState& s = state_[l];
    if (record_) times_.ops[l][s.next] = {SimTime(begin), SimTime(end)};
    s.free_at = end;
    const std::int32_t signal = lanes_.lanes[l][s.next].signal;
    ++s.next;
    if (signal < 0) return;
    Event& e = events_[static_cast<std::size_t>(signal)];
    if (e.missing == 0) return;
    e.time = std::max(e.time, end);
    if (--e.missing > 0) return;
    for (std::int32_t w = e.waiter; w != kNobody; w = state_[static_cast<std::size_t>(w)].next_waiter) {
      runnable_.push_back(w);
    }
    e.waiter = kNobody;
  }

  static bool is_flow(const LaneOp& op) {
    return op.out_link >= 0 || op.in_link >= 0 || op.noise_in >= 0 || op.beside >= 0;
  }

  void start_flow(const FlowEvent& e) {
    const LaneOp& op = op_of(e.lane);
    flow(e.lane) = {.left = static_cast<double>(op.duration),
                    .since = e.time,
                    .begin = e.time,
                    .version = flow(e.lane).version};
    for (const std::int32_t link : {op.out_link, op.in_link}) {
      if (link >= 0) users(link).push_back(e.lane);
    }
    if (op.beside >= 0) room(op.beside).slowed.push_back(e.lane);
    if (op.noise_in >= 0) ++room(op.noise_in).noisy;
    retime(e.lane, e.time);
    retime_neighbours(op, e.time);
  }

  void end_flow(const FlowEvent& e) {
    const LaneOp& op = op_of(e.lane);
    for (const std::int32_t link : {op.out_link, op.in_link}) {
      if (link >= 0) std::erase(users(link), e.lane);
    }
    if (op.beside >= 0) std::erase(room(op.beside).slowed, e.lane);
    if (op.noise_in >= 0) --room(op.noise_in).noisy;
    ++flow(e.lane).version;
    retime_neighbours(op, e.time);
    finish(e.lane, flow(e.lane).begin, e.time);
    runnable_.push_back(e.lane);
  }

  void retime_neighbours(const LaneOp& op, std::int64_t now) {
    for (const std::int32_t link : {op.out_link, op.in_link}) {
      if (link < 0) continue;
      for (const std::int32_t lane : users(link)) retime(lane, now);
    }
    if (op.noise_in < 0) return;
    for (const std::int32_t lane : room(op.noise_in).slowed) retime(lane, now);
  }

  // Where the pace stays the same, the end stays the same: a flow that is never disturbed ends to the
  // picosecond.
  void retime(std::int32_t lane, std::int64_t now) {
    const LaneOp& op = op_of(lane);
    std::size_t share = 1;
    for (const std::int32_t link : {op.out_link, op.in_link}) {
      if (link >= 0) share = std::max(share, users(link).size());
    }
    double stretch = static_cast<double>(share);
    if (op.beside >= 0 && room(op.beside).noisy > 0) stretch *= lanes_.slowed;
    Flow& f = flow(lane);
    if (f.stretch == stretch) return;
    if (f.stretch > 0) f.left = std::max(0.0, f.left - static_cast<double>(now - f.since) / f.stretch);
    f.since = now;
    f.stretch = stretch;
    const std::int64_t end = now + std::llround(f.left * stretch);
    queue_.push({.time = end, .starts = false, .lane = lane, .version = ++f.version});
  }

  const Lanes& lanes_;
  bool record_;
  std::vector<Event> events_;
  std::vector<LaneState> state_;
  std::vector<std::int32_t> runnable_;
  std::vector<Flow> flows_;
  std::vector<std::vector<std::int32_t>> on_link_;  // lanes with a flow on the link
  std::vector<Room> rooms_;
  std::priority_queue<FlowEvent, std::vector<FlowEvent>, Later> queue_;
  LaneTimes times_;
};

}  // namespace

LaneTimes run(const Lanes& lanes, Record record) {
  return Run(lanes, record).whole();
}

}  // namespace tessera::schedule
