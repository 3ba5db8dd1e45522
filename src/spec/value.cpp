#include "spec/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/text.h"

namespace tessera::spec {

const Value* Value::find(std::string_view key) const {
  const auto at =
      std::find_if(members.begin(), members.end(), [&](const Member& m) { return m.first == key; });
  return at == members.end() ? nullptr : &at->second;
}
Value* Value::find(std::string_view key) {
  const auto at =
      std::find_if(members.begin(), members.end(), [&](const Member& m) { return m.first == key; });
  return at == members.end() ? nullptr : &at->second;
}
void Value::set(std::string_view key, Value value) {
  if (Value* old = find(key)) {
    *old = std::move(value);
  } else {
    members.emplace_back(std::string(key), std::move(value));
  }
}

namespace {
Value make(Value::Kind kind, std::string text) {
  Value v;
  v.kind = kind;
  v.text = std::move(text);
  return v;
}
}  // namespace

Value scalar(bool v) {
  return make(Value::Kind::boolean, v ? "true" : "false");
}
Value scalar(std::int64_t v) {
  return make(Value::Kind::integer, fmt::format("{}", v));
}
Value scalar(std::uint64_t v) {
  return make(Value::Kind::integer, fmt::format("{}", v));
}
Value scalar(double v) {
  std::string text = fmt::format("{}", v);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return make(Value::Kind::number, std::move(text));
}
Value scalar(std::string_view v) {
  return make(Value::Kind::string, std::string(v));
}
Value map_value() {
  return make(Value::Kind::map, "");
}

std::string Place::child(std::string_view key) const {
  return path.empty() ? std::string(key) : fmt::format("{}.{}", path, key);
}
std::string Place::where(std::string_view key, const Value* value) const {
  if (value != nullptr && !value->origin.empty()) return value->origin;
  const std::string full = child(key);
  const std::string head =
      value != nullptr && value->line > 0 ? fmt::format("{}:{}", file, value->line) : file;
  return full.empty() ? head : fmt::format("{}: {}", head, full);
}

const Value* MapReader::take(std::string_view key) {
  known_.emplace_back(key);
  return map_.find(key);
}
void MapReader::know(std::span<const std::string> keys) {
  known_.insert(known_.end(), keys.begin(), keys.end());
}
void MapReader::problem(std::string_view key, std::string what, std::string mend) {
  faulty_.insert(place_.child(key));
  problems_.add(std::move(what), place_.where(key, map_.find(key)), std::move(mend));
}
void MapReader::missing(std::string_view key) {
  problem(key, fmt::format("{} is missing", place_.child(key)), fmt::format("add {}", key));
}

void MapReader::refuse_unknown() {
  for (const auto& [key, value] : map_.members) {
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    const std::string near = nearest(key, known_);
    problem(key, fmt::format("unknown key \"{}\"", key),
            near.empty() ? fmt::format("remove it; known keys: {}", join(known_, ", "))
                         : fmt::format("did you mean {}?", place_.child(near)));
  }
}

namespace {

std::string shown(const Value& v) {
  switch (v.kind) {
    case Value::Kind::null:
      return "null";
    case Value::Kind::boolean:
    case Value::Kind::integer:
    case Value::Kind::number:
      return v.text;
    case Value::Kind::string:
      return fmt::format("\"{}\"", v.text);
    case Value::Kind::list:
      return "a list";
    case Value::Kind::map:
      return "a map";
  }
  return "?";
}

std::string_view digits(const Value& v) {
  std::string_view text = v.text;
  if (text.starts_with('+')) text.remove_prefix(1);
  return text;
}

}  // namespace

template <class T>
void MapReader::integer(std::string_view key, const Value& v, T& out) {
  T parsed{};
  const std::string_view text = digits(v);
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (v.kind == Value::Kind::integer && code == std::errc{} && end == text.data() + text.size()) {
    out = parsed;
    return;
  }
  if (v.kind == Value::Kind::integer) {
    problem(key, fmt::format("{}={} is out of range", key, v.text),
            fmt::format("use a whole number from {} to {}", std::numeric_limits<T>::min(),
                        std::numeric_limits<T>::max()));
  } else {
    problem(key, fmt::format("{}={} is not a whole number", key, shown(v)),
            fmt::format("write a whole number, for example {}: 4", key));
  }
}

void MapReader::convert(std::string_view key, const Value& v, std::int32_t& out) {
  integer(key, v, out);
}
void MapReader::convert(std::string_view key, const Value& v, std::int64_t& out) {
  integer(key, v, out);
}
void MapReader::convert(std::string_view key, const Value& v, std::uint64_t& out) {
  integer(key, v, out);
}

void MapReader::convert(std::string_view key, const Value& v, bool& out) {
  if (v.kind == Value::Kind::boolean) {
    out = v.text == "true";
  } else {
    problem(key, fmt::format("{}={} is not a boolean", key, shown(v)), "use true or false");
  }
}

void MapReader::convert(std::string_view key, const Value& v, double& out) {
  double parsed = 0.0;
  const std::string_view text = digits(v);
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  const bool numeric = v.kind == Value::Kind::integer || v.kind == Value::Kind::number;
  if (numeric && code == std::errc{} && end == text.data() + text.size() && std::isfinite(parsed)) {
    out = parsed;
  } else if (numeric) {
    problem(key, fmt::format("{}={} is out of range", key, v.text), "use a finite number");
  } else {
    problem(key, fmt::format("{}={} is not a number", key, shown(v)),
            fmt::format("write a number, for example {}: 1.0e-3", key));
  }
}

void MapReader::convert(std::string_view key, const Value& v, std::string& out) {
  if (v.kind == Value::Kind::string) {
    out = v.text;
  } else if (v.kind == Value::Kind::list || v.kind == Value::Kind::map) {
    problem(key, fmt::format("{} is {}, not a word", key, shown(v)), "write one word or a quoted text");
  } else {
    problem(key, fmt::format("{}={} is not a text", key, shown(v)), fmt::format("quote it: \"{}\"", v.text));
  }
}

template <class T>
void MapReader::list(std::string_view key, const Value& v, std::string_view example, std::vector<T>& out) {
  if (v.kind != Value::Kind::list) {
    problem(key, fmt::format("{}={} is not a list", key, shown(v)),
            fmt::format("write a list, {}: {}", key, example));
    return;
  }
  std::vector<T> all;
  for (const Value& item : v.items) {
    T one{};
    convert(key, item, one);
    all.push_back(std::move(one));
  }
  out = std::move(all);
}

void MapReader::convert(std::string_view key, const Value& v, std::vector<std::int32_t>& out) {
  list(key, v, "[2, 1]", out);
}
void MapReader::convert(std::string_view key, const Value& v, std::vector<std::string>& out) {
  list(key, v, "[layernorm, moe_act]", out);
}

}  // namespace tessera::spec
