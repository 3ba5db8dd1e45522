// Linear, RMSNorm, gated MLP, elementwise operations, sums and AdamW of every implementation against the f64
// reference that reads the same rounded inputs. The allowance of each element is computed:
// support/compare.h.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using test::magnitudes;

struct GemmCase {
  std::int64_t t, n, k;
};
// No rows, one of everything, odd sizes around blocks of 4 to 96, and short and long sums.
const std::vector<GemmCase> kGemms = {{0, 5, 7},     {1, 1, 1},    {1, 33, 65},  {2, 1, 5},
                                      {3, 17, 31},   {5, 8, 300},  {7, 100, 3},  {13, 48, 16},
                                      {31, 65, 127}, {64, 48, 96}, {97, 31, 40}, {33, 129, 70}};

std::string text(const GemmCase& c) {
  return fmt::format("T={} N={} K={}", c.t, c.n, c.k);
}

TEST_P(Agreement, Linear) {
  for (const GemmCase& c : kGemms) {
    SCOPED_TRACE(text(c));
    next_case();
    const Pair x = input({c.t, c.k}, 1), w = input({c.n, c.k}, 2, 0.5);
    for (const auto pack : {PackedWeight::Pack::yes, PackedWeight::Pack::no}) {
      const Pair y = output({c.t, c.n});
      for (const Side s : kSides) kernels(s).linear(y[s], x[s], PackedWeight(kernels(s), w[s], pack));
      const Owned magnitude(DType::f64, {c.t, c.n});
      const Owned w_abs = magnitude_of(w.want());
      truth().linear(magnitude, magnitude_of(x.want()), PackedWeight(truth(), w_abs));
      expect_match("linear y", y, {.count = c.k, .scale = magnitudes(magnitude)});
    }
  }
}

TEST_P(Agreement, LinearDgradOverwritesAndAccumulates) {
  for (const GemmCase& c : kGemms) {
    for (const auto pack : {PackedWeight::Pack::yes, PackedWeight::Pack::no}) {
      SCOPED_TRACE(text(c));
      next_case();
      const Pair dy = input({c.t, c.n}, 1), w = input({c.n, c.k}, 2, 0.5), start = input({c.t, c.k}, 3);
      const Pair overwritten = output({c.t, c.k}), accumulated = pair_of(start.got());
      for (const Side s : kSides) {
        const PackedWeight weight(kernels(s), w[s], pack);
        kernels(s).linear_dgrad(overwritten[s], dy[s], weight);
        kernels(s).linear_dgrad(accumulated[s], dy[s], weight, Write::accumulate);
      }
      const Owned w_abs = magnitude_of(w.want()), magnitude = magnitude_of(start.want());
      truth().linear_dgrad(magnitude, magnitude_of(dy.want()), PackedWeight(truth(), w_abs),
                           Write::accumulate);
      expect_match("linear dx +=", accumulated, {.count = c.n + 1, .scale = magnitudes(magnitude)});
      truth().linear_dgrad(magnitude, magnitude_of(dy.want()), PackedWeight(truth(), w_abs));
      expect_match("linear dx", overwritten, {.count = c.n, .scale = magnitudes(magnitude)});
    }
  }
}

TEST_P(Agreement, LinearWgradAccumulatesFromZeroAndFromRandomStart) {
  for (const GemmCase& c : kGemms) {
    for (const double start : {0.0, 1.0}) {
      SCOPED_TRACE(text(c));
      next_case();
      const Pair dy = input({c.t, c.n}, 1), x = input({c.t, c.k}, 2), dw = input({c.n, c.k}, 3, start);
      const Owned magnitude = magnitude_of(dw.want());
      for (const Side s : kSides) kernels(s).linear_wgrad(dw[s], dy[s], x[s]);
      truth().linear_wgrad(magnitude, magnitude_of(dy.want()), magnitude_of(x.want()));
      expect_match("linear dw", dw, {.count = c.t + 1, .scale = magnitudes(magnitude)});
    }
  }
}

// Constant inputs round the same way in every step of a single long sum: the truth is the product here.
TEST_P(Agreement, LinearOfEqualTerms) {
  const std::int64_t t = 2, n = 3, k = 4099;
  const Owned x = random(dtype_, {t, k}, 1, 0, 0.7), w = random(dtype_, {n, k}, 2, 0, 1);
  const Owned y(dtype_, {t, n}), want(DType::f64, {t, n});
  kernels_->linear(y, x, PackedWeight(*kernels_, w));
  test::set_all(want, static_cast<double>(k) * get(x, 0));
  const bool naive = GetParam().implementation.name == "reference";  // one accumulator: error grows with K
  expect_match("linear equal terms", Pair(copy_of(y), copy_of(want)),
               {.count = naive ? k * k : k, .scale = magnitudes(want)});
}

struct RowsCase {
  std::int64_t t, h;
};
const std::vector<RowsCase> kRows = {{0, 8},   {1, 1},   {1, 64},  {3, 17},
                                     {5, 130}, {33, 31}, {7, 256}, {300, 5}};

TEST_P(Agreement, RmsNormAndItsGradients) {
  for (const RowsCase& c : kRows) {
    SCOPED_TRACE(fmt::format("T={} H={}", c.t, c.h));
    next_case();
    const Pair x = input({c.t, c.h}, 1, 3, 0.5), w = input({c.h}, 2), dy = input({c.t, c.h}, 3);
    const Pair y = output({c.t, c.h}), rstd = output({c.t}), again = output({c.t, c.h});
    for (const Side s : kSides) kernels(s).rms_norm(y[s], rstd[s], x[s], w[s], 1e-5);
    expect_match("rms_norm y", y, {.count = c.h, .scale = row_largest(y.want(), 2)});
    expect_match("rms_norm rstd", rstd, {.count = c.h, .scale = magnitudes(rstd.want(), 2)});
    kernels_->rms_norm_apply(again.got(), x.got(), rstd.got(), w.got());
    EXPECT_TRUE(test::same_bits(again.got(), y.got())) << "rms_norm_apply repeats rms_norm bit for bit";

    const Pair saved = rounded(rstd.want());
    const Pair dx = output({c.t, c.h}), dw = input({c.h}, 4), start = input({c.t, c.h}, 5);
    const Pair dx_more = pair_of(start.got());
    std::vector<double> dw_scale = magnitudes(dw.want()), dx_scale;
    for (const Side s : kSides) {
      kernels(s).rms_norm_dgrad(dx[s], dy[s], x[s], saved[s], w[s], Write::overwrite);
      kernels(s).rms_norm_dgrad(dx_more[s], dy[s], x[s], saved[s], w[s], Write::accumulate);
      kernels(s).rms_norm_wgrad(dw[s], dy[s], x[s], saved[s]);
    }
    for (std::int64_t t = 0; t < c.t; ++t) {
      const double r = get(saved.want(), t);
      double mean = 0;
      const auto g = [&](std::int64_t h) { return std::abs(get(dy.want(), t * c.h + h) * get(w.want(), h)); };
      const auto n = [&](std::int64_t h) { return std::abs(get(x.want(), t * c.h + h) * r); };
      for (std::int64_t h = 0; h < c.h; ++h) mean += g(h) * n(h) / static_cast<double>(c.h);
      for (std::int64_t h = 0; h < c.h; ++h) {
        dx_scale.push_back(r * (g(h) + n(h) * mean));
        dw_scale[static_cast<std::size_t>(h)] += std::abs(get(dy.want(), t * c.h + h)) * n(h);
      }
    }
    expect_match("rms_norm dx", dx, {.count = c.h, .scale = dx_scale});
    expect_match("rms_norm dw", dw, {.count = c.t + 1, .scale = dw_scale});
    for (std::size_t i = 0; i < dx_scale.size(); ++i) {
      dx_scale[i] += std::abs(get(start.want(), static_cast<std::int64_t>(i)));
    }
    expect_match("rms_norm dx +=", dx_more, {.count = c.h + 1, .scale = dx_scale});
  }
}

// Roundings of one element of the gated MLP: exp (2), 1 + e, division, two products; twice for the gradient.
constexpr std::int64_t kSwigluSteps = 6;

TEST_P(Agreement, SwigluAndItsGradient) {
  for (const RowsCase& c : kRows) {
    SCOPED_TRACE(fmt::format("T={} I={}", c.t, c.h));
    next_case();
    const Pair gate_up = input({c.t, 2 * c.h}, 1, 3), dh = input({c.t, c.h}, 2);
    const Pair h = output({c.t, c.h}), dgate_up = output({c.t, 2 * c.h});
    for (const Side s : kSides) {
      kernels(s).swiglu(h[s], gate_up[s]);
      kernels(s).swiglu_backward(dgate_up[s], dh[s], gate_up[s]);
    }
    expect_match("swiglu h", h, {.count = kSwigluSteps, .scale = magnitudes(h.want())});
    std::vector<double> scale = magnitudes(dgate_up.want());
    for (std::int64_t t = 0; t < c.t; ++t) {
      for (std::int64_t i = 0; i < c.h; ++i) {
        const double gate = get(gate_up.want(), t * 2 * c.h + i),
                     up = get(gate_up.want(), (t * 2 + 1) * c.h + i);
        const double ds = get(dh.want(), t * c.h + i) * up / (1 + std::exp(-gate));
        // 1 + gate (1 - s) cancels.
        scale[static_cast<std::size_t>(t * 2 * c.h + i)] = std::abs(ds) * (1 + std::abs(gate));
      }
    }
    expect_match("swiglu dgate_up", dgate_up, {.count = 2 * kSwigluSteps, .scale = scale});
  }
}

TEST_P(Agreement, SwigluStaysFiniteFarOut) {
  const Pair gate_up = pair_of(test::tensor_of(dtype_, {5, 2}, {-1e4, 2, -100, 2, -80, 2, 100, 2, 1e4, 2}));
  const Pair dh = pair_of(test::tensor_of(dtype_, {5, 1}, {1, 1, 1, 1, 1}));
  const Pair h = output({5, 1}), dgate_up = output({5, 2});
  for (const Side s : kSides) {
    kernels(s).swiglu(h[s], gate_up[s]);
    kernels(s).swiglu_backward(dgate_up[s], dh[s], gate_up[s]);
  }
  expect_match("swiglu far h", h, {.count = kSwigluSteps, .scale = magnitudes(h.want())});
  std::vector<double> scale = magnitudes(dgate_up.want());
  for (double& v : scale) v = std::max(v, 1.0);  // gate (1 - s) next to 1: absolute error
  expect_match("swiglu far dgate_up", dgate_up, {.count = 2 * kSwigluSteps, .scale = scale});
}

const std::vector<std::int64_t> kLengths = {0, 1, 7, 16, 33, 255, 256, 257, 1000, 4099};

TEST_P(Agreement, ElementwiseOperations) {
  for (const std::int64_t n : kLengths) {
    SCOPED_TRACE(fmt::format("n={}", n));
    next_case();
    const Pair a = input({n}, 1), b = input({n}, 2);
    const Pair y = output({n}), more = pair_of(a.got()), filled = output({n}), in_place = pair_of(a.got());
    for (const Side s : kSides) {
      kernels(s).add(y[s], a[s], b[s]);
      kernels(s).add(in_place[s], in_place[s], b[s]);
      kernels(s).accumulate(more[s], b[s]);
      kernels(s).fill(filled[s], -0.75);
    }
    std::vector<double> scale = magnitudes(a.want());
    for (std::size_t i = 0; i < scale.size(); ++i)
      scale[i] += std::abs(get(b.want(), static_cast<std::int64_t>(i)));
    expect_match("add", y, {.count = 1, .scale = scale});
    expect_match("accumulate", more, {.count = 1, .scale = scale});
    EXPECT_TRUE(test::same_bits(in_place.got(), y.got())) << "add in place";
    expect_exact("fill", filled);
  }
}

TEST_P(Agreement, SumsInF64WhateverTheDtype) {
  for (const std::int64_t n : kLengths) {
    SCOPED_TRACE(fmt::format("n={}", n));
    next_case();
    const Pair x = input({n}, 1, 1, 0.3);
    const auto as_tensor = [](double v) { return test::tensor_of(DType::f64, {1}, {v}); };
    double magnitude = 0;
    for (const double v : values(x.want())) magnitude += std::abs(v);
    const Owned sum = as_tensor(kernels_->sum(x.got())), want = as_tensor(truth().sum(x.want()));
    EXPECT_TRUE(test::matches(GetParam().name() + " sum", sum, want, {.count = n, .scale = {magnitude}}));
    const Owned squares = as_tensor(kernels_->sum_squares(x.got()));
    const Owned to = as_tensor(7), squares_to = as_tensor(0.5);
    kernels_->sum_to(to, x.got(), 0.25, Write::overwrite);
    EXPECT_EQ(get(to, 0), 0.25 * kernels_->sum(x.got()));
    kernels_->sum_squares_to(squares_to, x.got(), Write::accumulate);
    EXPECT_EQ(get(squares_to, 0), 0.5 + get(squares, 0));
    const Owned want_squares = as_tensor(truth().sum_squares(x.want()));
    EXPECT_TRUE(test::matches(GetParam().name() + " sum_squares", squares, want_squares,
                              {.count = n, .scale = {get(want_squares, 0)}}));
  }
}

// The formula once more, by itself, over three steps.
TEST_P(Agreement, AdamwFollowsTheFormula) {
  for (const std::int64_t n : kLengths) {
    SCOPED_TRACE(fmt::format("n={}", n));
    next_case();
    const Pair p = input({n}, 1), m = input({n}, 2, 0.1);
    const Pair v = pair_of(magnitude_of(random(dtype_, {n}, 3, 0.01)));
    // Sums of absolute terms, carried from step to step as the values are.
    std::vector<double> p_scale = magnitudes(p.want()), m_scale = magnitudes(m.want());
    for (int step = 1; step <= 3; ++step) {
      const AdamWOptions o = {.lr = 1e-2,
                              .beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .bias_correction1 = 1 - std::pow(0.9, step),
                              .bias_correction2 = 1 - std::pow(0.95, step),
                              .grad_scale = 0.5};
      const Pair g = input({n}, 10 + static_cast<std::uint64_t>(step));
      for (std::int64_t i = 0; i < n; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const double grad = o.grad_scale * get(g.want(), i), before = get(p.want(), i);
        const double m_new = o.beta1 * get(m.want(), i) + (1 - o.beta1) * grad;
        const double v_new = o.beta2 * get(v.want(), i) + (1 - o.beta2) * grad * grad;
        const double denominator = std::sqrt(v_new / o.bias_correction2) + o.eps;
        m_scale[at] = o.beta1 * m_scale[at] + std::abs((1 - o.beta1) * grad);
        p_scale[at] +=
            o.lr * (m_scale[at] / o.bias_correction1 / denominator + o.weight_decay * std::abs(before));
        test::set(m.want(), i, m_new);
        test::set(v.want(), i, v_new);
        test::set(p.want(), i,
                  before - o.lr * (m_new / o.bias_correction1 / denominator + o.weight_decay * before));
      }
      kernels_->adamw(p.got(), g.got(), m.got(), v.got(), o);
      // Each step adds the roundings of the moments (4) and of the update (6) to those before.
      expect_match("adamw m", m, {.count = 4 * step, .scale = m_scale});
      expect_match("adamw v", v, {.count = 4 * step, .scale = magnitudes(v.want())});
      expect_match("adamw p", p, {.count = 10 * step, .scale = p_scale});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Agreement, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
