// Published vocabularies, which are not part of the sources: `./dev setup` fetches them, where npm is there.
#pragma once
#include <filesystem>
#include <optional>
#include <string>

namespace tessera::data::test {

// The folder of one, or none.
inline std::optional<std::filesystem::path> vocabulary(const std::string& name) {
  const auto folder = std::filesystem::path(TESSERA_SOURCE_DIR) / "build-vocabularies" / name;
  if (!std::filesystem::exists(folder)) return std::nullopt;
  return folder;
}

}  // namespace tessera::data::test
