// Embedding, cross entropy, router and row moves of every implementation against the f64 reference that reads
// the same rounded inputs.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using test::magnitudes;
class TableAgreement : public Agreement {};

struct VocabCase {
  std::int64_t t, v, h, begin;
};
const std::vector<VocabCase> kVocabs = {{0, 5, 3, 0},   {1, 1, 1, 0},    {7, 13, 17, 0},   {33, 10, 31, 4},
                                        {64, 3, 64, 5}, {19, 130, 9, 7}, {5, 1000, 2, 500}};
std::string text(const VocabCase& c) {
  return fmt::format("T={} V={} H={} begin={}", c.t, c.v, c.h, c.begin);
}

TEST_P(TableAgreement, EmbeddingCopiesAndItsGradientSums) {
  for (const VocabCase& c : kVocabs) {
    SCOPED_TRACE(text(c));
    next_case();
    const Pair table = input({c.v, c.h}, 1), dy = input({c.t, c.h}, 2), dtable = input({c.v, c.h}, 3);
    const Pair id = ids({c.t}, 4, 0, c.begin + c.v + 3);  // some belong to other shares
    const Pair y = output({c.t, c.h});
    const Owned magnitude = magnitude_of(dtable.want());
    for (const Side s : kSides) {
      kernels(s).embedding(y[s], id[s], table[s], c.begin);
      kernels(s).embedding_wgrad(dtable[s], dy[s], id[s], c.begin);
    }
    truth().embedding_wgrad(magnitude, magnitude_of(dy.want()), id.want(), c.begin);
    expect_exact("embedding y", y);
    expect_match("embedding dtable", dtable, {.count = c.t + 1, .scale = magnitudes(magnitude)});
  }
}

TEST_P(TableAgreement, CrossEntropyOfOneShare) {
  for (const VocabCase& c : kVocabs) {
    SCOPED_TRACE(text(c));
    next_case();
    const Pair logits = input({c.t, c.v}, 1, 4, 10), targets = ids({c.t}, 2, -3, c.begin + c.v + 3);
    const Pair stats = output({3, c.t});
    for (const Side s : kSides) kernels(s).cross_entropy_stats(stats[s], logits[s], targets[s], c.begin);
    std::vector<double> scale(static_cast<std::size_t>(3 * c.t));  // max and target are copies
    for (std::int64_t t = 0; t < c.t; ++t) {
      for (std::int64_t v = 0; v < c.v; ++v) {
        const double below = get(logits.want(), t * c.v + v) - get(stats.want(), t);
        scale[static_cast<std::size_t>(c.t + t)] += std::exp(below) * (1 - below);
      }
    }
    expect_match("cross entropy stats", stats, {.count = c.v, .scale = scale});

    // The gradient, from the lse of the whole vocabulary (two more logits here).
    Owned lse_f64(DType::f64, {c.t});
    for (std::int64_t t = 0; t < c.t; ++t) {
      test::set(lse_f64, t, get(stats.want(), t) + std::log(get(stats.want(), c.t + t) + 2));
    }
    const Pair lse = rounded(lse_f64), dlogits = pair_of(logits.got());
    for (const Side s : kSides)
      kernels(s).cross_entropy_backward(dlogits[s], lse[s], targets[s], c.begin, 0.3);
    scale.clear();
    for (std::int64_t i = 0; i < c.t * c.v; ++i) {
      const double z = get(logits.want(), i), l = get(lse.want(), i / c.v);
      const bool hit = get(targets.want(), i / c.v) == static_cast<double>(c.begin + i % c.v);
      scale.push_back(0.3 * (std::exp(z - l) * (2 + std::abs(z - l)) + (hit ? 1 : 0)));
    }
    expect_match("cross entropy dlogits", dlogits, {.count = 2, .scale = scale});
  }
}

TEST_P(TableAgreement, CrossEntropyJoinsShares) {
  for (const std::int64_t p : {1, 2, 3, 8}) {
    for (const std::int64_t t : {0, 1, 5, 33}) {
      SCOPED_TRACE(fmt::format("P={} T={}", p, t));
      next_case();
      // Stats as shares give them: max, sum of exponentials of at least 1, the target's logit in one share.
      Owned f64 = random(DType::f64, {p, 3, t}, 1, 5);
      const Pair targets = ids({t}, 2, -2, 6);
      for (std::int64_t i = 0; i < p * t; ++i) {
        const std::int64_t share = i / std::max<std::int64_t>(t, 1), at = share * 3 * t + i % t;
        test::set(f64, at + t, 1 + std::abs(get(f64, at + t)));
        const double target = get(targets.want(), i % t);
        if (static_cast<std::int64_t>(target) % p != share || target < 0) test::set(f64, at + 2 * t, 0);
      }
      const Pair stats = rounded(f64), loss = output({t}), lse = output({t});
      for (const Side s : kSides) kernels(s).cross_entropy_join(loss[s], lse[s], stats[s], targets[s]);
      std::vector<double> lse_scale, loss_scale;
      for (std::int64_t i = 0; i < t; ++i) {
        const double l = get(lse.want(), i), ignored = get(targets.want(), i) < 0 ? 0 : 1;
        double spread = 0;
        for (std::int64_t q = 0; q < p; ++q)
          spread = std::max(spread, std::abs(get(stats.want(), q * 3 * t + i)));
        lse_scale.push_back(1 + std::abs(l) + spread);
        loss_scale.push_back(ignored * (lse_scale.back() + std::abs(l - get(loss.want(), i))));
      }
      expect_match("cross entropy lse", lse, {.count = p, .scale = lse_scale});
      expect_match("cross entropy loss", loss, {.count = p + 1, .scale = loss_scale});
    }
  }
}

struct RouterCase {
  std::int64_t t, e;
  std::int32_t k;
};
const std::vector<RouterCase> kRouters = {{0, 4, 2},   {1, 1, 1},   {5, 3, 3},  {33, 8, 2},
                                          {17, 13, 1}, {40, 64, 6}, {9, 160, 8}};
const std::array<RouterOptions, 3> kForms = {{{1, RouterScore::softmax_then_topk, false},
                                              {1, RouterScore::softmax_then_topk, true},
                                              {1, RouterScore::topk_then_softmax, false}}};

TEST_P(TableAgreement, RouterWithAndWithoutTies) {
  for (const RouterCase& c : kRouters) {
    for (RouterOptions form : kForms) {
      for (const bool ties : {false, true}) {
        SCOPED_TRACE(fmt::format("T={} E={} K={} form {} {} ties {}", c.t, c.e, c.k, int(form.score),
                                 form.renormalise, ties));
        next_case();
        form.top_k = c.k;
        const Owned drawn = random(dtype_, {c.t, c.e}, 1, 3);
        for (std::int64_t i = 0; ties && i < c.t * c.e; ++i)
          test::set(drawn, i, std::round(get(drawn, i) / 3));
        const Pair logits = pair_of(drawn);
        const Pair probs = output({c.t, c.e}), lse = output({c.t}), weights = output({c.t, c.k});
        const Pair index = index_output({c.t, c.k});
        for (const Side s : kSides)
          kernels(s).router(probs[s], lse[s], index[s], weights[s], logits[s], form);
        expect_same_integers("router index", index);
        const std::vector<double> spread = row_largest(logits.want(), 2);  // exp of a difference of logits
        std::vector<double> p_scale = magnitudes(probs.want()), w_scale = magnitudes(weights.want());
        std::vector<double> lse_scale = magnitudes(lse.want());
        for (std::size_t i = 0; i < p_scale.size(); ++i) {
          p_scale[i] *= 1 + spread[i / static_cast<std::size_t>(c.e)];
        }
        for (std::size_t i = 0; i < w_scale.size(); ++i) {
          w_scale[i] *= 1 + spread[i / static_cast<std::size_t>(c.k)];
        }
        for (std::size_t i = 0; i < lse_scale.size(); ++i) lse_scale[i] += 1 + spread[i];
        expect_match("router probs", probs, {.count = c.e, .scale = p_scale});
        expect_match("router lse", lse, {.count = c.e, .scale = lse_scale});
        expect_match("router weights", weights, {.count = c.e, .scale = w_scale});
      }
    }
  }
}

TEST_P(TableAgreement, EqualLogitsChooseTheLowestExpertsInOrder) {
  const std::int64_t t = 3, e = 11;
  const Owned logits = random(dtype_, {t, e}, 1, 0, 0.5);
  const Owned probs(dtype_, {t, e}), lse(dtype_, {t}), weights(dtype_, {t, 4}), index(DType::i32, {t, 4});
  kernels_->router(probs, lse, index, weights, logits, {4, RouterScore::softmax_then_topk, true});
  EXPECT_EQ(values(index), (std::vector<double>{0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3}));
}

TEST_P(TableAgreement, RouterGradient) {
  const std::int64_t units = 3;
  const double z_scale = 0.01;
  for (const RouterCase& c : kRouters) {
    for (RouterOptions form : kForms) {
      for (const bool with_aux : {false, true}) {
        SCOPED_TRACE(fmt::format("T={} E={} K={} form {} {} aux {}", c.t, c.e, c.k, int(form.score),
                                 form.renormalise, with_aux));
        next_case();
        form.top_k = c.k;
        const Owned logits = random(DType::f64, {c.t, c.e}, 1, 2), probs_f64(DType::f64, {c.t, c.e});
        const Owned lse_f64(DType::f64, {c.t}), weights_f64(DType::f64, {c.t, c.k});
        const Owned chosen(DType::i32, {c.t, c.k});
        truth().router(probs_f64, lse_f64, chosen, weights_f64, logits, form);
        const Pair probs = rounded(probs_f64), lse = rounded(lse_f64), weights = rounded(weights_f64);
        const Pair index = pair_of(chosen), unit = ids({c.t}, 2, 0, units);
        const Pair dweights = input({c.t, c.k}, 3), dlogits = output({c.t, c.e});
        const Pair aux = with_aux ? input({units, c.e}, 4) : Pair();
        for (const Side s : kSides) {
          kernels(s).router_backward(dlogits[s], dweights[s], probs[s], lse[s], index[s], weights[s], aux[s],
                                     unit[s], z_scale, form);
        }
        const bool normalised = form.score == RouterScore::topk_then_softmax || form.renormalise;
        std::vector<double> scale(static_cast<std::size_t>(c.t * c.e));
        for (std::int64_t t = 0; t < c.t; ++t) {
          const auto at = [&](const Pair& x, std::int64_t row, std::int64_t i) {
            return std::abs(get(x.want(), row * x.want().dim(1) + i));
          };
          const auto aux_row = static_cast<std::int64_t>(get(unit.want(), t));
          double inner = 0, mean = 0;
          for (std::int64_t k = 0; k < c.k; ++k) inner += at(dweights, t, k) * at(weights, t, k);
          for (std::int64_t e = 0; with_aux && e < c.e; ++e) mean += at(aux, aux_row, e) * at(probs, t, e);
          for (std::int64_t e = 0; e < c.e; ++e) {
            const double p = at(probs, t, e), a = with_aux ? at(aux, aux_row, e) : 0;
            scale[static_cast<std::size_t>(t * c.e + e)] = p * (a + mean) +
                                                           2 * z_scale * std::abs(get(lse.want(), t)) * p +
                                                           (normalised ? 0 : p * inner);
          }
          for (std::int64_t k = 0; k < c.k; ++k) {
            const auto e =
                static_cast<std::size_t>(t * c.e) + static_cast<std::size_t>(get(chosen, t * c.k + k));
            scale[e] += at(weights, t, k) * (at(dweights, t, k) + inner);
          }
        }
        expect_match("router dlogits", dlogits, {.count = c.e, .scale = scale});
      }
    }
  }
}

struct MoveCase {
  std::int64_t t, k, r, h;
};
const std::vector<MoveCase> kMoves = {{0, 2, 0, 4},  {3, 2, 0, 5},    {1, 1, 1, 1},
                                      {5, 2, 9, 17}, {33, 3, 99, 31}, {16, 8, 100, 64}};

// Positions of choices: a random injection into the rows, about one in four dropped.
Owned positions(const MoveCase& c) {
  Owned pos(DType::i32, {c.t, c.k});
  std::int64_t next = 0;
  for (std::int64_t i = 0; i < c.t * c.k; ++i) {
    const bool dropped = next >= c.r || uniform_below(4, 5, 6, static_cast<std::uint64_t>(i)) == 0;
    test::set(pos, i, dropped ? -1 - static_cast<double>(i % 2) : static_cast<double>(c.r - 1 - next++));
  }
  return pos;
}

TEST_P(TableAgreement, GatherRowsCopies) {
  for (const MoveCase& c : kMoves) {
    next_case();
    const std::int64_t rows = c.t == 0 ? 0 : c.r;
    const Pair src = input({c.t, c.h}, 1), index = ids({rows}, 2, 0, std::max<std::int64_t>(c.t, 1));
    const Pair dst = output({rows, c.h});
    for (const Side s : kSides) kernels(s).gather_rows(dst[s], src[s], index[s]);
    expect_exact("gather_rows", dst);
  }
}

TEST_P(TableAgreement, CombineAddsWeightedRowsToTheResidualOrToNothing) {
  for (const MoveCase& c : kMoves) {
    SCOPED_TRACE(fmt::format("T={} K={} R={} H={}", c.t, c.k, c.r, c.h));
    next_case();
    const Pair x = input({c.t, c.h}, 1), rows = input({c.r, c.h}, 2), weights = input({c.t, c.k}, 3);
    const Pair pos = pair_of(positions(c));
    const Pair y = output({c.t, c.h}), in_place = pair_of(x.got()), alone = output({c.t, c.h});
    for (const Side s : kSides) {
      kernels(s).combine(y[s], x[s], rows[s], pos[s], weights[s]);
      kernels(s).combine(in_place[s], in_place[s], rows[s], pos[s], weights[s]);
      kernels(s).combine(alone[s], Tensor(), rows[s], pos[s], weights[s]);
    }
    const Owned magnitude(DType::f64, {c.t, c.h});
    const Owned rows_abs = magnitude_of(rows.want()), weights_abs = magnitude_of(weights.want());
    truth().combine(magnitude, magnitude_of(x.want()), rows_abs, pos.want(), weights_abs);
    expect_match("combine", y, {.count = c.k + 1, .scale = magnitudes(magnitude)});
    EXPECT_TRUE(test::same_bits(in_place.got(), y.got())) << "x may alias y";
    truth().combine(magnitude, Tensor(), rows_abs, pos.want(), weights_abs);
    expect_match("combine alone", alone, {.count = c.k, .scale = magnitudes(magnitude)});
  }
}

TEST_P(TableAgreement, CombineGradientLeavesRowsNotNamedUntouched) {
  for (const MoveCase& c : kMoves) {
    SCOPED_TRACE(fmt::format("T={} K={} R={} H={}", c.t, c.k, c.r, c.h));
    next_case();
    const Pair dy = input({c.t, c.h}, 1), rows = input({c.r, c.h}, 2), weights = input({c.t, c.k}, 3);
    const Pair pos = pair_of(positions(c)), drows = input({c.r, c.h}, 4), dweights = output({c.t, c.k});
    for (const Side s : kSides) {
      kernels(s).combine_backward(drows[s], dweights[s], dy[s], rows[s], pos[s], weights[s]);
    }
    expect_match("combine drows", drows, {.count = 1, .scale = magnitudes(drows.want())});
    const Owned magnitude(DType::f64, {c.t, c.k}), drows_abs = zeros(DType::f64, {c.r, c.h});
    truth().combine_backward(drows_abs, magnitude, magnitude_of(dy.want()), magnitude_of(rows.want()),
                             pos.want(), weights.want());
    expect_match("combine dweights", dweights, {.count = c.h, .scale = magnitudes(magnitude)});
  }
}

TEST_P(TableAgreement, SumRowsOverwritesAndAccumulates) {
  for (const MoveCase& c : kMoves) {
    SCOPED_TRACE(fmt::format("T={} K={} R={} H={}", c.t, c.k, c.r, c.h));
    next_case();
    const Pair rows = input({c.r, c.h}, 1), pos = pair_of(positions(c)), dx = output({c.t, c.h});
    const Pair more = input({c.t, c.h}, 2);
    const Owned magnitude(DType::f64, {c.t, c.h}), magnitude_more = magnitude_of(more.want());
    for (const Side s : kSides) {
      kernels(s).sum_rows(dx[s], rows[s], pos[s], Write::overwrite);
      kernels(s).sum_rows(more[s], rows[s], pos[s], Write::accumulate);
    }
    truth().sum_rows(magnitude, magnitude_of(rows.want()), pos.want(), Write::overwrite);
    truth().sum_rows(magnitude_more, magnitude_of(rows.want()), pos.want(), Write::accumulate);
    expect_match("sum_rows", dx, {.count = c.k, .scale = magnitudes(magnitude)});
    expect_match("sum_rows +=", more, {.count = c.k + 1, .scale = magnitudes(magnitude_more)});
  }
}

INSTANTIATE_TEST_SUITE_P(All, TableAgreement, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
