// How GPT-2 splits text into words: contractions, letters, digits and signs with a space before them, runs of
// white space less the last before a word. Published with GPT-2; ByteLevel with use_regex means it.
#pragma once
#include <string_view>

namespace tessera::data {

inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace tessera::data
