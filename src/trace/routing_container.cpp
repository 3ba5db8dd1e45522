#include "trace/routing_container.h"

#include <fmt/format.h>
#include <simdjson.h>
#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "base/text.h"

namespace tessera::trace {

namespace {

static_assert(std::endian::native == std::endian::little, "arrays are stored little-endian");

constexpr std::size_t kLengthBytes = 8;
constexpr std::size_t kAlignment = 64;
constexpr std::int64_t kMostHeader = 100'000'000;  // as the format's own library has it
constexpr std::size_t kDigestDigits = 32;
constexpr int kCompressionLevel = 3;

struct TypeName {
  ArrayType type;
  std::string_view name;
  std::int64_t size;
};
constexpr std::array<TypeName, 9> kTypes = {{{ArrayType::i64, "I64", 8},
                                             {ArrayType::i32, "I32", 4},
                                             {ArrayType::i16, "I16", 2},
                                             {ArrayType::i8, "I8", 1},
                                             {ArrayType::u8, "U8", 1},
                                             {ArrayType::u16, "U16", 2},
                                             {ArrayType::u32, "U32", 4},
                                             {ArrayType::f32, "F32", 4},
                                             {ArrayType::f64, "F64", 8}}};

const TypeName& entry(ArrayType type) {
  return *std::ranges::find(kTypes, type, &TypeName::type);
}

[[noreturn]] void damaged(std::string what, std::string_view where) {
  throw Error(ErrorKind::io, std::move(what), std::string(where),
              "the file is damaged or no safetensors file: copy or write it again");
}

std::optional<ArrayType> type_of(std::string_view word) {
  const auto found = std::ranges::find(kTypes, word, &TypeName::name);
  if (found == kTypes.end()) return std::nullopt;
  return found->type;
}

// Elements of a shape, or nothing beyond 2^48.
std::optional<std::int64_t> elements(std::span<const std::int64_t> shape) {
  constexpr std::int64_t kMost = std::int64_t{1} << 48;
  std::int64_t n = 1;
  for (const std::int64_t dim : shape) {
    if (dim < 0 || dim > kMost) return std::nullopt;
    if (dim > 0 && n > kMost / dim) return std::nullopt;
    n *= dim;
  }
  return n;
}

std::string escaped(std::string_view text) {
  const bool utf8 = simdjson::validate_utf8(text.data(), text.size());
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += byte >= 0x80 && !utf8 ? '?' : c;
    }
  }
  return out + "\"";
}

std::string compress(std::span<const std::byte> bytes) {
  std::string out(ZSTD_compressBound(bytes.size()), '\0');
  ZSTD_CCtx* context = ZSTD_createCCtx();
  TESSERA_CHECK(context != nullptr, "zstd has memory for its context");
  ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, kCompressionLevel);
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  const std::size_t size = ZSTD_compress2(context, out.data(), out.size(), bytes.data(), bytes.size());
  ZSTD_freeCCtx(context);
  TESSERA_CHECK(ZSTD_isError(size) == 0, "the output buffer is as large as zstd asks for");
  out.resize(size);
  return out;
}

std::string joined(std::span<const std::int64_t> shape) {
  return fmt::format("{}", fmt::join(shape, ","));
}

// The digest of a file whose digits at `digits` count as zeros.
std::string digest(std::span<const std::byte> file, std::size_t digits) {
  XXH3_state_t* state = XXH3_createState();
  TESSERA_CHECK(state != nullptr, "xxhash has memory for its state");
  XXH3_128bits_reset(state);
  XXH3_128bits_update(state, file.data(), digits);
  const std::string zeros(kDigestDigits, '0');
  XXH3_128bits_update(state, zeros.data(), zeros.size());
  const std::span<const std::byte> rest = file.subspan(digits + kDigestDigits);
  XXH3_128bits_update(state, rest.data(), rest.size());
  const XXH128_hash_t hash = XXH3_128bits_digest(state);
  XXH3_freeState(state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string digest_field() {
  return fmt::format("\"{}\":\"", kDigestKey);
}

void check_digest(std::span<const std::byte> bytes, std::string_view header, const std::string& want,
                  std::string_view where) {
  // Quotes of values are escaped, so this is the key, wherever it stands.
  const std::string field = digest_field();
  const std::size_t at = header.find(field);
  if (at == std::string_view::npos || want.size() != kDigestDigits ||
      header.substr(at + field.size(), kDigestDigits) != want) {
    damaged(fmt::format("the digest \"{}\" is not written as 32 hexadecimal digits", want), where);
  }
  const std::string got = digest(bytes, kLengthBytes + at + field.size());
  if (got == want) return;
  throw Error(
      ErrorKind::io, fmt::format("the digest of the file is {}, its header says {}", got, want),
      std::string(where),
      fmt::format("the file is damaged: copy or write it again; where a program changed it on purpose, "
                  "remove {} from its metadata",
                  kDigestKey));
}

using simdjson::dom::element;
using simdjson::dom::object;

StoredArray parse_entry(std::string_view name, const element& value, std::int64_t& at,
                        std::span<const std::byte> data, std::string_view where) {
  StoredArray a{.name = std::string(name)};
  std::string_view type;
  simdjson::dom::array shape;
  simdjson::dom::array offsets;
  if (value["dtype"].get(type) != simdjson::SUCCESS || value["shape"].get(shape) != simdjson::SUCCESS ||
      value["data_offsets"].get(offsets) != simdjson::SUCCESS || offsets.size() != 2) {
    damaged(fmt::format("array \"{}\" has no dtype, shape and data_offsets", name), where);
  }
  const std::optional<ArrayType> known = type_of(type);
  if (!known) {
    throw Error(ErrorKind::unsupported, fmt::format("array \"{}\" has type {}", name, type),
                std::string(where), "store whole numbers: I64, I32, I16, I8, U8, U16 or U32");
  }
  a.type = *known;
  for (const element dim : shape) {
    std::int64_t n = -1;
    if (dim.get(n) != simdjson::SUCCESS || n < 0)
      damaged(fmt::format("array \"{}\" has no shape", name), where);
    a.shape.push_back(n);
  }
  std::int64_t begin = -1;
  std::int64_t end = -1;
  if (offsets.at(0).get(begin) != simdjson::SUCCESS || offsets.at(1).get(end) != simdjson::SUCCESS) {
    damaged(fmt::format("array \"{}\" has no offsets", name), where);
  }
  const std::optional<std::int64_t> n = elements(a.shape);
  if (begin != at || !n || end < begin || end > std::ssize(data) || end - begin != *n * size_of(a.type)) {
    damaged(fmt::format("array \"{}\" of {} {} lies at bytes {} to {} of {}, where {} was next", name,
                        shape_text(a.shape), type, begin, end, data.size(), at),
            where);
  }
  a.bytes = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  at = end;
  return a;
}

Metadata parse_metadata(const element& value, std::string_view where) {
  Metadata out;
  object lines;
  if (value.get(lines) != simdjson::SUCCESS) damaged("__metadata__ is no object", where);
  for (const auto line : lines) {
    std::string_view text;
    if (line.value.get(text) != simdjson::SUCCESS) {
      damaged(fmt::format("metadata \"{}\" is no text", line.key), where);
    }
    if (std::ranges::find(out, line.key, &Metadata::value_type::first) != out.end()) {
      damaged(fmt::format("metadata \"{}\" is there twice", line.key), where);
    }
    out.emplace_back(line.key, text);
  }
  return out;
}

std::int64_t begin_of(const element& value) {
  simdjson::dom::array offsets;
  std::int64_t begin = -1;
  if (value["data_offsets"].get(offsets) != simdjson::SUCCESS) return -1;
  return offsets.at(0).get(begin) == simdjson::SUCCESS ? begin : -1;
}

struct Described {  // of a compressed array
  ArrayType type;
  std::vector<std::int64_t> shape;
};

std::optional<Described> parse_description(std::string_view text) {
  const std::size_t blank = text.find(' ');
  const std::optional<ArrayType> type = type_of(text.substr(0, blank));
  if (!type || blank == std::string_view::npos) return std::nullopt;
  Described d{.type = *type, .shape = {}};
  for (const std::string& word : split(text.substr(blank + 1), ',')) {
    std::int64_t dim = -1;
    const auto [end, code] = std::from_chars(word.data(), word.data() + word.size(), dim);
    if (code != std::errc{} || end != word.data() + word.size() || dim < 0) return std::nullopt;
    d.shape.push_back(dim);
  }
  return d;
}

void take_compressed(const Container& c, const StoredArray& packed, const ArrayRequest& request,
                     std::vector<std::int64_t>& values, std::vector<std::int64_t>& shape) {
  const std::string* line = c.fact(packed.name);
  const std::optional<Described> d = line == nullptr ? std::nullopt : parse_description(*line);
  if (!d) damaged(fmt::format("the metadata has no type and shape of \"{}\"", packed.name), request.where);
  const std::optional<std::int64_t> n = elements(d->shape);
  if (!n || *n > request.most) {
    damaged(fmt::format("array \"{}\" has the shape {}, of more than {} numbers", packed.name,
                        shape_text(d->shape), request.most),
            request.where);
  }
  const auto bytes = static_cast<std::size_t>(*n * size_of(d->type));
  const unsigned long long claimed = ZSTD_getFrameContentSize(packed.bytes.data(), packed.bytes.size());
  if (claimed != bytes) {
    damaged(fmt::format("the zstd frame of \"{}\" does not hold the {} bytes of {} {}", packed.name, bytes,
                        shape_text(d->shape), name(d->type)),
            request.where);
  }
  std::vector<std::byte> plain(bytes);
  const std::size_t got =
      ZSTD_decompress(plain.data(), plain.size(), packed.bytes.data(), packed.bytes.size());
  if (ZSTD_isError(got) != 0 || got != bytes) {
    damaged(fmt::format("the zstd frame of \"{}\" is damaged: {}", packed.name,
                        ZSTD_isError(got) != 0 ? ZSTD_getErrorName(got) : "it is too short"),
            request.where);
  }
  append_integers(d->type, plain, fmt::format("{}: {}", request.where, packed.name), values);
  shape = d->shape;
}

template <class T>
void append_whole(std::span<const std::byte> bytes, std::string_view where,
                  std::vector<std::int64_t>& values) {
  for (std::size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T v{};
    std::memcpy(&v, bytes.data() + i, sizeof(T));
    if constexpr (std::is_floating_point_v<T>) {
      if (!(std::abs(v) <= static_cast<T>(std::int64_t{1} << 53)) || std::trunc(v) != v) {
        damaged(fmt::format("number {} is {}, not a whole number", i / sizeof(T), v), where);
      }
    }
    values.push_back(static_cast<std::int64_t>(v));
  }
}

}  // namespace

std::int64_t size_of(ArrayType type) {
  return entry(type).size;
}
std::string_view name(ArrayType type) {
  return entry(type).name;
}

std::int64_t StoredArray::num_elements() const {
  return elements(shape).value_or(0);
}

const StoredArray* Container::find(std::string_view name) const {
  const auto found = std::ranges::find(arrays, name, &StoredArray::name);
  return found == arrays.end() ? nullptr : &*found;
}
const std::string* Container::fact(std::string_view key) const {
  const auto found = std::ranges::find(metadata, key, &Metadata::value_type::first);
  return found == metadata.end() ? nullptr : &found->second;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

std::string to_container(const Metadata& metadata, std::span<const StoredArray> arrays) {
  std::string header = "{\"__metadata__\":{" + digest_field() + std::string(kDigestDigits, '0') + "\"";
  std::vector<std::string> packed(arrays.size());
  for (const auto& [key, value] : metadata) header += "," + escaped(key) + ":" + escaped(value);
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const StoredArray& a = arrays[i];
    if (!a.name.ends_with(kCompressed)) continue;
    packed[i] = compress(a.bytes);
    header += "," + escaped(a.name) + ":" + escaped(fmt::format("{} {}", name(a.type), joined(a.shape)));
  }
  header += "}";
  std::size_t at = 0;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const StoredArray& a = arrays[i];
    const bool zst = a.name.ends_with(kCompressed);
    const std::size_t size = zst ? packed[i].size() : a.bytes.size();
    header += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", escaped(a.name),
                          zst ? "U8" : name(a.type), zst ? fmt::format("{}", size) : joined(a.shape), at,
                          at + size);
    at += size;
  }
  header += "}";
  const std::size_t begin = kLengthBytes + header.size();
  header.append((kAlignment - begin % kAlignment) % kAlignment, ' ');
  std::string file(kLengthBytes, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(file.data(), &length, kLengthBytes);
  file += header;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const StoredArray& a = arrays[i];
    if (a.name.ends_with(kCompressed)) {
      file += packed[i];
    } else {
      file.append(reinterpret_cast<const char*>(a.bytes.data()), a.bytes.size());
    }
  }
  const std::size_t digits = file.find(digest_field()) + digest_field().size();
  return file.replace(digits, kDigestDigits, digest(std::as_bytes(std::span(file)), digits));
}

Container parse_container(std::span<const std::byte> bytes, std::string_view where) {
  std::uint64_t length = 0;
  if (bytes.size() < kLengthBytes) damaged(fmt::format("the file has only {} bytes", bytes.size()), where);
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMostHeader || length > bytes.size() - kLengthBytes) {
    damaged(fmt::format("the header's length is {}, the file has {} bytes", length, bytes.size()), where);
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + length);
  simdjson::dom::parser parser;
  object root;
  const auto code = parser.parse(header.data(), header.size()).get(root);
  if (code != simdjson::SUCCESS) {
    damaged(fmt::format("the header is not a JSON object: {}", simdjson::error_message(code)), where);
  }
  Container c;
  std::vector<std::pair<std::string_view, element>> entries;
  for (const auto field : root) {
    if (field.key == "__metadata__") {
      if (!c.metadata.empty()) damaged("__metadata__ is there twice", where);
      c.metadata = parse_metadata(field.value, where);
    } else {
      entries.emplace_back(field.key, field.value);
    }
  }
  std::ranges::stable_sort(entries, {}, [](const auto& e) { return begin_of(e.second); });
  std::int64_t at = 0;
  for (const auto& [name, value] : entries) c.arrays.push_back(parse_entry(name, value, at, data, where));
  if (at != std::ssize(data)) {
    damaged(fmt::format("the arrays have {} bytes, the file {}", at, data.size()), where);
  }
  std::vector<std::string_view> names;
  for (const StoredArray& a : c.arrays) names.push_back(a.name);
  std::ranges::sort(names);
  if (const auto twice = std::ranges::adjacent_find(names); twice != names.end()) {
    damaged(fmt::format("array \"{}\" is there twice", *twice), where);
  }
  if (const std::string* want = c.fact(kDigestKey)) check_digest(bytes, header, *want, where);
  return c;
}

void append_integers(ArrayType type, std::span<const std::byte> bytes, std::string_view where,
                     std::vector<std::int64_t>& values) {
  values.reserve(values.size() + bytes.size() / static_cast<std::size_t>(size_of(type)));
  switch (type) {
    case ArrayType::i64:
      return append_whole<std::int64_t>(bytes, where, values);
    case ArrayType::i32:
      return append_whole<std::int32_t>(bytes, where, values);
    case ArrayType::i16:
      return append_whole<std::int16_t>(bytes, where, values);
    case ArrayType::i8:
      return append_whole<std::int8_t>(bytes, where, values);
    case ArrayType::u8:
      return append_whole<std::uint8_t>(bytes, where, values);
    case ArrayType::u16:
      return append_whole<std::uint16_t>(bytes, where, values);
    case ArrayType::u32:
      return append_whole<std::uint32_t>(bytes, where, values);
    case ArrayType::f32:
      return append_whole<float>(bytes, where, values);
    case ArrayType::f64:
      return append_whole<double>(bytes, where, values);
  }
}

bool take_integers(const Container& container, const ArrayRequest& request, std::vector<std::int64_t>& values,
                   std::vector<std::int64_t>& shape) {
  values.clear();
  if (const StoredArray* a = container.find(request.name)) {
    if (a->num_elements() > request.most) {
      damaged(fmt::format("array \"{}\" has the shape {}, of more than {} numbers", a->name,
                          shape_text(a->shape), request.most),
              request.where);
    }
    append_integers(a->type, a->bytes, fmt::format("{}: {}", request.where, a->name), values);
    shape = a->shape;
    return true;
  }
  const StoredArray* packed = container.find(std::string(request.name) + std::string(kCompressed));
  if (packed == nullptr) return false;
  take_compressed(container, *packed, request, values, shape);
  return true;
}

}  // namespace tessera::trace
