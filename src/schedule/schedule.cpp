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
    case Kind::combined:
      return "combined-1f1b";
  }
  return "?";
}

const std::vector<std::string>& kind_names() {
  static const std::vector<std::string> names = {"naive", "gpipe", "1f1b",         "interleaved",
                                                 "zb-h1", "zb-v",  "combined-1f1b"};
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
    case Kind::combined:
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

// One rank's compute actions with their messages.
class Lowering {
 public:
  Lowering(const Schedule& s, std::int32_t rank, const ActionList& list)
      : schedule_(s), rank_(rank), list_(list), last_(last_weight_action(list, s.num_stages())) {
    out_.reserve(list.size() * 3);
  }

  [[nodiscard]] ActionList run() {
    for (std::size_t i = 0; i < list_.size(); ++i) {
      const bool pair =
          schedule_.kind == Kind::combined && i + 1 < list_.size() &&
          may_run_beside(list_[i], list_[i + 1]) &&
          list_[i].microbatch.value - list_[i + 1].microbatch.value == combined_warm_up(schedule_.pp, rank_);
      add(i, pair ? i + 2 : i + 1);
      if (pair) ++i;
    }
    return std::move(out_);
  }

 private:
  [[nodiscard]] bool crosses(StageId lower_stage) const {  // from lower_stage to the next
    return schedule_.rank_of(lower_stage) != schedule_.rank_of(StageId(lower_stage.value + 1));
  }
  static bool is_gradient(const Action& a) {
    return a.kind == ActionKind::backward_input || a.kind == ActionKind::backward;
  }

  // What [begin, end) receives; the actions, each with what it sends; reductions.
  void add(std::size_t begin, std::size_t end) {
    const auto each = [&](const auto& body) {
      for (std::size_t i = begin; i < end; ++i) {
        const StageId s = list_[i].stage;
        const bool has_previous = s.value > 0 && crosses(StageId(s.value - 1));
        const bool has_next = s.value < schedule_.num_stages() - 1 && crosses(s);
        body(list_[i], has_previous, has_next);
      }
    };
    each([&](const Action& a, bool previous, bool next) {
      if (a.kind == ActionKind::forward && previous) put(ActionKind::recv_forward, a);
      if (is_gradient(a) && next) put(ActionKind::recv_backward, a);
    });
    each([&](const Action& a, bool previous, bool next) {
      out_.push_back(a);
      if (a.kind == ActionKind::forward && next) put(ActionKind::send_forward, a);
      if (is_gradient(a) && previous) put(ActionKind::send_backward, a);
    });
    for (std::size_t i = begin; i < end; ++i) {
      if (last_[static_cast<std::size_t>(list_[i].stage.value)] == static_cast<std::int64_t>(i))
        out_.push_back({ActionKind::reduce_grad, list_[i].stage, MicrobatchId(0)});
    }
  }
  void put(ActionKind kind, const Action& of) { out_.push_back({kind, of.stage, of.microbatch}); }

  const Schedule& schedule_;
  std::int32_t rank_;
  const ActionList& list_;
  std::vector<std::int64_t> last_;
  ActionList out_;
};
}  // namespace

std::int32_t combined_warm_up(std::int32_t pp, std::int32_t rank) {
  return 2 * (pp - 1 - rank) + 1;
}

bool may_run_beside(const Action& forward, const Action& backward) {
  return forward.kind == ActionKind::forward && backward.kind == ActionKind::backward &&
         forward.microbatch != backward.microbatch;
}

Schedule lower(const Schedule& schedule) {
  Schedule out = compute_only(schedule);
  for (std::int32_t r = 0; r < out.pp; ++r) {
    ActionList& list = out.ranks[static_cast<std::size_t>(r)];
    list = Lowering(out, r, list).run();
  }
  return out;
}

}  // namespace tessera::schedule
