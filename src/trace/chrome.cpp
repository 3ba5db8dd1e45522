#include "trace/chrome.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <simdjson.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace tessera::trace {

namespace {

constexpr std::int32_t kVersion = 1;
constexpr std::int64_t kLongestNs =
    std::int64_t{50} * 24 * 3600 * 1'000'000'000;  // a double of us keeps each ns
constexpr std::int64_t kLatestOrigin = std::numeric_limits<std::int64_t>::max() - 2 * kLongestNs;
constexpr std::array<std::string_view, 3> kReserved = {"tessera_trace", "origin_ns", "dropped"};

// ---- writing ----

// A file written aside in blocks and renamed at the end; removed when something fails before.
class AsideFile {
 public:
  explicit AsideFile(const std::filesystem::path& path) : path_(path), aside_(path) {
    aside_ += fmt::format(".tmp{}", ::getpid());
    fd_ = ::open(aside_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) fail("create", aside_);
    block_.reserve(kBlock + 4096);
  }
  AsideFile(const AsideFile&) = delete;
  AsideFile& operator=(const AsideFile&) = delete;
  ~AsideFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    ::unlink(aside_.c_str());
  }

  fmt::memory_buffer& out() { return block_; }
  void flush_if_full() {
    if (block_.size() >= kBlock) flush();
  }
  void commit() {
    flush();
    if (::fsync(fd_) != 0) fail("fsync", aside_);
    if (::rename(aside_.c_str(), path_.c_str()) != 0) fail("rename to", path_);
    ::close(std::exchange(fd_, -1));
    fsync_path(path_.has_parent_path() ? path_.parent_path() : std::filesystem::path("."));
  }

 private:
  static constexpr std::size_t kBlock = 1 << 20;

  [[noreturn]] static void fail(std::string_view action, const std::filesystem::path& path) {
    const int code = errno;
    throw Error(ErrorKind::io, fmt::format("cannot {} the trace: {}", action, std::strerror(code)),
                path.string(),
                code == ENOSPC   ? "free some disk space"
                : code == ENOENT ? "check the path"
                                 : "check the file and its folder");
  }
  void flush() {
    std::size_t done = 0;
    while (done < block_.size()) {
      const ssize_t n = ::write(fd_, block_.data() + done, block_.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("write", aside_);
      done += static_cast<std::size_t>(n);
    }
    block_.clear();
  }

  std::filesystem::path path_, aside_;
  int fd_ = -1;
  fmt::memory_buffer block_;
};

// A JSON string. Bytes that are no UTF-8 become question marks.
std::string json_string(std::string_view text) {
  const bool utf8 = simdjson::validate_utf8(text);
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += byte >= 0x80 && !utf8 ? '?' : c;
    }
  }
  return out + '"';
}

// Nanoseconds as microseconds with three decimals.
std::string microseconds(std::int64_t ns) {
  return fmt::format("{}.{:03}", ns / 1000, ns % 1000);
}

std::int64_t check_times(const Trace& trace) {
  std::int64_t first = trace.spans.empty() ? 0 : trace.spans.front().start_ns;
  for (const Span& s : trace.spans) first = std::min(first, s.start_ns);
  for (std::size_t i = 0; i < trace.spans.size(); ++i) {
    const Span& s = trace.spans[i];
    if (s.end_ns < s.start_ns || s.rank.value < 0 || s.cpu_ns < -1 || s.cpu_ns > kLongestNs || s.step < -1 ||
        s.stage < -1 || s.microbatch < -1) {
      throw Error(ErrorKind::config,
                  fmt::format("rank {}, {} to {} ns, cpu {} ns, step {}, stage {}, micro-batch {} is no span",
                              s.rank.value, s.start_ns, s.end_ns, s.cpu_ns, s.step, s.stage, s.microbatch),
                  fmt::format("trace: span {}", i),
                  "end spans at or after their start; write -1 for what is unknown");
    }
    if (first < 0 || first > kLatestOrigin || s.end_ns > kLongestNs + first) {
      throw Error(ErrorKind::config,
                  fmt::format("spans from {} to {} ns are over 50 days apart", first, s.end_ns),
                  fmt::format("trace: span {}", i), "take all times of a trace from one clock, from 0 on");
    }
  }
  return first;
}

void write_header(fmt::memory_buffer& out, const Trace& trace, std::int64_t origin) {
  fmt::format_to(std::back_inserter(out),
                 "{{\"otherData\":{{\"tessera_trace\":\"{}\",\"origin_ns\":\"{}\",\"dropped\":\"{}\"",
                 kVersion, origin, trace.dropped);
  for (const auto& [key, value] : trace.metadata) {
    if (std::find(kReserved.begin(), kReserved.end(), key) != kReserved.end()) {
      throw Error(ErrorKind::config, fmt::format("metadata '{}' is a word of the format", key),
                  "trace: metadata", "use another key");
    }
    fmt::format_to(std::back_inserter(out), ",{}:{}", json_string(key), json_string(value));
  }
  fmt::format_to(std::back_inserter(out), "}},\n\"displayTimeUnit\":\"ns\",\n\"traceEvents\":[");
}

void write_span(fmt::memory_buffer& out, const Span& s, const std::vector<std::string>& quoted_names,
                std::int64_t origin) {
  const auto o = std::back_inserter(out);
  fmt::format_to(
      o, "{{\"ph\":\"X\",\"pid\":{},\"tid\":{},\"name\":{},\"cat\":\"{}\",\"ts\":{},\"dur\":{},\"args\":{{",
      s.rank.value, s.stream.value + 1, quoted_names[static_cast<std::size_t>(s.name.value)],
      name(s.category), microseconds(s.start_ns - origin), microseconds(s.end_ns - s.start_ns));
  const char* comma = "";
  const auto argument = [&](std::string_view key, const auto& value) {
    fmt::format_to(o, "{}\"{}\":{}", std::exchange(comma, ","), key, value);
  };
  if (s.step >= 0) argument("step", s.step);
  if (s.stage >= 0) argument("stage", s.stage);
  if (s.microbatch >= 0) argument("microbatch", s.microbatch);
  if (s.axis != Axis::none) argument("axis", fmt::format("\"{}\"", name(s.axis)));
  if (s.bytes.value != 0) argument("bytes", s.bytes.value);
  if (s.flops.value != 0) argument("flops", s.flops.value);
  if (s.cpu_ns >= 0) argument("cpu_us", microseconds(s.cpu_ns));
  if (s.runner == Runner::helper) argument("runner", "\"helper\"");
  fmt::format_to(o, "}}}}");
}

// ---- reading ----

using simdjson::ondemand::object;
using simdjson::ondemand::value;

template <std::size_t N, class Enum>
std::optional<Enum> enum_of(std::string_view word) {
  for (std::size_t i = 0; i < N; ++i) {
    if (name(static_cast<Enum>(i)) == word) return static_cast<Enum>(i);
  }
  return std::nullopt;
}

class Reader {
 public:
  explicit Reader(std::string_view source) : source_(source) {}

  Trace read(std::string& text) {
    text.reserve(text.size() + simdjson::SIMDJSON_PADDING);
    try {
      simdjson::ondemand::parser parser;
      simdjson::ondemand::document document =
          parser.iterate(simdjson::padded_string_view(text.data(), text.size(), text.capacity()));
      for (auto field : document.get_object()) {
        const std::string_view key = field.unescaped_key();
        value v = field.value();
        if (key == "otherData")
          other_data(v);
        else if (key == "traceEvents")
          events(v);
        else if (key == "displayTimeUnit")
          static_cast<void>(v.get_string().value());
        else
          refuse(fmt::format("unknown member '{}'", key), source_);
      }
      if (document.current_location().error() != simdjson::OUT_OF_BOUNDS)
        refuse("text follows the end of the trace", source_);
    } catch (const simdjson::simdjson_error& e) {
      bad_json(e, text);
    }
    if (!has_version_) not_ours();
    if (!has_events_) refuse("'traceEvents' is missing", source_);
    for (Span& s : trace_.spans) {
      s.start_ns += origin_;
      s.end_ns += origin_;
    }
    return canonical(std::move(trace_));
  }

 private:
  [[nodiscard]] std::string place() const {
    return event_ < 0 ? source_ : fmt::format("{}: traceEvents[{}]", source_, event_);
  }
  [[noreturn]] static void refuse(std::string what, std::string where) {
    throw Error(ErrorKind::io, std::move(what), std::move(where),
                "the file is damaged or was changed by another program: write the trace again");
  }
  [[noreturn]] void not_ours() const {
    throw Error(ErrorKind::io, "this is no trace of Tessera: otherData.tessera_trace is missing", source_,
                "give a trace file that 'tessera train' wrote");
  }
  [[noreturn]] void bad_json(const simdjson::simdjson_error& e, std::string_view text) const {
    const std::size_t last = text.find_last_not_of(" \t\r\n\0");
    const bool cut = last == std::string_view::npos || text[last] != '}';
    throw Error(ErrorKind::io,
                cut ? fmt::format("the trace is cut off after {} bytes ({})", text.size(), e.what())
                    : fmt::format("the trace is not well-formed: {}", e.what()),
                place(),
                cut ? "copy the whole file, or write the trace again"
                    : "give a trace file that 'tessera train' wrote");
  }

  std::int64_t integer(std::string_view key, std::string_view text) const {
    std::int64_t number = 0;
    const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (code != std::errc() || end != text.data() + text.size() || number < 0) {
      refuse(fmt::format("otherData.{}='{}' is not a number", key, text), source_);
    }
    return number;
  }

  void other_data(value& v) {
    for (auto field : v.get_object()) {
      const std::string key(std::string_view(field.unescaped_key()));
      const std::string text(std::string_view(field.value().get_string()));
      if (key == "tessera_trace") {
        has_version_ = true;
        if (integer(key, text) != kVersion) {
          throw Error(ErrorKind::unsupported,
                      fmt::format("trace of version {}; this reader knows {}", text, kVersion), source_,
                      "write the trace again with this version of Tessera, or use a newer one to read it");
        }
      } else if (key == "origin_ns") {
        origin_ = integer(key, text);
        if (origin_ > kLatestOrigin) {
          refuse(fmt::format("origin_ns={} is no time", text), source_);
        }
      } else if (key == "dropped") {
        trace_.dropped = integer(key, text);
      } else {
        trace_.metadata[key] = text;
      }
    }
  }

  void events(value& v) {
    has_events_ = true;
    if (!has_version_) not_ours();
    for (auto element : v.get_array()) {
      ++event_;
      event(element.get_object());
    }
    event_ = -1;
  }

  struct Event {
    std::string_view ph, name, category;
    std::int64_t pid = -1, tid = -1;
    double ts = -1, dur = -1;
    std::string_view row;  // args.name of metadata
    Span span;
  };

  void event(object fields) {
    Event e;
    for (auto field : fields) {
      const std::string_view key = field.unescaped_key();
      value v = field.value();
      if (key == "ph")
        e.ph = v.get_string();
      else if (key == "name")
        e.name = v.get_string();
      else if (key == "cat")
        e.category = v.get_string();
      else if (key == "pid")
        e.pid = v.get_int64();
      else if (key == "tid")
        e.tid = v.get_int64();
      else if (key == "ts")
        e.ts = v.get_double();
      else if (key == "dur")
        e.dur = v.get_double();
      else if (key == "args")
        arguments(v, e);
      else
        refuse(fmt::format("unknown member '{}'", key), place());
    }
    if (e.pid < 0 || e.pid > std::numeric_limits<std::int32_t>::max()) {
      refuse(fmt::format("pid {} is no rank", e.pid), place());
    }
    if (e.ph == "M") return row(e);
    if (e.ph != "X") refuse(fmt::format("event of phase '{}'", e.ph), place());
    span(e);
  }

  void arguments(value& v, Event& e) {
    Span& s = e.span;
    const auto count = [&](value& x) {
      const std::int64_t n = x.get_int64();
      if (n < 0 || n > std::numeric_limits<std::int32_t>::max()) {
        refuse(fmt::format("{} is no step, stage or micro-batch", n), place());
      }
      return static_cast<std::int32_t>(n);
    };
    for (auto field : v.get_object()) {
      const std::string_view key = field.unescaped_key();
      value x = field.value();
      if (key == "step")
        s.step = count(x);
      else if (key == "stage")
        s.stage = count(x);
      else if (key == "microbatch")
        s.microbatch = count(x);
      else if (key == "bytes")
        s.bytes = Bytes(x.get_int64());
      else if (key == "flops")
        s.flops = Flops(x.get_int64());
      else if (key == "cpu_us")
        s.cpu_ns = nanoseconds(x.get_double());
      else if (key == "name")
        e.row = x.get_string();
      else if (key == "axis")
        s.axis = word<kNumAxes, Axis>("axis", x.get_string());
      else if (key == "runner")
        runner(x.get_string(), s);
      else
        refuse(fmt::format("unknown argument '{}'", key), place());
    }
  }

  void runner(std::string_view text, Span& s) {
    if (text != "helper") refuse(fmt::format("unknown runner '{}'", text), place());
    s.runner = Runner::helper;
  }

  template <std::int32_t N, class Enum>
  Enum word(std::string_view key, std::string_view text) {
    const auto found = enum_of<N, Enum>(text);
    if (!found) refuse(fmt::format("unknown {} '{}'", key, text), place());
    return *found;
  }

  [[nodiscard]] std::int64_t nanoseconds(double us) const {
    if (!(us >= 0 && us <= static_cast<double>(kLongestNs) * 1e-3)) {
      refuse(fmt::format("{} us is no time of a trace", us), place());
    }
    return std::llround(us * 1e3);
  }

  static std::int32_t intern(std::unordered_map<std::string, std::int32_t>& known,
                             std::vector<std::string>& words, std::string_view word) {
    const auto [place, is_new] =
        known.try_emplace(std::string(word), static_cast<std::int32_t>(words.size()));
    if (is_new) words.emplace_back(word);
    return place->second;
  }

  void row(const Event& e) {
    if (e.name == "process_name" || e.name == "process_sort_index") return;
    if (e.name != "thread_name") refuse(fmt::format("unknown metadata event '{}'", e.name), place());
    rows_[{e.pid, e.tid}] = intern(streams_, trace_.streams, e.row);
  }

  void span(Event& e) {
    Span& s = e.span;
    const auto row = rows_.find({e.pid, e.tid});
    if (row == rows_.end()) {
      refuse(fmt::format("row {} of process {} has no thread_name before its first span", e.tid, e.pid),
             place());
    }
    s.rank = Rank(static_cast<std::int32_t>(e.pid));
    s.stream = StreamId(row->second);
    s.name = NameId(intern(names_, trace_.names, e.name));
    s.category = word<kNumCategories, Category>("category", e.category);
    s.start_ns = nanoseconds(e.ts);
    s.end_ns = s.start_ns + nanoseconds(e.dur);
    trace_.spans.push_back(s);
  }

  std::string source_;
  Trace trace_;
  bool has_version_ = false, has_events_ = false;
  std::int64_t origin_ = 0, event_ = -1;
  std::map<std::pair<std::int64_t, std::int64_t>, std::int32_t> rows_;  // (pid, tid) to stream
  std::unordered_map<std::string, std::int32_t> names_, streams_;
};

}  // namespace

void write_chrome(const std::filesystem::path& path, const Trace& trace) {
  const Trace sorted = canonical(trace);
  const std::int64_t origin = check_times(sorted);
  std::vector<std::string> names;
  for (const std::string& n : sorted.names) names.push_back(json_string(n));
  AsideFile file(path);
  write_header(file.out(), sorted, origin);
  const auto o = std::back_inserter(file.out());
  const char* comma = "\n";
  std::optional<Rank> rank;
  std::optional<StreamId> stream;
  for (const Span& s : sorted.spans) {
    if (s.rank != rank) {
      fmt::format_to(
          o, "{}{{\"ph\":\"M\",\"pid\":{},\"name\":\"process_name\",\"args\":{{\"name\":\"rank {}\"}}}}",
          std::exchange(comma, ",\n"), s.rank.value, s.rank.value);
      stream.reset();
    }
    if (s.stream != stream) {
      fmt::format_to(
          o, "{}{{\"ph\":\"M\",\"pid\":{},\"tid\":{},\"name\":\"thread_name\",\"args\":{{\"name\":{}}}}}",
          std::exchange(comma, ",\n"), s.rank.value, s.stream.value + 1,
          json_string(sorted.streams[static_cast<std::size_t>(s.stream.value)]));
    }
    rank = s.rank;
    stream = s.stream;
    fmt::format_to(o, "{}", std::exchange(comma, ",\n"));
    write_span(file.out(), s, names, origin);
    file.flush_if_full();
  }
  fmt::format_to(o, "\n]}}\n");
  file.commit();
}

Trace parse_chrome(std::string_view text, std::string_view source) {
  std::string copy(text);
  return Reader(source).read(copy);
}

Trace read_chrome(const std::filesystem::path& path) {
  std::string text = read_text(path);
  return Reader(path.string()).read(text);
}

}  // namespace tessera::trace
