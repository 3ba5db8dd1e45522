#include "validate/stats.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

namespace tessera::validate {
namespace {

double quantile(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return 0;
  const double at = q * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<std::size_t>(std::floor(at));
  const std::size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - std::floor(at)) * (sorted[high] - sorted[low]);
}

bool starts_with(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}

bool on_blackwell(const Outcome& o) {
  const std::string& a = o.question->accelerator;
  return starts_with(a, "b200") || starts_with(a, "b300") || starts_with(a, "gb200") ||
         starts_with(a, "gb300");
}

// Seconds at full peak.
double ideal_seconds(const cost::StepCost& c) {
  return c.peak > 0 ? c.model_flops / c.peak : 0;
}

struct LogMean {
  double sum = 0;
  std::int32_t rows = 0;
  void add(double log_mfu) {
    sum += log_mfu;
    ++rows;
  }
  [[nodiscard]] double mean_without(const LogMean& part) const {
    const std::int32_t n = rows - part.rows;
    return n > 0 ? (sum - part.sum) / n : std::numeric_limits<double>::quiet_NaN();
  }
};

// Software that runs a layout: layouts are compared within one.
std::string software(const Outcome& o) {
  const graph::Practice& p = o.question->setup.practice;
  std::string out = p.name;
  for (const bool on : {p.flash_attention, p.fused_norm, p.compiled, p.cuda_graphs, p.grad_overlap,
                        p.param_overlap, p.tp_overlap, p.p2p_overlap, p.ep_overlap, p.ep_dedup}) {
    out += on ? '1' : '0';
  }
  return out + std::to_string(p.gradient_bytes) + std::to_string(p.optimizer_bytes);
}

// The id without its last number: one release of one table.
std::string table_of(const Outcome& o) {
  return o.row.id.substr(0, o.row.id.rfind('-'));
}

std::string sweep_key(const Outcome& o) {
  const Case& q = *o.question;
  const cost::Workload& w = q.setup.work;
  return fmt::format("{}|{} on {} {}, seq {}, batch {}|{}|{}|{}", q.source, q.model, q.candidate.world_size(),
                     q.accelerator, w.sequence_length, w.global_batch_size, static_cast<int>(w.precision),
                     software(o), table_of(o));
}

}  // namespace

ErrorStats error_stats(std::vector<double> e) {
  ErrorStats s;
  std::erase_if(e, [](double v) { return !std::isfinite(v); });
  s.rows = static_cast<std::int32_t>(e.size());
  if (e.empty()) return s;
  std::sort(e.begin(), e.end());
  s.bias = quantile(e, 0.5);
  s.worst = std::abs(e.front()) > std::abs(e.back()) ? e.front() : e.back();
  for (double& v : e) v = std::abs(v);
  std::sort(e.begin(), e.end());
  s.median = quantile(e, 0.5);
  s.p90 = quantile(e, 0.9);
  s.mean = std::accumulate(e.begin(), e.end(), 0.0) / static_cast<double>(e.size());
  return s;
}

bool counts(const Outcome& o) {
  return o.timed() && o.row.quality != Quality::c && !o.question->guessed;
}

std::vector<Group> grouped(std::span<const Outcome> outcomes,
                           const std::function<bool(const Outcome&)>& which, const KeyOf& key,
                           std::span<const double> baseline) {
  std::map<std::string, std::pair<std::vector<double>, std::vector<double>>> groups;
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const Outcome& o = outcomes[i];
    if (!o.timed() || !which(o)) continue;
    const std::string name = key(o);
    if (name.empty()) continue;
    groups[name].first.push_back(o.error());
    if (!baseline.empty()) groups[name].second.push_back(baseline[i]);
  }
  std::vector<Group> out;
  for (auto& [name, errors] : groups) {
    out.push_back({.name = name,
                   .model = error_stats(std::move(errors.first)),
                   .baseline = error_stats(std::move(errors.second))});
  }
  return out;
}

std::string_view name(Target t) {
  switch (t) {
    case Target::dense_ampere_hopper:
      return "dense, A100 and H100";
    case Target::moe:
      return "MoE";
    case Target::blackwell:
      return "B200, GB200, GB300";
  }
  return "?";
}

bool belongs(const Outcome& o, Target t) {
  if (!o.question) return false;
  const bool moe = o.question->model_class == ModelClass::moe;
  switch (t) {
    case Target::dense_ampere_hopper:
      return !moe &&
             (starts_with(o.question->accelerator, "a100") || starts_with(o.question->accelerator, "h100"));
    case Target::moe:
      return moe;
    case Target::blackwell:
      return on_blackwell(o);
  }
  return false;
}

std::vector<double> constant_mfu_errors(std::span<const Outcome> outcomes, const KeyOf& fold) {
  const auto device = [](const Outcome& o) {
    return fmt::format("{}/{}", o.question->accelerator, static_cast<int>(o.question->setup.work.precision));
  };
  std::map<std::string, LogMean> by_device, by_device_fold, by_fold;
  LogMean all;
  const auto log_mfu = [](const Outcome& o) { return std::log(ideal_seconds(*o.cost) / o.measured()); };
  for (const Outcome& o : outcomes) {
    if (!counts(o) || !(ideal_seconds(*o.cost) > 0)) continue;
    const double v = log_mfu(o);
    by_device[device(o)].add(v);
    by_device_fold[device(o) + "|" + fold(o)].add(v);
    by_fold[fold(o)].add(v);
    all.add(v);
  }
  std::vector<double> errors(outcomes.size(), std::numeric_limits<double>::quiet_NaN());
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const Outcome& o = outcomes[i];
    if (!o.timed() || !(ideal_seconds(*o.cost) > 0)) continue;
    const bool in_sample = fold(o).empty();
    const LogMean none;
    double mean =
        by_device[device(o)].mean_without(in_sample ? none : by_device_fold[device(o) + "|" + fold(o)]);
    if (!std::isfinite(mean)) mean = all.mean_without(in_sample ? none : by_fold[fold(o)]);
    errors[i] = ideal_seconds(*o.cost) / std::exp(mean) / o.measured() - 1.0;
  }
  return errors;
}

double kendall_tau_b(std::span<const double> a, std::span<const double> b) {
  std::int64_t agree = 0, disagree = 0, tied_a = 0, tied_b = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = i + 1; j < a.size(); ++j) {
      const double x = a[i] - a[j], y = b[i] - b[j];
      if (x == 0 && y == 0) continue;
      if (x == 0) {
        ++tied_a;
      } else if (y == 0) {
        ++tied_b;
      } else {
        ((x > 0) == (y > 0) ? agree : disagree) += 1;
      }
    }
  }
  const double na = static_cast<double>(agree + disagree + tied_a);
  const double nb = static_cast<double>(agree + disagree + tied_b);
  return na > 0 && nb > 0 ? static_cast<double>(agree - disagree) / std::sqrt(na * nb) : 0;
}

std::vector<Sweep> sweeps(std::span<const Outcome> outcomes, const std::function<bool(const Outcome&)>& which,
                          std::int32_t least) {
  struct Point {
    double measured = 0, predicted = 0;
  };
  std::map<std::string, std::map<std::string, Point>> by_key;
  for (const Outcome& o : outcomes) {
    if (!o.timed() || !which(o)) continue;
    const cost::Candidate& c = o.question->candidate;
    const std::string layout =
        fmt::format("{} {} {} {}", cost::to_text(c), c.ep, c.recompute_modules, c.zero_group) +
        (c.sequence_parallel ? " sp" : "");
    const auto [it, fresh] = by_key[sweep_key(o)].try_emplace(layout, Point{o.measured(), o.predicted()});
    if (!fresh) it->second.measured = std::min(it->second.measured, o.measured());
  }
  std::vector<Sweep> out;
  for (const auto& [key, points] : by_key) {
    if (static_cast<std::int32_t>(points.size()) < least) continue;
    std::vector<double> measured, predicted;
    for (const auto& [layout, p] : points) {
      measured.push_back(p.measured);
      predicted.push_back(p.predicted);
    }
    const auto first = std::min_element(predicted.begin(), predicted.end()) - predicted.begin();
    const double best = *std::min_element(measured.begin(), measured.end());
    Sweep s;
    s.source = key.substr(0, key.find('|'));
    const std::size_t begin = s.source.size() + 1;
    s.name = key.substr(begin, key.find('|', begin) - begin);
    s.layouts = static_cast<std::int32_t>(points.size());
    s.tau = kendall_tau_b(predicted, measured);
    s.regret = measured[static_cast<std::size_t>(first)] / best - 1.0;
    out.push_back(std::move(s));
  }
  return out;
}

double predicted_memory(const cost::StepCost& cost, MemoryKind kind) {
  switch (kind) {
    case MemoryKind::allocated:
    case MemoryKind::unknown:
      return cost.memory.allocated();
    case MemoryKind::reserved:
    case MemoryKind::process:
      return cost.memory.reserved();
  }
  return 0;
}

std::vector<MemoryGroup> memory_groups(std::span<const Outcome> outcomes) {
  std::map<std::string, std::vector<double>> groups;
  for (const Outcome& o : outcomes) {
    if (!o.cost || !o.question->memory) continue;
    const MemoryMeasured& m = *o.question->memory;
    const double error = predicted_memory(*o.cost, m.kind) / m.bytes - 1.0;
    const std::string kind(name(m.kind));
    groups["all " + kind].push_back(error);
    groups[fmt::format("{} ({}, {})", o.question->source, kind, name(o.row.quality))].push_back(error);
  }
  std::vector<MemoryGroup> out;
  for (auto& [name, errors] : groups) out.push_back({.name = name, .errors = error_stats(std::move(errors))});
  return out;
}

bool fits(const Outcome& o) {
  const double room = static_cast<double>(o.question->setup.calibration.usable_memory.value);
  return o.cost->memory.reserved() <= room;
}

std::vector<Verdicts> verdicts(std::span<const Outcome> outcomes) {
  std::map<std::string, Verdicts> by_source;
  Verdicts all;
  all.name = "all";
  const auto add = [](Verdicts& v, Status status, bool fit) {
    switch (status) {
      case Status::ok:
        ++v.ran;
        v.ran_right += fit ? 1 : 0;
        return;
      case Status::out_of_memory:
        ++v.oom;
        v.oom_right += fit ? 0 : 1;
        return;
      case Status::missing:
        ++v.missing;
        v.missing_right += fit ? 0 : 1;
        return;
      case Status::other:
        return;
    }
  };
  for (const Outcome& o : outcomes) {
    if (!o.cost) continue;
    // Failed layouts are listed under an id of their own: by model they belong to their source's sweep.
    const std::string source =
        o.row.status == Status::ok ? o.question->source : o.question->setup.practice.name;
    const std::string key = o.row.status == Status::ok ? o.question->setup.practice.name : source;
    Verdicts& v = by_source[key];
    v.name = key;
    add(v, o.row.status, fits(o));
    add(all, o.row.status, fits(o));
  }
  std::vector<Verdicts> out = {all};
  for (auto& [name, v] : by_source) out.push_back(v);
  return out;
}

}  // namespace tessera::validate
