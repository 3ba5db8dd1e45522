// Regular expressions of tokenizer.json, with the meaning that they have there (Oniguruma with Unicode, as
// the published encoders use it), run by PCRE2. What the two read differently is rewritten (\s, \p{Han}) or
// refused by name; docs/formats/tokenizer.md lists both.
#pragma once
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace tessera::data {

// The pattern in PCRE2's words. Throws Error{config} naming the first part that is not understood.
[[nodiscard]] std::string to_pcre2(std::string_view pattern, const std::string& where);

// Immutable; find may be called from many threads at once, each with a Scratch of its own.
class SplitPattern {
 public:
  class Scratch {
   public:
    Scratch();
    Scratch(Scratch&&) noexcept;
    ~Scratch();

   private:
    friend class SplitPattern;
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };
  struct Range {
    std::size_t begin = 0;
    std::size_t end = 0;
    friend bool operator==(const Range&, const Range&) = default;
  };

  // Both throw Error{config} with `where` when the pattern is wrong or can match nothing at all ("x*").
  [[nodiscard]] static SplitPattern regex(std::string_view pattern, std::string where);
  [[nodiscard]] static SplitPattern literal(std::string_view text, std::string where);
  SplitPattern(SplitPattern&&) noexcept;
  SplitPattern& operator=(SplitPattern&&) noexcept;
  ~SplitPattern();

  // The first match at or after `from`; never empty. REQUIRES: `text` is UTF-8. Throws Error{config} when
  // the pattern needs more than ten million steps for one match.
  [[nodiscard]] std::optional<Range> find(std::string_view text, std::size_t from, Scratch& scratch) const;

 private:
  struct Impl;
  explicit SplitPattern(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace tessera::data
