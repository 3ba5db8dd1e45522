#include "ckpt/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "base/math.h"
#include "base/text.h"
#include "ckpt/json.h"

namespace tessera::ckpt {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little endian");

constexpr std::int64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own reader
constexpr std::int64_t kDataAlignment = 64;
constexpr const char* kMend =
    "give an undamaged safetensors file (download or copy it again, or use an earlier checkpoint)";

constexpr std::array kTypes = {StoredType::f64, StoredType::f32,    StoredType::f16, StoredType::bf16,
                               StoredType::i64, StoredType::i32,    StoredType::i16, StoredType::i8,
                               StoredType::u8,  StoredType::boolean};

std::optional<StoredType> type_of(std::string_view text) {
  for (const StoredType type : kTypes)
    if (name(type) == text) return type;
  return std::nullopt;
}

}  // namespace

std::int64_t size_of(StoredType type) {
  switch (type) {
    case StoredType::f64:
    case StoredType::i64:
      return 8;
    case StoredType::f32:
    case StoredType::i32:
      return 4;
    case StoredType::f16:
    case StoredType::bf16:
    case StoredType::i16:
      return 2;
    case StoredType::i8:
    case StoredType::u8:
    case StoredType::boolean:
      return 1;
  }
  return 0;
}

std::string_view name(StoredType type) {
  switch (type) {
    case StoredType::f64:
      return "F64";
    case StoredType::f32:
      return "F32";
    case StoredType::f16:
      return "F16";
    case StoredType::bf16:
      return "BF16";
    case StoredType::i64:
      return "I64";
    case StoredType::i32:
      return "I32";
    case StoredType::i16:
      return "I16";
    case StoredType::i8:
      return "I8";
    case StoredType::u8:
      return "U8";
    case StoredType::boolean:
      return "BOOL";
  }
  return "unknown";
}

StoredType stored_type(tensor::DType dtype) {
  switch (dtype) {
    case tensor::DType::f64:
      return StoredType::f64;
    case tensor::DType::f32:
      return StoredType::f32;
    case tensor::DType::bf16:
      return StoredType::bf16;
    case tensor::DType::i64:
      return StoredType::i64;
    case tensor::DType::i32:
      return StoredType::i32;
    case tensor::DType::u8:
      return StoredType::u8;
  }
  return StoredType::f32;
}

std::int64_t StoredTensor::num_elements() const {
  std::int64_t n = 1;
  for (const std::int64_t dim : shape) n *= dim;
  return n;
}

namespace {

// Bytes of the tensor by its type and shape; nothing when that overflows.
std::optional<std::int64_t> checked_bytes(StoredType type, std::span<const std::int64_t> shape) {
  std::int64_t n = size_of(type);
  for (const std::int64_t dim : shape)
    if (__builtin_mul_overflow(n, dim, &n)) return std::nullopt;
  return n;
}

struct Entry {
  StoredTensor tensor;
  std::int64_t begin = 0, end = 0;
};

Entry read_entry(const std::string& key, const Json& value, std::int64_t data_bytes, const Origin& origin) {
  require_map(value, fmt::format("tensor \"{}\"", key), origin);
  for (const std::string& field : value.keys) {
    if (field != "dtype" && field != "shape" && field != "data_offsets")
      origin.refuse(fmt::format("tensor \"{}\" has the unknown key \"{}\"", key, field));
  }
  const std::string& type_text = string_of(member(value, "dtype", origin), "dtype", origin);
  const std::optional<StoredType> type = type_of(type_text);
  if (!type) {
    Origin other = origin;
    if (type_text.starts_with("F8") || type_text.starts_with("F4"))
      other.mend = "quantised weights are not read: save the model in bf16 first";
    other.refuse(
        fmt::format("tensor \"{}\" has dtype \"{}\", which is not one of F64, F32, F16, BF16, I64, I32, "
                    "I16, I8, U8, BOOL",
                    key, type_text));
  }
  Entry entry{.tensor = {.name = key, .type = *type}};
  entry.tensor.shape = integers_of(member(value, "shape", origin), "shape", origin);
  const std::vector<std::int64_t> offsets =
      integers_of(member(value, "data_offsets", origin), "data_offsets", origin);
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > data_bytes) {
    origin.refuse(fmt::format("tensor \"{}\" has data_offsets [{}] in {} bytes of data", key,
                              fmt::join(offsets, ", "), data_bytes));
  }
  entry.begin = offsets[0];
  entry.end = offsets[1];
  const std::optional<std::int64_t> want = checked_bytes(*type, entry.tensor.shape);
  if (!want || *want != entry.end - entry.begin) {
    origin.refuse(fmt::format("tensor \"{}\" of shape [{}] and dtype {} has {} bytes of data", key,
                              fmt::join(entry.tensor.shape, ", "), type_text, entry.end - entry.begin));
  }
  return entry;
}

Metadata read_metadata(const Json& value, const Origin& origin) {
  require_map(value, "__metadata__", origin);
  Metadata metadata;
  for (std::size_t i = 0; i < value.keys.size(); ++i)
    metadata.emplace_back(value.keys[i], string_of(value.items[i], "a value of __metadata__", origin));
  return metadata;
}

// The header's text, and the data after it.
struct Parts {
  std::string_view header;
  std::span<const std::byte> data;
};

Parts split_file(std::span<const std::byte> bytes, const Origin& origin) {
  const auto file_bytes = static_cast<std::int64_t>(bytes.size());
  if (file_bytes < 8) origin.refuse(fmt::format("a file of {} bytes is no safetensors file", file_bytes));
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  const auto room = static_cast<std::uint64_t>(file_bytes - 8);
  if (length > room || length > static_cast<std::uint64_t>(kMaxHeaderBytes)) {
    origin.refuse(fmt::format(
        "the header should have {} bytes, in a file of {}; it is truncated or no safetensors file", length,
        file_bytes));
  }
  const auto n = static_cast<std::size_t>(length);
  return {{reinterpret_cast<const char*>(bytes.data()) + 8, n}, bytes.subspan(8 + n)};
}

std::vector<Entry> read_entries(const Json& root, std::int64_t data_bytes, Metadata& metadata,
                                const Origin& origin) {
  require_map(root, "the header", origin);
  std::vector<Entry> entries;
  for (std::size_t i = 0; i < root.keys.size(); ++i) {
    if (root.keys[i] == "__metadata__") {
      metadata = read_metadata(root.items[i], origin);
    } else {
      entries.push_back(read_entry(root.keys[i], root.items[i], data_bytes, origin));
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.tensor.name) < std::tie(b.begin, b.end, b.tensor.name);
  });
  std::int64_t at = 0;
  for (const Entry& e : entries) {
    if (e.begin != at) {
      origin.refuse(
          fmt::format("tensor \"{}\" begins at byte {} of the data, {} was expected: tensors overlap or "
                      "leave a gap",
                      e.tensor.name, e.begin, at));
    }
    at = e.end;
  }
  if (at != data_bytes) {
    origin.refuse(fmt::format("the tensors use {} of {} bytes of data: truncated or with something behind",
                              at, data_bytes));
  }
  return entries;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : SafetensorsFile(path, MappedFile(path)) {}

SafetensorsFile::SafetensorsFile(std::filesystem::path path, MappedFile map)
    : path_(std::move(path)), map_(std::move(map)) {
  const Origin origin{.where = path_.string(), .mend = kMend};
  const Parts parts = split_file(map_.bytes(), origin);
  const auto data_bytes = static_cast<std::int64_t>(parts.data.size());
  std::vector<Entry> entries = read_entries(parse_json(parts.header, origin), data_bytes, metadata_, origin);
  for (Entry& e : entries) {
    e.tensor.bytes =
        parts.data.subspan(static_cast<std::size_t>(e.begin), static_cast<std::size_t>(e.end - e.begin));
    by_name_.emplace(e.tensor.name, tensors_.size());
    tensors_.push_back(std::move(e.tensor));
  }
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto at = by_name_.find(name);
  return at == by_name_.end() ? nullptr : &tensors_[at->second];
}

const StoredTensor& SafetensorsFile::at(std::string_view name) const {
  if (const StoredTensor* found = find(name)) return *found;
  std::vector<std::string> names;
  for (const StoredTensor& t : tensors_) names.push_back(t.name);
  const std::string near = nearest(name, names);
  throw Error(ErrorKind::io, fmt::format("no tensor \"{}\" among {}", name, names.size()), path_.string(),
              near.empty() ? "give the file that holds it" : fmt::format("did you mean \"{}\"?", near));
}

std::string safetensors_header(std::span<const StoredTensor> tensors, const Metadata& metadata) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (std::size_t i = 0; i < metadata.size(); ++i)
      json += fmt::format("{}{}:{}", i == 0 ? "" : ",", json_quoted(metadata[i].first),
                          json_quoted(metadata[i].second));
    json += "}";
  }
  std::int64_t at = 0;
  for (const StoredTensor& t : tensors) {
    const std::optional<std::int64_t> bytes = checked_bytes(t.type, t.shape);
    TESSERA_CHECK(bytes.has_value(), "the size of a tensor does not fit 63 bits");
    json += fmt::format("{}{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                        json.size() == 1 ? "" : ",", json_quoted(t.name), name(t.type),
                        fmt::join(t.shape, ","), at, at + *bytes);
    at += *bytes;
  }
  json += "}";
  const auto used = static_cast<std::int64_t>(json.size());
  json.resize(static_cast<std::size_t>(round_up(8 + used, kDataAlignment) - 8), ' ');
  const std::uint64_t length = json.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + json;
}

void write_safetensors(const std::filesystem::path& path, std::span<const StoredTensor> tensors,
                       const Metadata& metadata) {
  std::string content = safetensors_header(tensors, metadata);
  for (const StoredTensor& t : tensors) {
    TESSERA_CHECK_EQ(static_cast<std::int64_t>(t.bytes.size()), t.num_elements() * size_of(t.type),
                     "a tensor's bytes fit its shape and type");
    content.append(reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size());
  }
  write_atomically(path, content);
}

namespace {

template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

float from_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// IEEE 754 binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits.
float from_f16(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1fU;
  const std::uint32_t fraction = bits & 0x3ffU;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000U | (fraction << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float magnitude = std::ldexp(static_cast<float>(fraction), -24);  // zero and subnormal
  return sign != 0 ? -magnitude : magnitude;
}

template <class From, class To, class Widen>
void convert_each(const std::byte* from, std::byte* to, std::int64_t count, Widen widen) {
  for (std::int64_t i = 0; i < count; ++i) {
    const To value = static_cast<To>(widen(load<From>(from + i * static_cast<std::int64_t>(sizeof(From)))));
    std::memcpy(to + i * static_cast<std::int64_t>(sizeof(To)), &value, sizeof(To));
  }
}

template <class To>
void convert_to(StoredType type, const std::byte* from, std::byte* to, std::int64_t count) {
  constexpr auto same = [](auto v) { return v; };
  switch (type) {
    case StoredType::f64:
      return convert_each<double, To>(from, to, count, same);
    case StoredType::f32:
      return convert_each<float, To>(from, to, count, same);
    case StoredType::f16:
      return convert_each<std::uint16_t, To>(from, to, count, from_f16);
    case StoredType::bf16:
      return convert_each<std::uint16_t, To>(from, to, count, from_bf16);
    case StoredType::i64:
    case StoredType::i32:
    case StoredType::i16:
    case StoredType::i8:
    case StoredType::u8:
    case StoredType::boolean:
      break;
  }
  throw Error(ErrorKind::unsupported, fmt::format("elements of type {} asked for as floats", name(type)),
              "reading a tensor", "give a file with F64, F32, F16 or BF16 weights");
}

}  // namespace

void convert(StoredType type, const std::byte* from, tensor::DType to_type, std::byte* to,
             std::int64_t count) {
  if (stored_type(to_type) == type) {
    if (count > 0) std::memcpy(to, from, static_cast<std::size_t>(count * size_of(type)));
  } else if (to_type == tensor::DType::f64) {
    convert_to<double>(type, from, to, count);
  } else {
    TESSERA_CHECK(to_type == tensor::DType::f32, "weights are read as f32 or f64");
    convert_to<float>(type, from, to, count);
  }
}

std::vector<double> to_f64(const StoredTensor& tensor) {
  std::vector<double> out(static_cast<std::size_t>(tensor.num_elements()));
  convert(tensor.type, tensor.bytes.data(), tensor::DType::f64, reinterpret_cast<std::byte*>(out.data()),
          tensor.num_elements());
  return out;
}

std::vector<std::int64_t> to_i64(const StoredTensor& tensor) {
  const std::int64_t size = size_of(tensor.type);
  std::vector<std::int64_t> out(static_cast<std::size_t>(tensor.num_elements()));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::byte* at = tensor.bytes.data() + static_cast<std::int64_t>(i) * size;
    switch (tensor.type) {
      case StoredType::i64:
        out[i] = load<std::int64_t>(at);
        break;
      case StoredType::i32:
        out[i] = load<std::int32_t>(at);
        break;
      case StoredType::i16:
        out[i] = load<std::int16_t>(at);
        break;
      case StoredType::i8:
        out[i] = load<std::int8_t>(at);
        break;
      case StoredType::u8:
      case StoredType::boolean:
        out[i] = load<std::uint8_t>(at);
        break;
      case StoredType::f64:
      case StoredType::f32:
      case StoredType::f16:
      case StoredType::bf16:
        throw Error(ErrorKind::unsupported,
                    fmt::format("elements of type {} asked for as integers", name(tensor.type)), tensor.name,
                    "ask for it as floats");
    }
  }
  return out;
}

}  // namespace tessera::ckpt
