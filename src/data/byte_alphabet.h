// The byte alphabet of byte-level tokenizers: every byte is written as one printable character, so that
// vocabularies are readable text without spaces. Printable ASCII (! to ~) and Latin-1 (U+00A1 to U+00AC,
// U+00AE to U+00FF) stand for themselves; the other 68 bytes, in ascending order, are U+0100, U+0101, ...
// (a space is U+0120). Source: the encoder that was published with GPT-2.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace tessera::data {

class ByteAlphabet {
 public:
  ByteAlphabet();
  [[nodiscard]] const std::string& spelling(unsigned char byte) const { return spelling_[byte]; }
  [[nodiscard]] std::string spell(std::string_view bytes) const;
  // The bytes behind a spelling; none when a character of it is no letter of the alphabet.
  [[nodiscard]] std::optional<std::string> read(std::string_view spelled) const;

 private:
  std::array<std::string, 256> spelling_;
  std::array<std::int32_t, 0x144> byte_of_{};  // by code point; -1: none
};

}  // namespace tessera::data
