#include "trace/routing_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "base/file.h"
#include "base/text.h"
#include "trace/routing_container.h"
#include "trace/routing_foreign.h"

namespace tessera::trace {

namespace {

constexpr std::string_view kFormat = "tessera-routing";
constexpr std::int64_t kVersion = 1;
constexpr std::int64_t kMaxChoices = std::int64_t{1} << 28;

constexpr std::array<std::string_view, 9> kFacts = {
    kDigestKey, "format", "version", "model", "source", "num_experts", "top_k", "num_tokens", "window_names"};
constexpr std::array<std::string_view, 8> kArrays = {"layers", "chosen", "dropped", "window_chosen",
                                                     "within", "across", "choices", "window_steps"};
constexpr std::string_view kSequences = "sequence_lengths";

template <class T>
StoredArray array_of(std::string_view name, ArrayType type, std::vector<std::int64_t> shape,
                     const std::vector<T>& values) {
  return {.name = std::string(name),
          .type = type,
          .shape = std::move(shape),
          .bytes = std::as_bytes(std::span(values))};
}

std::string packed_name(std::string_view name) {
  return std::string(name) + std::string(kCompressed);
}

[[noreturn]] void damaged(std::string what, std::string_view where) {
  throw Error(ErrorKind::io, std::move(what), std::string(where),
              "write the file again; docs/formats/routing.md says what it holds");
}

class Reader {
 public:
  Reader(const Container& c, std::string_view where) : c_(c), where_(where) {}

  RoutingStats read() {
    check_names();
    s_.model = text("model");
    s_.source = text("source");
    s_.num_experts = static_cast<std::int32_t>(number("num_experts", kMaxRoutingExperts));
    s_.top_k = static_cast<std::int32_t>(number("top_k", kMaxRoutingTopK));
    s_.num_tokens = number("num_tokens", INT64_MAX);
    std::vector<std::int64_t> layers;
    const auto shape = take("layers", layers, kMaxRoutingLayers);
    if (shape.size() != 1 || layers.empty()) damaged("there is no list of layers", where_);
    for (const std::int64_t l : layers) {
      if (l < 0 || l > INT32_MAX) damaged(fmt::format("layer {} is no index of a layer", l), where_);
      s_.layers.push_back(static_cast<std::int32_t>(l));
    }
    const std::int64_t num_layers = s_.num_layers();
    const std::int64_t experts = s_.num_experts;
    expect("chosen", s_.chosen, {num_layers, experts});
    expect("dropped", s_.dropped, {num_layers, experts});
    expect("within", s_.within, {num_layers, experts, experts});
    expect("across", s_.across, {num_layers - 1, experts, experts});
    read_windows();
    read_choices();
    Problems problems;
    check_routing(s_, where_, problems);
    problems.throw_if_any(ErrorKind::io);
    return std::move(s_);
  }

 private:
  void check_names() {
    for (const auto& [key, value] : c_.metadata) {
      if (std::ranges::find(kFacts, key) != kFacts.end() || key.ends_with(kCompressed)) continue;
      damaged(fmt::format("unknown metadata \"{}\"", key), where_);
    }
    for (const StoredArray& a : c_.arrays) {
      std::string_view base = a.name;
      if (base.ends_with(kCompressed)) base.remove_suffix(kCompressed.size());
      if (base != kSequences && std::ranges::find(kArrays, base) == kArrays.end()) {
        damaged(fmt::format("unknown array \"{}\"", a.name), where_);
      }
    }
  }

  std::string text(std::string_view key) const {
    const std::string* value = c_.fact(key);
    return value == nullptr ? "" : *value;
  }

  std::int64_t number(std::string_view key, std::int64_t most) const {
    const std::string word = text(key);
    std::int64_t n = -1;
    const auto [end, code] = std::from_chars(word.data(), word.data() + word.size(), n);
    if (code != std::errc{} || end != word.data() + word.size() || n < 0 || n > most) {
      damaged(fmt::format("{} is \"{}\", not a number from 0 to {}", key, word, most), where_);
    }
    return n;
  }

  std::vector<std::int64_t> take(std::string_view name, std::vector<std::int64_t>& values,
                                 std::int64_t most) const {
    std::vector<std::int64_t> shape;
    (void)take_integers(c_, {.name = name, .where = where_, .most = most}, values, shape);
    return shape;
  }

  // Absent: empty.
  void expect(std::string_view name, std::vector<std::int64_t>& values,
              std::vector<std::int64_t> want) const {
    const std::vector<std::int64_t> shape = take(name, values, kMaxRoutingPairs);
    if (shape.empty() || shape == want) return;
    damaged(fmt::format("{} has the shape {}, which is not {}", name, shape_text(shape), shape_text(want)),
            where_);
  }

  void read_windows() {
    std::vector<std::int64_t> counts;
    std::vector<std::int64_t> steps;
    const std::vector<std::int64_t> shape = take("window_chosen", counts, kMaxRoutingPairs);
    if (shape.empty()) return;
    const std::vector<std::int64_t> want = {shape[0], s_.num_layers(), s_.num_experts};
    if (shape != want) {
      damaged(
          fmt::format("window_chosen has the shape {}, which is not {}", shape_text(shape), shape_text(want)),
          where_);
    }
    expect("window_steps", steps, {shape[0], 2});
    const std::vector<std::string> names = split(text("window_names"), '\n');
    const auto size = static_cast<std::ptrdiff_t>(s_.chosen.size());
    for (std::int64_t w = 0; w < shape[0]; ++w) {
      RoutingWindow window;
      if (w < std::ssize(names)) window.name = names[static_cast<std::size_t>(w)];
      if (!steps.empty()) {
        window.first_step = steps[static_cast<std::size_t>(2 * w)];
        window.num_steps = steps[static_cast<std::size_t>(2 * w + 1)];
      }
      window.chosen.assign(counts.begin() + w * size, counts.begin() + (w + 1) * size);
      s_.windows.push_back(std::move(window));
    }
  }

  void read_choices() {
    std::vector<std::int64_t> ids;
    const std::vector<std::int64_t> shape = take("choices", ids, kMaxChoices);
    if (!shape.empty()) {
      if (shape.size() != 3 || shape[0] != s_.num_layers() || shape[2] != s_.top_k) {
        damaged(fmt::format("choices have the shape {}, not [{}, tokens, {}]", shape_text(shape),
                            s_.num_layers(), s_.top_k),
                where_);
      }
      for (const std::int64_t id : ids) {
        if (id < -1 || id >= s_.num_experts) {
          damaged(fmt::format("a token chooses expert {} of {}", id, s_.num_experts), where_);
        }
        s_.choices.push_back(static_cast<std::int16_t>(id));
      }
    }
    (void)take(kSequences, s_.sequence_lengths, kMaxChoices);
  }

  const Container& c_;
  std::string where_;
  RoutingStats s_;
};

RoutingStats read_own(const Container& c, std::string_view where) {
  const std::string* version = c.fact("version");
  if (version == nullptr) damaged("the routing file has no version", where);
  std::int64_t n = 0;
  const auto [end, code] = std::from_chars(version->data(), version->data() + version->size(), n);
  if (code != std::errc{} || end != version->data() + version->size() || n < 1) {
    damaged(fmt::format("the version is \"{}\"", *version), where);
  }
  if (n > kVersion) {
    throw Error(
        ErrorKind::unsupported,
        fmt::format("the routing file has version {}, this build reads versions up to {}", n, kVersion),
        std::string(where), "use the Tessera that wrote it, or a newer one");
  }
  return Reader(c, where).read();
}

bool starts_with(std::span<const std::byte> bytes, std::string_view magic) {
  return bytes.size() >= magic.size() && std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
}

void refuse_pickles(std::span<const std::byte> bytes, std::string_view where) {
  constexpr std::size_t kProtocol = 2;  // the opcode and the version behind it
  if (!starts_with(bytes, "PK\x03\x04") && !starts_with(bytes, std::string_view("\x80\x02", kProtocol)) &&
      !starts_with(bytes, std::string_view("\x80\x04", kProtocol)) &&
      !starts_with(bytes, std::string_view("\x80\x05", kProtocol))) {
    return;
  }
  throw Error(ErrorKind::unsupported,
              "the file is a pickle or a zip of them (.pt, .npz): reading one can run any code, so it is not",
              std::string(where),
              "save it as JSON, NPY or safetensors first; docs/formats/routing.md has the lines of Python");
}

}  // namespace

RoutingStats parse_routing(std::span<const std::byte> bytes, std::string_view where,
                           const RoutingReadOptions& options) {
  refuse_pickles(bytes, where);
  if (starts_with(bytes, "\x93NUMPY")) return read_npy(bytes, where, options);
  if (bytes.size() > 8 && static_cast<char>(bytes[8]) == '{' && static_cast<char>(bytes[7]) == '\0') {
    const Container c = parse_container(bytes, where);
    const std::string* format = c.fact("format");
    return format != nullptr && *format == kFormat ? read_own(c, where)
                                                   : read_engine_container(c, where, options);
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) refuse("the file is empty", where);
  if (text[first] == '{' || text[first] == '[') return read_json(text, where, options);
  return read_csv(text, where, options);
}

RoutingStats read_routing(const std::filesystem::path& path, const RoutingReadOptions& options) {
  if (std::filesystem::is_directory(path)) return read_engine_folder(path, options);
  const MappedFile file(path);
  return parse_routing(file.bytes(), path.string(), options);
}

std::string to_routing_file(const RoutingStats& s) {
  Problems problems;
  check_routing(s, "routing statistics", problems);
  problems.throw_if_any(ErrorKind::internal);
  const std::int64_t layers = s.num_layers();
  const std::int64_t experts = s.num_experts;
  const std::int64_t windows = std::ssize(s.windows);
  Metadata metadata = {{"format", std::string(kFormat)},
                       {"version", fmt::format("{}", kVersion)},
                       {"model", s.model},
                       {"source", s.source},
                       {"num_experts", fmt::format("{}", experts)},
                       {"top_k", fmt::format("{}", s.top_k)},
                       {"num_tokens", fmt::format("{}", s.num_tokens)}};
  std::vector<std::int64_t> window_chosen;
  std::vector<std::int64_t> steps;
  std::vector<std::string> names;
  for (const RoutingWindow& w : s.windows) {
    window_chosen.insert(window_chosen.end(), w.chosen.begin(), w.chosen.end());
    steps.insert(steps.end(), {w.first_step, w.num_steps});
    names.push_back(w.name);
    std::ranges::replace(names.back(), '\n', ' ');
  }
  if (windows > 0) metadata.emplace_back("window_names", join(names, "\n"));
  // The smallest type that holds the ids.
  const bool bytes = experts <= 256 && std::ranges::find(s.choices, -1) == s.choices.end();
  std::vector<std::uint8_t> narrow;
  if (bytes) narrow.assign(s.choices.begin(), s.choices.end());
  const std::vector<std::int64_t> ids = {layers, s.choice_tokens(), s.top_k};

  std::vector<StoredArray> arrays;
  const auto add = [&](StoredArray a) {
    if (!a.bytes.empty()) arrays.push_back(std::move(a));
  };
  add(array_of("chosen", ArrayType::i64, {layers, experts}, s.chosen));
  add(array_of("dropped", ArrayType::i64, {layers, experts}, s.dropped));
  add(array_of("window_chosen", ArrayType::i64, {windows, layers, experts}, window_chosen));
  add(array_of("window_steps", ArrayType::i64, {windows, 2}, steps));
  add(array_of(kSequences, ArrayType::i64, {std::ssize(s.sequence_lengths)}, s.sequence_lengths));
  add(array_of("layers", ArrayType::i32, {layers}, s.layers));
  add(array_of(packed_name("within"), ArrayType::i64, {layers, experts, experts}, s.within));
  add(array_of(packed_name("across"), ArrayType::i64, {layers - 1, experts, experts}, s.across));
  add(bytes ? array_of(packed_name("choices"), ArrayType::u8, ids, narrow)
            : array_of(packed_name("choices"), ArrayType::i16, ids, s.choices));
  return to_container(metadata, arrays);
}

void write_routing(const std::filesystem::path& path, const RoutingStats& stats) {
  write_atomically(path, to_routing_file(stats));
}

}  // namespace tessera::trace
