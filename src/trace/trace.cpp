#include "trace/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <tuple>
#include <utility>

#include "base/clock.h"
#include "base/error.h"

namespace tessera::trace {

namespace {
std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}
constexpr const char* kOther = "other";
}  // namespace

std::string_view name(Category category) {
  switch (category) {
    case Category::forward:
      return "forward";
    case Category::backward_input:
      return "backward_input";
    case Category::backward_weight:
      return "backward_weight";
    case Category::optimizer:
      return "optimizer";
    case Category::communication:
      return "communication";
    case Category::wait:
      return "wait";
    case Category::data:
      return "data";
    case Category::checkpoint:
      return "checkpoint";
    case Category::other:
      return "other";
  }
  return "?";
}

bool is_compute(Category category) {
  switch (category) {
    case Category::forward:
    case Category::backward_input:
    case Category::backward_weight:
    case Category::optimizer:
      return true;
    case Category::communication:
    case Category::wait:
    case Category::data:
    case Category::checkpoint:
    case Category::other:
      return false;
  }
  return false;
}

std::string_view name(Axis axis) {
  switch (axis) {
    case Axis::none:
      return "none";
    case Axis::tp:
      return "tp";
    case Axis::cp:
      return "cp";
    case Axis::dp:
      return "dp";
    case Axis::pp:
      return "pp";
    case Axis::etp:
      return "etp";
    case Axis::ep:
      return "ep";
    case Axis::ep_inter:
      return "ep_inter";
    case Axis::ep_intra:
      return "ep_intra";
    case Axis::edp:
      return "edp";
    case Axis::tp_dp:
      return "tp_dp";
    case Axis::world:
      return "world";
  }
  return "?";
}

Recorder::Recorder(const RecorderOptions& options) : options_(options) {
  Problems problems;
  if (options.capacity < 1) {
    problems.add(fmt::format("capacity={} is below 1", options.capacity), "trace: capacity",
                 "use 1 or more spans");
  }
  if (options.max_names < 1 || options.max_names > (1 << 20)) {
    problems.add(fmt::format("max_names={} is not in 1 to 1048576", options.max_names), "trace: max_names",
                 "use 1024, for example");
  }
  problems.throw_if_any();
  spans_.resize(static_cast<std::size_t>(options.capacity));  // touches every page, so recording faults none
  spans_.clear();
  names_.reserve(at(options.max_names) + 1);
  names_.push_back(kOther);
  table_.resize(std::bit_ceil(2 * at(options.max_names)));
}

StreamId Recorder::stream(std::string_view name) {
  const auto index =
      static_cast<std::size_t>(std::find(streams_.begin(), streams_.end(), name) - streams_.begin());
  if (index == streams_.size()) streams_.emplace_back(name);
  return StreamId(static_cast<std::int32_t>(index));
}

NameId Recorder::name(std::string_view name) {
  const auto found = std::find(names_.begin(), names_.end(), name);
  if (found != names_.end()) return NameId(static_cast<std::int32_t>(found - names_.begin()));
  owned_.emplace_back(name);
  // Room for the literals stays as promised.
  if (names_.size() == names_.capacity()) names_.reserve(names_.size() * 2);
  names_.push_back(owned_.back().c_str());
  names_.reserve(names_.size() + at(options_.max_names - num_literals_));
  return NameId(static_cast<std::int32_t>(names_.size()) - 1);
}

NameId Recorder::literal(const char* name) noexcept {
  const std::size_t mask = table_.size() - 1;
  for (std::size_t i = std::hash<const void*>()(name) >> 3;; ++i) {
    Slot& slot = table_[i & mask];
    if (slot.literal == name) return slot.id;
    if (slot.literal != nullptr) continue;
    if (num_literals_ == options_.max_names || names_.size() == names_.capacity()) return NameId(0);
    ++num_literals_;
    slot = {name, NameId(static_cast<std::int32_t>(names_.size()))};
    names_.push_back(name);
    return slot.id;
  }
}

void Recorder::record(Span span) noexcept {
  if (spans_.size() == spans_.capacity()) {
    ++dropped_;
    return;
  }
  span.rank = options_.rank;
  span.runner = options_.runner;
  if (span.step < 0) span.step = step_;
  spans_.push_back(span);
}

void Recorder::clear() noexcept {
  spans_.clear();
  dropped_ = 0;
}

std::string_view Recorder::text(NameId id) const {
  TESSERA_CHECK(id.value >= 0 && at(id.value) < names_.size(), "a name of another recorder");
  return names_[at(id.value)];
}

Scope::Scope(Recorder* recorder, const Span& span) noexcept : recorder_(recorder), span_(span) {
  if (recorder_ == nullptr) return;
  span_.start_ns = wall_ns();
  cpu_start_ns_ = thread_cpu_ns();
}

Scope::~Scope() {
  if (recorder_ == nullptr) return;
  span_.cpu_ns = thread_cpu_ns() - cpu_start_ns_;
  span_.end_ns = wall_ns();
  recorder_->record(span_);
}

namespace {

// Sorted words in use and the new number of each old one.
struct Renumbering {
  std::vector<std::string> words;
  std::vector<std::int32_t> number;  // -1: not in use
};

template <class IdOf>
Renumbering renumber(const std::vector<std::string>& words, const std::vector<Span>& spans,
                     std::string_view what, IdOf id_of) {
  Renumbering out;
  out.number.assign(words.size(), -1);
  for (std::size_t i = 0; i < spans.size(); ++i) {
    const std::int32_t id = id_of(spans[i]);
    if (id < 0 || at(id) >= words.size()) {
      throw Error(ErrorKind::config, fmt::format("{} {} of {}", what, id, words.size()),
                  fmt::format("trace: span {}", i), "take ids from the recorder or the tables of the trace");
    }
    if (std::exchange(out.number[at(id)], 0) < 0) out.words.push_back(words[at(id)]);
  }
  std::sort(out.words.begin(), out.words.end());
  out.words.erase(std::unique(out.words.begin(), out.words.end()), out.words.end());
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (out.number[i] < 0) continue;
    const auto place = std::lower_bound(out.words.begin(), out.words.end(), words[i]);
    out.number[i] = static_cast<std::int32_t>(place - out.words.begin());
  }
  return out;
}

auto order(const Span& s) {
  return std::tuple(s.rank, s.stream, s.start_ns, -s.end_ns, s.name, s.category, s.axis, s.runner, s.cpu_ns,
                    s.bytes, s.flops, s.step, s.stage, s.microbatch);
}

}  // namespace

Trace canonical(Trace trace) {
  Renumbering names = renumber(trace.names, trace.spans, "name", [](const Span& s) { return s.name.value; });
  Renumbering streams =
      renumber(trace.streams, trace.spans, "stream", [](const Span& s) { return s.stream.value; });
  for (Span& s : trace.spans) {
    s.name = NameId(names.number[at(s.name.value)]);
    s.stream = StreamId(streams.number[at(s.stream.value)]);
  }
  trace.names = std::move(names.words);
  trace.streams = std::move(streams.words);
  std::sort(trace.spans.begin(), trace.spans.end(),
            [](const Span& a, const Span& b) { return order(a) < order(b); });
  return trace;
}

Trace collect(const std::vector<const Recorder*>& recorders, std::map<std::string, std::string> metadata) {
  Trace trace;
  trace.metadata = std::move(metadata);
  std::map<std::string, std::int32_t, std::less<>> names, streams;
  const auto intern = [](auto& known, std::vector<std::string>& words, std::string_view word) {
    const auto [place, is_new] =
        known.try_emplace(std::string(word), static_cast<std::int32_t>(words.size()));
    if (is_new) words.emplace_back(word);
    return place->second;
  };
  for (const Recorder* r : recorders) {
    trace.dropped += r->dropped();
    for (Span s : r->spans()) {
      TESSERA_CHECK(s.stream.value >= 0 && at(s.stream.value) < r->streams().size(),
                    "a stream of another recorder");
      s.name = NameId(intern(names, trace.names, r->text(s.name)));
      s.stream = StreamId(intern(streams, trace.streams, r->streams()[at(s.stream.value)]));
      trace.spans.push_back(s);
    }
  }
  return canonical(std::move(trace));
}

}  // namespace tessera::trace
