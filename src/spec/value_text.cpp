// The readers and writers of Value: JSON by nlohmann's SAX interface, YAML by yaml-cpp's events. Events,
// because a finished tree of either library has lost duplicated keys, and YAML aliases can make it
// exponentially large.
#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/text.h"
#include "spec/value.h"

namespace tessera::spec {

namespace {

using Json = nlohmann::ordered_json;

// Grows one tree from begin/end/scalar events; both handlers drive it.
class TreeBuilder {
 public:
  explicit TreeBuilder(std::string_view file) : file_(file) {}

  void key(std::string key, std::int32_t line) {
    if (open_.back().find(key) != nullptr) {
      fail(fmt::format("key \"{}\" is given twice", key), line, "keep one of them");
    }
    keys_.back() = std::move(key);
    key_lines_.back() = line;
    has_key_.back() = true;
  }
  void begin(Value::Kind kind, std::int32_t line) {
    if (std::ssize(open_) >= kMaxDepth) {
      fail(fmt::format("nested deeper than {} levels", kMaxDepth), line, "flatten it");
    }
    Value v;
    v.kind = kind;
    v.line = line;
    open_.push_back(std::move(v));
    keys_.emplace_back();
    key_lines_.push_back(0);
    has_key_.push_back(false);
  }
  void end() {
    Value done = std::move(open_.back());
    open_.pop_back();
    keys_.pop_back();
    key_lines_.pop_back();
    has_key_.pop_back();
    put(std::move(done));
  }
  void put(Value v) {
    if (open_.empty()) {
      root_ = std::move(v);
    } else if (open_.back().kind == Value::Kind::list) {
      open_.back().items.push_back(std::move(v));
    } else {
      if (key_lines_.back() > 0) v.line = key_lines_.back();
      has_key_.back() = false;
      open_.back().members.emplace_back(std::move(keys_.back()), std::move(v));
    }
  }
  [[nodiscard]] bool expects_key() const {
    return !open_.empty() && open_.back().kind == Value::Kind::map && !has_key_.back();
  }
  [[noreturn]] void fail(std::string what, std::int32_t line, std::string mend) const {
    throw Error(ErrorKind::config, std::move(what), line > 0 ? fmt::format("{}:{}", file_, line) : file_,
                std::move(mend));
  }
  [[nodiscard]] Value take() { return std::move(root_); }

 private:
  std::string file_;
  Value root_;
  std::vector<Value> open_;
  std::vector<std::string> keys_;
  std::vector<std::int32_t> key_lines_;
  std::vector<bool> has_key_;
};

Value plain(Value::Kind kind, std::string text) {
  Value v;
  v.kind = kind;
  v.text = std::move(text);
  return v;
}

class JsonHandler final : public nlohmann::json_sax<Json> {
 public:
  explicit JsonHandler(std::string_view file) : tree(file), file_(file) {}
  bool null() override { return put(Value{}); }
  bool boolean(bool v) override { return put(scalar(v)); }
  bool number_integer(number_integer_t v) override { return put(scalar(std::int64_t{v})); }
  bool number_unsigned(number_unsigned_t v) override { return put(scalar(std::uint64_t{v})); }
  bool number_float(number_float_t /*v*/, const string_t& text) override {
    return put(plain(Value::Kind::number, text));
  }
  bool string(string_t& v) override { return put(scalar(std::string_view(v))); }
  bool binary(binary_t& /*v*/) override { return false; }
  bool start_object(std::size_t /*n*/) override { return begin(Value::Kind::map); }
  bool start_array(std::size_t /*n*/) override { return begin(Value::Kind::list); }
  bool end_object() override { return end(); }
  bool end_array() override { return end(); }
  bool key(string_t& v) override {
    tree.key(v, 0);
    return true;
  }
  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception& /*e*/) override {
    const std::string near = token.size() > 40 ? token.substr(token.size() - 40) : token;
    throw Error(ErrorKind::config, fmt::format("not valid JSON at byte {}, near \"{}\"", position, near),
                file_, "correct the syntax there; JSON has no comments and no trailing commas");
  }

  TreeBuilder tree;

 private:
  bool put(Value v) {
    tree.put(std::move(v));
    return true;
  }
  bool begin(Value::Kind kind) {
    tree.begin(kind, 0);
    return true;
  }
  bool end() {
    tree.end();
    return true;
  }
  std::string file_;
};

bool is_integer(std::string_view text) {
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

bool is_number(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const std::string_view unsigned_part = text.starts_with('-') ? text.substr(1) : text;
  // from_chars also takes "inf" and "nan", which are words here.
  if (unsigned_part.empty() || unsigned_part.find_first_of("0123456789.") != 0) return false;
  double value = 0.0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return end == text.data() + text.size() && code != std::errc::invalid_argument;
}

// YAML's core schema for a plain (unquoted) scalar.
Value resolve(const std::string& text) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") return Value{};
  if (text == "true" || text == "false") return scalar(text == "true");
  if (is_integer(text)) return plain(Value::Kind::integer, text);
  if (is_number(text)) return plain(Value::Kind::number, text);
  return scalar(std::string_view(text));
}

class YamlHandler final : public YAML::EventHandler {
 public:
  explicit YamlHandler(std::string_view file) : tree(file) {}
  void OnDocumentStart(const YAML::Mark& /*mark*/) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t /*anchor*/) override { put(mark, Value{}); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t /*anchor*/) override {
    tree.fail("aliases (*name) are not supported", line(mark), "write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t /*anchor*/,
                const std::string& value) override {
    if (tree.expects_key()) {
      tree.key(value, line(mark));
    } else {
      put(mark, tag == "?" ? resolve(value) : scalar(std::string_view(value)));
    }
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t /*anchor*/,
                       YAML::EmitterStyle::value /*style*/) override {
    begin(mark, Value::Kind::list);
  }
  void OnSequenceEnd() override { tree.end(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& /*tag*/, YAML::anchor_t /*anchor*/,
                  YAML::EmitterStyle::value /*style*/) override {
    begin(mark, Value::Kind::map);
  }
  void OnMapEnd() override { tree.end(); }

  TreeBuilder tree;

 private:
  static std::int32_t line(const YAML::Mark& mark) { return mark.line + 1; }
  void check_value(const YAML::Mark& mark) {
    if (tree.expects_key()) tree.fail("a key is not a plain word", line(mark), "write keys as in steps: 50");
  }
  void put(const YAML::Mark& mark, Value v) {
    check_value(mark);
    v.line = line(mark);
    tree.put(std::move(v));
  }
  void begin(const YAML::Mark& mark, Value::Kind kind) {
    check_value(mark);
    tree.begin(kind, line(mark));
  }
};

Json json_of(const Value& v) {
  switch (v.kind) {
    case Value::Kind::null:
      return nullptr;
    case Value::Kind::boolean:
      return v.text == "true";
    case Value::Kind::integer:
    case Value::Kind::number:
      return Json::parse(v.text);
    case Value::Kind::string:
      return v.text;
    case Value::Kind::list: {
      Json list = Json::array();
      for (const Value& item : v.items) list.push_back(json_of(item));
      return list;
    }
    case Value::Kind::map: {
      Json map = Json::object();
      for (const auto& [key, member] : v.members) map[key] = json_of(member);
      return map;
    }
  }
  return nullptr;
}

std::string yaml_quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string yaml_inline(const Value& v) {
  switch (v.kind) {
    case Value::Kind::null:
      return "null";
    case Value::Kind::boolean:
    case Value::Kind::integer:
    case Value::Kind::number:
      return v.text;
    case Value::Kind::string:
      return yaml_quoted(v.text);
    case Value::Kind::list: {
      std::vector<std::string> parts;
      for (const Value& item : v.items) parts.push_back(yaml_inline(item));
      return "[" + join(parts, ", ") + "]";
    }
    case Value::Kind::map: {
      std::vector<std::string> parts;
      for (const auto& [key, member] : v.members) parts.push_back(key + ": " + yaml_inline(member));
      return "{" + join(parts, ", ") + "}";
    }
  }
  return "null";
}

void yaml_block(const Value& map, const std::string& indent, std::string& out) {
  for (const auto& [key, member] : map.members) {
    if (member.kind == Value::Kind::map && !member.members.empty()) {
      out += fmt::format("{}{}:\n", indent, key);
      yaml_block(member, indent + "  ", out);
    } else {
      out += fmt::format("{}{}: {}\n", indent, key, yaml_inline(member));
    }
  }
}

}  // namespace

Value parse_json(std::string_view text, std::string_view file) {
  JsonHandler handler(file);
  Json::sax_parse(text.begin(), text.end(), &handler);
  return handler.tree.take();
}

Value parse_yaml(std::string_view text, std::string_view file) {
  YamlHandler handler(file);
  try {
    std::istringstream stream{std::string(text)};
    YAML::Parser parser(stream);
    if (parser.HandleNextDocument(handler)) {
      Value first = handler.tree.take();
      YamlHandler second(file);
      if (parser.HandleNextDocument(second)) {
        handler.tree.fail("more than one YAML document", 0,
                          "keep one document and no --- line between parts");
      }
      return first;
    }
  } catch (const YAML::Exception& e) {
    throw Error(ErrorKind::config, fmt::format("not valid YAML: {} (column {})", e.msg, e.mark.column + 1),
                fmt::format("{}:{}", file, e.mark.line + 1), "correct the syntax there");
  }
  return Value{};
}

std::string to_json(const Value& value) {
  return json_of(value).dump(2) + "\n";
}

std::string to_yaml(const Value& value) {
  std::string out;
  yaml_block(value, "", out);
  return out;
}

}  // namespace tessera::spec
