#include "trace/figures.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

namespace tessera::trace {

namespace {

using Interval = std::pair<std::int64_t, std::int64_t>;
using Intervals = std::vector<Interval>;  // disjoint and ascending after merged()

Seconds seconds(std::int64_t ns) {
  return Seconds(static_cast<double>(ns) * 1e-9);
}

Intervals merged(Intervals all) {
  std::sort(all.begin(), all.end());
  Intervals out;
  for (const Interval& i : all) {
    if (i.first >= i.second) continue;
    if (!out.empty() && i.first <= out.back().second) {
      out.back().second = std::max(out.back().second, i.second);
    } else {
      out.push_back(i);
    }
  }
  return out;
}

// What of `from` lies in no interval of `cut`; both disjoint and ascending.
Intervals without(const Intervals& from, const Intervals& cut) {
  Intervals out;
  std::size_t c = 0;
  for (auto [begin, end] : from) {
    while (c < cut.size() && cut[c].second <= begin) ++c;
    for (std::size_t k = c; k < cut.size() && cut[k].first < end; ++k) {
      if (cut[k].first > begin) out.emplace_back(begin, cut[k].first);
      begin = std::max(begin, cut[k].second);
    }
    if (begin < end) out.emplace_back(begin, end);
  }
  return out;
}

std::int64_t length(const Intervals& all) {
  std::int64_t sum = 0;
  for (const auto& [begin, end] : all) sum += end - begin;
  return sum;
}

// Of [begin, end), the part outside of `busy`.
std::int64_t outside(const Intervals& busy, std::int64_t begin, std::int64_t end) {
  std::int64_t left = end - begin;
  auto i =
      std::partition_point(busy.begin(), busy.end(), [&](const Interval& x) { return x.second <= begin; });
  for (; i != busy.end() && i->first < end; ++i) left -= std::min(end, i->second) - std::max(begin, i->first);
  return left;
}

// CPU time of the outermost compute spans of each thread.
std::int64_t compute_cpu(std::vector<const Span*> spans) {
  std::sort(spans.begin(), spans.end(), [](const Span* a, const Span* b) {
    return std::pair(a->start_ns, -a->end_ns) < std::pair(b->start_ns, -b->end_ns);
  });
  std::map<std::int32_t, std::int64_t> covered;  // by thread: end of the last outermost span
  std::int64_t sum = 0;
  for (const Span* s : spans) {
    const std::int32_t thread = s->runner == Runner::rank ? -1 : s->stream.value;
    const auto [place, is_new] = covered.try_emplace(thread, s->end_ns);
    if (!is_new && s->end_ns <= place->second) continue;
    place->second = s->end_ns;
    sum += std::max<std::int64_t>(0, s->cpu_ns);
  }
  return sum;
}

RankFigures rank_figures(Rank rank, const std::vector<const Span*>& spans, Figures& all) {
  RankFigures out;
  out.rank = rank;
  Intervals compute, blocked, communication, waits;
  std::vector<const Span*> compute_spans;
  for (const Span* s : spans) {
    const Interval interval(s->start_ns, s->end_ns);
    const bool communicates = s->category == Category::communication;
    out.flops += s->flops.value;
    if (is_compute(s->category)) {
      compute.push_back(interval);
      compute_spans.push_back(s);
    }
    if (communicates) communication.push_back(interval);
    if (s->category == Category::wait) waits.push_back(interval);
    if ((communicates && s->runner == Runner::rank) || s->category == Category::wait)
      blocked.push_back(interval);
  }
  const Intervals busy = without(merged(std::move(compute)), merged(std::move(blocked)));
  out.busy = seconds(length(busy));
  out.exposed = seconds(length(without(merged(std::move(communication)), busy)));
  out.waiting = seconds(length(merged(std::move(waits))));
  out.cpu = seconds(compute_cpu(std::move(compute_spans)));
  for (const Span* s : spans) {
    all.categories[static_cast<std::size_t>(s->category)] += seconds(s->end_ns - s->start_ns);
    if (s->category != Category::communication) continue;
    AxisFigures& axis = all.axes[static_cast<std::size_t>(s->axis)];
    ++axis.count;
    axis.bytes += s->bytes;
    axis.total += seconds(s->end_ns - s->start_ns);
    axis.exposed += seconds(outside(busy, s->start_ns, s->end_ns));
  }
  return out;
}

}  // namespace

Figures figures(const Trace& trace, std::optional<std::int32_t> step) {
  Figures out;
  std::map<Rank, std::vector<const Span*>> by_rank;
  std::int64_t first = std::numeric_limits<std::int64_t>::max(),
               last = std::numeric_limits<std::int64_t>::min();
  for (const Span& s : trace.spans) {
    if (step && s.step != *step) continue;
    by_rank[s.rank].push_back(&s);
    first = std::min(first, s.start_ns);
    last = std::max(last, s.end_ns);
  }
  if (by_rank.empty()) return out;
  out.window = seconds(last - first);
  for (const auto& [rank, spans] : by_rank) {
    out.ranks.push_back(rank_figures(rank, spans, out));
    out.ranks.back().window = out.window;
  }
  return out;
}

}  // namespace tessera::trace
