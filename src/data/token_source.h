// A read-only stream of token ids: what the sampler reads, whatever file it comes from.
//
//   std::shared_ptr<const TokenSource> all = open_token_file("austen.bin");
//   const TrainValidation split = split_train_validation(all, 0.05);
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace tessera::data {

// Immutable after construction; every member may be called from many threads at once. A mapped file that
// another program shortens while it is in use ends the process with SIGBUS: token files are replaced, never
// edited.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  TokenSource(const TokenSource&) = delete;
  TokenSource& operator=(const TokenSource&) = delete;

  [[nodiscard]] std::int64_t num_tokens() const { return num_tokens_; }
  // 1 where the format knows no documents.
  [[nodiscard]] std::int64_t num_documents() const { return num_documents_; }
  // No id of the stream is this large (256 for one-byte ids, 65,536 for two-byte ids); empty when unknown
  // without reading all of it.
  [[nodiscard]] std::optional<std::int64_t> vocab_bound() const { return vocab_bound_; }
  [[nodiscard]] const std::string& name() const { return name_; }  // for messages: the path

  // Tokens begin .. begin + out.size() - 1. No allocation. Throws Error{internal} outside the stream and
  // Error{io} with the position where the file holds something that is no token id (negative, above 2^31 - 1,
  // not whole).
  void copy(std::int64_t begin, std::span<std::int32_t> out) const;

 protected:
  struct Facts {
    std::string name;
    std::int64_t num_tokens = 0;
    std::int64_t num_documents = 1;
    std::optional<std::int64_t> vocab_bound;
  };
  explicit TokenSource(Facts facts);

 private:
  virtual void do_copy(std::int64_t begin, std::span<std::int32_t> out) const = 0;
  std::string name_;
  std::int64_t num_tokens_;
  std::int64_t num_documents_;
  std::optional<std::int64_t> vocab_bound_;
};

// Tokens in memory, one document.
class MemoryTokens final : public TokenSource {
 public:
  // Throws Error{config} on a negative id.
  explicit MemoryTokens(std::vector<std::int32_t> tokens, std::string name = "memory");

 private:
  void do_copy(std::int64_t begin, std::span<std::int32_t> out) const override;
  std::vector<std::int32_t> tokens_;
};

// Tokens begin .. end - 1 of another source, counted from 0; its documents are not counted (num_documents is
// 1).
class TokenSlice final : public TokenSource {
 public:
  TokenSlice(std::shared_ptr<const TokenSource> source, std::int64_t begin, std::int64_t end);

 private:
  void do_copy(std::int64_t begin, std::span<std::int32_t> out) const override;
  std::shared_ptr<const TokenSource> source_;  // shared by the slices of one file
  std::int64_t begin_;
};

struct TrainValidation {
  std::shared_ptr<const TokenSource> train;
  std::shared_ptr<const TokenSource> validation;
};

// The last floor(fraction * tokens) tokens are for validation. Both are sources of their own: no sequence of
// one reads a token of the other. Throws Error{config} unless 0 <= fraction < 1.
[[nodiscard]] TrainValidation split_train_validation(std::shared_ptr<const TokenSource> source,
                                                     double fraction);

// Opens by extension and first bytes: Megatron (FILE.idx beside FILE.bin; either of the two, or their common
// name without extension) and llm.c (FILE.bin). Throws Error{config} listing what is accepted, Error{io} on a
// damaged file.
[[nodiscard]] std::shared_ptr<const TokenSource> open_token_file(const std::filesystem::path& path);

}  // namespace tessera::data
