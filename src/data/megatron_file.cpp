#include "data/megatron_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"

namespace tessera::data {

namespace {
constexpr std::array<char, 9> kMagic = {'M', 'M', 'I', 'D', 'I', 'D', 'X', '\0', '\0'};
constexpr std::int64_t kHeaderBytes = 34;
constexpr const char* kRemake = "copy both files again, or make them again from the text";

std::optional<TokenType> type_of_code(int code) {
  constexpr std::array<TokenType, 8> by_code = {TokenType::u8,  TokenType::i8,  TokenType::i16,
                                                TokenType::i32, TokenType::i64, TokenType::f64,
                                                TokenType::f32, TokenType::u16};
  if (code < 1 || code > 8) return std::nullopt;
  return by_code[static_cast<std::size_t>(code - 1)];
}

// The index while it is being checked.
struct Index {
  std::span<const std::byte> bytes;
  std::string path;
  std::int64_t num_sequences = 0;
  std::int64_t num_boundaries = 0;

  [[nodiscard]] Error damaged(std::string what, std::string mend = kRemake) const {
    return {ErrorKind::io, std::move(what), path, std::move(mend)};
  }
  [[nodiscard]] std::int64_t size() const { return static_cast<std::int64_t>(bytes.size()); }
  [[nodiscard]] std::int64_t length(std::int64_t sequence) const {
    return load_little<std::int32_t>(bytes, kHeaderBytes + 4 * sequence);
  }
  [[nodiscard]] std::int64_t offset(std::int64_t sequence) const {
    return load_little<std::int64_t>(bytes, kHeaderBytes + 4 * num_sequences + 8 * sequence);
  }
  [[nodiscard]] std::int64_t boundary(std::int64_t i) const {
    return load_little<std::int64_t>(bytes, kHeaderBytes + 12 * num_sequences + 8 * i);
  }
};

TokenType check_header(Index& index) {
  if (!is_megatron_index(index.bytes)) {
    throw index.damaged("not a Megatron index: it does not begin with MMIDIDX",
                        "give the .idx file that Megatron's preprocess_data.py wrote");
  }
  if (index.size() < kHeaderBytes) {
    throw index.damaged(
        fmt::format("{} bytes, but the header of an index has {}", index.size(), kHeaderBytes));
  }
  const auto version = load_little<std::uint64_t>(index.bytes, 9);
  if (version != 1) throw index.damaged(fmt::format("version {} of the index, 1 expected", version));
  const int code = load_little<std::uint8_t>(index.bytes, 17);
  const auto type = type_of_code(code);
  if (!type) {
    throw index.damaged(
        fmt::format("token type {} is none of 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f64, 7 f32, 8 u16", code));
  }
  return *type;
}

// Counts, held against the size before anything is multiplied by them.
void check_counts(Index& index) {
  const auto sequences = load_little<std::uint64_t>(index.bytes, 18);
  const auto boundaries = load_little<std::uint64_t>(index.bytes, 26);
  const auto limit = static_cast<std::uint64_t>(index.size());
  const bool fits = sequences <= limit / 12 && boundaries <= limit / 8;
  index.num_sequences = fits ? static_cast<std::int64_t>(sequences) : 0;
  index.num_boundaries = fits ? static_cast<std::int64_t>(boundaries) : 0;
  const std::int64_t expected = kHeaderBytes + 12 * index.num_sequences + 8 * index.num_boundaries;
  if (fits && index.num_sequences > 0 && index.size() == expected + index.num_sequences) {
    throw Error(ErrorKind::unsupported,
                fmt::format("a multimodal index: {} mode bytes after the document boundaries", sequences),
                index.path, "make a text-only data set, without --multimodal");
  }
  if (!fits || index.size() != expected) {
    throw index.damaged(fmt::format("{} bytes do not fit {} sequences and {} document boundaries{}",
                                    index.size(), sequences, boundaries,
                                    fits ? fmt::format(": {} bytes", expected) : ""));
  }
}

// Tokens of all sequences, which must lie back to back.
std::int64_t check_sequences(const Index& index, std::int64_t token_bytes) {
  std::int64_t tokens = 0;
  for (std::int64_t s = 0; s < index.num_sequences; ++s) {
    if (index.length(s) < 0)
      throw index.damaged(fmt::format("sequence {} has {} tokens", s, index.length(s)));
    if (index.offset(s) != tokens * token_bytes) {
      throw Error(
          ErrorKind::unsupported,
          fmt::format(
              "sequence {} begins at byte {} of the tokens, {} expected: sequences must lie back to back", s,
              index.offset(s), tokens * token_bytes),
          index.path, kRemake);
    }
    tokens += index.length(s);
  }
  return tokens;
}

void check_documents(const Index& index) {
  if (index.num_boundaries < 1) throw index.damaged("no document boundaries, at least 1 expected");
  std::int64_t last = 0;
  for (std::int64_t d = 0; d < index.num_boundaries; ++d) {
    const std::int64_t at = index.boundary(d);
    if (d == 0 && at != 0)
      throw index.damaged(fmt::format("the first document begins at sequence {}, not 0", at));
    if (at < last)
      throw index.damaged(fmt::format("document boundary {} is sequence {}, before {}", d, at, last));
    last = at;
  }
  if (last != index.num_sequences) {
    throw index.damaged(
        fmt::format("the last document ends at sequence {} of {}", last, index.num_sequences));
  }
}
}  // namespace

bool is_megatron_index(std::span<const std::byte> bytes) {
  return bytes.size() >= kMagic.size() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

MegatronTokens::Shape MegatronTokens::parse(const std::filesystem::path& index_path,
                                            const std::filesystem::path& tokens_path, const Files& files) {
  Index index{.bytes = files.index.bytes(), .path = index_path.string()};
  const TokenType type = check_header(index);
  check_counts(index);
  const std::int64_t tokens = check_sequences(index, bytes_of(type));
  check_documents(index);
  const auto size = static_cast<std::int64_t>(files.tokens.bytes().size());
  if (size != tokens * bytes_of(type)) {
    throw Error(
        ErrorKind::io,
        fmt::format("{} bytes, but {} says {} tokens of {}: {} bytes", size, index_path.filename().string(),
                    tokens, data::name(type), tokens * bytes_of(type)),
        tokens_path.string(), kRemake);
  }
  return {.type = type, .num_tokens = tokens, .num_documents = index.num_boundaries - 1};
}

MegatronTokens::MegatronTokens(const std::filesystem::path& index_path,
                               const std::filesystem::path& tokens_path)
    : MegatronTokens(index_path, tokens_path, Files{MappedFile(index_path), MappedFile(tokens_path)}) {}

MegatronTokens::MegatronTokens(const std::filesystem::path& index_path,
                               const std::filesystem::path& tokens_path, Files&& files)
    : MegatronTokens(tokens_path, parse(index_path, tokens_path, files), std::move(files.tokens)) {}

MegatronTokens::MegatronTokens(const std::filesystem::path& tokens_path, Shape shape, MappedFile&& tokens)
    : TokenSource({.name = tokens_path.string(),
                   .num_tokens = shape.num_tokens,
                   .num_documents = shape.num_documents,
                   .vocab_bound = vocab_bound_of(shape.type)}),
      tokens_(std::move(tokens)),
      type_(shape.type) {}

void MegatronTokens::do_copy(std::int64_t begin, std::span<std::int32_t> out) const {
  decode_tokens(type_, tokens_.bytes(), begin, out, name());
}

TokenType megatron_type_for(std::int64_t vocab_size) {
  return vocab_size < 65'500 ? TokenType::u16 : TokenType::i32;
}

namespace {
std::filesystem::path with_extension(std::filesystem::path prefix, const char* extension) {
  const std::filesystem::path old = prefix.extension();
  if (old == ".bin" || old == ".idx") return prefix.replace_extension(extension);
  prefix += extension;
  return prefix;
}

template <class T>
void put(OutputFile& out, T value) {
  out.write(std::as_bytes(std::span(&value, 1)));
}
}  // namespace

MegatronWriter::MegatronWriter(const std::filesystem::path& prefix, TokenType type)
    : index_path_(with_extension(prefix, ".idx")),
      tokens_path_(with_extension(prefix, ".bin")),
      type_(type),
      tokens_(tokens_path_),
      index_(index_path_) {
  TESSERA_CHECK(type == TokenType::u16 || type == TokenType::i32, "Megatron files are written as u16 or i32");
}

void MegatronWriter::append(std::span<const std::int32_t> tokens) {
  const std::int32_t largest =
      type_ == TokenType::u16 ? std::int32_t{65'535} : std::numeric_limits<std::int32_t>::max();
  const auto bad =
      std::find_if(tokens.begin(), tokens.end(), [&](std::int32_t t) { return t < 0 || t > largest; });
  if (bad != tokens.end()) {
    throw Error(ErrorKind::config,
                fmt::format("token {} is {}, but {} holds 0 to {}", num_tokens_ + (bad - tokens.begin()),
                            *bad, name(type_), largest),
                tokens_path_.string(), "write i32 tokens, or check the tokenizer");
  }
  if (type_ == TokenType::i32) {
    tokens_.write(std::as_bytes(tokens));
  } else {
    scratch_.resize(2 * tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const auto id = static_cast<std::uint16_t>(tokens[i]);
      std::memcpy(scratch_.data() + 2 * i, &id, sizeof id);
    }
    tokens_.write(scratch_);
  }
  num_tokens_ += static_cast<std::int64_t>(tokens.size());
  in_document_ += static_cast<std::int64_t>(tokens.size());
}

void MegatronWriter::end_document() {
  if (in_document_ > std::numeric_limits<std::int32_t>::max()) {
    throw Error(ErrorKind::config,
                fmt::format("document {} has {} tokens, but the format holds up to {}", num_documents(),
                            in_document_, std::numeric_limits<std::int32_t>::max()),
                tokens_path_.string(), "split the text into smaller documents");
  }
  lengths_.push_back(static_cast<std::int32_t>(in_document_));
  in_document_ = 0;
}

void MegatronWriter::finish() {
  if (in_document_ > 0) end_document();
  const std::int64_t sequences = num_documents();
  index_.write(std::as_bytes(std::span(kMagic)));
  put(index_, std::uint64_t{1});
  put(index_, type_ == TokenType::u16 ? std::uint8_t{8} : std::uint8_t{4});
  put(index_, sequences);
  put(index_, sequences + 1);
  index_.write(std::as_bytes(std::span(lengths_)));
  std::int64_t offset = 0;
  for (const std::int32_t length : lengths_) {
    put(index_, offset);
    offset += length * bytes_of(type_);
  }
  for (std::int64_t d = 0; d <= sequences; ++d) put(index_, d);
  tokens_.finish();
  index_.finish();
  std::error_code ignored;
  std::filesystem::remove(index_path_, ignored);
  tokens_.commit();
  index_.commit();
}

}  // namespace tessera::data
