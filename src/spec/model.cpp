#include "spec/model.h"

#include <fmt/format.h>

#include "base/file.h"
#include "base/text.h"
#include "spec/config_text.h"
#include "spec/internal.h"

namespace tessera::spec {

std::string_view name(Family family) {
  switch (family) {
    case Family::llama:
      return "llama";
    case Family::mixtral:
      return "mixtral";
    case Family::llama4:
      return "llama4";
    case Family::mistral:
      return "mistral";
    case Family::qwen2:
      return "qwen2";
    case Family::qwen3:
      return "qwen3";
    case Family::qwen2_moe:
      return "qwen2_moe";
    case Family::qwen3_moe:
      return "qwen3_moe";
    case Family::deepseek_v2:
      return "deepseek_v2";
    case Family::deepseek_v3:
      return "deepseek_v3";
    case Family::olmoe:
      return "olmoe";
    case Family::gpt_oss:
      return "gpt_oss";
    case Family::gpt2:
      return "gpt2";
    case Family::gpt_neox:
      return "gpt_neox";
    case Family::mpt:
      return "mpt";
    case Family::bloom:
      return "bloom";
    case Family::falcon:
      return "falcon";
  }
  return "unknown";
}

std::string divisor_choices(std::int64_t n) {
  constexpr std::int64_t kLargestTried = 100'000;
  constexpr std::ptrdiff_t kMostShown = 16;
  std::vector<std::string> low;
  std::vector<std::string> high;
  for (std::int64_t d = 1; d <= kLargestTried && d <= n / d; ++d) {
    if (n % d != 0) continue;
    low.push_back(fmt::format("{}", d));
    if (d != n / d) high.insert(high.begin(), fmt::format("{}", n / d));
  }
  low.insert(low.end(), high.begin(), high.end());
  if (std::ssize(low) > kMostShown) {
    low.erase(low.begin() + kMostShown - 1, low.end() - 1);
    low.insert(low.end() - 1, "...");
  }
  return "{" + join(low, ", ") + "}";
}

bool Checker::sound(std::initializer_list<std::string_view> keys) const {
  for (const std::string_view key : keys)
    if (faulty_.contains(key)) return false;
  return true;
}

bool Checker::check(bool good, std::initializer_list<std::string_view> keys, std::string what,
                    std::string mend) {
  if (good || !sound(keys)) return good;
  const std::string_view first = *keys.begin();
  problems_.add(std::move(what), where_(first), std::move(mend));
  if (keys.size() == 1) faulty_.emplace(first);
  return false;
}

void validate(const ModelSpec& m, std::string_view where, Problems& problems) {
  Checker checker([&](std::string_view key) { return fmt::format("{}: {}", where, key); }, {}, problems);
  validate_model(m, checker);
}

ModelSpec parse_hf_config(std::string_view json, std::string_view where, Problems& problems) {
  try {
    const Value root = parse_json(json, where);
    if (root.kind != Value::Kind::map) {
      problems.add("the text is not one JSON object", std::string(where),
                   "give a config.json of Hugging Face");
      return {};
    }
    return read_model(root, {.file = std::string(where), .path = ""}, {}, problems);
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
    return {};
  }
}

ModelSpec read_hf_config(const std::filesystem::path& path) {
  const std::filesystem::path file = std::filesystem::is_directory(path) ? path / "config.json" : path;
  Problems problems;
  ModelSpec m;
  try {
    m = parse_hf_config(read_text(file), file.string(), problems);
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
  }
  problems.throw_if_any();
  return m;
}

std::string to_hf_config(const ModelSpec& m) {
  return to_json(model_value(m));
}

std::string to_hf_config(const ModelSpec& m, std::string_view beside) {
  Value v = model_value(m);
  if (!beside.empty()) {
    const Value other = parse_json(beside, "config.json");
    for (const std::string_view key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
      if (const Value* id = other.find(key); id != nullptr) v.set(key, *id);
    }
  }
  return to_json(v);
}

}  // namespace tessera::spec
