// Helpers of the checkpoint tests: a folder that goes away, tensors with owned memory, what an Error must
// say, a state cut into pieces.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "ckpt/checkpoint.h"

namespace tessera::ckpt::test {

using layout::Slice;

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tessera_ckpt_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// A new file each time: file systems flush one that is cut to nothing and written again.
inline void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::filesystem::remove(path);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << bytes;
  out.close();
  ASSERT_TRUE(out.good()) << path;
}

// Runs `f`, which must throw an Error of the kind whose text holds all the words, and a mend.
inline void expect_error(ErrorKind kind, const std::vector<std::string>& words,
                         const std::function<void()>& f) {
  try {
    f();
    ADD_FAILURE() << "no error; expected one with \"" << (words.empty() ? "" : words.front()) << "\"";
  } catch (const Error& e) {
    EXPECT_EQ(name(e.kind()), name(kind)) << e.what();
    for (const std::string& word : words) EXPECT_THAT(e.what(), ::testing::HasSubstr(word));
    for (const Problem& p : e.problems()) EXPECT_FALSE(p.mend.empty()) << p.what;
  }
}

// A piece that owns its elements.
struct Owned {
  Piece piece;
  std::vector<double> f64;
  std::vector<float> f32;
};

inline std::int64_t elements(const Slice& s) {
  return s.size[0] * s.size[1];
}

inline Owned make_piece(std::string name, std::int32_t num_dims, std::array<std::int64_t, 2> global,
                        const Slice& slice, tensor::DType dtype) {
  Owned o;
  o.piece = {.name = std::move(name), .num_dims = num_dims, .global = global, .slice = slice};
  const auto n = static_cast<std::size_t>(elements(slice));
  void* data = nullptr;
  if (dtype == tensor::DType::f64) {
    o.f64.assign(n, -77.0);
    data = o.f64.data();
  } else {
    o.f32.assign(n, -77.0F);
    data = o.f32.data();
  }
  o.piece.data = Tensor(data, dtype, {static_cast<std::int64_t>(n)});
  return o;
}

// Element (row, column) of a named tensor as a test wants it; `salt` is a step, say. Exact in f32.
inline double element(std::string_view name, std::int64_t row, std::int64_t column, std::int64_t salt) {
  const std::uint64_t h = stream_of(name) + 1000003ULL * static_cast<std::uint64_t>(row) +
                          7919ULL * static_cast<std::uint64_t>(column) +
                          104729ULL * static_cast<std::uint64_t>(salt);
  return static_cast<double>(static_cast<std::int64_t>(h % 16777213ULL)) - 8000000.0;
}

// Runs over the elements of a piece: visit(index in the piece, wanted value).
inline void each_element(const Piece& p, std::int64_t salt,
                         const std::function<void(std::size_t, double)>& visit) {
  std::size_t i = 0;
  for (std::int64_t r = 0; r < p.slice.size[0]; ++r)
    for (std::int64_t c = 0; c < p.slice.size[1]; ++c)
      visit(i++, element(p.name, p.slice.begin[0] + r, p.slice.begin[1] + c, salt));
}

inline void fill(Owned& o, std::int64_t salt) {
  each_element(o.piece, salt, [&](std::size_t i, double v) {
    if (!o.f64.empty()) {
      o.f64[i] = v;
    } else {
      o.f32[i] = static_cast<float>(v);
    }
  });
}

inline std::int64_t num_wrong(const Owned& o, std::int64_t salt) {
  std::int64_t wrong = 0;
  each_element(o.piece, salt, [&](std::size_t i, double v) {
    const double got = o.f64.empty() ? static_cast<double>(o.f32[i]) : o.f64[i];
    if (!(got == v)) ++wrong;
  });
  return wrong;
}

inline std::vector<Piece> pieces_of(const std::vector<Owned>& owned) {
  std::vector<Piece> pieces;
  for (const Owned& o : owned) pieces.push_back(o.piece);
  return pieces;
}

// A checkpoint of one 6 x 4 matrix in two column halves and one vector of 5, on two ranks.
inline std::vector<std::vector<Owned>> small_state(std::int64_t salt,
                                                   tensor::DType dtype = tensor::DType::f32) {
  std::vector<std::vector<Owned>> ranks(2);
  for (std::int64_t r = 0; r < 2; ++r) {
    ranks[static_cast<std::size_t>(r)].push_back(
        make_piece("layer.weight", 2, {6, 4}, {.begin = {0, 2 * r}, .size = {6, 2}}, dtype));
  }
  ranks[1].push_back(make_piece("norm.weight", 1, {5, 1}, {.begin = {0, 0}, .size = {5, 1}}, dtype));
  for (std::vector<Owned>& rank : ranks)
    for (Owned& o : rank) fill(o, salt);
  return ranks;
}

inline Meta meta_of(std::int64_t step) {
  return {.step = step,
          .tokens = 1000 * step,
          .job_yaml = "train: {steps: 10}\n",
          .hf_config = "{\"a\": \"b\\n\"}"};
}

inline void stage_small(CheckpointWriter& writer, std::int64_t step) {
  const std::vector<std::vector<Owned>> ranks = small_state(step);
  for (std::size_t r = 0; r < ranks.size(); ++r)
    writer.stage(Rank(static_cast<std::int32_t>(r)), meta_of(step), pieces_of(ranks[r]));
}

// Number of elements of the small state that `source` gives back wrongly.
inline std::int64_t num_wrong_small(const WeightSource& source, std::int64_t salt) {
  Owned matrix = make_piece("layer.weight", 2, {6, 4}, {.begin = {0, 0}, .size = {6, 4}}, tensor::DType::f64);
  Owned vector = make_piece("norm.weight", 1, {5, 1}, {.begin = {0, 0}, .size = {5, 1}}, tensor::DType::f64);
  source.read(matrix.piece);
  source.read(vector.piece);
  return num_wrong(matrix, salt) + num_wrong(vector, salt);
}

}  // namespace tessera::ckpt::test
