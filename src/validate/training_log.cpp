#include "validate/training_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>

#include "base/text.h"

namespace tessera::validate {
namespace {

constexpr double kMiB = 1024.0 * 1024.0, kGiB = 1024.0 * kMiB;
// No iteration of a training run takes longer; what says so is garbled.
constexpr double kLongest = 1e7;

// Escape sequences for colours out, so that fields stand side by side.
std::string without_colours(std::string_view line) {
  std::string out;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] != '\x1b') {
      out += line[i];
      continue;
    }
    while (i < line.size() && line[i] != 'm') ++i;
  }
  return out;
}

// The number behind `key` and blanks: digits may be grouped by commas. Absent when the key is; NaN when what
// follows is no number.
std::optional<double> value_after(std::string_view line, std::string_view key) {
  const std::size_t at = line.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  std::string_view rest = line.substr(at + key.size());
  while (!rest.empty() && (rest.front() == ' ' || rest.front() == '\t')) rest.remove_prefix(1);
  std::string digits;
  for (const char c : rest) {
    const bool number = (c >= '0' && c <= '9') || c == '.' || c == 'e' || c == 'E' || c == '+' || c == '-';
    if (c == ',') continue;
    if (!number) break;
    digits += c;
  }
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end == digits.data() || !std::isfinite(value)) return std::nan("");
  return value;
}

// A count, where the field has one.
std::optional<std::int64_t> count_after(std::string_view line, std::string_view key) {
  const std::optional<double> value = value_after(line, key);
  if (!value || !(*value >= 0.0) || *value > 1e15 || *value != std::floor(*value)) return std::nullopt;
  return static_cast<std::int64_t>(*value);
}

// How a framework says what an iteration took.
struct Form {
  LogKind kind;
  std::string_view mark;  // its line has this
  std::string_view key;   // before the number
  LogUnit unit;
  double scale;                // of the number
  std::string_view iteration;  // before the iteration's number; empty: it says none
};
constexpr std::array kForms = {
    Form{LogKind::megatron, "elapsed time per iteration (ms)",
         "elapsed time per iteration (ms):", LogUnit::seconds, 1e-3, "iteration "},
    Form{LogKind::torchtitan, "tps:", "tps:", LogUnit::tokens_per_device_second, 1.0, "step:"},
    Form{LogKind::deepspeed, "iter time (s):", "iter time (s):", LogUnit::seconds, 1.0, "steps:"},
    Form{LogKind::deepspeed, "CurrSamplesPerSec=", "CurrSamplesPerSec=", LogUnit::samples_per_second, 1.0,
         "global_step="},
    Form{LogKind::nemo, "train_step_timing in s:", "train_step_timing in s:", LogUnit::seconds, 1.0,
         "global_step:"},
};
// Megatron-Bridge prints it beside Megatron's line, which counts then.
constexpr Form kBridge = {LogKind::nemo, "Step Time :", "Step Time :", LogUnit::seconds, 1.0, ""};

struct Seen {
  std::vector<LogStep> steps;
  std::int32_t unreadable = 0, first_line = 0;
};

class LogReader {
 public:
  TrainingLog read(std::string_view text, std::string_view where, Problems& problems) {
    std::int32_t number = 0;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      ++number;
      line(without_colours(text.substr(at, end - at)), number);
      at = end + 1;
    }
    if (seen_.empty() && bridge_.first_line > 0) seen_.emplace(LogKind::nemo, std::move(bridge_));
    choose(where, problems);
    return std::move(out_);
  }

 private:
  void line(const std::string& text, std::int32_t number) {
    memory(text);
    for (const std::string_view key : {"global batch size:", "global_batch_size:"}) {
      if (const auto batch = count_after(text, key)) out_.global_batch_size = batch;
    }
    for (const Form& form : kForms) {
      if (text.find(form.mark) != std::string::npos) return add(seen_[form.kind], form, text, number);
    }
    if (text.find(kBridge.mark) != std::string::npos) add(bridge_, kBridge, text, number);
  }

  static void add(Seen& seen, const Form& form, const std::string& text, std::int32_t number) {
    if (seen.first_line == 0) seen.first_line = number;
    const double value = value_after(text, form.key).value_or(0.0) * form.scale;
    if (!(value > 0.0) || value > (form.unit == LogUnit::seconds ? kLongest : 1e12)) {
      ++seen.unreadable;
      return;
    }
    LogStep step{.line = number, .iteration = {}, .unit = form.unit, .value = value};
    if (!form.iteration.empty()) step.iteration = count_after(text, form.iteration);
    seen.steps.push_back(step);
  }

  void memory(const std::string& text) {
    const auto at_most = [&](std::optional<double>& to, std::string_view key, double scale) {
      const double value = value_after(text, key).value_or(0.0) * scale;
      if (value > 0.0 && value < 1e15) to = std::max(to.value_or(0.0), value);
    };
    at_most(out_.memory_bytes, "max allocated:", kMiB);
    at_most(out_.memory_bytes, "MaxMemAllocated=", kGiB);
    if (text.find("tps:") != std::string::npos) at_most(out_.memory_bytes, "memory:", kGiB);
    for (const std::string_view key : {"mem usages:", "mem-usages:"}) at_most(out_.memory_share, key, 1.0);
  }

  void choose(std::string_view where, Problems& problems) {
    if (seen_.empty()) {
      problems.add("no line says what an iteration took", std::string(where),
                   "give the log of a rank that prints \"elapsed time per iteration (ms):\" (Megatron-LM), "
                   "\"tps:\" (torchtitan), \"CurrSamplesPerSec=\" or \"iter time (s):\" (DeepSpeed), "
                   "\"train_step_timing in s:\" (NeMo)");
      return;
    }
    if (seen_.size() > 1) {
      std::vector<std::string> words;
      for (const auto& [kind, seen] : seen_)
        words.push_back(fmt::format("{} (line {})", name(kind), seen.first_line));
      problems.add("the log has lines of several frameworks: " + join(words, ", "), std::string(where),
                   "give one run's log a file");
      return;
    }
    Seen& seen = seen_.begin()->second;
    out_.kind = seen_.begin()->first;
    out_.unreadable = seen.unreadable;
    if (seen.steps.empty()) {
      problems.add(
          fmt::format("{} lines of {} name an iteration and none a time", seen.unreadable, name(out_.kind)),
          fmt::format("{}:{}", where, seen.first_line), "give the log of a run that trained");
      return;
    }
    out_.steps = merged(seen.steps);
  }

  // Ranks that say the same iteration: the slowest of them is the step.
  static std::vector<LogStep> merged(const std::vector<LogStep>& steps) {
    std::vector<LogStep> out;
    std::map<std::int64_t, std::size_t> at;
    for (const LogStep& s : steps) {
      if (s.iteration) {
        const auto [it, fresh] = at.try_emplace(*s.iteration, out.size());
        LogStep* known = fresh ? nullptr : &out[it->second];
        if (known != nullptr && known->unit == s.unit) {
          known->value =
              s.unit == LogUnit::seconds ? std::max(known->value, s.value) : std::min(known->value, s.value);
          continue;
        }
      }
      out.push_back(s);
    }
    return out;
  }

  TrainingLog out_;
  std::map<LogKind, Seen> seen_;
  Seen bridge_;
};

double median_of(std::vector<double> values) {
  const auto middle = values.begin() + std::ssize(values) / 2;
  std::nth_element(values.begin(), middle, values.end());
  const double high = *middle;
  if (values.size() % 2 == 1) return high;
  return 0.5 * (high + *std::max_element(values.begin(), middle));
}

std::string range_text(const LogStep& first, const LogStep& last) {
  if (first.iteration && last.iteration) {
    return first.line == last.line ? fmt::format("iteration {} (line {})", *first.iteration, first.line)
                                   : fmt::format("iterations {} to {} (lines {} to {})", *first.iteration,
                                                 *last.iteration, first.line, last.line);
  }
  return first.line == last.line ? fmt::format("line {}", first.line)
                                 : fmt::format("lines {} to {}", first.line, last.line);
}

}  // namespace

std::string_view name(LogKind kind) {
  switch (kind) {
    case LogKind::megatron:
      return "Megatron-LM";
    case LogKind::torchtitan:
      return "torchtitan";
    case LogKind::deepspeed:
      return "DeepSpeed";
    case LogKind::nemo:
      return "NeMo";
  }
  return "?";
}

TrainingLog parse_training_log(std::string_view text, std::string_view where, Problems& problems) {
  return LogReader().read(text, where, problems);
}

double seconds_of(const LogStep& step, const LogWork& work) {
  const auto sequences = static_cast<double>(work.global_batch_size);
  switch (step.unit) {
    case LogUnit::seconds:
      return step.value;
    case LogUnit::tokens_per_device_second:
      return sequences * static_cast<double>(work.sequence_length) / (work.devices * step.value);
    case LogUnit::samples_per_second:
      return sequences / step.value;
  }
  return step.value;
}

Steady steady(const TrainingLog& log, const LogWork& work) {
  TESSERA_CHECK(!log.steps.empty(), "a log that was read has iterations");
  std::vector<double> seconds;
  for (const LogStep& s : log.steps) seconds.push_back(seconds_of(s, work));
  const std::int64_t count = std::ssize(seconds);
  std::int64_t first = 0;
  if (count >= 3) {
    constexpr double kSlower = 1.1;
    const double settled = median_of({seconds.begin() + count / 2, seconds.end()});
    first = 1;
    while (first < count / 2 && seconds[static_cast<std::size_t>(first)] > kSlower * settled) ++first;
  }
  std::vector<double> used(seconds.begin() + first, seconds.end());
  Steady out{.median = median_of(used),
             .used = static_cast<std::int32_t>(std::ssize(used)),
             .dropped = static_cast<std::int32_t>(first)};
  std::ranges::sort(used);
  const std::size_t quarter = used.size() / 4;
  out.spread = 0.5 * (used[used.size() - 1 - quarter] - used[quarter]) / out.median;
  if (first > 0)
    out.dropped_text = range_text(log.steps.front(), log.steps[static_cast<std::size_t>(first - 1)]);
  return out;
}

}  // namespace tessera::validate
