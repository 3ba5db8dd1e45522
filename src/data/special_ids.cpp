// bos and eos, which stand in the configuration files beside a tokenizer.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "data/bpe_files.h"

namespace tessera::data {

namespace fs = std::filesystem;

namespace {
using Json = nlohmann::json;

// An empty object where there is no such file.
Json object_of(const fs::path& path) {
  if (!fs::exists(path)) return Json::object();
  Json json = Json::parse(read_text(path), nullptr, /*allow_exceptions=*/false);
  if (json.is_object()) return json;
  throw Error(ErrorKind::config, "not a JSON object", path.string(),
              "get the file again from its source, or take it away");
}

std::int32_t id_named(const BpeSpec& spec, const std::string& content, const std::string& where) {
  const auto added = std::ranges::find(spec.added, content, &AddedToken::content);
  if (added != spec.added.end()) return added->id;
  const auto token = std::ranges::find(spec.tokens, content);
  if (token != spec.tokens.end() && !content.empty()) {
    return static_cast<std::int32_t>(token - spec.tokens.begin());
  }
  throw Error(ErrorKind::config, fmt::format("'{}' is no token of the tokenizer", content), where,
              "use the tokenizer_config.json that belongs to the tokenizer, or take the file away");
}

std::optional<std::int32_t> special_id(const fs::path& folder, const BpeSpec& spec, const std::string& key) {
  const fs::path path = folder / "tokenizer_config.json";
  const Json tokenizer = object_of(path);
  if (tokenizer.contains(key)) {
    const Json& token = tokenizer[key];  // "<s>", {"content": "<s>", ...}, or null: there is none
    const Json& content = token.is_object() && token.contains("content") ? token["content"] : token;
    if (!content.is_string()) return std::nullopt;
    return id_named(spec, content.get<std::string>(), fmt::format("{}: {}", path.string(), key));
  }
  const Json config = object_of(folder / "config.json");
  const auto id = config.find(key + "_id");
  if (id == config.end() || !id->is_number_integer()) return std::nullopt;
  const auto value = id->get<std::int64_t>();
  if (value < 0 || value >= static_cast<std::int64_t>(spec.tokens.size())) return std::nullopt;
  return static_cast<std::int32_t>(value);
}
}  // namespace

void read_special_ids(const fs::path& folder, BpeSpec& spec) {
  if (const auto id = special_id(folder, spec, "bos_token")) spec.bos_id = id;
  if (const auto id = special_id(folder, spec, "eos_token")) spec.eos_id = id;
}

}  // namespace tessera::data
