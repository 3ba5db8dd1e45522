#include "ckpt/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"

namespace tessera::ckpt {

void Origin::refuse(std::string what) const {
  throw Error(ErrorKind::io, std::move(what), where, mend);
}

const Json* Json::find(std::string_view key) const {
  const auto at = std::find(keys.begin(), keys.end(), key);
  return at == keys.end() ? nullptr : &items[static_cast<std::size_t>(at - keys.begin())];
}

namespace {

constexpr std::size_t kMaxDepth = 16;

// Events, because a finished tree of the library has lost duplicated keys.
class Handler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Handler(const Origin& origin) : origin_(origin) {}

  bool null() override { return put({}); }
  bool boolean(bool /*v*/) override { return put({.kind = Json::Kind::boolean}); }
  bool number_integer(number_integer_t v) override {
    return put({.kind = Json::Kind::integer, .integer = v});
  }
  bool number_unsigned(number_unsigned_t v) override {
    if (v > static_cast<number_unsigned_t>(std::numeric_limits<std::int64_t>::max()))
      return put({.kind = Json::Kind::number});
    return put({.kind = Json::Kind::integer, .integer = static_cast<std::int64_t>(v)});
  }
  bool number_float(number_float_t /*v*/, const string_t& /*text*/) override {
    return put({.kind = Json::Kind::number});
  }
  bool string(string_t& v) override { return put({.kind = Json::Kind::string, .text = std::move(v)}); }
  bool binary(binary_t& /*v*/) override { return false; }
  bool start_object(std::size_t /*n*/) override { return begin(Json::Kind::map); }
  bool start_array(std::size_t /*n*/) override { return begin(Json::Kind::list); }
  bool key(string_t& v) override {
    open_.back().keys.push_back(std::move(v));
    return true;
  }
  bool end_object() override {
    std::vector<std::string_view> sorted(open_.back().keys.begin(), open_.back().keys.end());
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) origin_.refuse(fmt::format("the key \"{}\" is given twice", *twice));
    return end();
  }
  bool end_array() override { return end(); }
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*e*/) override {
    origin_.refuse(fmt::format("not valid JSON at byte {}", position));
  }

  [[nodiscard]] Json take() { return std::move(root_); }

 private:
  bool put(Json v) {
    if (++values_ > kMaxJsonValues)
      origin_.refuse(fmt::format("holds more than {} JSON values", kMaxJsonValues));
    if (open_.empty()) {
      root_ = std::move(v);
    } else {
      open_.back().items.push_back(std::move(v));
    }
    return true;
  }
  bool begin(Json::Kind kind) {
    if (open_.size() >= kMaxDepth)
      origin_.refuse(fmt::format("JSON nested deeper than {} levels", kMaxDepth));
    open_.push_back({.kind = kind});
    return true;
  }
  bool end() {
    Json done = std::move(open_.back());
    open_.pop_back();
    return put(std::move(done));
  }

  const Origin& origin_;
  Json root_;
  std::vector<Json> open_;
  std::int64_t values_ = 0;
};

}  // namespace

Json parse_json(std::string_view text, const Origin& origin) {
  Handler handler(origin);
  nlohmann::json::sax_parse(text.begin(), text.end(), &handler);
  return handler.take();
}

const Json& member(const Json& map, std::string_view key, const Origin& origin) {
  const Json* found = map.find(key);
  if (found == nullptr) origin.refuse(fmt::format("lacks the key \"{}\"", key));
  return *found;
}

void require_map(const Json& value, std::string_view what, const Origin& origin) {
  if (value.kind != Json::Kind::map) origin.refuse(fmt::format("{} is not a JSON object", what));
}

void require_list(const Json& value, std::string_view what, const Origin& origin) {
  if (value.kind != Json::Kind::list) origin.refuse(fmt::format("{} is not a JSON list", what));
}

const std::string& string_of(const Json& value, std::string_view what, const Origin& origin) {
  if (value.kind != Json::Kind::string) origin.refuse(fmt::format("{} is not a string", what));
  return value.text;
}

std::int64_t integer_of(const Json& value, std::string_view what, const Origin& origin) {
  if (value.kind != Json::Kind::integer || value.integer < 0)
    origin.refuse(fmt::format("{} is not an integer of 0 or more", what));
  return value.integer;
}

std::vector<std::int64_t> integers_of(const Json& value, std::string_view what, const Origin& origin) {
  require_list(value, what, origin);
  std::vector<std::int64_t> list;
  list.reserve(value.items.size());
  for (const Json& item : value.items) list.push_back(integer_of(item, what, origin));
  return list;
}

std::string json_quoted(std::string_view text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorKind::config, "a text that goes into a checkpoint is not UTF-8",
                std::string(text.substr(0, 40)), "save the job file and config.json as UTF-8");
  }
}

}  // namespace tessera::ckpt
