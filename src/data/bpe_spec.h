// A byte-level BPE tokenizer as its files describe it, checked for form and not yet made ready for use.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace tessera::data {

// Tokens `left` and `right`, side by side, become `result`. Earlier merges of the list come first.
struct Merge {
  std::int32_t left = 0;
  std::int32_t right = 0;
  std::int32_t result = 0;
  friend bool operator==(const Merge&, const Merge&) = default;
};

// A token that is looked for in the text before anything else.
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;   // looked for in the normalised text, not in the text as given
  bool single_word = false;  // not when a word character stands before or after it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
  friend bool operator==(const AddedToken&, const AddedToken&) = default;
};

// What becomes of the matches of a split; the text between matches is always pieces.
enum class SplitBehavior : std::uint8_t {
  isolated,  // a piece each
  removed,   // dropped
  merged_with_previous,
  merged_with_next,
  contiguous,  // matches that touch are one piece
};

// One step on the way from text to words, done to every piece that the step before made.
struct PreStep {
  enum class Kind : std::uint8_t {
    regex,         // split at the matches of `pattern`
    literal,       // split at the string `pattern`
    prefix_space,  // put a space before a piece that does not begin with one
  };
  Kind kind = Kind::regex;
  std::string pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // the text between matches takes the part of the matches
  std::string where;    // for messages
};

enum class Normalization : std::uint8_t { none, nfc };

struct BpeSpec {
  std::string name;  // for messages: the path
  // By id, spelled in the byte alphabet (byte_alphabet.h); empty where no token has the id.
  std::vector<std::string> tokens;
  std::vector<Merge> merges;       // in order of their rank
  std::vector<AddedToken> added;   // each has its content in `tokens` too, spelled as it stands
  bool whole_words_first = false;  // a word that is a token is that token, whatever the merges say
  Normalization normalization = Normalization::none;
  std::vector<PreStep> steps;
  std::optional<std::int32_t> bos_id;
  std::optional<std::int32_t> eos_id;
};

}  // namespace tessera::data
