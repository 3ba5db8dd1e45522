#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <span>
#include <system_error>
#include <utility>

#include "base/text.h"
#include "spec/presets.h"
#include "spec/value.h"

namespace tessera::spec {

// Made by the build from src/spec/models/*.json: name -> text, sorted by name.
std::span<const std::pair<std::string_view, std::string_view>> model_files();

namespace {

std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const auto& [name, text] : model_files()) out.emplace_back(name);
  return out;
}

// "llama3-70b", "Llama 3 70B" and "llama_3_70b" mean llama-3-70b.
std::string letters(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (c == '-' || c == '_' || c == ' ' || c == '.') continue;
    out += c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return out;
}

// The exact name, else the only one that differs in case and separators alone.
const std::pair<std::string_view, std::string_view>* find_file(std::string_view name) {
  const auto files = model_files();
  const auto exact = std::ranges::find_if(files, [&](const auto& f) { return f.first == name; });
  if (exact != files.end()) return &*exact;
  const auto same = [&](const auto& f) { return letters(f.first) == letters(name); };
  if (std::ranges::count_if(files, same) != 1) return nullptr;
  return &*std::ranges::find_if(files, same);
}

std::string suggestion(std::string_view name) {
  const std::vector<std::string> known = names();
  std::string near = nearest(name, known);
  const std::string wanted = letters(name);
  if (near.empty() && wanted.size() >= 4) {
    for (const std::string& k : known)
      if (near.empty() && letters(k).find(wanted) != std::string::npos) near = k;
  }
  const std::string all = fmt::format("shipped models: {}", join(known, ", "));
  return near.empty() ? all : fmt::format("did you mean {}? {}", near, all);
}

ModelSpec parsed_preset(std::string_view name, std::string_view text) {
  Problems problems;
  ModelSpec m = parse_hf_config(text, fmt::format("shipped model {}", name), problems);
  problems.throw_if_any(ErrorKind::internal);
  return m;
}

// "8.03B parameters; meta-llama/Meta-Llama-3-8B"
std::string summary(std::string_view name, std::string_view text) {
  const ModelSpec m = parsed_preset(name, text);
  const Value root = parse_json(text, name);
  const Value* source = root.find("_name_or_path");
  const auto count = [](std::int64_t n) {
    const auto x = static_cast<double>(n);
    if (n >= 1'000'000'000'000) return fmt::format("{:.2f}T", x * 1e-12);
    return n >= 1'000'000'000 ? fmt::format("{:.2f}B", x * 1e-9) : fmt::format("{:.0f}M", x * 1e-6);
  };
  std::string out = fmt::format("{} parameters", count(num_parameters(m)));
  if (m.moe) out += fmt::format(", {} of them active", count(num_active_parameters(m)));
  if (source != nullptr) out += fmt::format("; {}", source->text);
  return out;
}

}  // namespace

std::vector<PresetInfo> model_presets() {
  std::vector<PresetInfo> out;
  for (const auto& [name, text] : model_files())
    out.push_back({.name = std::string(name), .summary = summary(name, text)});
  return out;
}

ModelSpec model_preset(std::string_view name) {
  const auto* file = find_file(name);
  if (file == nullptr) {
    throw Error(ErrorKind::config, fmt::format("no shipped model is called \"{}\"", name), "model",
                suggestion(name));
  }
  return parsed_preset(file->first, file->second);
}

ModelSpec find_model(const std::string& name_or_path) {
  std::error_code none;
  if (std::filesystem::is_regular_file(name_or_path, none)) return read_hf_config(name_or_path);
  if (std::filesystem::is_regular_file(std::filesystem::path(name_or_path) / "config.json", none)) {
    return read_hf_config(name_or_path);
  }
  const auto* file = find_file(name_or_path);
  if (file != nullptr) return parsed_preset(file->first, file->second);
  const bool folder = std::filesystem::is_directory(name_or_path, none);
  throw Error(ErrorKind::config,
              fmt::format("\"{}\" is neither a shipped model nor a config.json{}", name_or_path,
                          folder ? ", and the folder holds none" : ""),
              "model",
              fmt::format("give the path of a config.json, of its folder, or a name; {}",
                          suggestion(std::filesystem::path(name_or_path).filename().string())));
}

}  // namespace tessera::spec
