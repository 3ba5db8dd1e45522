#include "data/tokenizer.h"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "data/bpe_files.h"
#include "data/tokenizer_impl.h"

namespace tessera::data {

namespace fs = std::filesystem;

namespace {
std::string_view view_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

bool is_json(std::string_view bytes) {
  const std::size_t at = bytes.find_first_not_of(" \t\r\n");
  return at != std::string_view::npos && bytes[at] == '{';
}

std::unique_ptr<const TokenizerImpl> load_json(const fs::path& path, std::string_view text) {
  BpeSpec spec = read_tokenizer_json(text, path.string());
  read_special_ids(path.parent_path(), spec);
  return make_byte_level(std::move(spec));
}

std::unique_ptr<const TokenizerImpl> load_two_files(const fs::path& vocab, const fs::path& merges) {
  BpeSpec spec = read_vocab_and_merges(vocab, merges);
  read_special_ids(vocab.parent_path(), spec);
  return make_byte_level(std::move(spec));
}

std::unique_ptr<const TokenizerImpl> load_file(const fs::path& path) {
  const MappedFile file(path);
  if (is_json(view_of(file))) return load_json(path, view_of(file));
  return make_sentencepiece(view_of(file), path.string());
}

std::unique_ptr<const TokenizerImpl> load_folder(const fs::path& folder) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    if (fs::exists(folder / name)) return load_file(folder / name);
  }
  constexpr std::array<std::pair<const char*, const char*>, 2> kPairs = {
      {{"vocab.json", "merges.txt"}, {"encoder.json", "vocab.bpe"}}};
  for (const auto& [vocab, merges] : kPairs) {
    if (fs::exists(folder / vocab) && fs::exists(folder / merges)) {
      return load_two_files(folder / vocab, folder / merges);
    }
  }
  throw Error(
      ErrorKind::io, "the folder holds no tokenizer", folder.string(),
      "give a folder with tokenizer.json, tokenizer.model, vocab.json and merges.txt, or encoder.json "
      "and vocab.bpe");
}
}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerImpl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const fs::path& path) {
  return Tokenizer(fs::is_directory(path) ? load_folder(path) : load_file(path));
}

Tokenizer Tokenizer::from_bytes(std::string_view model, std::string name) {
  if (is_json(model)) return Tokenizer(make_byte_level(read_tokenizer_json(model, name)));
  return Tokenizer(make_sentencepiece(model, std::move(name)));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, Special special) const {
  return impl_->encode(text, special);
}

void Tokenizer::check_ids(std::span<const std::int32_t> ids) const {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size()) {
      throw Error(ErrorKind::config,
                  fmt::format("token {} is {}, outside the vocabulary of {}", i, ids[i], vocab_size()),
                  name(), "use the tokenizer that made the tokens");
    }
  }
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  check_ids(ids);
  return impl_->decode(ids);
}

std::string Tokenizer::decode_bytes(std::span<const std::int32_t> ids) const {
  check_ids(ids);
  return impl_->decode_bytes(ids);
}

std::int32_t Tokenizer::vocab_size() const {
  return impl_->vocab_size();
}
std::optional<std::int32_t> Tokenizer::bos_id() const {
  return impl_->bos_id();
}
std::optional<std::int32_t> Tokenizer::eos_id() const {
  return impl_->eos_id();
}
std::optional<std::int32_t> Tokenizer::unk_id() const {
  return impl_->unk_id();
}
const std::string& Tokenizer::name() const {
  return impl_->name();
}

std::string Tokenizer::piece(std::int32_t id) const {
  TESSERA_CHECK(id >= 0 && id < vocab_size(), "a piece of the vocabulary");
  return impl_->piece(id);
}

}  // namespace tessera::data
