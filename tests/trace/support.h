// Random traces for the tests of this room.
#pragma once
#include <cstdint>
#include <string>

#include "base/random.h"
#include "trace/trace.h"

namespace tessera::trace {

// `n` spans with every kind of field present and absent; depends on the seed alone.
inline Trace random_trace(std::uint64_t seed, std::int32_t n) {
  std::uint64_t next = 0;
  const auto below = [&](std::int64_t limit) {
    return static_cast<std::int64_t>(uniform_below(static_cast<std::uint64_t>(limit), seed, 1, next++));
  };
  const auto maybe = [&](std::int64_t limit) { return static_cast<std::int32_t>(below(limit + 1) - 1); };
  Trace t;
  t.names = {"all_reduce", "attention", "say \"hi\"\\\n\t\x01", "gr\xc3\xb6\xc3\x9f", "unused"};
  t.streams = {"compute", "dp", "tp", "never"};
  t.metadata = {{"job", "tiny \"moe\""}, {"world", "8"}};
  t.dropped = below(100);
  for (std::int32_t i = 0; i < n; ++i) {
    Span s;
    s.name = NameId(static_cast<std::int32_t>(below(4)));
    s.category = static_cast<Category>(below(kNumCategories));
    s.axis = static_cast<Axis>(below(kNumAxes));
    s.runner = static_cast<Runner>(below(2));
    s.rank = Rank(static_cast<std::int32_t>(below(4)));
    s.stream = StreamId(static_cast<std::int32_t>(below(3)));
    s.start_ns = 1'234'567'890'123'456 + below(1'000'000'000'000);
    s.end_ns = s.start_ns + below(2) * below(10'000'000'000);
    s.cpu_ns = below(2) == 0 ? -1 : below(5'000'000'000);
    s.bytes = Bytes(below(2) * below(1LL << 50));
    s.flops = Flops(below(2) * below(1LL << 60));
    s.step = maybe(1000);
    s.stage = maybe(8);
    s.microbatch = maybe(64);
    t.spans.push_back(s);
  }
  return t;
}

}  // namespace tessera::trace
