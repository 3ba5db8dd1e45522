// What happened when: spans of time with what they moved and computed, recorded by each rank's threads into
// memory taken beforehand, collected into one Trace at the end. The simulator and the engine write the same
// Trace.
//
//   Recorder recorder({.rank = Rank(0), .capacity = 1 << 16});
//   const StreamId compute = recorder.stream("compute");
//   {
//     Scope scope(&recorder, {.name = recorder.literal("attention"),
//                             .category = Category::forward, .stream = compute});
//     ...
//   }
//   const Trace trace = collect({&recorder}, {{"job", "demo"}});
//
// A Recorder belongs to one thread; a rank with helper threads has one for each. Recording never allocates: a
// span that finds no room is dropped and counted. Collect when the threads have stopped recording.
#pragma once
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/quantity.h"

namespace tessera::trace {

using NameId = Id<struct NameTag>;      // of a span: index into Trace::names
using StreamId = Id<struct StreamTag>;  // row of a rank's picture: index into Trace::streams

enum class Category : std::uint8_t {
  forward,
  backward_input,
  backward_weight,
  optimizer,
  communication,
  wait,  // the rank stands still for another rank or for a helper thread
  data,
  checkpoint,
  other,
};
inline constexpr std::int32_t kNumCategories = 9;
[[nodiscard]] std::string_view name(Category category);
[[nodiscard]] bool is_compute(Category category);  // forward, backward_input, backward_weight, optimizer

// Axis of the group that communicates.
enum class Axis : std::uint8_t { none, tp, cp, dp, pp, etp, ep, edp, tp_dp, world, ep_inter, ep_intra };
inline constexpr std::int32_t kNumAxes = 12;
[[nodiscard]] std::string_view name(Axis axis);

// Which of a rank's threads ran the span. What the rank's own thread communicates, it computes not meanwhile,
// even inside a compute span; what a helper communicates may be hidden behind compute.
enum class Runner : std::uint8_t { rank, helper };

struct Span {
  NameId name{};
  Category category = Category::other;
  Axis axis = Axis::none;
  Runner runner = Runner::rank;
  Rank rank{};
  StreamId stream{};
  std::int64_t start_ns = 0;  // wall clock (base/clock.h)
  std::int64_t end_ns = 0;    // >= start_ns
  std::int64_t cpu_ns = -1;   // CPU time of the thread inside the span; -1 unknown
  Bytes bytes{};              // moved by this rank
  Flops flops{};
  std::int32_t step = -1;  // -1: none
  std::int32_t stage = -1;
  std::int32_t microbatch = -1;
  friend bool operator==(const Span&, const Span&) = default;
};

struct RecorderOptions {
  Rank rank{};
  std::int64_t capacity = 1 << 16;  // spans
  std::int32_t max_names = 1024;    // different names by literal()
  Runner runner = Runner::rank;
};

class Recorder {
 public:
  // Takes and touches all its memory. Throws Error{config} on a capacity or max_names below 1.
  explicit Recorder(const RecorderOptions& options);
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  // Finds or adds. May allocate: call them when setting up.
  [[nodiscard]] StreamId stream(std::string_view name);
  [[nodiscard]] NameId name(std::string_view name);

  // The id of a string that lives as long as the program, found by its address. Never allocates; when the
  // table is full, the id of "other".
  [[nodiscard]] NameId literal(const char* name) noexcept;

  // Rank and runner come from the options; a step of -1 becomes the current one.
  void record(Span span) noexcept;
  void set_step(std::int32_t step) noexcept { step_ = step; }
  void clear() noexcept;  // forgets the spans and the drops, keeps the names

  [[nodiscard]] const RecorderOptions& options() const { return options_; }
  [[nodiscard]] std::span<const Span> spans() const { return {spans_.data(), spans_.size()}; }
  [[nodiscard]] std::int64_t dropped() const { return dropped_; }
  [[nodiscard]] std::string_view text(NameId id) const;
  [[nodiscard]] const std::vector<std::string>& streams() const { return streams_; }

 private:
  struct Slot {
    const char* literal = nullptr;
    NameId id{};
  };
  RecorderOptions options_;
  std::vector<Span> spans_;
  std::int64_t dropped_ = 0;
  std::int32_t step_ = -1;
  std::vector<const char*> names_;  // by NameId; 0 is "other"
  std::deque<std::string> owned_;   // those that are no literals
  std::vector<Slot> table_;         // by address, open addressing, a power of two
  std::int32_t num_literals_ = 0;
  std::vector<std::string> streams_;
};

// Records from construction to destruction: wall and CPU time from the clocks, the rest from `span`. Does
// nothing on a null recorder.
class Scope {
 public:
  Scope(Recorder* recorder, const Span& span) noexcept;
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope();
  [[nodiscard]] Span& span() { return span_; }  // to add bytes or flops that are known later

 private:
  Recorder* recorder_;
  Span span_;
  std::int64_t cpu_start_ns_ = 0;
};

struct Trace {
  std::vector<std::string> names;
  std::vector<std::string> streams;
  std::vector<Span> spans;
  std::map<std::string, std::string> metadata;
  std::int64_t dropped = 0;  // spans that found no room
  friend bool operator==(const Trace&, const Trace&) = default;
};

// One order for every Trace: spans by (rank, stream name, start, longest first), names and streams sorted and
// only those in use. The same spans give the same Trace, whatever recorded them in whatever order. Throws
// Error{config} on ids outside their tables.
[[nodiscard]] Trace canonical(Trace trace);

// The spans of all recorders, canonical.
[[nodiscard]] Trace collect(const std::vector<const Recorder*>& recorders,
                            std::map<std::string, std::string> metadata = {});

}  // namespace tessera::trace
