// Sentencepiece models: reading, encoding, training.

#include <fmt/format.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "data/tokenizer_impl.h"
#include "data/utf8.h"

namespace tessera::data {

namespace {
using sentencepiece::SentencePieceProcessor;

constexpr std::string_view kMetaSpace = "\xE2\x96\x81";  // U+2581, how sentencepiece spells a space

// Whether the tokens of a text are the tokens of its words, one after the other, with a cut before each run
// of spaces and after each newline. True when nothing reaches over such a cut: no piece of the vocabulary, no
// normalisation and no prefix at the front of the text. It holds for the models of train_tokenizer and makes
// encoding more than ten times faster.
bool encodes_by_words(const SentencePieceProcessor& processor) {
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    if (piece.size() > 1 && piece.find('\n') != std::string::npos) return false;
    std::size_t letters = 0;  // past the leading spaces
    while (piece.compare(letters, kMetaSpace.size(), kMetaSpace) == 0) letters += kMetaSpace.size();
    if (piece.find(kMetaSpace, letters) != std::string::npos) return false;
  }
  // Spaces at both ends, doubled; a ligature, a fullwidth letter, a combining accent, a tab.
  const std::string probe = "  a  b\n \n\n\xEF\xAC\x81 \xEF\xBC\xA1 e\xCC\x81\tc ";
  std::vector<int> ids;
  std::string back;
  if (!processor.Encode(probe, &ids).ok() || !processor.Decode(ids, &back).ok()) return false;
  if (back != probe || std::find(ids.begin(), ids.end(), processor.unk_id()) != ids.end()) return false;
  return processor.Encode("a", &ids).ok() && ids.size() == 1 &&
         processor.IdToPiece(ids[0]).compare(0, kMetaSpace.size(), kMetaSpace) != 0;
}

// The first word of a text: leading spaces, then everything up to the next space or to a newline, which it
// takes along.
std::string_view first_word(std::string_view text) {
  const std::size_t letters = std::min(text.find_first_not_of(' '), text.size());
  const std::size_t end = text.find_first_of(" \n", letters);
  if (end == std::string_view::npos) return text;
  return text.substr(0, text[end] == '\n' ? end + 1 : end);
}

std::optional<std::int32_t> id_or_none(int id) {
  return id < 0 ? std::nullopt : std::optional<std::int32_t>(id);
}

class SentencePiece final : public TokenizerImpl {
 public:
  SentencePiece(std::string_view model, std::string name);
  std::vector<std::int32_t> encode(std::string_view text, Special special) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  std::string decode_bytes(std::span<const std::int32_t> ids) const override { return decode(ids); }
  std::int32_t vocab_size() const override { return processor_.GetPieceSize(); }
  std::optional<std::int32_t> bos_id() const override { return id_or_none(processor_.bos_id()); }
  std::optional<std::int32_t> eos_id() const override { return id_or_none(processor_.eos_id()); }
  std::optional<std::int32_t> unk_id() const override { return id_or_none(processor_.unk_id()); }
  std::string piece(std::int32_t id) const override { return processor_.IdToPiece(id); }

 private:
  void encode_part(std::string_view text, std::vector<int>& ids) const;
  SentencePieceProcessor processor_;
  bool by_words_ = false;
};

SentencePiece::SentencePiece(std::string_view model, std::string name) : TokenizerImpl(std::move(name)) {
  const auto bad = [&](std::string_view why) {
    return Error(
        ErrorKind::io, fmt::format("not a sentencepiece model: {}", why), this->name(),
        "give a .model file made by `spm_train` or by training a tokenizer here, or a tokenizer.json");
  };
  if (model.empty()) throw bad("the file is empty");
  const auto status = processor_.LoadFromSerializedProto(model);
  if (!status.ok()) throw bad(status.ToString());
  if (processor_.GetPieceSize() < 1) throw bad("the vocabulary is empty");
  by_words_ = encodes_by_words(processor_);
}

void SentencePiece::encode_part(std::string_view text, std::vector<int>& ids) const {
  const auto status = processor_.Encode(text, &ids);
  if (!status.ok()) {
    throw Error(ErrorKind::internal, fmt::format("sentencepiece cannot encode: {}", status.ToString()),
                name(), "report the text and the model");
  }
}

std::vector<std::int32_t> SentencePiece::encode(std::string_view text, Special /*special*/) const {
  check_utf8(text, "text for the tokenizer");
  static_assert(sizeof(int) == sizeof(std::int32_t));
  std::vector<int> ids;
  if (!by_words_ || text.find(kMetaSpace) != std::string_view::npos) {
    encode_part(text, ids);
    return ids;
  }
  // Words repeat, so each is encoded once; the limit keeps the memory small on texts of any size.
  constexpr std::size_t kMostWords = 200'000;
  std::unordered_map<std::string_view, std::vector<int>> known;
  while (!text.empty()) {
    const std::string_view word = first_word(text);
    text.remove_prefix(word.size());
    if (known.size() == kMostWords) known.clear();
    const auto [at, is_new] = known.try_emplace(word);
    if (is_new) encode_part(word, at->second);
    ids.insert(ids.end(), at->second.begin(), at->second.end());
  }
  return ids;
}

std::string SentencePiece::decode(std::span<const std::int32_t> ids) const {
  std::string text;
  const auto status = processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  if (!status.ok()) {
    throw Error(ErrorKind::internal, fmt::format("sentencepiece cannot decode: {}", status.ToString()),
                name(), "report the ids and the model");
  }
  return text;
}
}  // namespace

std::unique_ptr<const TokenizerImpl> make_sentencepiece(std::string_view model, std::string name) {
  return std::make_unique<SentencePiece>(model, std::move(name));
}

namespace {
// The lines of a text as sentencepiece wants them for training; longer ones come in parts that begin at a
// space, because it drops lines above its limit.
class Lines final : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(std::string_view text) : rest_(text) { Next(); }
  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }
  void Next() override {
    do {
      done_ = rest_.empty();
      take();
    } while (!done_ && line_.empty());
  }

 private:
  static constexpr std::size_t kLongest = 4096;
  void take() {
    std::size_t end = std::min(rest_.find_first_of("\n\f"), rest_.size());
    std::size_t skip = end < rest_.size() ? 1 : 0;
    if (end > kLongest) {
      const std::size_t space = rest_.rfind(' ', kLongest);
      if (space != std::string_view::npos && space > 0) {
        end = space;
        skip = 0;
      }
    }
    line_ = rest_.substr(0, end);
    rest_.remove_prefix(end + skip);
  }
  std::string_view rest_;
  std::string line_;
  bool done_ = false;
};
}  // namespace

void train_tokenizer(const std::filesystem::path& text_path, const std::filesystem::path& model_path,
                     const TokenizerTraining& training) {
  const MappedFile file(text_path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  check_utf8(text, text_path.string());
  Lines lines(text);
  if (lines.done()) {
    throw Error(ErrorKind::config, "no text to train a tokenizer on: the file has no line with letters",
                text_path.string(), "give a text of some megabytes");
  }
  const std::unordered_map<std::string, std::string> options = {
      {"model_type", "bpe"},
      {"vocab_size", fmt::format("{}", training.vocab_size)},
      {"character_coverage", fmt::format("{}", training.character_coverage)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "false"},
      {"split_digits", "true"},
      {"max_sentence_length", "1073741824"},
      {"num_threads", "1"},
      {"minloglevel", "3"},
  };
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &lines, &model);
  if (!status.ok()) {
    throw Error(
        ErrorKind::config,
        fmt::format("cannot train a tokenizer of {} ids: {}", training.vocab_size, status.ToString()),
        text_path.string(),
        "choose a vocabulary above 259 and the number of different characters; a large one needs more text");
  }
  write_atomically(model_path, model);
}

}  // namespace tessera::data
