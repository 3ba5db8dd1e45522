#include "sim/shape.h"

#include <algorithm>

#include "schedule/simulate.h"

namespace tessera::sim {
namespace {

std::int64_t picoseconds(double seconds) {
  return schedule::to_sim_time(Seconds(seconds)).value;
}

class Writer {
 public:
  Writer(ActionShape& shape, double slowdown) : shape_(shape), slowdown_(slowdown) {}

  // `whole`: the sum of the segments' exposed seconds, as the stage states it.
  void phase(const std::vector<cost::Segment>& segments, double whole, trace::Category category) {
    if (segments.empty()) {
      cost::Segment all{.seconds = whole, .exposed = whole};
      add(all, nullptr, category, picoseconds(whole), picoseconds(whole * slowdown_));
      return;
    }
    // Borders are rounded, not lengths, so that the phase takes what it states to the picosecond.
    double plain = 0, slowed = 0;
    std::int64_t plain_at = 0, slowed_at = 0;
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const cost::Segment& s = segments[i];
      plain += s.exposed;
      slowed += s.exposed * (s.communication ? 1.0 : slowdown_);
      const bool last_as_stated = i + 1 == segments.size() && slowdown_ == 1.0;
      const std::int64_t plain_end = std::max(plain_at, picoseconds(plain));
      const std::int64_t slowed_end = std::max(slowed_at, picoseconds(last_as_stated ? whole : slowed));
      const std::int64_t plain_length = slowdown_ == 1.0 ? slowed_end - slowed_at : plain_end - plain_at;
      add(s, &s, category, plain_length, slowed_end - slowed_at);
      plain_at = plain_end;
      slowed_at = slowed_end;
    }
  }

 private:
  void add(const cost::Segment& s, const cost::Segment* shown, trace::Category category, std::int64_t plain,
           std::int64_t length) {
    const std::int64_t own = std::min(plain, length);
    shape_.parts[static_cast<std::size_t>(s.part)] += own;
    shape_.parts[static_cast<std::size_t>(cost::Part::jitter)] += length - own;
    shape_.flops += s.flops;
    if (!s.communication) shape_.busy += length;
    shape_.stretches.push_back({.segment = shown,
                                .category = category,
                                .begin = shape_.total,
                                .end = shape_.total + length,
                                .communication = s.communication ? picoseconds(s.seconds) : 0});
    shape_.total += length;
  }

  ActionShape& shape_;
  double slowdown_;
};

}  // namespace

ActionShape action_shape(const cost::StageWork& work, schedule::ActionKind kind, double slowdown) {
  using schedule::ActionKind;
  ActionShape shape;
  Writer writer(shape, slowdown);
  if (kind == ActionKind::forward) {
    writer.phase(work.forward, work.forward_seconds, trace::Category::forward);
  }
  if (kind == ActionKind::backward_input || kind == ActionKind::backward) {
    writer.phase(work.backward_input, work.backward_input_seconds, trace::Category::backward_input);
  }
  if (kind == ActionKind::backward_weight || kind == ActionKind::backward) {
    writer.phase(work.backward_weight, work.backward_weight_seconds, trace::Category::backward_weight);
  }
  return shape;
}

}  // namespace tessera::sim
