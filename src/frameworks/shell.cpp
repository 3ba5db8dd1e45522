#include "frameworks/shell.h"

#include <fmt/format.h>

#include <array>
#include <cctype>
#include <charconv>
#include <map>
#include <optional>

#include "base/text.h"

namespace tessera::frameworks {

namespace {

constexpr std::size_t kMostText = 1 << 20;  // characters of one expansion
constexpr std::size_t kMostWords = 1 << 16;
constexpr std::int32_t kDeepest = 32;

bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}
bool is_blank(char c) {
  return c == ' ' || c == '\t';
}

struct Variable {
  std::vector<ShellWord> values;  // one, or those of an array
};

// Integers, + - * / % and parentheses, as in $((...)).
class Arithmetic {
 public:
  explicit Arithmetic(std::string_view text) : text_(text) {}
  std::optional<std::int64_t> value() {
    const auto v = sum(0);
    blanks();
    return at_ == text_.size() ? v : std::nullopt;
  }

 private:
  void blanks() {
    while (at_ < text_.size() && is_blank(text_[at_])) ++at_;
  }
  char next() {
    blanks();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  std::optional<std::int64_t> sum(std::int32_t depth) {
    auto a = product(depth);
    while (a && (next() == '+' || next() == '-')) {
      const char op = text_[at_++];
      const auto b = product(depth);
      std::int64_t out = 0;
      if (!b || (op == '+' ? __builtin_add_overflow(*a, *b, &out) : __builtin_sub_overflow(*a, *b, &out)))
        return std::nullopt;
      a = out;
    }
    return a;
  }
  std::optional<std::int64_t> product(std::int32_t depth) {
    auto a = factor(depth);
    while (a && (next() == '*' || next() == '/' || next() == '%')) {
      const char op = text_[at_++];
      const auto b = factor(depth);
      std::int64_t out = 0;
      if (!b || (op != '*' && *b <= 0)) return std::nullopt;
      if (op == '*') {
        if (__builtin_mul_overflow(*a, *b, &out)) return std::nullopt;
      } else {
        out = op == '/' ? *a / *b : *a % *b;
      }
      a = out;
    }
    return a;
  }
  std::optional<std::int64_t> factor(std::int32_t depth) {
    if (depth > kDeepest) return std::nullopt;
    if (next() == '(') {
      ++at_;
      const auto v = sum(depth + 1);
      if (next() != ')') return std::nullopt;
      ++at_;
      return v;
    }
    std::int64_t out = 0;
    const auto [end, code] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), out);
    if (code != std::errc()) return std::nullopt;
    at_ = static_cast<std::size_t>(end - text_.data());
    return out;
  }
  std::string_view text_;
  std::size_t at_ = 0;
};

class Shell {
 public:
  Shell(std::string_view text, std::string_view file, Problems& problems)
      : text_(text), file_(file), problems_(problems) {}

  ShellScript parse() {
    while (at_ < text_.size()) command();
    return std::move(script_);
  }

 private:
  // Words that are being built: quotes join, unquoted blanks of an expansion part.
  struct Builder {
    std::vector<ShellWord> words;
    bool open = false;
    void begin(std::int32_t line) {
      if (!open) words.push_back({"", line});
      open = true;
    }
  };

  [[nodiscard]] char peek(std::size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  char take() {
    const char c = text_[at_++];
    if (c == '\n') ++line_;
    return c;
  }
  void skip_line() {
    while (at_ < text_.size() && peek() != '\n') take();
  }
  [[nodiscard]] std::string place(std::int32_t line) const { return fmt::format("{}:{}", file_, line); }
  void problem(std::string what, std::int32_t line, std::string mend) {
    if (reported_++ < 5) problems_.add(std::move(what), place(line), std::move(mend));
  }

  // One simple command: up to ; & | newline. Assignments in front of it set variables.
  void command() {
    Builder b;
    while (at_ < text_.size()) {
      const char c = peek();
      if (c == '\n' || c == ';' || c == '&' || c == '|') {
        take();
        break;
      }
      if (is_blank(c)) {
        take();
        b.open = false;
      } else if (c == '\\' && peek(1) == '\n') {
        take(), take();
        b.open = false;
      } else if (c == '\\' && peek(1) == '\r' && peek(2) == '\n') {
        take(), take(), take();
        b.open = false;
      } else if (c == '\r') {
        take();
      } else if (c == '#' && !b.open) {
        skip_line();
      } else if (c == '(' || c == ')') {
        take();
        b.open = false;
      } else if ((c == '<' || c == '>') && !b.open) {
        redirection();
      } else if (!b.open && b.words.empty() && assignment()) {
        continue;
      } else {
        word_part(b);
      }
      if (b.words.size() > 2 * kMostWords) return skip_line();
    }
    finish(std::move(b.words));
  }

  void finish(std::vector<ShellWord> words) {
    while (!words.empty() &&
           (words.front().text == "export" || words.front().text == "then" || words.front().text == "else" ||
            words.front().text == "do" || words.front().text == "{" || words.front().text == "declare" ||
            words.front().text == "local" || words.front().text == "readonly")) {
      const bool sets = words.front().text != "then" && words.front().text != "else" &&
                        words.front().text != "do" && words.front().text != "{";
      words.erase(words.begin());
      if (!sets) continue;
      for (const ShellWord& w : words) {
        const std::size_t equals = w.text.find('=');
        if (equals == std::string::npos || equals == 0) continue;
        set(w.text.substr(0, equals), {{w.text.substr(equals + 1), w.line, w.unresolved}}, false);
      }
      return;
    }
    if (words.empty()) return;
    for (const std::string_view keyword : {"if", "elif", "case", "for", "while", "until"}) {
      if (words.front().text == keyword) script_.branches.push_back(words.front().line);
    }
    script_.commands.push_back({std::move(words)});
  }

  void redirection() {
    // A here-document is skipped whole.
    const bool here = peek() == '<' && peek(1) == '<' && peek(2) != '<';
    while (peek() == '<' || peek() == '>' || peek() == '&' || peek() == '-') take();
    while (is_blank(peek())) take();
    std::string word;
    while (at_ < text_.size() && !is_blank(peek()) && peek() != '\n' && peek() != ';' && peek() != '|')
      word += take();
    if (!here) return;
    std::erase_if(word, [](char c) { return c == '\'' || c == '"' || c == '\\'; });
    skip_line();
    while (at_ < text_.size()) {
      take();  // the end of a line
      const std::size_t begin = at_;
      skip_line();
      if (trim(text_.substr(begin, at_ - begin)) == word) return;
    }
  }

  // NAME=..., NAME+=..., NAME=( ... ).
  bool assignment() {
    std::size_t n = 0;
    while (is_name(peek(n))) ++n;
    const bool append = n > 0 && peek(n) == '+' && peek(n + 1) == '=';
    if (n == 0 || std::isdigit(static_cast<unsigned char>(peek())) != 0 || (!append && peek(n) != '='))
      return false;
    const std::string name(text_.substr(at_, n));
    at_ += n + (append ? 2 : 1);
    const std::int32_t line = line_;
    if (peek() == '(') {
      take();
      set(name, array(line), append);
      return true;
    }
    Builder b;
    b.begin(line);
    splits_ = false;
    while (at_ < text_.size() && !is_blank(peek()) && peek() != '\n' && peek() != ';' && peek() != '&' &&
           peek() != '|' && peek() != '\r' && !(peek() == '\\' && (peek(1) == '\n' || peek(1) == '\r')))
      word_part(b);
    splits_ = true;
    set(name, {std::move(b.words.front())}, append);
    return true;
  }

  std::vector<ShellWord> array(std::int32_t line) {
    Builder b;
    while (at_ < text_.size()) {
      const char c = peek();
      if (c == ')') {
        take();
        return std::move(b.words);
      }
      if (is_blank(c) || c == '\n' || c == '\r' || (c == '\\' && (peek(1) == '\n' || peek(1) == '\r'))) {
        take();
        b.open = false;
      } else if (c == '#' && !b.open) {
        skip_line();
      } else {
        word_part(b);
      }
    }
    problem("the array that begins here does not end", line, "close it with )");
    return std::move(b.words);
  }

  void set(const std::string& name, std::vector<ShellWord> values, bool append) {
    Variable& v = variables_[name];
    if (!append) {
      v.values = std::move(values);
      return;
    }
    std::size_t size = 0;
    for (const ShellWord& w : v.values) size += w.text.size() + 1;
    for (ShellWord& w : values) {
      if (size += w.text.size() + 1; size > kMostText) return;
      v.values.push_back(std::move(w));
    }
  }

  void append(Builder& b, std::string_view text) {
    b.begin(line_);
    if (b.words.back().text.size() + text.size() < kMostText) b.words.back().text += text;
  }

  // One character, quoted part or expansion of a word.
  void word_part(Builder& b) {
    const char c = peek();
    if (c == '\'') {
      const std::int32_t line = line_;
      take();
      append(b, "");
      while (at_ < text_.size() && peek() != '\'') append(b, std::string(1, take()));
      if (at_ >= text_.size()) return problem("the quote ' that begins here does not end", line, "close it");
      take();
    } else if (c == '"') {
      double_quoted(b);
    } else if (c == '$') {
      dollar(b, false);
    } else if (c == '`') {
      backticks(b);
    } else if (c == '\\' && at_ + 1 < text_.size()) {
      take();
      append(b, std::string(1, take()));
    } else {
      append(b, std::string(1, take()));
    }
  }

  void double_quoted(Builder& b) {
    const std::int32_t line = line_;
    take();
    append(b, "");
    while (at_ < text_.size() && peek() != '"') {
      if (peek() == '\\' && (peek(1) == '"' || peek(1) == '\\' || peek(1) == '$' || peek(1) == '`')) {
        take();
        append(b, std::string(1, take()));
      } else if (peek() == '\\' && peek(1) == '\n') {
        take(), take();
      } else if (peek() == '$') {
        dollar(b, true);
      } else if (peek() == '`') {
        backticks(b);
      } else {
        append(b, std::string(1, take()));
      }
    }
    if (at_ >= text_.size()) return problem("the quote \" that begins here does not end", line, "close it");
    take();
  }

  void unresolved(Builder& b, const std::string& text, const std::string& what) {
    append(b, text);
    if (b.words.back().unresolved.empty()) b.words.back().unresolved = what;
  }

  void backticks(Builder& b) {
    take();
    std::string inner;
    while (at_ < text_.size() && peek() != '`') inner += take();
    if (at_ < text_.size()) take();
    unresolved(b, "`" + inner + "`", "`" + inner + "`");
  }

  // Up to the bracket that closes `depth` open ones.
  std::string bracketed(char open, char close, std::int32_t depth) {
    std::string inner;
    while (at_ < text_.size()) {
      if (peek() == open) ++depth;
      if (peek() == close && --depth == 0) break;
      inner += take();
    }
    if (at_ < text_.size()) take();
    return inner;
  }

  void dollar(Builder& b, bool quoted) {
    take();
    if (peek() == '(' && peek(1) == '(') {
      take(), take();
      std::string inner = bracketed('(', ')', 2);
      if (!inner.empty()) inner.pop_back();  // the first of the two brackets at the end
      arithmetic(b, inner);
    } else if (peek() == '(') {
      take();
      const std::string inner = bracketed('(', ')', 1);
      unresolved(b, "$(" + inner + ")", "$(" + inner + ")");
    } else if (peek() == '{') {
      take();
      braces(b, bracketed('{', '}', 1), quoted);
    } else if (is_name(peek())) {
      std::string name;
      const bool digit = std::isdigit(static_cast<unsigned char>(peek())) != 0;
      while (is_name(peek()) && !(digit && !name.empty())) name += take();
      expand(b, name, "", quoted, false);
    } else if (peek() == '@' || peek() == '*' || peek() == '#' || peek() == '?' || peek() == '$') {
      const std::string what = std::string("$") + take();
      unresolved(b, what, what);
    } else {
      append(b, "$");
    }
  }

  void arithmetic(Builder& b, std::string inner) {
    // Names stand for their values, with or without $.
    std::string text;
    for (std::size_t i = 0; i < inner.size();) {
      const bool letter = is_name(inner[i]) && std::isdigit(static_cast<unsigned char>(inner[i])) == 0;
      if (inner[i] == '$' || inner[i] == '{' || inner[i] == '}') {
        ++i;
      } else if (letter) {
        std::string name;
        while (i < inner.size() && is_name(inner[i])) name += inner[i++];
        const auto at = variables_.find(name);
        if (at == variables_.end() || at->second.values.size() != 1 ||
            !at->second.values.front().unresolved.empty())
          return unresolved(b, "$((" + inner + "))", name);
        text += at->second.values.front().text;
        if (text.size() > 4096) return unresolved(b, "$((" + inner + "))", name);
      } else {
        text += inner[i++];
      }
    }
    // "a ? b : c" and the like are left alone.
    const auto v = Arithmetic(text).value();
    if (!v) return unresolved(b, "$((" + inner + "))", "$((" + inner + "))");
    append(b, std::to_string(*v));
  }

  void braces(Builder& b, const std::string& inner, bool quoted) {
    std::size_t n = 0;
    while (n < inner.size() && is_name(inner[n])) ++n;
    const std::string name = inner.substr(0, n), rest = inner.substr(n);
    if (name.empty()) return unresolved(b, "${" + inner + "}", "${" + inner + "}");
    const bool with_default =
        rest.starts_with(":-") || rest.starts_with(":=") || rest.starts_with("-") || rest.starts_with("=");
    if (rest.empty() || rest == "[@]" || rest == "[*]") return expand(b, name, "", quoted, !rest.empty());
    if (with_default) {
      const std::size_t from = rest.front() == ':' ? 2 : 1;
      return expand(b, name, rest.substr(from), quoted, false);
    }
    if (rest.starts_with(":?")) return expand(b, name, "", quoted, false);
    unresolved(b, "${" + inner + "}", "${" + inner + "}");
  }

  void default_text(Builder& b, const std::string& text, bool quoted) {
    if (++depth_ > kDeepest) {
      --depth_;
      return unresolved(b, text, text);
    }
    Problems ignored;
    Shell inner(text, file_, ignored);
    inner.line_ = line_;
    inner.variables_ = variables_;
    inner.depth_ = depth_;
    inner.splits_ = false;
    Builder made;
    made.begin(line_);
    while (inner.at_ < text.size()) inner.word_part(made);
    --depth_;
    (void)quoted;
    append(b, made.words.front().text);
    if (b.words.back().unresolved.empty()) b.words.back().unresolved = made.words.front().unresolved;
  }

  void expand(Builder& b, const std::string& name, const std::string& otherwise, bool quoted, bool all) {
    const auto at = variables_.find(name);
    const bool there = at != variables_.end() && !at->second.values.empty();
    if (!there) {
      if (!otherwise.empty()) return default_text(b, otherwise, quoted);
      if (at != variables_.end()) return;  // an empty array
      return unresolved(b, "$" + name, name);
    }
    const std::vector<ShellWord>& values = at->second.values;
    if (values.size() == 1 && !all) {
      if (values.front().text.empty() && !otherwise.empty()) return default_text(b, otherwise, quoted);
      return quoted || !splits_ ? joined(b, values.front()) : parted(b, values.front());
    }
    for (std::size_t i = 0; i < values.size() && b.words.size() < kMostWords; ++i) {
      if (i > 0 && splits_) b.open = false;
      if (i > 0 && !splits_) append(b, " ");
      quoted ? joined(b, values[i]) : parted(b, values[i]);
      if (i > 0 && !all) break;  // $ARRAY is its first element
    }
  }
  void joined(Builder& b, const ShellWord& w) {
    const bool fresh = !b.open || b.words.back().text.empty();
    append(b, w.text);
    if (fresh) b.words.back().line = w.line;
    if (!w.unresolved.empty() && b.words.back().unresolved.empty()) b.words.back().unresolved = w.unresolved;
  }
  void parted(Builder& b, const ShellWord& w) {
    if (!splits_) return joined(b, w);
    if (!w.unresolved.empty() && w.text.find(' ') == std::string::npos) return joined(b, w);
    std::size_t i = 0;
    while (i < w.text.size() && b.words.size() < kMostWords) {
      const char c = w.text[i];
      if (is_blank(c) || c == '\n') {
        b.open = false;
        ++i;
        continue;
      }
      std::string part;
      while (i < w.text.size() && !is_blank(w.text[i]) && w.text[i] != '\n') part += w.text[i++];
      const bool lost = !w.unresolved.empty() && part.find(w.unresolved) != std::string::npos;
      joined(b, {part, w.line, lost ? w.unresolved : ""});
    }
  }

  std::string_view text_;
  std::string_view file_;
  Problems& problems_;
  std::size_t at_ = 0;
  std::int32_t line_ = 1, reported_ = 0, depth_ = 0;
  bool splits_ = true;  // blanks of an unquoted expansion part words; not in assignments
  std::map<std::string, Variable> variables_;
  ShellScript script_;
};

}  // namespace

ShellScript parse_shell(std::string_view text, std::string_view file, Problems& problems) {
  return Shell(text, file, problems).parse();
}

}  // namespace tessera::frameworks
