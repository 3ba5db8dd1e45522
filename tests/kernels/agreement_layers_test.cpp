// LayerNorm, norms of column groups, clamps, biases, activations, gates of every implementation against the
// f64 reference that reads the same rounded inputs.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using test::magnitudes;
class LayerAgreement : public Agreement {};

struct RowsCase {
  std::int64_t t, h;
};
const std::vector<RowsCase> kRows = {{0, 8},   {1, 1},   {1, 64},  {3, 17},
                                     {5, 130}, {33, 31}, {7, 256}, {300, 5}};

double at(const Tensor& x, std::int64_t row, std::int64_t column) {
  return get(x, row * x.dim(1) + column);
}
double largest(const Tensor& x) {
  double out = 0;
  for (const double v : values(x)) out = std::max(out, std::abs(v));
  return out;
}

TEST_P(LayerAgreement, LayerNormAndItsGradients) {
  for (const RowsCase& c : kRows) {
    if (c.h == 1) continue;  // the variance is nothing
    SCOPED_TRACE(fmt::format("T={} H={}", c.t, c.h));
    next_case();
    const Pair x = input({c.t, c.h}, 1, 3, 0.5), w = input({c.h}, 2), b = input({c.h}, 6);
    const Pair dy = input({c.t, c.h}, 3), y = output({c.t, c.h}), mean = output({c.t}), rstd = output({c.t});
    for (const Side s : kSides) kernels(s).layer_norm(y[s], mean[s], rstd[s], x[s], w[s], b[s], 1e-5);
    // The error of the mean, of the size of the largest x, enters the difference x - mean.
    const std::vector<double> row = row_largest(x.want(), 1);
    std::vector<double> mean_scale, rstd_scale, y_scale;
    for (std::int64_t t = 0; t < c.t; ++t) {
      const double spread = 1 + row[static_cast<std::size_t>(t)] * get(rstd.want(), t);
      mean_scale.push_back(row[static_cast<std::size_t>(t)]);
      rstd_scale.push_back(get(rstd.want(), t) * spread);
      y_scale.push_back(spread * spread * largest(w.want()) + largest(b.want()));
    }
    expect_match("layer_norm mean", mean, {.count = c.h, .scale = mean_scale});
    expect_match("layer_norm rstd", rstd, {.count = c.h, .scale = rstd_scale});
    expect_match("layer_norm y", y, {.count = c.h, .scale = y_scale});
    const Pair again = output({c.t, c.h});
    kernels_->layer_norm_apply(again.got(), x.got(), mean.got(), rstd.got(), w.got(), b.got());
    EXPECT_TRUE(test::same_bits(again.got(), y.got())) << "layer_norm_apply repeats layer_norm bit for bit";

    const Pair m = rounded(mean.want()), r = rounded(rstd.want());
    const Pair dx = output({c.t, c.h}), dx_more = input({c.t, c.h}, 5);
    const Pair dw = input({c.h}, 7), db = input({c.h}, 8);
    std::vector<double> dx_scale, dw_scale = magnitudes(dw.want()), db_scale = magnitudes(db.want());
    for (std::int64_t t = 0; t < c.t; ++t) {
      const double s = get(r.want(), t), spread = 1 + row[static_cast<std::size_t>(t)] * s;
      double g = 0;
      for (std::int64_t h = 0; h < c.h; ++h) g = std::max(g, std::abs(at(dy.want(), t, h)));
      dx_scale.push_back(s * g * largest(w.want()) * (2 + 2 * spread * spread) + 1);
      for (std::int64_t h = 0; h < c.h; ++h) {
        dw_scale[static_cast<std::size_t>(h)] += std::abs(at(dy.want(), t, h)) * spread;
        db_scale[static_cast<std::size_t>(h)] += std::abs(at(dy.want(), t, h));
      }
    }
    for (const Side s : kSides) {
      kernels(s).layer_norm_dgrad(dx[s], dy[s], x[s], m[s], r[s], w[s], Write::overwrite);
      kernels(s).layer_norm_dgrad(dx_more[s], dy[s], x[s], m[s], r[s], w[s], Write::accumulate);
      kernels(s).layer_norm_wgrad(dw[s], db[s], dy[s], x[s], m[s], r[s]);
    }
    expect_match("layer_norm dx", dx, {.count = c.h, .scale = dx_scale});
    expect_match("layer_norm dx +=", dx_more, {.count = c.h + 1, .scale = dx_scale});
    expect_match("layer_norm dw", dw, {.count = c.t + 1, .scale = dw_scale});
    expect_match("layer_norm db", db, {.count = c.t + 1, .scale = db_scale});
  }
}

// A mean far from zero beside a small spread: the sum of squares less the squared sum would lose it all.
TEST_P(LayerAgreement, LayerNormOfRowsFarFromZeroKeepsItsDigits) {
  const std::int64_t t = 4, h = 96;
  const Owned offsets = random(DType::f64, {t, h}, 1);
  for (std::int64_t i = 0; i < t * h; ++i) test::set(offsets, i, 1000 + get(offsets, i));
  const Pair x = rounded(offsets), w = input({h}, 2), b = input({h}, 3);
  const Pair y = output({t, h}), mean = output({t}), rstd = output({t});
  for (const Side s : kSides) kernels(s).layer_norm(y[s], mean[s], rstd[s], x[s], w[s], b[s], 1e-5);
  // Rounding of the mean alone: 1000 u / spread of about one.
  expect_match("layer_norm far y", y, {.count = 1, .scale = {1000 * largest(w.want()) * 2}});
}

struct GroupCase {
  std::int64_t t;
  ColumnGroups cols;
  std::int64_t columns;
};
const std::vector<GroupCase> kGroupCases = {
    {0, {0, 2, 4}, 8},    {3, {0, 1, 1}, 1},     {5, {3, 3, 6}, 25},
    {4, {0, 2, 64}, 128}, {2, {16, 4, 33}, 160}, {300, {1, 2, 5}, 12},
};

TEST_P(LayerAgreement, NormsOfColumnGroupsAndTheirGradients) {
  for (const GroupCase& c : kGroupCases) {
    const std::int64_t g = c.cols.groups, width = c.cols.width, wide = c.columns + 3;
    SCOPED_TRACE(fmt::format("T={} groups={} width={}", c.t, g, width));
    next_case();
    const GroupNormOptions options = {.eps = 1e-5, .count = 2 * width};
    const Pair x = input({c.t, c.columns}, 1, 2), w = input({width}, 2), dy = input({c.t, wide}, 3);
    const Pair sums = output({c.t, g}), dots = output({c.t, g}), y = input({c.t, wide}, 4);
    const Pair dw = output({width}), dw_more = input({width}, 5), dx = pair_of(dy.got());
    for (const Side s : kSides) {
      kernels(s).group_squares(sums[s], x[s], c.cols);
      kernels(s).group_norm_dots(dots[s], dy[s], x[s], w[s], c.cols);
    }
    expect_match("group squares", sums, {.count = width, .scale = magnitudes(sums.want())});
    const double biggest = largest(x.want()) * largest(w.want()) * largest(dy.want());
    expect_match("group dots", dots, {.count = width, .scale = {biggest * static_cast<double>(width)}});

    const Pair saved = rounded(sums.want()), saved_dots = rounded(dots.want());
    double r = 0, dot = 0;
    for (std::int64_t i = 0; i < c.t * g; ++i) {
      r = std::max(r, 1 / std::sqrt(get(saved.want(), i) / static_cast<double>(2 * width) + 1e-5));
      dot = std::max(dot, std::abs(get(saved_dots.want(), i)) / static_cast<double>(2 * width));
    }
    for (const Side s : kSides) {
      kernels(s).group_norm(y[s], x[s], saved[s], w[s], options, c.cols);
      kernels(s).group_norm_dgrad(dx[s], dx[s], x[s], saved[s], saved_dots[s], w[s], options, c.cols);
      kernels(s).group_norm_wgrad(dw[s], dy[s], x[s], saved[s], options, c.cols, Write::overwrite);
      kernels(s).group_norm_wgrad(dw_more[s], dy[s], x[s], saved[s], options, c.cols, Write::accumulate);
    }
    const double n = r * largest(x.want());
    expect_match("group norm y", y, {.count = 4, .scale = {n * largest(w.want()) + largest(y.want())}});
    expect_match("group norm dx", dx,
                 {.count = 8, .scale = {r * (largest(w.want()) * largest(dy.want()) + n * r * dot) + 1}});
    const double terms = static_cast<double>(c.t * g) * n * largest(dy.want());
    expect_match("group norm dw", dw, {.count = c.t * g + 4, .scale = {terms}});
    expect_match("group norm dw +=", dw_more, {.count = c.t * g + 4, .scale = {terms + 1}});
    for (std::int64_t t = 0; t < c.t; ++t) {  // the other columns stay
      for (std::int64_t j = 0; j < wide; ++j) {
        if (j >= c.cols.first && j < c.cols.first + g * width) continue;
        EXPECT_EQ(at(dx.got(), t, j), at(dy.got(), t, j)) << "column " << j;
      }
    }
  }
}

TEST_P(LayerAgreement, GroupNormInPlaceGivesTheSameBits) {
  const ColumnGroups cols = {.first = 2, .groups = 3, .width = 21};
  const Owned x = random(dtype_, {4, 70}, 1), w = random(dtype_, {21}, 2), y = copy_of(x),
              in_place = copy_of(x);
  const Owned sums(dtype_, {4, 3});
  kernels_->group_squares(sums, x, cols);
  kernels_->group_norm(y, x, sums, w, {1e-6, 21}, cols);
  kernels_->group_norm(in_place, in_place, sums, w, {1e-6, 21}, cols);
  EXPECT_TRUE(test::same_bits(in_place, y));
}

TEST_P(LayerAgreement, ClampAndBias) {
  for (const RowsCase& c : kRows) {
    SCOPED_TRACE(fmt::format("T={} H={}", c.t, c.h));
    next_case();
    const std::int64_t first = c.h / 3, width = c.h - first;
    const Pair x = input({c.t, c.h}, 1, 2), clamped = pair_of(x.got()), dx = input({c.t, c.h + 2}, 2);
    const Pair b = input({c.h}, 3), y = pair_of(x.got()), db = output({c.h}), db_more = input({c.h}, 4);
    for (const Side s : kSides) {
      kernels(s).clamp(clamped[s], 0.75, first, width);
      kernels(s).clamp_backward(dx[s], x[s], 0.75, first, width);
      kernels(s).add_bias(y[s], b[s]);
      kernels(s).bias_wgrad(db[s], x[s], Write::overwrite);
      kernels(s).bias_wgrad(db_more[s], x[s], Write::accumulate);
    }
    expect_exact("clamp", clamped);
    expect_exact("clamp backward", dx);
    expect_match("bias y", y, {.count = 1, .scale = {largest(x.want()) + 1}});
    std::vector<double> scale(static_cast<std::size_t>(c.h));
    for (std::int64_t i = 0; i < c.t * c.h; ++i) {
      scale[static_cast<std::size_t>(i % c.h)] += std::abs(get(x.want(), i));
    }
    expect_match("bias db", db, {.count = c.t, .scale = scale});
    for (double& v : scale) v += 1;
    expect_match("bias db +=", db_more, {.count = c.t + 1, .scale = scale});
  }
}

const std::array<ActivationOptions, 4> kActivations = {
    {{Activation::swiglu}, {Activation::gelu}, {Activation::gelu_tanh}, {Activation::clamped_swiglu, 2.5}}};

// Roundings of an element: exp (2) of an argument that carries a few more, 1 + e, division, polynomial of
// the error function, products. An exponential's argument a is off by a few u a: hence (1 + z^2), since
// the result falls as exp(-z^2 / 2) or slower.
TEST_P(LayerAgreement, EveryActivationAndItsGradient) {
  for (const ActivationOptions& options : kActivations) {
    for (const RowsCase& c : kRows) {
      SCOPED_TRACE(fmt::format("kind {} T={} I={}", int(options.kind), c.t, c.h));
      next_case();
      const std::int64_t columns = options.gated() ? 2 * c.h : c.h;
      const Pair z = input({c.t, columns}, 1, 3), dh = input({c.t, c.h}, 2);
      const Pair h = output({c.t, c.h}), dz = output({c.t, columns});
      for (const Side s : kSides) {
        kernels(s).activation(h[s], z[s], options);
        kernels(s).activation_backward(dz[s], dh[s], z[s], options);
      }
      std::vector<double> h_scale, dz_scale(static_cast<std::size_t>(c.t * columns));
      for (std::int64_t t = 0; t < c.t; ++t) {
        for (std::int64_t i = 0; i < c.h; ++i) {
          const double gate = std::abs(at(z.want(), t, i)), d = std::abs(at(dh.want(), t, i));
          const double up = options.gated() ? 1 + std::abs(at(z.want(), t, c.h + i)) : 1;
          h_scale.push_back(gate * up);
          dz_scale[static_cast<std::size_t>(t * columns + i)] = d * up * (1 + gate) * (1 + gate);
          if (options.gated()) dz_scale[static_cast<std::size_t>(t * columns + c.h + i)] = d * gate;
        }
      }
      const std::string name = fmt::format("activation {}", int(options.kind));
      expect_match(name + " h", h, {.count = 4, .scale = h_scale});
      expect_match(name + " dz", dz, {.count = 8, .scale = dz_scale});
    }
  }
}

// From far below, where gelu falls to nothing, over small numbers of both signs, to far above.
TEST_P(LayerAgreement, ActivationsOverTheWholeRangeOfGates) {
  std::vector<double> list;
  for (double v = 1e-30; v < 1e5; v *= 1.37) {
    list.push_back(v);
    list.push_back(-v);
  }
  list.push_back(0);
  const auto n = static_cast<std::int64_t>(list.size());
  for (const ActivationOptions& options : kActivations) {
    SCOPED_TRACE(fmt::format("kind {}", int(options.kind)));
    const std::int64_t columns = options.gated() ? 2 * n : n;
    const Owned start(DType::f64, {1, columns});
    for (std::int64_t i = 0; i < columns; ++i) {
      test::set(start, i, i < n ? list[static_cast<std::size_t>(i)] : 1.5);
    }
    const Pair z = rounded(start), dh = pair_of(random(dtype_, {1, n}, 1, 0, 1));
    const Pair h = output({1, n}), dz = output({1, columns});
    for (const Side s : kSides) {
      kernels(s).activation(h[s], z[s], options);
      kernels(s).activation_backward(dz[s], dh[s], z[s], options);
    }
    std::vector<double> h_scale, dz_scale;
    for (std::int64_t i = 0; i < columns; ++i) {
      const double gate = std::abs(get(z.want(), i % n));
      if (i < n) h_scale.push_back(4 * gate);
      dz_scale.push_back(4 * (1 + gate));
    }
    const std::string name = fmt::format("activation {} range", int(options.kind));
    expect_match(name + " h", h, {.count = 4, .scale = h_scale});
    expect_match(name + " dz", dz, {.count = 8, .scale = dz_scale});
  }
}

TEST_P(LayerAgreement, SigmoidGateAndItsGradient) {
  for (const RowsCase& c : kRows) {
    SCOPED_TRACE(fmt::format("T={} H={}", c.t, c.h));
    next_case();
    const Pair f = input({c.t, c.h}, 1), z = input({c.t}, 2, 4), dy = input({c.t, c.h}, 3);
    const Pair y = input({c.t, c.h}, 4), df = output({c.t, c.h}), dz = output({c.t});
    std::vector<double> y_scale = magnitudes(y.want());
    for (std::size_t i = 0; i < y_scale.size(); ++i) y_scale[i] += std::abs(get(f.want(), std::int64_t(i)));
    for (const Side s : kSides) {
      kernels(s).sigmoid_gate(y[s], f[s], z[s]);
      kernels(s).sigmoid_gate_backward(df[s], dz[s], dy[s], f[s], z[s]);
    }
    expect_match("sigmoid_gate y", y, {.count = 6, .scale = y_scale});
    expect_match("sigmoid_gate df", df, {.count = 6, .scale = magnitudes(df.want())});
    std::vector<double> dz_scale(static_cast<std::size_t>(c.t));
    for (std::int64_t i = 0; i < c.t * c.h; ++i) {
      dz_scale[static_cast<std::size_t>(i / c.h)] += std::abs(get(dy.want(), i) * get(f.want(), i));
    }
    expect_match("sigmoid_gate dz", dz, {.count = c.h + 6, .scale = dz_scale});
  }
}

INSTANTIATE_TEST_SUITE_P(All, LayerAgreement, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
