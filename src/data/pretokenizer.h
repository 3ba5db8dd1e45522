// From text to the words within which byte pairs are merged: the steps of a tokenizer.json, one after the
// other, each on every piece of the step before (so a look-ahead sees no further than its piece).
//
//   const Pretokenizer words({{.kind = PreStep::Kind::regex, .pattern = R"( ?\p{L}+)"}});
//   Pretokenizer::Scratch scratch;
//   words.split("two words!", scratch, [](std::string_view w) { ... });  // "two", " words", "!"
#pragma once
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/bpe_spec.h"
#include "data/split_pattern.h"

namespace tessera::data {

// Immutable; split may be called from many threads at once, each with a Scratch of its own.
class Pretokenizer {
 public:
  struct Scratch {
    SplitPattern::Scratch pattern;
    std::deque<std::string> made;  // pieces that are no part of the text: words point into them
  };
  using Sink = std::function<void(std::string_view word)>;

  explicit Pretokenizer(const std::vector<PreStep>& steps);
  // Calls `sink` with the words in order, none empty. They point into `text` or into `scratch`.
  // REQUIRES: `text` is UTF-8.
  void split(std::string_view text, Scratch& scratch, const Sink& sink) const { run(text, 0, scratch, sink); }

 private:
  struct Step {
    PreStep::Kind kind;
    SplitBehavior behavior;
    bool invert;
    std::optional<SplitPattern> pattern;
  };
  void run(std::string_view piece, std::size_t step_index, Scratch& scratch, const Sink& sink) const;
  void run_isolated(std::string_view piece, std::size_t step_index, Scratch& scratch, const Sink& sink) const;
  std::vector<Step> steps_;
};

// The pieces of a text whose matches lie at `matches`, as SplitBehavior says; for a test of its own.
[[nodiscard]] std::vector<std::string_view> cut(std::string_view text,
                                                const std::vector<SplitPattern::Range>& matches,
                                                SplitBehavior behavior, bool invert);

}  // namespace tessera::data
