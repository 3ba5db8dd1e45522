// NPY (numpy.org/doc/stable/reference/generated/numpy.lib.format.html): whole numbers, little-endian, C
// order.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "trace/routing_foreign.h"

namespace tessera::trace {

namespace {

constexpr std::int64_t kMostNumbers = std::int64_t{1} << 28;

struct NpyType {
  std::string_view text;
  ArrayType type;
};
constexpr std::array<NpyType, 9> kNpyTypes = {{{"<i8", ArrayType::i64},
                                               {"<i4", ArrayType::i32},
                                               {"<i2", ArrayType::i16},
                                               {"|i1", ArrayType::i8},
                                               {"|u1", ArrayType::u8},
                                               {"<u2", ArrayType::u16},
                                               {"<u4", ArrayType::u32},
                                               {"<f4", ArrayType::f32},
                                               {"<f8", ArrayType::f64}}};

[[noreturn]] void damaged(std::string what, std::string_view where) {
  throw Error(ErrorKind::io, std::move(what), std::string(where),
              "the file is damaged: copy it again, or write it with numpy.save");
}

// What follows `'key':` in the header, blanks removed.
std::string_view value_of(std::string_view header, std::string_view key, std::string_view where) {
  const std::string quoted = fmt::format("'{}':", key);
  const std::size_t at = header.find(quoted);
  if (at == std::string_view::npos) damaged(fmt::format("the NPY header has no {}", key), where);
  std::string_view rest = header.substr(at + quoted.size());
  rest.remove_prefix(std::min(rest.find_first_not_of(' '), rest.size()));
  return rest;
}

std::vector<std::int64_t> shape_of(std::string_view header, std::string_view where) {
  std::string_view rest = value_of(header, "shape", where);
  std::vector<std::int64_t> shape;
  std::int64_t total = 1;
  if (!rest.starts_with('(') || rest.find(')') == std::string_view::npos) {
    damaged("the shape of the NPY header is no tuple", where);
  }
  rest = rest.substr(1, rest.find(')') - 1);
  while (true) {
    rest.remove_prefix(std::min(rest.find_first_not_of(" ,"), rest.size()));
    if (rest.empty()) return shape;
    std::int64_t dim = -1;
    const auto [end, code] = std::from_chars(rest.data(), rest.data() + rest.size(), dim);
    if (code != std::errc{} || dim < 0 || shape.size() == 4) damaged("the NPY shape cannot be read", where);
    if (dim > kMostNumbers || total > kMostNumbers / std::max<std::int64_t>(1, dim)) {
      damaged(fmt::format("the array has more than {} numbers", kMostNumbers), where);
    }
    total *= std::max<std::int64_t>(1, dim);
    shape.push_back(dim);
    rest.remove_prefix(static_cast<std::size_t>(end - rest.data()));
  }
}

ArrayType type_of(std::string_view header, std::string_view where) {
  const std::string_view text = value_of(header, "descr", where);
  const std::string_view word = text.substr(0, std::min<std::size_t>(5, text.size()));
  for (const NpyType& t : kNpyTypes) {
    if (word == fmt::format("'{}'", t.text)) return t.type;
  }
  throw Error(
      ErrorKind::unsupported,
      fmt::format("the array's type is {}", text.substr(0, std::min<std::size_t>(24, text.find(',')))),
      std::string(where), "store whole numbers, little-endian: array.astype('<i4')");
}

}  // namespace

RoutingStats read_npy(std::span<const std::byte> bytes, std::string_view where,
                      const RoutingReadOptions& options) {
  const std::string_view file(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const bool wide = file.size() > 6 && file[6] >= 2;  // version 1: two bytes of header length, later: four
  const std::size_t begin = wide ? 12 : 10;
  if (file.size() < begin || file[6] < 1 || file[6] > 3) damaged("the NPY header cannot be read", where);
  std::uint32_t length = 0;
  std::memcpy(&length, file.data() + 8, wide ? 4 : 2);
  if (length > file.size() - begin) damaged("the NPY file is cut off inside its header", where);
  const std::string_view header = file.substr(begin, length);
  if (!value_of(header, "fortran_order", where).starts_with("False")) {
    throw Error(ErrorKind::unsupported, "the array is stored in Fortran order", std::string(where),
                "save numpy.ascontiguousarray(array)");
  }
  Table table{.shape = shape_of(header, where), .values = {}};
  const ArrayType type = type_of(header, where);
  std::int64_t numbers = 1;
  for (const std::int64_t dim : table.shape) numbers *= dim;
  const std::span<const std::byte> data = bytes.subspan(begin + length);
  if (std::ssize(data) != numbers * size_of(type)) {
    damaged(fmt::format("the NPY file holds {} bytes of data, its shape {} needs {}", data.size(),
                        shape_text(table.shape), numbers * size_of(type)),
            where);
  }
  append_integers(type, data, where, table.values);
  return stats_of_table(table, "npy", RoutingContent::choices, options, where);
}

}  // namespace tessera::trace
