// Tally: rejected candidates by reason, with the nearest miss of each. The order of additions does not
// matter. Inside of this room; one a thread.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "search/search.h"

namespace tessera::search {

class Tally {
 public:
  void add(Reason reason, const cost::Candidate& c, std::string_view why, std::int64_t count = 1);
  // count: of candidates that all need at least that; `c` is the nearest of them.
  void add_too_big(const cost::Candidate& c, const cost::MemoryCost& memory, double limit,
                   std::int64_t count = 1);
  void add_more_too_big(std::int64_t count) {
    at(Reason::does_not_fit).count += count;
  }  // farther than one added
  void add_bound(const cost::Candidate& c, double at_least, std::int64_t count = 1);
  void add_slower(const cost::Candidate& c, double seconds, cost::Part lost_to);
  void merge(const Tally& other);
  // Those that occurred. `best_seconds`: of the best of the list.
  [[nodiscard]] std::vector<Rejection> rejections(double best_seconds) const;

 private:
  // Counts; true when it misses by less than the nearest so far.
  static bool closer(Rejection& r, const cost::Candidate& c, double needs, std::int64_t count);
  static void merge(Rejection& into, const Rejection& other);
  [[nodiscard]] Rejection& at(Reason reason) { return reasons_[static_cast<std::size_t>(reason)]; }

  std::array<Rejection, kNumReasons> reasons_{};
  std::array<Rejection, cost::kNumParts> slower_{};
};

}  // namespace tessera::search
