// index.json of a checkpoint: what was saved, which files hold it, which rectangle of which tensor each file
// has. Its first line carries the version and a checksum of all that follows. Plain data;
// docs/formats/checkpoint.md has the form.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/checkpoint.h"
#include "ckpt/safetensors.h"

namespace tessera::ckpt {

inline constexpr std::int64_t kIndexVersion = 1;
inline constexpr const char* kIndexFile = "index.json";

struct IndexedFile {
  std::string name;        // "rank-000.safetensors"
  std::int64_t bytes = 0;  // of the whole file
  std::string xxh3_128;    // of the whole file
};

struct IndexedPiece {
  std::int32_t file = 0;  // into Index::files
  layout::Slice slice;
};

struct IndexedTensor {
  std::string name;
  StoredType type = StoredType::f32;
  std::int32_t num_dims = 2;
  std::array<std::int64_t, 2> global{1, 1};
  std::vector<IndexedPiece> pieces;  // cover the tensor exactly
};

struct Index {
  Meta meta;
  std::int32_t world_size = 1;
  std::vector<IndexedFile> files;
  std::vector<IndexedTensor> tensors;
};

[[nodiscard]] std::string rank_file_name(Rank rank);
// Name of a piece inside its file: "<tensor>#<first row>,<first column>", of a vector "<tensor>#<first
// element>".
[[nodiscard]] std::string entry_name(std::string_view tensor, std::int32_t num_dims,
                                     const layout::Slice& slice);
// Shape of a piece inside its file.
[[nodiscard]] std::vector<std::int64_t> entry_shape(std::int32_t num_dims, const layout::Slice& slice);

[[nodiscard]] std::string index_text(const Index& index);
// The first line and `body`: a whole index.json.
[[nodiscard]] std::string seal_index(std::string_view body);
// Error{io}: damaged, foreign, inconsistent; Error{unsupported}: a newer version. `where` names the file.
// part: of one process; its pieces need not cover the tensors.
enum class IndexOf : std::uint8_t { whole, part };
[[nodiscard]] Index parse_index(std::string_view text, const std::string& where, IndexOf of = IndexOf::whole);

}  // namespace tessera::ckpt
