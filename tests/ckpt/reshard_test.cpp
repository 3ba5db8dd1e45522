// Any cut written, any cut read: random tensors cut into grids and flat shards by one number of ranks and
// read by another are exact, element by element.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "ckpt/checkpoint.h"
#include "ckpt/rectangle.h"
#include "ckpt/support.h"

namespace tessera::ckpt::test {
namespace {

class Random {
 public:
  explicit Random(std::uint64_t seed) : seed_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(uniform_below(static_cast<std::uint64_t>(high - low + 1), seed_,
                                                         stream_of("test"), counter_++));
  }

 private:
  std::uint64_t seed_;
  std::uint64_t counter_ = 0;
};

// Cut points of [0, n) into up to `parts` ranges, some perhaps empty.
std::vector<std::int64_t> cuts(Random& random, std::int64_t n, std::int64_t parts) {
  std::vector<std::int64_t> at = {0, n};
  for (std::int64_t i = 1; i < parts; ++i) at.push_back(random.between(0, n));
  std::sort(at.begin(), at.end());
  return at;
}

struct Global {
  std::string name;
  std::int32_t num_dims;
  std::array<std::int64_t, 2> shape;
};

std::vector<Global> random_model(Random& random) {
  std::vector<Global> tensors;
  for (std::int64_t i = random.between(1, 4); i > 0; --i) {
    const auto dims = static_cast<std::int32_t>(random.between(1, 2));
    tensors.push_back(
        {"t" + std::to_string(i), dims, {random.between(1, 13), dims == 1 ? 1 : random.between(1, 11)}});
  }
  return tensors;
}

// A random grid of one tensor, each cell either whole or cut into flat shards, all filled.
std::vector<Owned> random_cut(Random& random, const Global& t, tensor::DType dtype, std::int64_t salt) {
  std::vector<Owned> owned;
  const std::vector<std::int64_t> rows = cuts(random, t.shape[0], random.between(1, 4));
  const std::vector<std::int64_t> columns =
      cuts(random, t.shape[1], t.num_dims == 1 ? 1 : random.between(1, 4));
  for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
    for (std::size_t c = 0; c + 1 < columns.size(); ++c) {
      const Slice cell{.begin = {rows[r], columns[c]},
                       .size = {rows[r + 1] - rows[r], columns[c + 1] - columns[c]}};
      Owned whole = make_piece(t.name, t.num_dims, t.shape, cell, dtype);
      fill(whole, salt);
      if (elements(cell) == 0 || random.between(0, 1) == 0) {
        owned.push_back(std::move(whole));
        continue;
      }
      const std::vector<std::int64_t> shards = cuts(random, elements(cell), random.between(2, 4));
      for (std::size_t s = 0; s + 1 < shards.size(); ++s) {
        const Tensor flat = whole.piece.data.narrow_rows(shards[s], shards[s + 1] - shards[s]);
        for (const Piece& part : flat_pieces(whole.piece, shards[s], flat)) {
          Owned copy = make_piece(t.name, t.num_dims, t.shape, part.slice, dtype);
          std::memcpy(copy.piece.data.raw(), part.data.raw(),
                      static_cast<std::size_t>(part.data.bytes().value));
          owned.push_back(std::move(copy));
        }
      }
    }
  }
  return owned;
}

TEST(Reshard, AnyCutReadsWhatAnyOtherCutWrote) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    Random random(seed);
    const TempFolder folder;
    const tensor::DType written = random.between(0, 1) == 0 ? tensor::DType::f32 : tensor::DType::f64;
    const std::vector<Global> model = random_model(random);
    const std::int64_t world = random.between(1, 5);
    std::vector<std::vector<Piece>> ranks(static_cast<std::size_t>(world));
    std::vector<std::vector<Owned>> alive;
    for (const Global& t : model) {
      alive.push_back(random_cut(random, t, written, 3));
      for (const Owned& o : alive.back())
        ranks[static_cast<std::size_t>(random.between(0, world - 1))].push_back(o.piece);
    }
    CheckpointWriter writer({.folder = folder.path(), .world_size = static_cast<std::int32_t>(world)});
    for (std::size_t r = 0; r < ranks.size(); ++r)
      writer.stage(Rank(static_cast<std::int32_t>(r)), meta_of(3), ranks[r]);
    writer.wait();
    const CheckpointReader reader(folder / "step-00000003");
    for (const Global& t : model) {
      for (int cut = 0; cut < 3; ++cut) {
        const tensor::DType wanted = random.between(0, 1) == 0 ? tensor::DType::f32 : tensor::DType::f64;
        for (Owned& o : random_cut(random, t, wanted, 99)) {
          reader.read(o.piece);
          ASSERT_EQ(num_wrong(o, 3), 0) << "seed " << seed << ", tensor " << t.name;
        }
      }
    }
  }
}

TEST(FlatPieces, AreAtMostThreeAndHoldTheShardInOrder) {
  const Slice local{.begin = {10, 20}, .size = {5, 4}};
  const Owned whole = make_piece("w", 2, {100, 200}, local, tensor::DType::f64);
  for (std::int64_t begin = 0; begin <= 20; ++begin) {
    for (std::int64_t n = 0; begin + n <= 20; ++n) {
      std::vector<double> memory(static_cast<std::size_t>(n) + 1);
      const std::vector<Piece> pieces =
          flat_pieces(whole.piece, begin, Tensor(memory.data(), tensor::DType::f64, {n}));
      ASSERT_LE(pieces.size(), 3);
      std::int64_t at = begin;
      for (const Piece& p : pieces) {
        ASSERT_EQ(p.data.raw(), memory.data() + (at - begin));
        for (std::int64_t i = 0; i < p.data.num_elements(); ++i, ++at) {
          ASSERT_EQ(p.slice.begin[0] + i / p.slice.size[1], 10 + at / 4);
          ASSERT_EQ(p.slice.begin[1] + i % p.slice.size[1], 20 + at % 4);
        }
      }
      ASSERT_EQ(at, begin + n);
    }
  }
}

TEST(FlatPieces, RefuseAShardBeyondTheTensor) {
  const Owned whole = make_piece("w", 1, {6, 1}, {.begin = {0, 0}, .size = {6, 1}}, tensor::DType::f64);
  expect_error(ErrorKind::internal, {"a flat shard lies inside its tensor"}, [&] {
    double memory[4] = {};
    (void)flat_pieces(whole.piece, 3, Tensor(memory, tensor::DType::f64, {4}));
  });
}

// Against counting how often each element is covered.
TEST(CoverFault, AgreesWithCountingEveryElement) {
  Random random(7);
  int good = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::array<std::int64_t, 2> global = {random.between(1, 4), random.between(1, 4)};
    std::vector<Slice> pieces;
    std::map<std::pair<std::int64_t, std::int64_t>, int> count;
    for (std::int64_t i = random.between(1, 4); i > 0; --i) {
      Slice s;
      for (std::size_t d = 0; d < 2; ++d) {
        s.begin[d] = random.between(0, global[d] - 1);
        s.size[d] = random.between(1, global[d] - s.begin[d]);
      }
      pieces.push_back(s);
      for (std::int64_t r = 0; r < s.size[0]; ++r)
        for (std::int64_t c = 0; c < s.size[1]; ++c) ++count[{s.begin[0] + r, s.begin[1] + c}];
    }
    bool exact = std::ssize(count) == global[0] * global[1];
    for (const auto& [at, n] : count) exact = exact && n == 1;
    ASSERT_EQ(cover_fault(global, pieces).empty(), exact) << cover_fault(global, pieces);
    good += exact ? 1 : 0;
  }
  EXPECT_GT(good, 50);
}

TEST(CoverFault, SurvivesNumbersAtTheEndOfTheirRange) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t a : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, kMax - 1, kMax}) {
    for (const std::int64_t b : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, kMax - 1, kMax}) {
      const std::vector<Slice> pieces = {{.begin = {a, b}, .size = {b, a}}};
      EXPECT_NE(cover_fault({kMax, kMax}, pieces), "");
      EXPECT_NE(cover_fault({4, 4}, pieces), "");
    }
  }
}

}  // namespace
}  // namespace tessera::ckpt::test
