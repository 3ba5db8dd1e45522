#include "data/utf8.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace tessera::data {

namespace {
// What may follow a lead byte: the number of continuation bytes and the range of the first of them (RFC 3629,
// section 4). count 0 marks a byte that cannot lead.
struct Lead {
  std::size_t count;
  unsigned char low;
  unsigned char high;
};
Lead lead_of(unsigned char byte) {
  if (byte >= 0xC2 && byte <= 0xDF) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte >= 0xE1 && byte <= 0xEF) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte >= 0xF1 && byte <= 0xF3) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

// How many bytes at `at` could begin a character with this lead.
std::size_t valid_bytes(std::string_view text, std::size_t at, Lead lead) {
  if (lead.count == 0) return static_cast<unsigned char>(text[at]) < 0x80 ? 1 : 0;
  std::size_t good = 1;
  for (; good <= lead.count && at + good < text.size(); ++good) {
    const auto next = static_cast<unsigned char>(text[at + good]);
    const unsigned char low = good == 1 ? lead.low : 0x80;
    const unsigned char high = good == 1 ? lead.high : 0xBF;
    if (next < low || next > high) break;
  }
  return good;
}

bool is_valid_character(std::string_view text, std::size_t at, Lead lead) {
  return lead.count > 0 && valid_bytes(text, at, lead) == lead.count + 1;
}
}  // namespace

std::optional<std::int64_t> first_invalid_utf8(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    std::uint64_t eight = 0;
    while (text.size() - at >= sizeof eight) {  // most text is ASCII: eight bytes at a time
      std::memcpy(&eight, text.data() + at, sizeof eight);
      if ((eight & 0x8080808080808080ULL) != 0) break;
      at += sizeof eight;
    }
    if (at == text.size()) break;
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte < 0x80) {
      ++at;
      continue;
    }
    const Lead lead = lead_of(byte);
    if (!is_valid_character(text, at, lead)) return static_cast<std::int64_t>(at);
    at += lead.count + 1;
  }
  return std::nullopt;
}

void check_utf8(std::string_view text, std::string_view name) {
  const auto bad = first_invalid_utf8(text);
  if (!bad) return;
  const auto at = static_cast<std::size_t>(*bad);
  const auto line = 1 + std::count(text.begin(), text.begin() + *bad, '\n');
  throw Error(ErrorKind::config,
              fmt::format("not UTF-8: byte 0x{:02X} at offset {}", static_cast<unsigned char>(text[at]), at),
              fmt::format("{}, line {}", name, line),
              "convert the text to UTF-8, for instance with `iconv -f LATIN1 -t UTF-8`");
}

std::int64_t invalid_utf8_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte < 0x80 || is_valid_character(text, at, lead_of(byte))) break;
    ++at;
  }
  return static_cast<std::int64_t>(at);
}

std::string replace_invalid_utf8(std::string text) {
  std::optional<std::int64_t> bad = first_invalid_utf8(text);
  if (!bad) return text;
  std::string out;
  std::string_view rest = text;
  for (; bad; bad = first_invalid_utf8(rest)) {
    const auto at = static_cast<std::size_t>(*bad);
    out += rest.substr(0, at);
    out += "\xEF\xBF\xBD";
    rest.remove_prefix(
        at + std::max<std::size_t>(1, valid_bytes(rest, at, lead_of(static_cast<unsigned char>(rest[at])))));
  }
  return out += rest;
}

std::int64_t count_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace tessera::data
