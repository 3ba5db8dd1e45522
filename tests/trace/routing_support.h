// Random routing for the tests of this room, and how they look at errors.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <string>

#include "base/random.h"
#include "trace/routing.h"
#include "trace/routing_file.h"

namespace tessera::trace {

struct Shape {
  std::int32_t layers = 3, experts = 8, top_k = 2;
  std::int64_t tokens = 40;
};

// Skewed choices of distinct experts; every statistic is counted from them.
inline RoutingStats random_routing(std::uint64_t seed, const Shape& shape = {}) {
  RoutingStats s;
  s.model = "tiny \"moe\"";
  s.source = "a test";
  s.num_experts = shape.experts;
  s.top_k = shape.top_k;
  std::uint64_t next = 0;
  for (std::int32_t l = 0; l < shape.layers; ++l) {
    s.layers.push_back(2 * l + 1);
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      std::set<std::int64_t> taken;
      while (std::ssize(taken) < shape.top_k) {
        const double u = uniform(seed, 1, next++);
        const auto e = static_cast<std::int64_t>(u * u * shape.experts);
        if (taken.insert(e).second) s.choices.push_back(static_cast<std::int16_t>(e));
      }
    }
  }
  s.sequence_lengths = {shape.tokens - 7, 7};
  count_choices(s);
  s.dropped.assign(s.chosen.size(), 0);
  s.dropped[0] = s.chosen[0];
  for (std::int64_t w = 0; w < 2; ++w) {
    RoutingWindow window{.name = w == 0 ? "early" : "", .first_step = 10 * w, .num_steps = 10, .chosen = {}};
    for (const std::int64_t n : s.chosen) window.chosen.push_back(w == 0 ? n / 3 : n - n / 3);
    s.windows.push_back(window);
  }
  return s;
}

inline std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// The text of the Error that f throws.
template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) EXPECT_FALSE(p.mend.empty()) << e.what();
    return std::string(name(e.kind())) + ": " + e.what();
  }
  return "no error";
}

inline std::string error_of_text(const std::string& text, const RoutingReadOptions& options = {}) {
  return error_of([&] { (void)parse_routing(bytes_of(text), "a.file", options); });
}

// A file as numpy.save writes it, version 1.
template <class T>
std::string npy(const std::string& descr, const std::string& shape, const std::vector<T>& values) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }";
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() & 255);
  file += static_cast<char>(header.size() >> 8);
  file += header;
  return file.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

}  // namespace tessera::trace
