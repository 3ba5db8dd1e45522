// From Oniguruma's reading of a pattern to PCRE2's. Only what both read alike is let through.
#include <fmt/format.h>

#include "base/error.h"
#include "data/split_pattern.h"

namespace tessera::data {

namespace {
// Unicode's White_Space; PCRE2's own \s takes U+180E along.
constexpr std::string_view kSpaces = R"(\p{Z}\x{9}-\x{d}\x{85})";

bool is_letter_or_digit(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class Rewriter {
 public:
  Rewriter(std::string_view pattern, const std::string& where) : rest_(pattern), where_(where) {}

  std::string run() {
    while (!rest_.empty()) {
      const char c = rest_.front();
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_character(c);
      } else {
        character(c);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view part, std::string_view why) const {
    throw Error(ErrorKind::config, fmt::format("the pattern has {}, {}", part, why), where_,
                "use a tokenizer with one of the published patterns, or a sentencepiece model of it");
  }
  void copy(std::size_t count) {
    out_ += rest_.substr(0, count);
    rest_.remove_prefix(count);
  }

  void character(char c) {
    if (c == '[') {
      in_class_ = true;
      copy(rest_.starts_with("[^") ? 2 : 1);
      if (rest_.starts_with("]")) refuse("[]", "which regex engines read differently");
    } else if (c == '(') {
      group();
    } else if (c == '^' || c == '$') {
      refuse(fmt::format("'{}'", c), "which regex engines read differently");
    } else if (c == '{') {
      const std::size_t end = rest_.find('}');
      if (end != std::string_view::npos && rest_.substr(end + 1).starts_with("+")) {
        refuse(rest_.substr(0, end + 2), "which regex engines read differently");
      }
      copy(1);
    } else {
      copy(1);
    }
  }

  void group() {
    if (!rest_.starts_with("(?")) {
      if (rest_.starts_with("(*")) refuse("(*", "a verb of one regex engine");
      return copy(1);
    }
    for (const std::string_view known : {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
      if (rest_.starts_with(known)) return copy(known.size());
    }
    refuse(rest_.substr(0, 4), "a group of a kind that is not understood");
  }

  void class_character(char c) {
    if (c == ']') in_class_ = false;
    if (c == '[') refuse("'[' inside a class", "which regex engines read differently");
    if (rest_.starts_with("&&")) refuse("&&", "an intersection of classes");
    copy(1);
  }

  void escape() {
    if (rest_.size() < 2) refuse("a lone backslash", "which escapes nothing");
    const char c = rest_[1];
    if (c == 's' || c == 'S') return white_space(c);
    if (c == 'p' || c == 'P') return property();
    if (c == 'u') return code_point();
    constexpr std::string_view kSame = "dDrntf";
    if (is_letter_or_digit(c) && kSame.find(c) == std::string_view::npos) {
      refuse(rest_.substr(0, 2), "an escape that is not understood");
    }
    copy(2);
  }

  void white_space(char c) {
    if (c == 'S' && in_class_) refuse(R"(\S inside a class)", "which is not understood");
    if (in_class_) {
      out_ += kSpaces;
    } else {
      out_ += fmt::format("[{}{}]", c == 'S' ? "^" : "", kSpaces);
    }
    rest_.remove_prefix(2);
  }

  // One- and two-letter names are general categories and mean the same. Longer ones are scripts, of which
  // PCRE2 by itself takes the wider Script_Extensions.
  void property() {
    if (!rest_.substr(2).starts_with("{")) return copy(rest_.size() > 2 ? 3 : 2);
    const std::size_t end = rest_.find('}');
    if (end == std::string_view::npos) refuse(rest_.substr(0, 2), "a property without an end");
    std::string_view name = rest_.substr(3, end - 3);
    out_ += rest_.substr(0, 3);
    if (name.starts_with("^")) {
      out_ += '^';
      name.remove_prefix(1);
    }
    for (const char c : name) {
      if (!is_letter_or_digit(c) && c != '_') refuse(rest_.substr(0, end + 1), "which is not understood");
    }
    out_ += fmt::format("{}{}}}", name.size() > 2 ? "sc:" : "", name);
    rest_.remove_prefix(end + 1);
  }

  void code_point() {
    const std::string_view digits = rest_.substr(2, 4);
    if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      refuse(rest_.substr(0, 6), "an escape that is not understood");
    }
    out_ += fmt::format("\\x{{{}}}", digits);
    rest_.remove_prefix(6);
  }

  std::string_view rest_;
  const std::string& where_;
  std::string out_;
  bool in_class_ = false;
};
}  // namespace

std::string to_pcre2(std::string_view pattern, const std::string& where) {
  return Rewriter(pattern, where).run();
}

}  // namespace tessera::data
