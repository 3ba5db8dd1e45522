// What stands behind Tokenizer: one class a kind of model. Immutable; members may be called from many threads
// at once.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/bpe_spec.h"
#include "data/tokenizer.h"

namespace tessera::data {

// The contracts are Tokenizer's. decode gets ids below vocab_size only.
class TokenizerImpl {
 public:
  explicit TokenizerImpl(std::string name) : name_(std::move(name)) {}
  virtual ~TokenizerImpl() = default;
  TokenizerImpl(const TokenizerImpl&) = delete;
  TokenizerImpl& operator=(const TokenizerImpl&) = delete;

  [[nodiscard]] virtual std::vector<std::int32_t> encode(std::string_view text, Special special) const = 0;
  [[nodiscard]] virtual std::string decode(std::span<const std::int32_t> ids) const = 0;
  [[nodiscard]] virtual std::string decode_bytes(std::span<const std::int32_t> ids) const = 0;
  [[nodiscard]] virtual std::int32_t vocab_size() const = 0;
  [[nodiscard]] virtual std::optional<std::int32_t> bos_id() const = 0;
  [[nodiscard]] virtual std::optional<std::int32_t> eos_id() const = 0;
  [[nodiscard]] virtual std::optional<std::int32_t> unk_id() const = 0;
  [[nodiscard]] virtual std::string piece(std::int32_t id) const = 0;
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  std::string name_;
};

// Throws Error{io} when the bytes are no sentencepiece model.
[[nodiscard]] std::unique_ptr<const TokenizerImpl> make_sentencepiece(std::string_view model,
                                                                      std::string name);
// Throws Error{config} when a pattern is not understood or the vocabulary lacks one of the 256 bytes.
[[nodiscard]] std::unique_ptr<const TokenizerImpl> make_byte_level(BpeSpec spec);

}  // namespace tessera::data
