#include "schedule/schedule.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace tessera::schedule {

std::string_view name(ActionKind kind) {
  switch (kind) {
    case ActionKind::forward:
      return "F";
    case ActionKind::backward_input:
      return "I";
    case ActionKind::backward_weight:
      return "W";
    case ActionKind::backward:
      return "B";
    case ActionKind::send_forward:
      return "SEND_F";
    case ActionKind::recv_forward:
      return "RECV_F";
    case ActionKind::send_backward:
      return "SEND_B";
    case ActionKind::recv_backward:
      return "RECV_B";
    case ActionKind::reduce_grad:
      return "REDUCE_GRAD";
  }
  return "?";
}

bool is_compute(ActionKind kind) {
  switch (kind) {
    case ActionKind::forward:
    case ActionKind::backward_input:
    case ActionKind::backward_weight:
    case ActionKind::backward:
      return true;
    case ActionKind::send_forward:
    case ActionKind::recv_forward:
    case ActionKind::send_backward:
    case ActionKind::recv_backward:
    case ActionKind::reduce_grad:
      return false;
  }
  return false;
}

std::string to_text(const Action& action) {
  if (action.kind == ActionKind::reduce_grad)
    return fmt::format("{}{}", action.stage.value, name(action.kind));
  return fmt::format("{}{}{}", action.stage.value, name(action.kind), action.microbatch.value);
}

std::string_view name(Placement placement) {
  switch (placement) {
    case Placement::loop:
      return "loop";
    case Placement::vee:
      return "vee";
  }
  return "?";
}

std::string_view name(Kind kind) {
  switch (kind) {
    case Kind::naive:
      return "naive";
    case Kind::gpipe:
      return "gpipe";
    case Kind::one_f_one_b:
      return "1f1b";
    case Kind::interleaved:
      return "interleaved";
    case Kind::zb_h1:
      return "zb-h1";
    case Kind::zb_v:
      return "zb-v";
  }
  return "?";
}

const std::vector<std::string>& kind_names() {
  static const std::vector<std::string> names = {"naive", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"};
  return names;
}

Kind parse_kind(std::string_view word, std::string_view where) {
  const std::vector<std::string>& names = kind_names();
  const auto found = std::find(names.begin(), names.end(), word);
  if (found != names.end()) return static_cast<Kind>(found - names.begin());
  const std::string near = nearest(word, names);
  const std::string all = "use one of " + join(names, ", ");
  throw Error(ErrorKind::config, fmt::format("unknown schedule '{}'", word), std::string(where),
              near.empty() ? all : fmt::format("did you mean '{}'? Else {}", near, all));
}

Placement placement_of(Kind kind) {
  return kind == Kind::zb_v ? Placement::vee : Placement::loop;
}

std::int32_t required_vpp(Kind kind) {
  switch (kind) {
    case Kind::naive:
    case Kind::gpipe:
    case Kind::one_f_one_b:
    case Kind::zb_h1:
      return 1;
    case Kind::zb_v:
      return 2;
    case Kind::interleaved:
      return 0;
  }
  return 1;
}

std::int32_t Schedule::rank_of(StageId stage) const {
  TESSERA_CHECK(stage.value >= 0 && stage.value < num_stages(), "stage outside the pipeline");
  switch (placement) {
    case Placement::loop:
      return stage.value % pp;
    case Placement::vee:
      return stage.value < pp ? stage.value : 2 * pp - 1 - stage.value;
  }
  return 0;
}

std::vector<StageId> Schedule::stages_of(std::int32_t rank) const {
  std::vector<StageId> stages;
  for (std::int32_t s = 0; s < num_stages(); ++s) {
    if (rank_of(StageId(s)) == rank) stages.push_back(StageId(s));
  }
  return stages;
}

bool Schedule::is_lowered() const {
  return std::any_of(ranks.begin(), ranks.end(), [](const ActionList& list) {
    return std::any_of(list.begin(), list.end(), [](const Action& a) { return !is_compute(a.kind); });
  });
}

StageCosts StageCosts::uniform(std::int32_t num_stages, Seconds f, Seconds i, Seconds w) {
  const auto n = static_cast<std::size_t>(num_stages);
  return {std::vector(n, f), std::vector(n, i), std::vector(n, w), Seconds(0)};
}

Schedule compute_only(const Schedule& schedule) {
  Schedule out = schedule;
  for (ActionList& list : out.ranks) std::erase_if(list, [](const Action& a) { return !is_compute(a.kind); });
  return out;
}

namespace {
// Position of the last W or B of each stage in `list`, or -1.
std::vector<std::int64_t> last_weight_action(const ActionList& list, std::int32_t num_stages) {
  std::vector<std::int64_t> last(static_cast<std::size_t>(num_stages), -1);
  for (std::size_t i = 0; i < list.size(); ++i) {
    const bool weight = list[i].kind == ActionKind::backward_weight || list[i].kind == ActionKind::backward;
    if (weight) last[static_cast<std::size_t>(list[i].stage.value)] = static_cast<std::int64_t>(i);
  }
  return last;
}
}  // namespace

Schedule lower(const Schedule& schedule) {
  Schedule out = compute_only(schedule);
  const std::int32_t last_stage = schedule.num_stages() - 1;
  const auto crosses = [&](StageId lower_stage) {  // from lower_stage to the next
    return schedule.rank_of(lower_stage) != schedule.rank_of(StageId(lower_stage.value + 1));
  };
  for (ActionList& list : out.ranks) {
    const std::vector<std::int64_t> last = last_weight_action(list, schedule.num_stages());
    ActionList lowered;
    lowered.reserve(list.size() * 3);
    for (std::size_t i = 0; i < list.size(); ++i) {
      const Action a = list[i];
      const StageId s = a.stage;
      const bool has_previous = s.value > 0 && crosses(StageId(s.value - 1));
      const bool has_next = s.value < last_stage && crosses(s);
      const bool forward = a.kind == ActionKind::forward;
      const bool gradient = a.kind == ActionKind::backward_input || a.kind == ActionKind::backward;
      if (forward && has_previous) lowered.push_back({ActionKind::recv_forward, s, a.microbatch});
      if (gradient && has_next) lowered.push_back({ActionKind::recv_backward, s, a.microbatch});
      lowered.push_back(a);
      if (forward && has_next) lowered.push_back({ActionKind::send_forward, s, a.microbatch});
      if (gradient && has_previous) lowered.push_back({ActionKind::send_backward, s, a.microbatch});
      if (last[static_cast<std::size_t>(s.value)] == static_cast<std::int64_t>(i)) {
        lowered.push_back({ActionKind::reduce_grad, s, MicrobatchId(0)});
      }
    }
    list = std::move(lowered);
  }
  return out;
}

}  // namespace tessera::schedule
