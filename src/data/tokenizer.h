// Text to token ids and back, by a sentencepiece model (.model file).
//
//   train_tokenizer("austen.txt", "austen.model", {.vocab_size = 4096});
//   const Tokenizer tokenizer = Tokenizer::load("austen.model");
//   const std::vector<std::int32_t> ids = tokenizer.encode("It is a truth universally acknowledged");
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

// Immutable; every member may be called from many threads at once.
class Tokenizer {
 public:
  // Throws Error{io} when the file is missing or is no sentencepiece model.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& path);
  // From the bytes of a .model file; `name` is for messages.
  [[nodiscard]] static Tokenizer from_bytes(std::string_view model, std::string name);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // No bos or eos is added. Throws Error{config} with the byte offset when the text is not UTF-8.
  [[nodiscard]] std::vector<std::int32_t> encode(std::string_view text) const;
  // Control ids (bos, eos) give nothing; bytes that form no character give U+FFFD. With a model of
  // train_tokenizer decode(encode(text)) is text, except that U+2581 comes back as a space and U+0000 is not
  // supported by sentencepiece. Throws Error{config} on an id outside the vocabulary.
  [[nodiscard]] std::string decode(std::span<const std::int32_t> ids) const;

  [[nodiscard]] std::int32_t vocab_size() const;
  [[nodiscard]] std::optional<std::int32_t> bos_id() const;
  [[nodiscard]] std::optional<std::int32_t> eos_id() const;
  [[nodiscard]] std::int32_t unk_id() const;
  // The piece as the model spells it: U+2581 for a space, <0x0A> for a byte.
  [[nodiscard]] std::string piece(std::int32_t id) const;
  [[nodiscard]] const std::string& name() const;  // for messages: the path

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
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
