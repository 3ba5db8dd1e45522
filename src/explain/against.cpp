#include "explain/against.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace tessera::explain {

namespace {

constexpr double kFarthest = 8.0;
constexpr std::int32_t kSteps = 24;  // of the bisection: a factor is known to 1e-6 and better

cost::GemmModel faster(cost::GemmModel g, double factor) {
  g.efficiency *= factor;
  return g;
}

// Seconds by which the other is slower; below 0 the order has turned.
double lead(const cost::Setup& setup, const cost::Candidate& chosen, const cost::Candidate& other) {
  return price(setup, other).seconds() - price(setup, chosen).seconds();
}

// The factor nearest to 1 on one side where the lead is gone; 0: none.
double turn(const cost::Setup& setup, const cost::Candidate& chosen, const cost::Candidate& other,
            Coefficient what, double end) {
  const auto lead_at = [&](double log_factor) {
    return lead(scaled(setup, what, std::exp(log_factor)), chosen, other);
  };
  constexpr std::int32_t kLooks = 6;
  double inside = 0.0;
  for (std::int32_t i = 1; i <= kLooks; ++i) {
    double outside = std::log(end) * i / kLooks;
    if (lead_at(outside) >= 0.0) {
      inside = outside;
      continue;
    }
    for (std::int32_t s = 0; s < kSteps; ++s) {
      const double middle = (inside + outside) / 2.0;
      (lead_at(middle) >= 0.0 ? inside : outside) = middle;
    }
    return std::exp(outside);
  }
  return 0.0;
}

}  // namespace

std::vector<Difference> differences(const cost::StepCost& chosen, const cost::StepCost& other) {
  std::vector<Difference> out;
  for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
    const auto part = static_cast<cost::Part>(p);
    const double d = other[part] - chosen[part];
    if (d != 0.0) out.push_back({part, d});
  }
  std::ranges::stable_sort(out, std::greater<>(), [](const Difference& d) { return std::abs(d.seconds); });
  return out;
}

std::string_view name(Coefficient c) {
  constexpr std::array<std::string_view, kNumCoefficients> kNames = {
      "rate of matrix products",          "rate of attention kernels",      "memory bandwidth",
      "bandwidth of the innermost links", "bandwidth of the network above", "latency of messages",
      "host time of an operator"};
  return kNames[static_cast<std::size_t>(c)];
}

cost::Setup scaled(const cost::Setup& setup, Coefficient what, double factor) {
  cost::Setup s = setup;
  cost::Calibration& c = s.calibration;
  std::vector<spec::TierSpec>& tiers = s.cluster.tiers;
  const auto scale_tier = [&](spec::TierSpec& t) {
    t.bandwidth = BytesPerSecond(t.bandwidth.value * factor);
  };
  switch (what) {
    case Coefficient::gemm:
      for (cost::GemmModel* g : {&c.f32, &c.bf16, &c.fp8, &c.fp8_block, &c.mxfp8, &c.nvfp4})
        *g = faster(*g, factor);
      return s;
    case Coefficient::attention:
      c.attention_forward *= factor;
      c.attention_backward *= factor;
      return s;
    case Coefficient::memory_bandwidth:
      c.memory_bandwidth *= factor;
      return s;
    case Coefficient::links:
      scale_tier(tiers.front());
      return s;
    case Coefficient::network:
      std::for_each(tiers.begin() + 1, tiers.end(), scale_tier);
      return s;
    case Coefficient::latency:
      for (spec::TierSpec& t : tiers) t.latency = Seconds(t.latency.value * factor);
      c.intra_latency = Seconds(c.intra_latency.value * factor);
      c.inter_latency = Seconds(c.inter_latency.value * factor);
      return s;
    case Coefficient::launch:
      c.launch = Seconds(c.launch.value * factor);
      return s;
  }
  return s;
}

std::vector<Margin> margins(const cost::Setup& setup, const cost::Candidate& chosen,
                            const cost::Candidate& other) {
  std::vector<Margin> out;
  for (std::int32_t i = 0; i < kNumCoefficients; ++i) {
    const auto what = static_cast<Coefficient>(i);
    const double up = turn(setup, chosen, other, what, kFarthest);
    const double down = turn(setup, chosen, other, what, 1.0 / kFarthest);
    const bool nearer_up = up > 0.0 && (down == 0.0 || up < 1.0 / down);
    out.push_back({what, nearer_up ? up : down});
  }
  return out;
}

}  // namespace tessera::explain
