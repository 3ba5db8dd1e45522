// Token files of llm.c and modded-nanoGPT: 256 little-endian i32 {magic, version, number of tokens, 0...},
// then the tokens. Magic 20240520, version 1: u16 (GPT-2); magic 20240801, version 7: u32 (Llama 3). Source
// of the format: llm.c, dev/data/data_common.py.
#pragma once
#include <cstddef>
#include <filesystem>
#include <span>

#include "base/file.h"
#include "data/token_codec.h"
#include "data/token_source.h"

namespace tessera::data {

// Whether the first word is one that llm.c writes (also the evaluation files, which LlmcTokens refuses by
// name).
[[nodiscard]] bool is_llmc_file(std::span<const std::byte> bytes);

class LlmcTokens final : public TokenSource {
 public:
  // Throws Error{io} unless header and size agree, Error{unsupported} on an evaluation file.
  LlmcTokens(const std::filesystem::path& path, MappedFile file);
  explicit LlmcTokens(const std::filesystem::path& path) : LlmcTokens(path, MappedFile(path)) {}

 private:
  struct Header {
    std::int64_t num_tokens;
    TokenType type;
  };
  static Header parse(const std::filesystem::path& path, std::span<const std::byte> bytes);
  LlmcTokens(const std::filesystem::path& path, Header header, MappedFile&& file);
  void do_copy(std::int64_t begin, std::span<std::int32_t> out) const override;
  MappedFile file_;
  TokenType type_;
};

}  // namespace tessera::data
