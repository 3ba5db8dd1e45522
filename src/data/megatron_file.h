// Token files of Megatron-LM: FILE.bin holds the tokens back to back, FILE.idx describes them. Little-endian,
// no padding (source: Megatron-LM, megatron/core/datasets/indexed_dataset.py):
//
//   offset     bytes   field
//   0          9       magic "MMIDIDX\0\0"
//   9          8       u64 version = 1
//   17         1       u8 type: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16
//   18         8       u64 S = number of sequences
//   26         8       u64 D = number of document boundaries (documents + 1)
//   34         4 * S   i32 tokens of each sequence
//   34 +  4 S  8 * S   i64 byte offset of each sequence in FILE.bin (not aligned)
//   34 + 12 S  8 * D   i64 first sequence of each document, then S
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "base/file.h"
#include "data/output_file.h"
#include "data/token_codec.h"
#include "data/token_source.h"

namespace tessera::data {

[[nodiscard]] bool is_megatron_index(std::span<const std::byte> bytes);

// Both files mapped; the whole index is checked at opening, against itself and against the size of FILE.bin.
class MegatronTokens final : public TokenSource {
 public:
  // Throws Error{io} on a damaged or foreign file, Error{unsupported} on a multimodal index and on sequences
  // that do not lie back to back.
  MegatronTokens(const std::filesystem::path& index_path, const std::filesystem::path& tokens_path);
  [[nodiscard]] TokenType type() const { return type_; }

 private:
  struct Files {
    MappedFile index;
    MappedFile tokens;
  };
  struct Shape {
    TokenType type;
    std::int64_t num_tokens;
    std::int64_t num_documents;
  };
  static Shape parse(const std::filesystem::path& index_path, const std::filesystem::path& tokens_path,
                     const Files& files);
  MegatronTokens(const std::filesystem::path& tokens_path, Shape shape, MappedFile&& tokens);
  MegatronTokens(const std::filesystem::path& index_path, const std::filesystem::path& tokens_path,
                 Files&& files);
  void do_copy(std::int64_t begin, std::span<std::int32_t> out) const override;
  MappedFile tokens_;
  TokenType type_;
};

// u16 below 65,500 ids, else i32: Megatron's own rule.
[[nodiscard]] TokenType megatron_type_for(std::int64_t vocab_size);

// Writes a pair FILE.bin and FILE.idx, one sequence a document. Both appear at finish(): first an old
// FILE.idx goes, then FILE.bin is replaced, then FILE.idx comes, so that at no moment an index lies beside
// tokens that it does not describe. Not thread safe.
class MegatronWriter {
 public:
  // `prefix` is FILE, with or without .bin or .idx. The type is u16 or i32.
  MegatronWriter(const std::filesystem::path& prefix, TokenType type);

  // Adds to the document in hand. Throws Error{config} on an id that the type cannot hold.
  void append(std::span<const std::int32_t> tokens);
  void end_document();
  void finish();  // ends the document in hand if it has tokens
  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] std::int64_t num_documents() const { return static_cast<std::int64_t>(lengths_.size()); }
  [[nodiscard]] const std::filesystem::path& index_path() const { return index_path_; }
  [[nodiscard]] const std::filesystem::path& tokens_path() const { return tokens_path_; }

 private:
  std::filesystem::path index_path_;
  std::filesystem::path tokens_path_;
  TokenType type_;
  OutputFile tokens_;
  OutputFile index_;
  std::vector<std::int32_t> lengths_;
  std::vector<std::byte> scratch_;
  std::int64_t num_tokens_ = 0;
  std::int64_t in_document_ = 0;
};

}  // namespace tessera::data
