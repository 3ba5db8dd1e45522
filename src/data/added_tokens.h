// Finds added tokens in a text: at the first place where one begins, the longest one.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "data/bpe_spec.h"
#include "data/split_pattern.h"

namespace tessera::data {

// Immutable; split may be called from many threads at once, each with a Scratch of its own.
class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);
  [[nodiscard]] bool empty() const { return tokens_.empty(); }

  // Calls `sink` with the parts of `text` in order: text that is no added token (id -1, never empty) and the
  // tokens with the white space that they take along. REQUIRES: `text` is UTF-8.
  using Sink = std::function<void(std::string_view part, std::int32_t id)>;
  void split(std::string_view text, SplitPattern::Scratch& scratch, const Sink& sink) const;

 private:
  [[nodiscard]] const AddedToken* longest_at(std::string_view text) const;
  [[nodiscard]] bool stands_alone(std::string_view text, SplitPattern::Range found,
                                  SplitPattern::Scratch& scratch) const;
  [[nodiscard]] SplitPattern::Range widen(std::string_view text, SplitPattern::Range found,
                                          const AddedToken& token, SplitPattern::Scratch& scratch) const;
  std::vector<AddedToken> tokens_;  // by content
  std::array<bool, 256> begins_{};  // by the first byte of a content
  SplitPattern word_;
  SplitPattern space_;
};

}  // namespace tessera::data
