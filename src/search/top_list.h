// TopList: the k fastest candidates seen, one a layout or each for itself. What falls out or never enters is
// tallied. The outcome does not depend on the order of offers. Inside of this room; one a thread.
#pragma once
#include <limits>
#include <vector>

#include "search/search.h"
#include "search/tally.h"

namespace tessera::search {

class TopList {
 public:
  TopList(std::int32_t capacity, Distinct distinct) : capacity_(capacity), distinct_(distinct) {}
  // `lost_to`: for the tally, should it not stay.
  void offer(const Ranked& ranked, cost::Part lost_to, Tally& tally);
  void merge(const TopList& other, Tally& tally);
  // Nothing slower than this enters.
  [[nodiscard]] double threshold() const {
    return static_cast<std::int32_t>(entries_.size()) < capacity_ ? std::numeric_limits<double>::infinity()
                                                                  : entries_.back().seconds;
  }
  struct Entry {
    double seconds = 0;
    cost::Part lost_to = cost::Part::ideal;
    Ranked ranked;
  };
  [[nodiscard]] const std::vector<Entry>& entries() const { return entries_; }  // fastest first

 private:
  std::int32_t capacity_;
  Distinct distinct_;
  std::vector<Entry> entries_;
};

[[nodiscard]] bool same_layout(const cost::Candidate& a, const cost::Candidate& b);

}  // namespace tessera::search
