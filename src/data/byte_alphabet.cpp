#include "data/byte_alphabet.h"

namespace tessera::data {

namespace {
bool stands_for_itself(std::int32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}
}  // namespace

ByteAlphabet::ByteAlphabet() {
  byte_of_.fill(-1);
  std::int32_t next = 0x100;
  for (std::int32_t byte = 0; byte < 256; ++byte) {
    const std::int32_t code = stands_for_itself(byte) ? byte : next++;
    std::string& spelled = spelling_[static_cast<std::size_t>(byte)];
    if (code < 0x80) {
      spelled = {static_cast<char>(code)};
    } else {
      spelled = {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
    }
    byte_of_[static_cast<std::size_t>(code)] = byte;
  }
}

std::string ByteAlphabet::spell(std::string_view bytes) const {
  std::string out;
  for (const char c : bytes) out += spelling(static_cast<unsigned char>(c));
  return out;
}

std::optional<std::string> ByteAlphabet::read(std::string_view spelled) const {
  std::string out;
  for (std::size_t at = 0; at < spelled.size(); ++at) {
    auto code = static_cast<std::size_t>(static_cast<unsigned char>(spelled[at]));
    if (code >= 0x80) {  // two bytes of UTF-8 hold every letter
      if (code < 0xC2 || code > 0xDF || at + 1 == spelled.size()) return std::nullopt;
      ++at;
      code = ((code & 0x1F) << 6) | (static_cast<unsigned char>(spelled[at]) & 0x3FU);
    }
    if (code >= byte_of_.size() || byte_of_[code] < 0) return std::nullopt;
    out += static_cast<char>(byte_of_[code]);
  }
  return out;
}

}  // namespace tessera::data
