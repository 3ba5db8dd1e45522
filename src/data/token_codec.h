// How token files hold one id, and the way to the engine's i32. Files are little-endian, as are all hosts of
// Tessera.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

#include "base/error.h"

namespace tessera::data {

static_assert(std::endian::native == std::endian::little, "token files are read without swapping bytes");

enum class TokenType : std::uint8_t { u8, i8, i16, i32, i64, f64, f32, u16, u32 };
[[nodiscard]] std::string_view name(TokenType type);
[[nodiscard]] std::int64_t bytes_of(TokenType type);
// 256 for u8, 128 for i8, 65,536 for u16, 32,768 for i16; empty for the wider ones.
[[nodiscard]] std::optional<std::int64_t> vocab_bound_of(TokenType type);

// The value at a byte offset, aligned or not. Throws Error{internal} outside `bytes`.
template <class T>
[[nodiscard]] T load_little(std::span<const std::byte> bytes, std::int64_t offset) {
  TESSERA_CHECK(offset >= 0 && static_cast<std::size_t>(offset) + sizeof(T) <= bytes.size(),
                "a load inside the file");
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

// Tokens begin .. begin + out.size() - 1 of `raw` (tokens back to back). Throws Error{io} naming the first
// token that is negative, above 2^31 - 1 or not whole; `file` is the path for the message.
void decode_tokens(TokenType type, std::span<const std::byte> raw, std::int64_t begin,
                   std::span<std::int32_t> out, std::string_view file);

}  // namespace tessera::data
