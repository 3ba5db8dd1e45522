#include "trace/routing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace tessera::trace {

namespace {

constexpr const char* kMendFile = "write the file again; docs/formats/routing.md says what it holds";

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

template <class T>
std::span<const T> row(const std::vector<T>& values, std::int64_t index, std::int64_t width) {
  TESSERA_CHECK(index >= 0 && (index + 1) * width <= std::ssize(values), "the statistics hold this layer");
  return std::span<const T>(values).subspan(at(index * width), at(width));
}

class Checker {
 public:
  Checker(const RoutingStats& s, std::string_view where, Problems& problems)
      : s_(s), where_(where), problems_(problems), layers_(s.num_layers()), experts_(s.num_experts) {}

  void run() {
    if (!facts()) return;
    counts("chosen", s_.chosen, layers_ * experts_, Presence::required);
    counts("dropped", s_.dropped, layers_ * experts_, Presence::optional);
    counts("within", s_.within, layers_ * experts_ * experts_, Presence::optional);
    counts("across", s_.across, (layers_ - 1) * experts_ * experts_, Presence::optional);
    windows();
    choices();
    if (!problems_.empty()) return;  // what follows reads rows
    drops();
    if (!s_.within.empty()) pairs();
  }

 private:
  enum class Presence : std::uint8_t { required, optional };

  void fault(std::string what) { problems_.add(std::move(what), where_, kMendFile); }

  bool facts() {
    const std::size_t before = problems_.list().size();
    const auto within = [&](const char* what, std::int64_t value, std::int64_t least, std::int64_t most) {
      if (value >= least && value <= most) return;
      fault(fmt::format("{} is {}, which is not between {} and {}", what, value, least, most));
    };
    within("num_experts", experts_, 1, kMaxRoutingExperts);
    within("the number of layers", layers_, 1, kMaxRoutingLayers);
    within("top_k", s_.top_k, 0, std::min<std::int64_t>(experts_, kMaxRoutingTopK));
    within("num_tokens", s_.num_tokens, 0, INT64_MAX);
    for (std::size_t l = 0; l < s_.layers.size(); ++l) {
      const std::int32_t before_it = l == 0 ? -1 : s_.layers[l - 1];
      if (s_.layers[l] <= before_it) {
        fault(fmt::format("layer {} follows layer {}: layers must ascend", s_.layers[l], before_it));
      }
    }
    return problems_.list().size() == before;
  }

  void counts(const char* name, const std::vector<std::int64_t>& values, std::int64_t size,
              Presence presence) {
    if (values.empty() && presence == Presence::optional) return;
    if (std::ssize(values) != size) {
      fault(fmt::format("{} has {} numbers instead of {} ({} layers, {} experts)", name, values.size(), size,
                        layers_, experts_));
      return;
    }
    const auto bad = std::ranges::find_if(values, [](std::int64_t n) { return n < 0; });
    if (bad != values.end()) {
      fault(fmt::format("{}: number {} is {}, below 0", name, bad - values.begin(), *bad));
    }
  }

  void windows() {
    std::vector<std::int64_t> sum(s_.chosen.size(), 0);
    for (std::size_t w = 0; w < s_.windows.size(); ++w) {
      const RoutingWindow& window = s_.windows[w];
      counts(fmt::format("window {}", w).c_str(), window.chosen, layers_ * experts_, Presence::required);
      if (window.first_step < 0 || window.num_steps < 0) {
        fault(fmt::format("window {} begins at step {} and has {} steps", w, window.first_step,
                          window.num_steps));
      }
      if (!problems_.empty()) return;
      for (std::size_t i = 0; i < sum.size(); ++i) {
        // No part holds more than is left of the whole, so the sum cannot overflow.
        if (window.chosen[i] > s_.chosen[i] - sum[i]) {
          fault(fmt::format("the windows up to {} hold more choices of expert {} than all", w,
                            static_cast<std::int64_t>(i) % experts_));
          return;
        }
        sum[i] += window.chosen[i];
      }
    }
  }

  void choices() {
    if (s_.choices.empty()) {
      if (!s_.sequence_lengths.empty()) fault("there are sequence lengths, but no choices of tokens");
      return;
    }
    if (s_.top_k < 1 || std::ssize(s_.choices) % (layers_ * s_.top_k) != 0) {
      fault(
          fmt::format("{} choices do not fit {} layers and top_k {}", s_.choices.size(), layers_, s_.top_k));
      return;
    }
    std::vector<std::int64_t> seen(at(experts_), -1);  // token that chose it last
    const std::int64_t tokens = s_.choice_tokens();
    for (std::int64_t i = 0; i < std::ssize(s_.choices); ++i) {
      const std::int32_t e = s_.choices[at(i)];
      if (e == -1) continue;
      const std::int64_t token = i / s_.top_k;
      const std::int64_t layer = s_.layers[at(token / tokens)];
      if (e < -1 || e >= experts_) {
        fault(
            fmt::format("token {} of layer {} chooses expert {} of {}", token % tokens, layer, e, experts_));
        return;
      }
      if (seen[at(e)] == token) {
        fault(fmt::format("token {} of layer {} chooses expert {} twice", token % tokens, layer, e));
        return;
      }
      seen[at(e)] = token;
    }
    std::int64_t sum = 0;
    for (const std::int64_t n : s_.sequence_lengths) {
      if (n < 0 || n > tokens - sum) {
        fault(fmt::format("the sequence lengths do not sum to the {} tokens of the choices", tokens));
        return;
      }
      sum += n;
    }
    if (!s_.sequence_lengths.empty() && sum != tokens) {
      fault(fmt::format("the sequence lengths sum to {}, the choices have {} tokens", sum, tokens));
    }
  }

  void drops() {
    for (std::size_t i = 0; i < s_.dropped.size(); ++i) {
      if (s_.dropped[i] <= s_.chosen[i]) continue;
      fault(fmt::format("expert {} of layer {} dropped {} of {} choices",
                        static_cast<std::int64_t>(i) % experts_,
                        s_.layers[at(static_cast<std::int64_t>(i) / experts_)], s_.dropped[i], s_.chosen[i]));
      return;
    }
  }

  void pairs() {
    for (std::int32_t l = 0; l < layers_; ++l) {
      const std::span<const std::int64_t> m = s_.within_of(l);
      for (std::int64_t a = 0; a < experts_; ++a) {
        const std::int64_t chosen = s_.chosen_of(l)[at(a)];
        if (m[at(a * experts_ + a)] != chosen) {
          fault(fmt::format("within, layer {}: the diagonal of expert {} is {}, not its {} choices",
                            s_.layers[at(l)], a, m[at(a * experts_ + a)], chosen));
          return;
        }
        for (std::int64_t b = 0; b < a; ++b) {
          if (m[at(a * experts_ + b)] == m[at(b * experts_ + a)]) continue;
          fault(fmt::format("within, layer {}: the pair {} {} is {} one way and {} the other",
                            s_.layers[at(l)], a, b, m[at(a * experts_ + b)], m[at(b * experts_ + a)]));
          return;
        }
      }
    }
  }

  const RoutingStats& s_;
  std::string where_;
  Problems& problems_;
  std::int64_t layers_, experts_;
};

// The `most` largest of an [E, E] matrix.
std::vector<ExpertPair> largest(std::span<const std::int64_t> m, std::int64_t experts, bool upper,
                                std::int32_t most) {
  std::vector<ExpertPair> pairs;
  for (std::int64_t a = 0; a < experts; ++a) {
    for (std::int64_t b = upper ? a + 1 : 0; b < experts; ++b) {
      const std::int64_t n = m[at(a * experts + b)];
      if (n > 0) pairs.push_back({static_cast<std::int32_t>(a), static_cast<std::int32_t>(b), n, 0.0});
    }
  }
  const auto count = std::min<std::ptrdiff_t>(std::ssize(pairs), most);
  std::ranges::partial_sort(pairs, pairs.begin() + count, [](const ExpertPair& x, const ExpertPair& y) {
    if (x.count != y.count) return x.count > y.count;
    return x.a != y.a ? x.a < y.a : x.b < y.b;
  });
  pairs.resize(at(count));
  return pairs;
}

void add_lift(std::vector<ExpertPair>& pairs, std::span<const std::int64_t> from,
              std::span<const std::int64_t> to, std::int64_t tokens) {
  for (ExpertPair& p : pairs) {
    const double alone = static_cast<double>(from[at(p.a)]) * static_cast<double>(to[at(p.b)]);
    if (alone > 0.0) p.lift = static_cast<double>(p.count) * static_cast<double>(tokens) / alone;
  }
}

}  // namespace

std::int64_t RoutingStats::choice_tokens() const {
  const std::int64_t width = std::int64_t{num_layers()} * top_k;
  return width > 0 ? std::ssize(choices) / width : 0;
}

std::span<const std::int64_t> RoutingStats::chosen_of(std::int32_t l) const {
  return row(chosen, l, num_experts);
}
std::span<const std::int64_t> RoutingStats::dropped_of(std::int32_t l) const {
  return row(dropped, l, num_experts);
}
std::span<const std::int64_t> RoutingStats::within_of(std::int32_t l) const {
  return row(within, l, std::int64_t{num_experts} * num_experts);
}
std::span<const std::int64_t> RoutingStats::across_of(std::int32_t l) const {
  return row(across, l, std::int64_t{num_experts} * num_experts);
}
std::span<const std::int16_t> RoutingStats::choices_of(std::int32_t l) const {
  return row(choices, l, choice_tokens() * top_k);
}

void check_routing(const RoutingStats& stats, std::string_view where, Problems& problems) {
  Checker(stats, where, problems).run();
}

LoadSpread spread_of(std::span<const std::int64_t> chosen) {
  LoadSpread s;
  double sum = 0.0;
  double squares = 0.0;
  double most = 0.0;
  for (const std::int64_t n : chosen) {
    const auto x = static_cast<double>(n);
    s.total += n;
    sum += x;
    squares += x * x;
    most = std::max(most, x);
    if (n == 0) ++s.dead;
  }
  if (!(sum > 0.0)) return s;
  const auto experts = static_cast<double>(chosen.size());
  const double mean = sum / experts;
  s.max_over_mean = most / mean;
  s.cv = std::sqrt(std::max(0.0, squares / experts - mean * mean)) / mean;
  for (const std::int64_t n : chosen) {
    const double p = static_cast<double>(n) / sum;
    if (p > 0.0) s.entropy -= p * std::log(p);
  }
  s.effective_experts = std::exp(s.entropy);
  return s;
}

void count_chosen(std::span<std::int64_t> chosen_E, std::span<const std::int16_t> choices_TK) {
  for (const std::int16_t e : choices_TK) {
    if (e >= 0) ++chosen_E[at(e)];
  }
}

void count_within(std::span<std::int64_t> within_EE, std::span<const std::int16_t> choices_TK,
                  std::int32_t num_experts, std::int32_t top_k) {
  count_across(within_EE, choices_TK, choices_TK, num_experts, top_k);
}

void count_across(std::span<std::int64_t> across_EE, std::span<const std::int16_t> from_TK,
                  std::span<const std::int16_t> to_TK, std::int32_t num_experts, std::int32_t top_k) {
  TESSERA_CHECK_EQ(across_EE.size(), std::int64_t{num_experts} * num_experts, "a count for each pair");
  TESSERA_CHECK_EQ(from_TK.size(), to_TK.size(), "the choices of the same tokens");
  const std::size_t k = at(top_k);
  for (std::size_t t = 0; t + k <= from_TK.size(); t += k) {
    for (const std::int16_t a : from_TK.subspan(t, k)) {
      if (a < 0) continue;
      std::int64_t* to = &across_EE[at(std::int64_t{a} * num_experts)];
      for (const std::int16_t b : to_TK.subspan(t, k)) {
        if (b >= 0) ++to[b];
      }
    }
  }
}

void count_choices(RoutingStats& stats) {
  const std::int64_t layers = stats.num_layers();
  const std::int64_t experts = stats.num_experts;
  const std::size_t pairs = at(experts * experts);
  const bool with_pairs = layers * experts * experts <= kMaxRoutingPairs;
  stats.chosen.assign(at(layers * experts), 0);
  stats.within.assign(with_pairs ? at(layers) * pairs : 0, 0);
  stats.across.assign(with_pairs ? at(layers - 1) * pairs : 0, 0);
  stats.num_tokens = stats.choice_tokens();
  for (std::int32_t l = 0; l < layers; ++l) {
    const std::span<const std::int16_t> here = stats.choices_of(l);
    count_chosen(std::span(stats.chosen).subspan(at(l * experts), at(experts)), here);
    if (!with_pairs) continue;
    count_within(std::span(stats.within).subspan(at(l) * pairs, pairs), here, stats.num_experts, stats.top_k);
    if (l + 1 == layers) continue;
    count_across(std::span(stats.across).subspan(at(l) * pairs, pairs), here, stats.choices_of(l + 1),
                 stats.num_experts, stats.top_k);
  }
}

std::vector<ExpertPair> top_pairs(const RoutingStats& stats, std::int32_t l, std::int32_t most) {
  std::vector<ExpertPair> pairs = largest(stats.within_of(l), stats.num_experts, true, most);
  add_lift(pairs, stats.chosen_of(l), stats.chosen_of(l), stats.num_tokens);
  return pairs;
}

std::vector<ExpertPair> top_followers(const RoutingStats& stats, std::int32_t l, std::int32_t most) {
  std::vector<ExpertPair> pairs = largest(stats.across_of(l), stats.num_experts, false, most);
  add_lift(pairs, stats.chosen_of(l), stats.chosen_of(l + 1), stats.num_tokens);
  return pairs;
}

}  // namespace tessera::trace
