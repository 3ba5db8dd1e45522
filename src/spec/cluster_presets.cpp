#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <span>
#include <system_error>
#include <utility>

#include "base/text.h"
#include "spec/presets.h"

namespace tessera::spec {

// Made by the build from src/spec/clusters/*.yaml: name -> text, sorted by name.
std::span<const std::pair<std::string_view, std::string_view>> cluster_files();

namespace {

std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const auto& [name, text] : cluster_files()) out.emplace_back(name);
  return out;
}

// "use dgx-h100?; known: ..." for a name that is none of them.
std::string suggestion(std::string_view name) {
  const std::vector<std::string> known = names();
  std::string near = nearest(name, known);
  if (near.empty() && name.size() >= 4) {
    for (const std::string& k : known)
      if (near.empty() && k.find(name) != std::string::npos) near = k;
  }
  const std::string all = fmt::format("shipped clusters: {}", join(known, ", "));
  return near.empty() ? all : fmt::format("did you mean {}? {}", near, all);
}

// The comment in the first line of the file.
std::string summary(std::string_view text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  return std::string(trim(line.starts_with('#') ? line.substr(1) : std::string_view{}));
}

const std::string_view* find_preset(std::string_view name) {
  for (const auto& file : cluster_files())
    if (file.first == name) return &file.second;
  return nullptr;
}

ClusterSpec parsed_preset(std::string_view name, std::string_view text) {
  Problems problems;
  ClusterSpec c = parse_cluster(text, fmt::format("shipped cluster {}", name), problems);
  problems.throw_if_any(ErrorKind::internal);
  return c;
}

}  // namespace

std::vector<PresetInfo> cluster_presets() {
  std::vector<PresetInfo> out;
  for (const auto& [name, text] : cluster_files())
    out.push_back({.name = std::string(name), .summary = summary(text)});
  return out;
}

ClusterSpec cluster_preset(std::string_view name) {
  const std::string_view* text = find_preset(name);
  if (text == nullptr) {
    throw Error(ErrorKind::config, fmt::format("no shipped cluster is called \"{}\"", name), "cluster",
                suggestion(name));
  }
  return parsed_preset(name, *text);
}

ClusterSpec find_cluster(const std::string& name_or_path) {
  if (const std::string_view* text = find_preset(name_or_path)) return parsed_preset(name_or_path, *text);
  std::error_code none;
  if (std::filesystem::is_regular_file(name_or_path, none)) return read_cluster(name_or_path);
  const bool folder = std::filesystem::is_directory(name_or_path, none);
  throw Error(ErrorKind::config,
              fmt::format("\"{}\" is neither a shipped cluster nor a file{}", name_or_path,
                          folder ? ", but a folder" : ""),
              "cluster",
              fmt::format("give the path of a cluster file (docs/formats/cluster.md) or a name; {}",
                          suggestion(std::filesystem::path(name_or_path).stem().string())));
}

}  // namespace tessera::spec
