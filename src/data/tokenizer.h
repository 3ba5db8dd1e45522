// Text to token ids and back: a sentencepiece model (.model file), or byte-level byte-pair encoding as GPT-2,
// Llama 3, Qwen and DeepSeek have it (tokenizer.json; docs/formats/tokenizer.md says what is understood of
// it).
//
//   train_tokenizer("austen.txt", "austen.model", {.vocab_size = 4096});
//   const Tokenizer own = Tokenizer::load("austen.model");
//   const Tokenizer llama = Tokenizer::load("Llama-3-8B");  // the folder with tokenizer.json
//   const std::vector<std::int32_t> ids = llama.encode("It is a truth universally acknowledged");
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::data {

class TokenizerImpl;

// What the spelling of a special token (<|endoftext|>) means in a text.
enum class Special : std::uint8_t {
  plain,  // letters like any others: text from outside cannot end a document or speak as someone else
  parse,  // the token's id: for prompts that were put together by a program
};

// Immutable; every member may be called from many threads at once.
class Tokenizer {
 public:
  // A sentencepiece .model, a tokenizer.json, or a folder with one of: tokenizer.json, tokenizer.model,
  // vocab.json and merges.txt, encoder.json and vocab.bpe; the first in this order. Throws Error{io} when
  // there is no such file or it is neither kind, Error{config} naming what of a tokenizer.json is damaged or
  // not understood: nothing that changes ids is passed over.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& path);
  // From the bytes of a .model or tokenizer.json file; `name` is for messages. A tokenizer.json alone names
  // no bos and eos: those stand in the tokenizer_config.json that load finds beside it.
  [[nodiscard]] static Tokenizer from_bytes(std::string_view model, std::string name);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // No bos or eos is added. Sentencepiece throws Error{config} with the byte offset when the text is not
  // UTF-8, and spells every special token. Byte-level encoding takes every string of bytes: bytes that form
  // no character are words of their own, and the text to both sides is encoded as texts of their own. Added
  // tokens that are not special (<think>) are found whatever `special` says.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text,
                                                 Special special = Special::plain) const;
  // Special tokens and control ids (bos, eos) give nothing; bytes that form no character, all ids' bytes
  // taken together, give U+FFFD. decode(encode(text)) is text for a model of train_tokenizer (except that
  // U+2581 comes back as a space and U+0000 is not supported by sentencepiece) and for byte-level encoding of
  // UTF-8 (after NFC where the tokenizer normalises). Throws Error{config} on an id outside the vocabulary.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids) const;
  // The bytes as they were encoded, broken UTF-8 too, special tokens spelled: the exact inverse of byte-level
  // encode. With sentencepiece the same as decode.
  [[nodiscard]] std::string decode_bytes(std::span<const std::int32_t> ids) const;

  [[nodiscard]] std::int32_t vocab_size() const;  // the largest id + 1; a tokenizer.json may leave ids out
  [[nodiscard]] std::optional<std::int32_t> bos_id() const;
  [[nodiscard]] std::optional<std::int32_t> eos_id() const;
  [[nodiscard]] std::optional<std::int32_t> unk_id() const;  // none with byte-level encoding
  // The piece as the model spells it: U+2581 (sentencepiece) or U+0120 (byte level) for a space, <0x0A> or
  // U+010A for a newline.
  [[nodiscard]] std::string piece(std::int32_t id) const;
  [[nodiscard]] const std::string& name() const;  // for messages: the path

 private:
  explicit Tokenizer(std::unique_ptr<const TokenizerImpl> impl);
  void check_ids(std::span<const std::int32_t> ids) const;
  std::unique_ptr<const TokenizerImpl> impl_;
};

struct TokenizerTraining {
  std::int32_t vocab_size = 4096;  // <unk> 0, <s> 1, </s> 2, 256 bytes, then characters and merges
  double character_coverage =
      1.0;  // part of the text's characters that get an id of their own; the others are bytes
};

// Trains byte-pair encoding with byte fallback and no normalisation, so that every text survives the round
// trip, and writes the model atomically. The same text and options give the same bytes. Prints nothing.
// Throws Error{config} when the text is empty, not UTF-8, or does not suit the vocabulary size.
void train_tokenizer(const std::filesystem::path& text_path, const std::filesystem::path& model_path,
                     const TokenizerTraining& training);

}  // namespace tessera::data
