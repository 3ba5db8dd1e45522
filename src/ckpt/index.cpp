#include "ckpt/index.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "base/error.h"
#include "ckpt/digest.h"
#include "ckpt/json.h"
#include "ckpt/rectangle.h"

namespace tessera::ckpt {

namespace {

constexpr const char* kMend = "use an earlier checkpoint, or restore this folder from a copy";
constexpr std::size_t kMaxIndexBytes = 256'000'000;
constexpr std::int64_t kMaxRanks = 1 << 20;
constexpr std::string_view kOpening = "{\"tessera_checkpoint\": ";

std::string first_line(std::string_view body) {
  return fmt::format("{}{}, \"xxh3_128\": \"{}\",\n", kOpening, kIndexVersion, digest_of(body));
}

std::string list(std::int32_t num_dims, const std::array<std::int64_t, 2>& values) {
  return num_dims == 1 ? fmt::format("[{}]", values[0]) : fmt::format("[{}, {}]", values[0], values[1]);
}

std::string tensor_text(const IndexedTensor& t, const std::vector<IndexedFile>& files) {
  std::string out = fmt::format("  {{\"name\": {}, \"dtype\": \"{}\", \"shape\": {}, \"pieces\": [",
                                json_quoted(t.name), name(t.type), list(t.num_dims, t.global));
  for (std::size_t i = 0; i < t.pieces.size(); ++i) {
    const IndexedPiece& p = t.pieces[i];
    out += fmt::format("{}{{\"file\": {}, \"begin\": {}, \"size\": {}}}", i == 0 ? "" : ", ",
                       json_quoted(files[static_cast<std::size_t>(p.file)].name),
                       list(t.num_dims, p.slice.begin), list(t.num_dims, p.slice.size));
  }
  return out + "]}";
}

}  // namespace

std::string rank_file_name(Rank rank) {
  return fmt::format("rank-{:03}.safetensors", rank.value);
}

std::string entry_name(std::string_view tensor, std::int32_t num_dims, const layout::Slice& slice) {
  return num_dims == 1 ? fmt::format("{}#{}", tensor, slice.begin[0])
                       : fmt::format("{}#{},{}", tensor, slice.begin[0], slice.begin[1]);
}

std::vector<std::int64_t> entry_shape(std::int32_t num_dims, const layout::Slice& slice) {
  return {slice.size.begin(), slice.size.begin() + num_dims};
}

std::string index_text(const Index& index) {
  std::string body = fmt::format(
      " \"step\": {},\n \"tokens\": {},\n \"world_size\": {},\n \"job_yaml\": {},\n \"hf_config\": {},\n",
      index.meta.step, index.meta.tokens, index.world_size, json_quoted(index.meta.job_yaml),
      json_quoted(index.meta.hf_config));
  body += " \"files\": [\n";
  for (std::size_t i = 0; i < index.files.size(); ++i) {
    const IndexedFile& f = index.files[i];
    body += fmt::format("  {{\"name\": {}, \"bytes\": {}, \"xxh3_128\": \"{}\"}}{}\n", json_quoted(f.name),
                        f.bytes, f.xxh3_128, i + 1 == index.files.size() ? "" : ",");
  }
  body += " ],\n \"tensors\": [\n";
  for (std::size_t i = 0; i < index.tensors.size(); ++i)
    body += tensor_text(index.tensors[i], index.files) + (i + 1 == index.tensors.size() ? "\n" : ",\n");
  return seal_index(body + " ]}\n");
}

std::string seal_index(std::string_view body) {
  return first_line(body).append(body);
}

namespace {

// Only names that a writer gives: nothing that leaves the folder.
std::int64_t rank_of_file(std::string_view file) {
  constexpr std::string_view kPrefix = "rank-";
  constexpr std::string_view kSuffix = ".safetensors";
  if (!file.starts_with(kPrefix) || !file.ends_with(kSuffix)) return -1;
  const std::string_view digits =
      file.substr(kPrefix.size(),
                  std::max(file.size(), kPrefix.size() + kSuffix.size()) - kPrefix.size() - kSuffix.size());
  std::int32_t rank = -1;
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
  if (code != std::errc{} || rank < 0 || rank_file_name(Rank(rank)) != file) return -1;
  return rank;
}

// The version of a first line that does not fit its body, when it can be read: -1 otherwise.
std::int64_t version_of(std::string_view text) {
  if (!text.starts_with(kOpening)) return -1;
  const std::string_view rest = text.substr(kOpening.size(), 18);
  std::int64_t version = -1;
  const auto [end, code] = std::from_chars(rest.data(), rest.data() + rest.size(), version);
  return code == std::errc{} ? version : -1;
}

void check_seal(std::string_view text, const Origin& origin) {
  if (text.size() > kMaxIndexBytes)
    origin.refuse(fmt::format("an index of {} bytes, more than {}", text.size(), kMaxIndexBytes));
  const std::size_t line_end = text.find('\n');
  const std::int64_t version = version_of(text);
  if (version > kIndexVersion) {
    throw Error(
        ErrorKind::unsupported,
        fmt::format("checkpoint of version {}; this program reads version {}", version, kIndexVersion),
        origin.where, "use a newer Tessera to read it");
  }
  if (version < 0)
    origin.refuse(fmt::format("not a checkpoint's index: it does not begin with {}", kOpening));
  if (line_end == std::string_view::npos ||
      text.substr(0, line_end + 1) != first_line(text.substr(line_end + 1)))
    origin.refuse(fmt::format("the checksum does not fit the {} bytes: truncated or changed", text.size()));
}

std::array<std::int64_t, 2> pair_of(const Json& value, std::int64_t fill, std::string_view what,
                                    const Origin& origin) {
  const std::vector<std::int64_t> got = integers_of(value, what, origin);
  if (got.empty() || got.size() > 2)
    origin.refuse(fmt::format("{} has {} numbers, not one or two", what, got.size()));
  return {got[0], got.size() == 2 ? got[1] : fill};
}

struct FileNames {
  std::map<std::string, std::int32_t, std::less<>> position;
};

std::vector<IndexedFile> read_files(const Json& value, FileNames& names, const Origin& origin) {
  require_list(value, "files", origin);
  std::vector<IndexedFile> files;
  for (const Json& item : value.items) {
    require_map(item, "a file", origin);
    IndexedFile file{
        .name = string_of(member(item, "name", origin), "the name of a file", origin),
        .bytes = integer_of(member(item, "bytes", origin), "the bytes of a file", origin),
        .xxh3_128 = string_of(member(item, "xxh3_128", origin), "the checksum of a file", origin)};
    if (rank_of_file(file.name) < 0)
      origin.refuse(fmt::format("file name \"{}\" is not of the form rank-000.safetensors", file.name));
    if (!names.position.emplace(file.name, static_cast<std::int32_t>(files.size())).second)
      origin.refuse(fmt::format("file \"{}\" is listed twice", file.name));
    files.push_back(std::move(file));
  }
  return files;
}

IndexedPiece read_piece(const Json& value, const IndexedTensor& tensor, const FileNames& names,
                        const Origin& origin) {
  const std::string what = fmt::format("a piece of \"{}\"", tensor.name);
  require_map(value, what, origin);
  const std::string& file = string_of(member(value, "file", origin), "the file of " + what, origin);
  const auto at = names.position.find(file);
  if (at == names.position.end())
    origin.refuse(fmt::format("{} is in \"{}\", which is not listed", what, file));
  const Json& begin = member(value, "begin", origin);
  const Json& size = member(value, "size", origin);
  const auto dims = static_cast<std::size_t>(tensor.num_dims);
  if (begin.items.size() != dims || size.items.size() != dims)
    origin.refuse(fmt::format("{} has not {} dims as the tensor has", what, dims));
  return {.file = at->second,
          .slice = {.begin = pair_of(begin, 0, "the begin of " + what, origin),
                    .size = pair_of(size, 1, "the size of " + what, origin)}};
}

IndexedTensor read_tensor(const Json& value, const FileNames& names, IndexOf of, const Origin& origin) {
  require_map(value, "a tensor", origin);
  IndexedTensor tensor;
  tensor.name = string_of(member(value, "name", origin), "the name of a tensor", origin);
  const std::string& type = string_of(member(value, "dtype", origin), "a dtype", origin);
  if (type != name(StoredType::f32) && type != name(StoredType::f64))
    origin.refuse(fmt::format("tensor \"{}\" has dtype \"{}\", not F32 or F64", tensor.name, type));
  tensor.type = type == name(StoredType::f32) ? StoredType::f32 : StoredType::f64;
  const Json& shape = member(value, "shape", origin);
  tensor.global = pair_of(shape, 1, fmt::format("the shape of \"{}\"", tensor.name), origin);
  tensor.num_dims = static_cast<std::int32_t>(shape.items.size());
  const Json& pieces = member(value, "pieces", origin);
  require_list(pieces, "pieces", origin);
  std::vector<layout::Slice> slices;
  for (const Json& piece : pieces.items) {
    tensor.pieces.push_back(read_piece(piece, tensor, names, origin));
    slices.push_back(tensor.pieces.back().slice);
  }
  if (of == IndexOf::part) return tensor;
  if (const std::string fault = cover_fault(tensor.global, slices); !fault.empty())
    origin.refuse(fmt::format("tensor \"{}\": {}", tensor.name, fault));
  return tensor;
}

}  // namespace

Index parse_index(std::string_view text, const std::string& where, IndexOf of) {
  const Origin origin{.where = where, .mend = kMend};
  check_seal(text, origin);
  const Json root = parse_json(text, origin);
  require_map(root, "the index", origin);
  Index index;
  index.meta.step = integer_of(member(root, "step", origin), "step", origin);
  index.meta.tokens = integer_of(member(root, "tokens", origin), "tokens", origin);
  index.meta.job_yaml = string_of(member(root, "job_yaml", origin), "job_yaml", origin);
  index.meta.hf_config = string_of(member(root, "hf_config", origin), "hf_config", origin);
  const std::int64_t world_size = integer_of(member(root, "world_size", origin), "world_size", origin);
  if (world_size < 1 || world_size > kMaxRanks)
    origin.refuse(fmt::format("world_size is {}, not 1 to {}", world_size, kMaxRanks));
  index.world_size = static_cast<std::int32_t>(world_size);
  FileNames names;
  index.files = read_files(member(root, "files", origin), names, origin);
  const Json& tensors = member(root, "tensors", origin);
  require_list(tensors, "tensors", origin);
  std::set<std::string, std::less<>> seen;
  for (const Json& value : tensors.items) {
    index.tensors.push_back(read_tensor(value, names, of, origin));
    if (!seen.insert(index.tensors.back().name).second)
      origin.refuse(fmt::format("tensor \"{}\" is listed twice", index.tensors.back().name));
  }
  return index;
}

}  // namespace tessera::ckpt
