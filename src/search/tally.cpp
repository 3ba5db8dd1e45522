#include "search/tally.h"

namespace tessera::search {

bool Tally::closer(Rejection& r, const cost::Candidate& c, double needs, std::int64_t count) {
  const bool first = r.count == 0;
  r.count += count;
  if (!first && (needs > r.needs || (needs == r.needs && compare(c, r.nearest) >= 0))) return false;
  r.nearest = c;
  r.needs = needs;
  return true;
}

void Tally::add(Reason reason, const cost::Candidate& c, std::string_view why, std::int64_t count) {
  Rejection& r = at(reason);
  if (closer(r, c, 0.0, count)) r.why = why;
}

void Tally::add_too_big(const cost::Candidate& c, const cost::MemoryCost& memory, double limit,
                        std::int64_t count) {
  Rejection& r = at(Reason::does_not_fit);
  if (!closer(r, c, memory.reserved(), count)) return;
  r.memory = memory;
  r.limit = limit;
}

void Tally::add_bound(const cost::Candidate& c, double at_least, std::int64_t count) {
  closer(at(Reason::bound), c, at_least, count);
}

void Tally::add_slower(const cost::Candidate& c, double seconds, cost::Part lost_to) {
  closer(slower_[static_cast<std::size_t>(lost_to)], c, seconds, 1);
}

void Tally::merge(Rejection& into, const Rejection& other) {
  if (other.count == 0) return;
  const std::int64_t count = into.count + other.count;
  const bool nearer = into.count == 0 || other.needs < into.needs ||
                      (other.needs == into.needs && compare(other.nearest, into.nearest) < 0);
  if (nearer) into = other;
  into.count = count;
}

void Tally::merge(const Tally& other) {
  for (std::size_t i = 0; i < reasons_.size(); ++i) merge(reasons_[i], other.reasons_[i]);
  for (std::size_t i = 0; i < slower_.size(); ++i) merge(slower_[i], other.slower_[i]);
}

std::vector<Rejection> Tally::rejections(double best_seconds) const {
  std::vector<Rejection> all;
  for (std::size_t i = 0; i < reasons_.size(); ++i) {
    if (reasons_[i].count == 0) continue;
    Rejection& r = all.emplace_back(reasons_[i]);
    r.reason = static_cast<Reason>(i);
    if (r.reason == Reason::bound) r.limit = best_seconds;
  }
  for (std::size_t i = 0; i < slower_.size(); ++i) {
    if (slower_[i].count == 0) continue;
    Rejection& r = all.emplace_back(slower_[i]);
    r.reason = Reason::slower;
    r.lost_to = static_cast<cost::Part>(i);
    r.limit = best_seconds;
  }
  return all;
}

}  // namespace tessera::search
