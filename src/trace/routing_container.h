// The container of routing files: safetensors (8 bytes little-endian header length, JSON, the arrays' bytes
// without gap) with two additions that other readers may ignore: a digest over the whole file, and arrays
// whose name ends in ".zst" are one zstd frame (its type and shape are a line of the metadata). Inside of
// this room; the room may not use the checkpoint's reader. Pure, thread safe.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::trace {

enum class ArrayType : std::uint8_t { i64, i32, i16, i8, u8, u16, u32, f32, f64 };
[[nodiscard]] std::int64_t size_of(ArrayType type);
[[nodiscard]] std::string_view name(ArrayType type);  // as in the header: "I64"

struct StoredArray {
  std::string name;
  ArrayType type = ArrayType::i64;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;  // need not be aligned; as stored
  [[nodiscard]] std::int64_t num_elements() const;
};

using Metadata = std::vector<std::pair<std::string, std::string>>;

struct Container {
  Metadata metadata;
  std::vector<StoredArray> arrays;                                     // in the order of the data
  [[nodiscard]] const StoredArray* find(std::string_view name) const;  // nullptr: none
  [[nodiscard]] const std::string* fact(std::string_view key) const;   // of the metadata; nullptr: none
};

// Key of the digest in the metadata: XXH3 of 128 bits over the whole file with these 32 digits as zeros.
inline constexpr std::string_view kDigestKey = "xxh3_128";
// What the name of a compressed array ends in. Its metadata line: "I16 26,8222,6".
inline constexpr std::string_view kCompressed = ".zst";

// Arrays whose name ends in kCompressed are compressed here; the digest goes into the metadata.
[[nodiscard]] std::string to_container(const Metadata& metadata, std::span<const StoredArray> arrays);

// Checks the whole header, that the arrays tile the data exactly, and the digest where there is one. The
// arrays point into `bytes`. Error{io} that names `where`.
[[nodiscard]] Container parse_container(std::span<const std::byte> bytes, std::string_view where);

// The array `name`, or "name.zst" unpacked, as integers of 64 bits; `shape` gets its shape. Floats must be
// whole numbers. False: there is neither. Error{io} on what is damaged or larger than `most` elements.
struct ArrayRequest {
  std::string_view name, where;
  std::int64_t most = 0;
};
[[nodiscard]] bool take_integers(const Container& container, const ArrayRequest& request,
                                 std::vector<std::int64_t>& values, std::vector<std::int64_t>& shape);

// `count` little-endian elements of `type` as integers; Error{io} names `where` for a float that is no whole
// number within 2^53 or an integer beyond 64 bits.
void append_integers(ArrayType type, std::span<const std::byte> bytes, std::string_view where,
                     std::vector<std::int64_t>& values);

// "[2, 3]"
[[nodiscard]] std::string shape_text(std::span<const std::int64_t> shape);

}  // namespace tessera::trace
