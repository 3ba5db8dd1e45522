// The ring all-reduce. Rank r reads from its predecessor r - 1 only:
//   reducing, step s = 0 .. N-2: chunk c = r - 2 - s: mine[c] = predecessor[c] + mine[c], so chunk c starts
//     at rank c + 1 and is complete at rank c;
//   gathering, step s = 0 .. N-2: chunk c = r - 1 - s: mine[c] = predecessor[c], already complete there.
// The last reducing step also writes the finished sum into the successor's buffer, so the first gathering
// step moves nothing: with two ranks the whole all-reduce is one pass over both buffers.
// Chunks are cut into segments: segment g is gathered one segment behind the reduction, when the sums are
// still in the cache and the predecessor has had time to finish them.
// A rank overwrites mine[c] while gathering after its successor has read the partial sum there: what it
// copies was made from that very read, so the order holds without a further wait.
#include <algorithm>
#include <cstring>

#include "comm/chunks.h"
#include "comm/thread/scope.h"
#include "comm/thread/sum.h"

namespace tessera::comm::thread {

namespace {

// Segments: with a core per rank a segment and its peer's copy fit the private cache; otherwise fewer, so
// that a switch between ranks is worth its price.
constexpr std::int64_t kSegmentBytes = 128 << 10;
constexpr std::int64_t kSharedCoreSegmentBytes = 1 << 20;

// The common order of steps: reduce 0, [reduce g, gather g - 1] for g = 1 .., gather of the last segment.
class StepOrder {
 public:
  StepOrder(std::int32_t size, std::int64_t segments) : hops_(size - 1), segments_(segments) {}
  // Steps before the first reducing or gathering step of segment g.
  [[nodiscard]] std::int64_t reduce(std::int64_t g) const { return g == 0 ? 0 : (2 * g - 1) * hops_; }
  [[nodiscard]] std::int64_t gather(std::int64_t g) const {
    return (g == segments_ - 1 ? 2 * g + 1 : 2 * g + 2) * hops_;
  }
  [[nodiscard]] std::int64_t total() const { return 2 * segments_ * hops_; }

 private:
  std::int64_t hops_;
  std::int64_t segments_;
};

}  // namespace

void ThreadCommunicator::all_reduce_ring(Scope& scope, const Tensor& x) {
  const std::int32_t n = size();
  const std::int64_t width = tensor::size_of(x.dtype());
  const Chunks chunks(x.num_elements(), n);
  const std::int64_t cut = (group_.world().spins() > 0 ? kSegmentBytes : kSharedCoreSegmentBytes) / width;
  const std::int64_t segment = n == 2 ? std::max<std::int64_t>(1, chunks.length()) : cut;
  const std::int64_t segments = std::max<std::int64_t>(1, div_ceil(chunks.length(), segment));
  const StepOrder order(n, segments);
  const std::int32_t before = (me_ + n - 1) % n;
  const std::int32_t after = (me_ + 1) % n;

  scope.publish(x.raw());
  // Waits until `before` has published and made `steps` steps.
  const auto wait_for = [&](std::int32_t peer, std::int64_t steps) {
    group_.wait_step(me_, peer, scope.base() + 1 + static_cast<std::uint32_t>(steps));
  };
  wait_for(before, 0);
  check_match(before);
  auto* mine = static_cast<std::byte*>(x.raw());
  const std::byte* theirs = data(before);

  const auto move = [&](std::int64_t g, std::int32_t chunk, bool reduce) {
    const std::int32_t c = (chunk + 2 * n) % n;
    const std::int64_t skip = g * segment;
    const std::int64_t count = std::clamp<std::int64_t>(chunks.count(c) - skip, 0, segment);
    const std::int64_t offset = (chunks.begin(c) + skip) * width;
    const bool finishes = reduce && c == me_;
    const bool was_pushed = !reduce && c == before;
    if (count > 0 && !was_pushed) {
      const Read read(*this);
      if (finishes)
        add_to_both(mine + offset, data(after) + offset, theirs + offset, mine + offset, count, x.dtype());
      else if (reduce)
        add(mine + offset, theirs + offset, mine + offset, count, x.dtype());
      else
        copy_from_peer(mine + offset, theirs + offset, count * width);
    }
    group_.step(me_);
  };
  for (std::int64_t g = 0; g <= segments; ++g) {
    for (std::int32_t s = 0; g < segments && s < n - 1; ++s) {
      if (s > 0) wait_for(before, order.reduce(g) + s);
      move(g, me_ - 2 - s, true);
    }
    for (std::int32_t s = 0; g > 0 && s < n - 1; ++s) {
      wait_for(before, s == 0 ? order.reduce(g - 1) + n - 1 : order.gather(g - 1) + s);
      move(g - 1, me_ - 1 - s, false);
    }
  }
  wait_for(after, order.total());  // it reads my buffer until then
}

}  // namespace tessera::comm::thread
