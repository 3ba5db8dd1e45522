#include "data/token_codec.h"

#include <fmt/format.h>

#include <limits>
#include <string>
#include <type_traits>

namespace tessera::data {

std::string_view name(TokenType type) {
  switch (type) {
    case TokenType::u8:
      return "u8";
    case TokenType::i8:
      return "i8";
    case TokenType::i16:
      return "i16";
    case TokenType::i32:
      return "i32";
    case TokenType::i64:
      return "i64";
    case TokenType::f64:
      return "f64";
    case TokenType::f32:
      return "f32";
    case TokenType::u16:
      return "u16";
    case TokenType::u32:
      return "u32";
  }
  return "unknown";
}

std::int64_t bytes_of(TokenType type) {
  switch (type) {
    case TokenType::u8:
    case TokenType::i8:
      return 1;
    case TokenType::i16:
    case TokenType::u16:
      return 2;
    case TokenType::i32:
    case TokenType::u32:
    case TokenType::f32:
      return 4;
    case TokenType::i64:
    case TokenType::f64:
      return 8;
  }
  return 0;
}

std::optional<std::int64_t> vocab_bound_of(TokenType type) {
  switch (type) {
    case TokenType::u8:
      return 256;
    case TokenType::i8:
      return 128;
    case TokenType::u16:
      return 65'536;
    case TokenType::i16:
      return 32'768;
    case TokenType::i32:
    case TokenType::i64:
    case TokenType::f64:
    case TokenType::f32:
    case TokenType::u32:
      return std::nullopt;
  }
  return std::nullopt;
}

namespace {
// Whether the value is an id. A NaN fails every comparison, so it is none.
template <class T>
bool is_id(T value) {
  if constexpr (std::is_floating_point_v<T>) {
    return value >= 0 && value < T{2147483648.0} && static_cast<T>(static_cast<std::int32_t>(value)) == value;
  } else if constexpr (std::is_signed_v<T>) {
    return value >= 0 && static_cast<std::int64_t>(value) <= std::numeric_limits<std::int32_t>::max();
  } else {
    return std::uint64_t{value} <= std::uint64_t{std::numeric_limits<std::int32_t>::max()};
  }
}

// Position of the first value that is no id, or -1.
template <class T>
std::int64_t decode(const std::byte* from, std::span<std::int32_t> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    if (!is_id(value)) return static_cast<std::int64_t>(i);
    out[i] = static_cast<std::int32_t>(value);
  }
  return -1;
}

template <class T>
std::string value_text(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return fmt::format("{}", value);
}

// Calls `f` with a value of the C++ type of `type`.
template <class F>
auto with_type(TokenType type, F f) {
  switch (type) {
    case TokenType::u8:
      return f(std::uint8_t{});
    case TokenType::i8:
      return f(std::int8_t{});
    case TokenType::i16:
      return f(std::int16_t{});
    case TokenType::i32:
      return f(std::int32_t{});
    case TokenType::i64:
      return f(std::int64_t{});
    case TokenType::f64:
      return f(double{});
    case TokenType::f32:
      return f(float{});
    case TokenType::u16:
      return f(std::uint16_t{});
    case TokenType::u32:
      return f(std::uint32_t{});
  }
  throw Error(ErrorKind::internal, "an unknown token type", "", "");
}
}  // namespace

void decode_tokens(TokenType type, std::span<const std::byte> raw, std::int64_t begin,
                   std::span<std::int32_t> out, std::string_view file) {
  const std::int64_t size = bytes_of(type);
  TESSERA_CHECK(begin >= 0 && (begin + static_cast<std::int64_t>(out.size())) * size <=
                                  static_cast<std::int64_t>(raw.size()),
                "tokens inside the file");
  const std::byte* from = raw.data() + begin * size;
  const std::int64_t bad = with_type(type, [&](auto t) { return decode<decltype(t)>(from, out); });
  if (bad < 0) return;
  const std::string value =
      with_type(type, [&](auto t) { return value_text<decltype(t)>(from + bad * size); });
  throw Error(ErrorKind::io,
              fmt::format("token {} is {} ({}), which is no token id", begin + bad, value, name(type)),
              std::string(file), "make the file again; ids are whole numbers from 0 to 2147483647");
}

}  // namespace tessera::data
