// The measured schedules of the Zero Bubble paper from its profiled times of F, B and W. One constant: what a
// step takes beyond the profiled passes (optimizer, data, gaps), 4.5 %, the same for every row.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <sstream>

#include "base/file.h"
#include "sim/support.h"

namespace tessera::sim {
namespace {

using schedule::Action;
using schedule::ActionKind;

constexpr double kBeyondPasses = 1.045;

struct Row {
  std::string schedule, model;
  std::int32_t pp = 0, vpp = 0, m = 0;
  double f = 0, i = 0, w = 0, message = 0, measured = 0;
};

std::vector<Row> rows() {
  const std::filesystem::path root = TESSERA_SOURCE_DIR;
  std::istringstream text(read_text(root / "tests" / "sim" / "zero_bubble.csv"));
  std::vector<Row> out;
  for (std::string line; std::getline(text, line);) {
    if (line.front() == '#' || line.front() == 't') continue;
    std::replace(line.begin(), line.end(), ',', ' ');
    Row r;
    std::string table;
    std::istringstream(line) >> table >> r.schedule >> r.model >> r.pp >> r.vpp >> r.m >> r.f >> r.i >> r.w >>
        r.message >> r.measured;
    for (double* t : {&r.f, &r.i, &r.w, &r.message}) *t *= 1e-3;
    out.push_back(r);
  }
  return out;
}

// ZB-2p's orders are found by a solver and not printed. A greedy list with twice the activations of 1F1B
// stands for it: I when it is there, else F, else W unless another one is there within a quarter of a W.
class TwicePipeline {
 public:
  explicit TwicePipeline(const Row& row) : row_(row), ranks_(row.pp) {
    schedule_ = {.kind = Kind::zb_h1, .pp = row.pp, .vpp = 1, .num_microbatches = row.m};
    schedule_.ranks.resize(row.pp);
    for (Rank& r : ranks_) r.forward_end.assign(row.m, kNever), r.input_end.assign(row.m, kNever);
  }
  Schedule whole() {
    for (std::int32_t left = 3 * row_.pp * row_.m; left > 0; --left) {
      Choice first;
      for (std::int32_t r = 0; r < row_.pp; ++r) {
        const Choice c = choice(r);
        if (c.start < first.start - 1e-12) first = c;
      }
      run(first);
    }
    return schedule_;
  }

 private:
  static constexpr double kNever = 1e30;
  struct Rank {
    double free = 0;
    std::vector<double> forward_end, input_end;
    std::int32_t forwards = 0, inputs = 0, weights = 0;
  };
  struct Choice {
    double start = kNever;
    std::int32_t rank = 0;
    ActionKind kind{};
  };

  Choice choice(std::int32_t rank) const {
    const Rank& r = ranks_[rank];
    double forward = kNever, input = kNever;
    if (r.forwards < row_.m && r.forwards - r.weights < 2 * row_.pp) {
      forward = rank == 0 ? 0 : ranks_[rank - 1].forward_end[r.forwards] + row_.message;
    }
    if (r.inputs < r.forwards) {
      input =
          rank == row_.pp - 1 ? r.forward_end[r.inputs] : ranks_[rank + 1].input_end[r.inputs] + row_.message;
    }
    const auto at = [&](ActionKind kind, double ready) {
      return Choice{std::max(r.free, ready), rank, kind};
    };
    const double now = r.free + 1e-9;
    if (input <= now) return at(ActionKind::backward_input, input);
    if (forward <= now) return at(ActionKind::forward, forward);
    if (r.weights < r.inputs && std::min(input, forward) > now + 0.25 * row_.w) {
      return at(ActionKind::backward_weight, r.free);
    }
    return input <= forward ? at(ActionKind::backward_input, input) : at(ActionKind::forward, forward);
  }
  void run(const Choice& c) {
    Rank& r = ranks_[c.rank];
    std::int32_t k = 0;
    if (c.kind == ActionKind::forward) r.forward_end[k = r.forwards++] = r.free = c.start + row_.f;
    if (c.kind == ActionKind::backward_input) r.input_end[k = r.inputs++] = r.free = c.start + row_.i;
    if (c.kind == ActionKind::backward_weight) k = r.weights++, r.free = c.start + row_.w;
    schedule_.ranks[c.rank].push_back({c.kind, StageId(c.rank), MicrobatchId(k)});
  }

  Row row_;
  std::vector<Rank> ranks_;
  Schedule schedule_;
};

Schedule schedule_of(const Row& row) {
  if (row.schedule.starts_with("zb-2p")) return TwicePipeline(row).whole();
  const Kind kind = row.schedule == "zb-1p" ? Kind::zb_h1 : schedule::parse_kind(row.schedule);
  schedule::StageCosts costs;
  if (kind == Kind::zb_v) {
    costs = schedule::StageCosts::uniform(row.pp * row.vpp, Seconds(row.f / row.vpp),
                                          Seconds(row.i / row.vpp), Seconds(row.w / row.vpp));
  }
  return schedule::generate(
      {.kind = kind, .pp = row.pp, .vpp = row.vpp, .num_microbatches = row.m, .costs = std::move(costs)});
}

double predict(const Row& row) {
  const Schedule s = schedule_of(row);
  EXPECT_TRUE(schedule::check(s).ok());
  cost::StepWork work = uniform_work(s, row.f, row.i, row.w);
  for (cost::StageWork& stage : work.stages) stage.p2p_seconds = row.message;
  const Result r = simulate(s, work, {.detail = Detail::none});
  // The zero-bubble runs update weights without a barrier (section 4), so steps follow one another as closely
  // as the rank with the longest way from its first to its last action lets them.
  if (!row.schedule.starts_with("zb") || row.schedule == "zb-2p-synchronised")
    return kBeyondPasses * r.seconds();
  double period = 0;
  for (const RankResult& rank : r.ranks)
    period = std::max(period, schedule::to_seconds(rank.end - rank.begin).value);
  return kBeyondPasses * period;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

TEST(ZeroBubblePaper, MeasuredStepsFollowFromProfiledPasses) {
  std::map<std::string, std::vector<double>> errors;
  std::printf("%-19s %-6s %3s %4s  measured simulated  error\n", "schedule", "model", "pp", "m");
  for (const Row& row : rows()) {
    const double seconds = predict(row), error = seconds / row.measured - 1;
    std::printf("%-19s %-6s %3d %4d  %7.3f s %7.3f s %+5.1f %%\n", row.schedule.c_str(), row.model.c_str(),
                row.pp, row.m, row.measured, seconds, 100 * error);
    errors[row.schedule].push_back(std::abs(error));
    errors["all"].push_back(std::abs(error));
    EXPECT_TRUE(std::abs(error) <= 0.06) << row.schedule << ' ' << row.model << ' ' << row.m;
  }
  for (const auto& [name, e] : errors) {
    std::printf("%-19s %2zu rows: median %.1f %%, largest %.1f %%\n", name.c_str(), e.size(), 100 * median(e),
                100 * *std::max_element(e.begin(), e.end()));
    EXPECT_TRUE(median(e) <= 0.05) << name;
  }
  EXPECT_EQ(errors["all"].size(), 42);
  EXPECT_TRUE(median(errors["all"]) <= 0.02);
}

TEST(ZeroBubblePaper, SchedulesRankAsMeasured) {
  std::map<std::pair<std::string, std::int32_t>, std::map<std::string, std::pair<double, double>>> settings;
  for (const Row& row : rows()) settings[{row.model, row.m}][row.schedule] = {row.measured, predict(row)};
  for (const auto& [setting, by] : settings) {
    for (const auto& [slow, fast] :
         {std::pair{"1f1b", "zb-1p"}, {"1f1b", "interleaved"}, {"zb-1p", "zb-2p"}}) {
      if (!by.contains(slow) || !by.contains(fast)) continue;
      EXPECT_GT(by.at(slow).first, by.at(fast).first);
      EXPECT_GT(by.at(slow).second, by.at(fast).second)
          << setting.first << ' ' << setting.second << ' ' << slow;
    }
  }
}

}  // namespace
}  // namespace tessera::sim
