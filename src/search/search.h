// Search: the whole space of layouts for one model on one cluster. Every candidate is checked, its memory
// computed, and costed in closed form unless a lower bound of its time proves that it cannot enter the list.
// The best are then timed by a finer model (the event simulator), when one is given.
//
//   const Result r = search(setup, {}, {.top = 10});
//   r.best[0].candidate; r.best[0].cost.seconds();
//
// All cores; the result (counts included) is the same for every number of threads: work is dealt in rounds
// of a fixed size, the bound of a round is what the rounds before it found.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cost/step.h"
#include "search/space.h"

namespace tessera::search {

struct Ranked {
  cost::Candidate candidate;
  cost::StepCost cost;
};

enum class Reason : std::uint8_t {
  batch,         // dp x micro-batch does not divide the global batch
  shape,         // degrees do not divide the model
  schedule,      // stages, micro-batches and schedule do not suit each other
  does_not_fit,  // memory
  bound,         // slower than the list even without communication and bubble
  slower,        // costed, and behind the list
};
inline constexpr std::int32_t kNumReasons = 6;
[[nodiscard]] std::string_view name(Reason reason);

// All candidates that fell for one reason, the first that was found. `nearest` is the one that missed by
// least (does_not_fit: bytes; bound and slower: seconds; else the first of the fixed order).
struct Rejection {
  Reason reason{};
  cost::Part lost_to = cost::Part::ideal;  // of slower: where most of its time goes beside useful work
  std::int64_t count = 0;  // batch and shape: layouts (tp x cp x pp x ep x etp x dp); else candidates
  cost::Candidate nearest;
  std::string why;          // batch, shape, schedule: what does not divide
  double needs = 0;         // does_not_fit: bytes reserved; bound, slower: seconds of the step, or at least
  double limit = 0;         // does_not_fit: bytes there are; bound, slower: seconds of the best
  cost::MemoryCost memory;  // does_not_fit: of the nearest
  [[nodiscard]] double excess() const { return limit > 0 ? needs / limit - 1.0 : 0.0; }
};

// One entry a layout (tp, cp, pp, dp, ep, etp), its best choices; or every candidate for itself.
enum class Distinct : std::uint8_t { layouts, candidates };

// Times a candidate more finely than the closed form. Called from several threads at once.
using Refine = std::function<cost::StepCost(const cost::Candidate&, const cost::StepCost&)>;

struct Options {
  std::int32_t top = 10;
  std::int32_t threads = 0;      // 0: all cores
  double memory_fraction = 1.0;  // of the usable memory of a device that a plan may reserve
  Distinct distinct = Distinct::layouts;
  bool prune = true;           // false: cost everything that fits
  Refine refine;               // empty: closed form only
  Refine account;              // of those that are listed in the end: their parts; empty: as they are
  std::int32_t refined = 128;  // so many of the closed form's best are refined
};

struct Result {
  std::vector<Ranked> best;           // fastest first
  std::vector<Rejection> rejections;  // by reason, then by what the time is lost to
  std::int64_t layouts = 0;           // tp x cp x pp x ep x etp x dp
  std::int64_t enumerated = 0;        // candidates, those of `shape` and `batch` left out
  std::int64_t costed = 0;            // in closed form
  std::int64_t pruned = 0;            // by the bound
  double memory_limit = 0;            // bytes a device
  double seconds = 0;                 // wall clock; the one value that differs from run to run
  std::int32_t threads = 0;
};

// Bytes of a device that a process gets.
[[nodiscard]] double usable_memory(const cost::Setup& setup);

// Throws Error{config} with all problems of the space. No candidate at all is a result, not an error.
[[nodiscard]] Result search(const cost::Setup& setup, const Space& space, const Options& options);

// What a search asks of a cost model; one instance a thread.
class Coster {
 public:
  virtual ~Coster() = default;
  // Empty: valid.
  [[nodiscard]] virtual std::string why_invalid(const cost::Candidate& c) = 0;
  [[nodiscard]] virtual cost::MemoryCost memory(const cost::Candidate& c) = 0;
  // Not above predict().seconds(); the same for all schedules and ZeRO stages.
  [[nodiscard]] virtual double lower_bound(const cost::Candidate& c) = 0;
  // Not above lower_bound() of any recomputation and order.
  [[nodiscard]] virtual double lowest_bound(const cost::Candidate& c) = 0;
  [[nodiscard]] virtual cost::StepCost predict(const cost::Candidate& c) = 0;
};
using CosterFactory = std::function<std::unique_ptr<Coster>()>;
// cost::StepModel as one. REQUIRES that `setup` outlives it.
[[nodiscard]] CosterFactory closed_form(const cost::Setup& setup);
// The same search over any cost model. REQUIRES of it: whether a candidate is valid does not depend on its
// recomputation, ZeRO stage or order (and shows at 1f1b for what the schedule does not cause); memory does
// not depend on the order, is least with full recomputation, and does not fall with the micro-batch size.
[[nodiscard]] Result search(const cost::Setup& setup, const Space& space, const Options& options,
                            const CosterFactory& make_coster);

}  // namespace tessera::search
