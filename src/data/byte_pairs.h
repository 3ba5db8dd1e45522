// Byte-pair encoding of single words: begin with one token a byte, then merge the neighbours whose merge
// stands first in the list, the leftmost of equals, until no merge is left.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/bpe_spec.h"

namespace tessera::data {

// Immutable; encode may be called from many threads at once, each with a Scratch of its own.
class BytePairs {
 public:
  struct Symbol {
    std::int32_t id = 0;  // -1: merged into the one before it
    std::int32_t before = 0;
    std::int32_t after = 0;
  };
  struct Candidate {  // the merge of the symbol at `left` with the one after it
    std::int32_t rank = 0;
    std::int32_t left = 0;
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::vector<std::int32_t> ranks;
  };

  // `bytes_of` has the bytes of every token by id, empty for those that no text gives. Throws Error{config}
  // when one of the 256 bytes is no token.
  BytePairs(const BpeSpec& spec, const std::vector<std::string>& bytes_of);

  // Appends the tokens of a word of up to 2^31 - 1 bytes.
  void encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const;

 private:
  struct Slot {
    std::int64_t pair = -1;  // left * 2^32 + right
    std::int32_t rank = 0;
  };
  [[nodiscard]] std::int32_t rank_of(std::int32_t left, std::int32_t right) const;
  void insert(Slot slot);
  void encode_short(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const;
  void encode_long(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const;

  std::vector<std::int32_t> byte_id_;                    // 256
  std::vector<Slot> slots_;                              // open addressing; a power of two, at most half full
  std::vector<std::int32_t> results_;                    // by rank
  std::unordered_map<std::string, std::int32_t> whole_;  // of whole_words_first only
};

}  // namespace tessera::data
