#include "data/llmc_file.h"

#include <fmt/format.h>

#include <utility>

#include "base/error.h"
#include "data/token_codec.h"

namespace tessera::data {

namespace {
constexpr std::int64_t kHeaderBytes = 1024;
constexpr std::int32_t kMagicU16 = 20240520;
constexpr std::int32_t kMagicU32 = 20240801;
constexpr std::int32_t kMagicEvaluation = 20240522;
constexpr const char* kMend = "copy or make the file again; its end may be missing";
}  // namespace

bool is_llmc_file(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(std::int32_t)) return false;
  const auto magic = load_little<std::int32_t>(bytes, 0);
  return magic == kMagicU16 || magic == kMagicU32 || magic == kMagicEvaluation;
}

LlmcTokens::Header LlmcTokens::parse(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  const auto size = static_cast<std::int64_t>(bytes.size());
  const auto bad = [&](std::string what, const char* mend) {
    return Error(ErrorKind::io, std::move(what), path.string(), mend);
  };
  if (!is_llmc_file(bytes)) {
    throw bad("not an llm.c token file: the first word is not 20240520 or 20240801",
              "give a file made by llm.c");
  }
  if (size < kHeaderBytes) {
    throw bad(fmt::format("{} bytes, but the header of an llm.c file has {}", size, kHeaderBytes), kMend);
  }
  const auto magic = load_little<std::int32_t>(bytes, 0);
  if (magic == kMagicEvaluation) {
    throw Error(ErrorKind::unsupported, fmt::format("an llm.c evaluation file (first word {})", magic),
                path.string(), "give a training file: first word 20240520 or 20240801");
  }
  const auto version = load_little<std::int32_t>(bytes, 4);
  const std::int32_t known = magic == kMagicU16 ? 1 : 7;
  if (version != known) {
    throw bad(fmt::format("version {}, but files with first word {} have version {}", version, magic, known),
              "make the file again with llm.c's dev/data scripts");
  }
  const Header header{.num_tokens = load_little<std::int32_t>(bytes, 8),
                      .type = magic == kMagicU16 ? TokenType::u16 : TokenType::u32};
  const std::int64_t token_bytes = bytes_of(header.type);
  const std::int64_t expected = kHeaderBytes + header.num_tokens * token_bytes;
  if (header.num_tokens < 0 || size != expected) {
    throw bad(fmt::format("{} bytes, but the header says {} tokens of {} bytes: {} bytes", size,
                          header.num_tokens, token_bytes, expected),
              kMend);
  }
  return header;
}

LlmcTokens::LlmcTokens(const std::filesystem::path& path, MappedFile file)
    : LlmcTokens(path, parse(path, file.bytes()), std::move(file)) {}

LlmcTokens::LlmcTokens(const std::filesystem::path& path, Header header, MappedFile&& file)
    : TokenSource({.name = path.string(),
                   .num_tokens = header.num_tokens,
                   .vocab_bound = vocab_bound_of(header.type)}),
      file_(std::move(file)),
      type_(header.type) {}

void LlmcTokens::do_copy(std::int64_t begin, std::span<std::int32_t> out) const {
  decode_tokens(type_, file_.bytes().subspan(kHeaderBytes), begin, out, name());
}

}  // namespace tessera::data
