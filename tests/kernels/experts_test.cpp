// Choices by expert, statistics of routing, and products of many experts: integers against a sort that is
// written here, sums against the f64 reference, products to the bit against those of each expert alone.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <numeric>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using test::magnitudes;
using ::testing::HasSubstr;

class Choices : public KernelTest {};
class ExpertProducts : public Agreement {};
class RoutingSums : public Agreement {};

struct ChoiceCase {
  std::int64_t t, k, e;
  std::int64_t drop_every = 0;  // so many choices; 0: none
  bool one_expert = false;
};
// The last two have more chunks than one, and as many as there can be.
const std::vector<ChoiceCase> kChoices = {{0, 2, 4},      {1, 1, 1},       {1, 1, 5},     {7, 3, 1},
                                          {33, 2, 7, 3},  {64, 4, 300, 2}, {50, 2, 4, 1}, {40, 2, 6, 0, true},
                                          {700, 3, 5, 4}, {33000, 2, 9, 7}};

std::vector<double> integers(const Tensor& x) {
  return values(x);
}

TEST_P(Choices, AreSortedByExpertAndToken) {
  for (const ChoiceCase& c : kChoices) {
    SCOPED_TRACE(fmt::format("T={} K={} E={} drops {}", c.t, c.k, c.e, c.drop_every));
    const std::int64_t n = c.t * c.k, tail = 3;
    const std::int64_t only = c.e / 2, last = c.one_expert ? only + 1 : c.e;
    const Owned index = random_ids(DType::i32, {c.t, c.k}, 5, c.one_expert ? only : 0, last);
    const Owned pos = zeros(DType::i32, {c.t, c.k});
    for (std::int64_t i = 0; c.drop_every > 0 && i < n; i += c.drop_every) test::set(pos, i, -1);
    const Owned token(DType::i32, {n + tail});
    test::set_all(token, -7);
    const Owned begin(DType::i32, {c.e + 1});
    std::vector<std::int64_t> order;
    for (std::int64_t i = 0; i < n; ++i) {
      if (get(pos, i) >= 0) order.push_back(i);
    }
    std::ranges::stable_sort(order, {}, [&](std::int64_t i) { return get(index, i); });
    std::vector<double> want_pos = integers(pos), want_token(static_cast<std::size_t>(n + tail), -7.0),
                        want_begin(static_cast<std::size_t>(c.e) + 1, 0.0);
    for (std::size_t r = 0; r < order.size(); ++r) {
      want_pos[static_cast<std::size_t>(order[r])] = static_cast<double>(r);
      want_token[r] = static_cast<double>(order[r] / c.k);
      for (auto e = static_cast<std::size_t>(get(index, order[r])) + 1; e < want_begin.size(); ++e)
        ++want_begin[e];
    }
    kernels_->sort_choices(pos, token, begin, index);
    EXPECT_EQ(integers(pos), want_pos);
    EXPECT_EQ(integers(token), want_token);
    EXPECT_EQ(integers(begin), want_begin);
  }
}

TEST_P(Choices, AreCountedByUnitAndScaled) {
  for (const auto& [t, k, e, units] :
       {std::array<std::int64_t, 4>{0, 2, 3, 2}, {1, 1, 1, 1}, {301, 3, 5, 4}}) {
    const Owned index = random_ids(DType::i32, {t, k}, 1, 0, e),
                unit = random_ids(DType::i32, {t}, 2, 0, units);
    const Owned counts(DType::i32, {units, e}), scaled(dtype_, {units, e}), shared(dtype_, {units, e});
    const Owned share = random(DType::f64, {units, e}, 3);
    std::vector<double> want(static_cast<std::size_t>(units * e), 0.0);
    for (std::int64_t i = 0; i < t * k; ++i) {
      ++want[static_cast<std::size_t>(get(unit, i / k)) * static_cast<std::size_t>(e) +
             static_cast<std::size_t>(get(index, i))];
    }
    kernels_->count_choices(counts, index, unit);
    EXPECT_EQ(integers(counts), want);
    kernels_->scale_counts(scaled, counts, 0.3);
    kernels_->scale_counts(shared, share, 0.3);
    const auto rounded = [&](double x) {
      return dtype_ == DType::f64 ? x : static_cast<double>(static_cast<float>(x));
    };
    for (std::int64_t i = 0; i < units * e; ++i) {
      EXPECT_EQ(get(scaled, i), rounded(0.3 * want[static_cast<std::size_t>(i)]));
      EXPECT_EQ(get(shared, i), rounded(0.3 * get(share, i)));
    }
  }
}

TEST_P(Choices, ThatNoExpertHasAreRefused) {
  const Owned index = test::tensor_of(DType::i32, {2, 1}, {1, 3}), pos = zeros(DType::i32, {2, 1});
  const Owned token(DType::i32, {2}), begin(DType::i32, {4}), one = zeros(DType::i32, {1}),
                                                              short_token(DType::i32, {1});
  const auto text = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  };
  EXPECT_THAT(text([&] { kernels_->sort_choices(pos, short_token, begin, index); }),
              HasSubstr("token i32 [1] is too short for index i32 [2, 1]"));
  EXPECT_THAT(text([&] { kernels_->sort_choices(pos, token, one, index); }),
              HasSubstr("begin i32 [1] is not of 1 .. 16384 experts"));
  const Owned x = random(dtype_, {2, 3}, 1), y(dtype_, {2, 4}), w = random(dtype_, {4, 3}, 2);
  const std::vector<Weight> weights(2, Weight{w, {}});
  EXPECT_THAT(text([&] { kernels_->experts_linear(y, x, weights, begin); }), HasSubstr("begin is i32 [4]"));
  EXPECT_THAT(text([&] { kernels_->experts_linear(y, x, {}, begin); }), HasSubstr("at least one expert"));
  // its queue may hold what is not there yet
  if (kernels_->memory()->device() != tensor::Device::cpu) return;
  EXPECT_THAT(text([&] { kernels_->sort_choices(pos, token, begin, index); }),
              HasSubstr("index i32 [2, 1] holds 3 at 1, expected values in [0, 3)"));
  for (const auto& [values, words] :
       std::vector<std::pair<std::array<double, 3>, std::string>>{{{0, 1, 3}, "begin holds 3 at 2 of 2 rows"},
                                                                  {{1, 1, 2}, "begin holds 1 at 0"},
                                                                  {{0, 2, 1}, "begin holds 1 at 2"},
                                                                  {{0, 1, 1}, "begin ends at 1 of 2 rows"}}) {
    const Owned bad(DType::i32, {3});
    for (std::size_t i = 0; i < 3; ++i) test::set(bad, static_cast<std::int64_t>(i), values[i]);
    EXPECT_THAT(text([&] { kernels_->experts_linear(y, x, weights, bad); }), HasSubstr(words));
  }
}

struct ProductCase {
  std::vector<std::int64_t> rows;  // of each expert
  std::int64_t n, k;
};
// No rows at all, one row, empty experts at every place, all rows on one, one expert, tiles that begin inside
// of others', more experts than one launch takes.
std::vector<ProductCase> product_cases() {
  std::vector<ProductCase> out = {{{0}, 3, 5},
                                  {{0, 0, 0}, 8, 16},
                                  {{1}, 1, 1},
                                  {{0, 1, 0}, 9, 33},
                                  {{5, 0, 3, 0, 0}, 65, 31},
                                  {{0, 0, 70}, 40, 24},
                                  {{63, 1, 64, 65}, 17, 130},
                                  {{129}, 70, 66},
                                  {{2, 200, 3}, 12, 20}};
  ProductCase many{{}, 5, 3};
  for (std::int64_t e = 0; e < 300; ++e) many.rows.push_back(e % 3);
  out.push_back(many);
  return out;
}

Owned begins_of(const std::vector<std::int64_t>& rows) {
  Owned begin = zeros(DType::i32, {std::ssize(rows) + 1});
  for (std::int64_t e = 0; e < std::ssize(rows); ++e) {
    test::set(begin, e + 1, get(begin, e) + static_cast<double>(rows[static_cast<std::size_t>(e)]));
  }
  return begin;
}

TEST_P(ExpertProducts, AreThoseOfEachExpertAlone) {
  for (const ProductCase& c : product_cases()) {
    const auto experts = static_cast<std::int64_t>(c.rows.size());
    const std::int64_t rows = std::reduce(c.rows.begin(), c.rows.end());
    SCOPED_TRACE(fmt::format("E={} R={} N={} K={}", experts, rows, c.n, c.k));
    next_case();
    const Owned begin = begins_of(c.rows);
    const Pair x = input({rows, c.k}, 1), dy = input({rows, c.n}, 2), y = output({rows, c.n}),
               dx = output({rows, c.k});
    const Pair biased = pair_of(dy.got());
    std::vector<Pair> w, b, dw, db;
    for (std::int64_t e = 0; e < experts; ++e) {
      const auto seed = static_cast<std::uint64_t>(100 + 4 * e);
      w.push_back(input({c.n, c.k}, seed, 0.5));
      b.push_back(input({c.n}, seed + 1));
      dw.push_back(input({c.n, c.k}, seed + 2));
      db.push_back(input({c.n}, seed + 3));
    }
    const Owned y_alone = copy_of(y.got()), dx_alone = copy_of(dx.got()), biased_alone = copy_of(dy.got());
    std::vector<Owned> dw_alone, db_alone;
    for (std::int64_t e = 0; e < experts; ++e) {
      dw_alone.push_back(copy_of(dw[static_cast<std::size_t>(e)].got()));
      db_alone.push_back(copy_of(db[static_cast<std::size_t>(e)].got()));
      const auto first = static_cast<std::int64_t>(get(begin, e)),
                 count = c.rows[static_cast<std::size_t>(e)];
      if (count == 0) continue;
      const auto part = [&](const Tensor& all) { return all.narrow_rows(first, count); };
      const PackedWeight weight(*kernels_, w[static_cast<std::size_t>(e)].got());
      kernels_->linear(part(y_alone), part(x.got()), weight);
      kernels_->linear_dgrad(part(dx_alone), part(dy.got()), weight);
      kernels_->linear_wgrad(dw_alone.back(), part(dy.got()), part(x.got()));
      kernels_->add_bias(part(biased_alone), b[static_cast<std::size_t>(e)].got());
      kernels_->bias_wgrad(db_alone.back(), part(dy.got()), Write::accumulate);
    }
    kernels_->reset_flops();
    for (const Side s : kSides) {
      std::vector<std::unique_ptr<PackedWeight>> held;
      std::vector<Weight> weights;
      std::vector<Tensor> bias, dweight, dbias;
      for (std::int64_t e = 0; e < experts; ++e) {
        const auto at = static_cast<std::size_t>(e);
        held.push_back(std::make_unique<PackedWeight>(kernels(s), w[at][s]));
        weights.push_back(*held.back());
        bias.push_back(b[at][s]);
        dweight.push_back(dw[at][s]);
        dbias.push_back(db[at][s]);
      }
      kernels(s).experts_linear(y[s], x[s], weights, begin);
      kernels(s).experts_linear_dgrad(dx[s], dy[s], weights, begin);
      kernels(s).experts_linear_wgrad(dweight, dy[s], x[s], begin);
      kernels(s).experts_add_bias(biased[s], bias, begin);
      kernels(s).experts_bias_wgrad(dbias, dy[s], begin);
    }
    EXPECT_EQ(kernels_->flops(), Flops(3 * 2 * rows * c.n * c.k));
    EXPECT_TRUE(test::same_bits(y.got(), y_alone));
    EXPECT_TRUE(test::same_bits(dx.got(), dx_alone));
    EXPECT_TRUE(test::same_bits(biased.got(), biased_alone));
    // Entries are about 1 and weights 0.5 at most: products of at most so many of them.
    expect_match("experts y", y, {.count = c.k, .scale = {0.5 * static_cast<double>(c.k)}});
    expect_match("experts dx", dx, {.count = c.n, .scale = {0.5 * static_cast<double>(c.n)}});
    for (std::int64_t e = 0; e < experts; ++e) {
      const auto at = static_cast<std::size_t>(e);
      EXPECT_TRUE(test::same_bits(dw[at].got(), dw_alone[at])) << "expert " << e;
      EXPECT_TRUE(test::same_bits(db[at].got(), db_alone[at])) << "expert " << e;
      const double count = static_cast<double>(c.rows[at]) + 1;
      expect_match("experts dw", dw[at], {.count = c.rows[at] + 1, .scale = {count}});
      expect_match("experts db", db[at], {.count = c.rows[at] + 1, .scale = {count}});
    }
  }
}

TEST_P(RoutingSums, AreThoseOfTheReference) {
  for (const auto& [t, e, k] :
       {std::array<std::int64_t, 3>{0, 4, 2}, {1, 1, 1}, {37, 5, 2}, {130, 70, 3}, {70000, 2, 1}}) {
    for (const RouterScore score : {RouterScore::softmax_then_topk, RouterScore::sigmoid}) {
      for (const bool kept_only : {false, true}) {
        if (t > 1000 && kept_only) continue;
        SCOPED_TRACE(fmt::format("T={} E={} K={} form {} kept only {}", t, e, k, int(score), kept_only));
        next_case();
        const RouterOptions o{.top_k = static_cast<std::int32_t>(k), .score = score, .renormalise = false};
        const Pair logits = input({t, e}, 1, 2), aux = input({3, e}, 2), unit = ids({t}, 3, 0, 3);
        const Owned probs(DType::f64, {t, e}), lse(DType::f64, {t}), index(DType::i32, {t, k}),
            weights(DType::f64, {t, k});
        truth().router(probs, lse, index, weights, logits.want(), o);
        const Pair p = rounded(probs), l = rounded(lse), pos = ids({t, k}, 4, -1, 2);
        const auto f64 = [](const Owned& from) { return Pair(copy_of(from), copy_of(from)); };
        const Pair sums = f64(magnitude_of(random(DType::f64, {kRouterSums}, 5))),
                   value = f64(random(DType::f64, {1}, 6));
        const Pair counts = f64(random_ids(DType::i64, {2 * e + 1}, 7, 0, 100));
        for (const Side s : kSides) {
          kernels(s).router_stats(sums[s], counts[s], {p[s], l[s], logits[s], index, pos[s]},
                                  {.score = score, .counts_kept_only = kept_only, .z_scale = 0.25});
          kernels(s).balance_value(value[s], p[s], aux[s], unit[s], score);
        }
        expect_same_integers("router_stats counts", counts);
        // Sums run in f64 in either type; all terms but those of the balancing loss are positive.
        std::vector<double> scale = magnitudes(sums.want());
        for (double& v : scale) v += 2;
        EXPECT_TRUE(test::matches("router_stats sums", sums.got(), sums.want(),
                                  {.count = t * e + 1, .scale = scale}));
        EXPECT_EQ(get(sums.got(), 2), get(sums.want(), 2)) << "a largest is not rounded";
        const Owned magnitude = magnitude_of(value.want());
        truth().balance_value(magnitude, p.want(), magnitude_of(aux.want()), unit.want(), score);
        EXPECT_TRUE(test::matches("balance_value", value.got(), value.want(),
                                  {.count = t * e + 1, .scale = {get(magnitude, 0) + 2}}));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Choices, ::testing::ValuesIn(subjects()), subject_name);
INSTANTIATE_TEST_SUITE_P(All, ExpertProducts, ::testing::ValuesIn(subjects()), subject_name);
INSTANTIATE_TEST_SUITE_P(All, RoutingSums, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
