// A small tokenizer.json of our own: 256 bytes (ids 0 to 255 in ascending order), some merges, a few added
// tokens.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "data/byte_alphabet.h"

namespace tessera::data::test {

using Json = nlohmann::ordered_json;

inline Json byte_level() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
}

inline Json added_token(int id, const std::string& content, bool special) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", special}};
}

// Ids: 256 he, 257 ll, 258 hell, 259 hello, 260 " w", 261 "  ", 262 lo, 263 <end>, 264 <think>, 265 <end>>.
inline Json small_tokenizer() {
  const ByteAlphabet alphabet;
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[alphabet.spelling(static_cast<unsigned char>(byte))] = byte;
  Json merges = Json::array();
  const std::vector<std::pair<std::string, std::string>> pairs = {
      {"h", "e"}, {"l", "l"}, {"he", "ll"}, {"hell", "o"}, {" ", "w"}, {" ", " "}, {"l", "o"}};
  for (const auto& [left, right] : pairs) {
    vocab[alphabet.spell(left + right)] = vocab.size();
    merges.push_back(alphabet.spell(left) + " " + alphabet.spell(right));
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {added_token(263, "<end>", true), added_token(264, "<think>", false),
            added_token(265, "<end>>", true)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level()},
          {"post_processor", nullptr},
          {"decoder", byte_level()},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merges}}}};
}

}  // namespace tessera::data::test
