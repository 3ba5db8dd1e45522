#include "search/top_list.h"

#include <algorithm>

namespace tessera::search {

bool same_layout(const cost::Candidate& a, const cost::Candidate& b) {
  return a.tp == b.tp && a.cp == b.cp && a.pp == b.pp && a.dp == b.dp && a.ep == b.ep && a.etp == b.etp;
}

void TopList::offer(const Ranked& ranked, cost::Part lost_to, Tally& tally) {
  const double seconds = ranked.cost.seconds();
  const auto is_before = [&](const Entry& e) {
    if (seconds != e.seconds) return seconds < e.seconds;
    return compare(ranked.candidate, e.ranked.candidate) < 0;
  };
  const bool full = static_cast<std::int32_t>(entries_.size()) >= capacity_;
  if (full && (entries_.empty() || !is_before(entries_.back()))) {
    tally.add_slower(ranked.candidate, seconds, lost_to);
    return;
  }
  auto loser = entries_.end();
  if (distinct_ == Distinct::layouts) {
    loser = std::find_if(entries_.begin(), entries_.end(),
                         [&](const Entry& e) { return same_layout(e.ranked.candidate, ranked.candidate); });
    if (loser != entries_.end() && !is_before(*loser)) {
      tally.add_slower(ranked.candidate, seconds, lost_to);
      return;
    }
  }
  if (loser == entries_.end() && full) loser = std::prev(entries_.end());
  if (loser != entries_.end()) {
    tally.add_slower(loser->ranked.candidate, loser->seconds, loser->lost_to);
    entries_.erase(loser);
  }
  const auto at = std::find_if(entries_.begin(), entries_.end(), is_before);
  entries_.insert(at, {.seconds = seconds, .lost_to = lost_to, .ranked = ranked});
}

void TopList::merge(const TopList& other, Tally& tally) {
  for (const Entry& e : other.entries_) offer(e.ranked, e.lost_to, tally);
}

}  // namespace tessera::search
