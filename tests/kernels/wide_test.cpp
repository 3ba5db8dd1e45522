// The CUDA backend reads 16 bytes at a time where a tensor allows it (kernels/cuda/packs.h): the same bits as
// one by one, for rows that begin anywhere.
#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#include "kernels/fixtures.h"
#include "support/emulated_place.h"

namespace tessera::kernels {
namespace {

constexpr std::int64_t kRows = 70, kWidth = 2080;  // more than one pack a thread, more than one part of rows

// The tensors of one run: all at wide places, or all of them past one by `shift` elements.
class Bench {
 public:
  explicit Bench(DType dtype, std::int64_t shift)
      : dtype_(dtype), stats_(tensor::stats_of(dtype)), shift_(shift) {}

  Tensor in(const tensor::Shape& shape, bool stats = false) {
    Owned& t = take(shape, stats);
    const Owned numbers = random(stats ? stats_ : dtype_, shape, ++seed_);
    std::memcpy(t.tensor().raw(), numbers.tensor().raw(), static_cast<std::size_t>(t.tensor().bytes().value));
    return t;
  }
  Tensor out(const tensor::Shape& shape, bool stats = false) { return take(shape, stats); }
  [[nodiscard]] std::vector<std::vector<double>> results() const {
    std::vector<std::vector<double>> all;
    for (const Owned& t : tensors_) all.push_back(test::values(t));
    return all;
  }

 private:
  Owned& take(const tensor::Shape& shape, bool stats) {
    return tensors_.emplace_back(stats ? stats_ : dtype_, shape, shift_);
  }
  DType dtype_, stats_;
  std::int64_t shift_;
  std::uint64_t seed_ = 0;
  std::deque<Owned> tensors_;
};

using Body = std::function<void(Kernels&, Bench&)>;

void expect_same_bits(const Body& body) {
  for (const DType dtype : {DType::bf16, DType::f32, DType::f64}) {
    std::vector<std::vector<double>> wide;
    for (const std::int64_t shift : {0, 1, 3}) {
      const auto kernels = emulated::make();
      Bench run(dtype, shift);
      body(*kernels, run);
      const std::vector<std::vector<double>> got = run.results();
      if (shift == 0) {
        wide = got;
      } else {
        EXPECT_EQ(got, wide) << tensor::name(dtype) << ", shifted by " << shift;
      }
    }
  }
}

TEST(Wide, ElementByElement) {
  expect_same_bits([](Kernels& k, Bench& run) {
    const tensor::Shape flat{kWidth};
    k.add(run.out(flat), run.in(flat), run.in(flat));
    k.accumulate(run.in(flat), run.in(flat));
    k.fill(run.out(flat), 0.3);
    k.add_bias(run.in({kRows, 24}), run.in({24}, true));
    const AdamWOptions options{.lr = 0.1,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .eps = 1e-8,
                               .weight_decay = 0.1,
                               .bias_correction1 = 0.1,
                               .bias_correction2 = 0.05,
                               .grad_scale = 0.5};
    const Tensor m = run.in(flat, true), v = run.out(flat, true);
    k.fill(v, 0.5);
    k.adamw(run.in(flat, true), run.in(flat, true), m, v, options);
  });
}

TEST(Wide, Activations) {
  expect_same_bits([](Kernels& k, Bench& run) {
    for (const Activation kind : {Activation::swiglu, Activation::gelu, Activation::clamped_swiglu}) {
      const ActivationOptions options{.kind = kind, .limit = 1};
      const Tensor z = run.in({kRows, options.gated() ? 48 : 24});
      k.activation(run.out({kRows, 24}), z, options);
      k.activation_backward(run.out(z.shape()), run.in({kRows, 24}), z, options);
    }
  });
}

TEST(Wide, Norms) {
  expect_same_bits([](Kernels& k, Bench& run) {
    const tensor::Shape matrix{kRows, kWidth}, row{kWidth}, column{kRows};
    const Tensor x = run.in(matrix), dy = run.in(matrix), w = run.in(row, true), b = run.in(row, true);
    const Tensor mean = run.out(column, true), rstd = run.out(column, true);
    k.rms_norm(run.out(matrix), rstd, x, w, 1e-5);
    k.rms_norm_apply(run.out(matrix), x, rstd, w);
    k.rms_norm_dgrad(run.in(matrix), dy, x, rstd, w, Write::accumulate);
    k.rms_norm_wgrad(run.in(row, true), dy, x, rstd);
    k.layer_norm(run.out(matrix), mean, rstd, x, w, b, 1e-5);
    k.layer_norm_dgrad(run.out(matrix), dy, x, mean, rstd, w, Write::overwrite);
    k.layer_norm_wgrad(run.in(row, true), run.in(row, true), dy, x, mean, rstd);
    k.bias_wgrad(run.out(row, true), dy, Write::overwrite);
    const ColumnGroups cols{.first = 16, .groups = 3, .width = 24};
    const Tensor sums = run.out({kRows, 3}, true);
    k.group_squares(sums, x, cols);
    k.group_norm_wgrad(run.out({24}, true), dy, x, sums, {.eps = 1e-5, .count = 24}, cols, Write::overwrite);
  });
}

TEST(Wide, Rope) {
  for (const RopePairs pairs : {RopePairs::halves, RopePairs::interleaved}) {
    expect_same_bits([&](Kernels& k, Bench& run) {
      const Tensor cos = run.in({16, 8}, true), sin = run.in({16, 8}, true);
      const RopeShape shape{.seq = 16, .heads = 3, .first = 8, .stride = 24, .rotated = 16, .pairs = pairs};
      k.rope(run.in({32, 80}), cos, sin, shape, false);
    });
  }
}

TEST(Wide, EmbeddingAndCrossEntropy) {
  Owned ids(DType::i32, {kRows});
  for (std::int64_t t = 0; t < kRows; ++t) ids.as<std::int32_t>()[t] = static_cast<std::int32_t>(t * 7 % 30);
  ids.as<std::int32_t>()[3] = -1;
  expect_same_bits([&](Kernels& k, Bench& run) {
    k.embedding(run.out({kRows, 40}), ids, run.in({20, 40}, true), 4);
    const Tensor logits = run.in({kRows, kWidth}), stats = run.out({3, kRows}, true);
    k.cross_entropy_stats(stats, logits, ids, 0);
    const Tensor lse = run.out({kRows}, true);
    k.cross_entropy_join(run.out({kRows}, true), lse, stats.reshaped({1, 3, kRows}), ids);
    k.cross_entropy_backward(logits, lse, ids, 0, 0.25);
  });
}

TEST(Wide, SumsOverAllElements) {
  for (const DType dtype : {DType::bf16, DType::f32, DType::f64}) {
    const auto kernels = emulated::make();
    Bench wide(dtype, 0), narrow(dtype, 1);
    const tensor::Shape shape{3 * 8192 + 16};
    EXPECT_EQ(kernels->sum(wide.in(shape)), kernels->sum(narrow.in(shape)));
    EXPECT_EQ(kernels->sum_squares(wide.in(shape)), kernels->sum_squares(narrow.in(shape)));
  }
}

}  // namespace
}  // namespace tessera::kernels
