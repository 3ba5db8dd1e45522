// Enough of a C++ reader for house rules: it knows comments, strings, scopes and statements, and nothing of
// types.
#include <algorithm>
#include <cctype>
#include <regex>

#include "base/text.h"
#include "house/rules.h"

namespace tessera::house {
namespace {

// Replaces all but line breaks in text[begin, end) by blanks.
void blank(std::string& text, std::size_t begin, std::size_t end) {
  for (std::size_t i = begin; i < end; ++i) {
    if (text[i] != '\n') text[i] = ' ';
  }
}

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

// The end of the quoted literal that opens at `begin` (one past its closing quote).
std::size_t end_of_literal(std::string_view text, std::size_t begin) {
  const char quote = text[begin];
  std::size_t i = begin + 1;
  while (i < text.size() && text[i] != quote && text[i] != '\n') i += text[i] == '\\' ? 2 : 1;
  return std::min(i + 1, text.size());
}

// The end of the raw string whose quote stands at `quote` (after its R).
std::size_t end_of_raw(std::string_view text, std::size_t quote) {
  const std::size_t open = text.find('(', quote);
  if (open == std::string_view::npos) return text.size();
  const std::string close = ")" + std::string(text.substr(quote + 1, open - quote - 1)) + "\"";
  const std::size_t end = text.find(close, open);
  return end == std::string_view::npos ? text.size() : end + close.size();
}

enum class Scope : std::uint8_t { names, type, function, inner, initializer };

// What a brace opens, from the text before it. `outer` is the scope it stands in.
Scope scope_of(const std::string& header, Scope outer) {
  static const std::regex names(R"(\b(namespace|extern)\b)");
  static const std::regex type(R"(^(typedef\s+)?(class|struct|union|enum)\b)");
  if (outer == Scope::function || outer == Scope::inner) return Scope::inner;
  if (outer == Scope::initializer) return Scope::initializer;
  if (std::regex_search(header, names)) return Scope::names;
  // What stands in parentheses and angle brackets would only mislead: template and call parameters,
  // attributes.
  std::string flat;
  int depth = 0;
  bool has_call = false;
  for (const char c : header) {
    if (c == '(' || c == '<' || c == '[') ++depth;
    if (c == '(') has_call = true;
    if (depth == 0) flat += c;
    if (c == ')' || c == '>' || c == ']') depth = std::max(0, depth - 1);
  }
  static const std::regex noise(R"(^\s*(template|requires|inline|static|constexpr|const|alignas|\s)*)");
  flat = std::regex_replace(flat, noise, "");
  if (std::regex_search(flat, type)) return Scope::type;
  const bool is_operator = header.find("operator") != std::string::npos;
  if (!is_operator && flat.find('=') != std::string::npos) return Scope::initializer;
  // A bare brace at namespace or class scope follows a constructor's list of members: it opens the body.
  return has_call || header.empty() ? Scope::function : Scope::initializer;
}

struct Open {
  Scope scope;
  std::string header;
  std::size_t header_begin;
};

class Reader {
 public:
  explicit Reader(std::string code) : code_(std::move(code)) { blank_preprocessor(); }

  Outline read() {
    for (std::size_t i = 0; i < code_.size(); ++i) {
      const char c = code_[i];
      if (c == '(') ++parentheses_;
      if (c == ')') parentheses_ = std::max(0, parentheses_ - 1);
      if (c == '{') open(i);
      if (c == '}') close(i);
      if (c == ';' && parentheses_ == 0) end_statement(i);
      static const std::regex label(R"(^\s*(public|private|protected)\s*$)");
      if (c == ':' && scope() == Scope::type && std::regex_match(header(i), label)) begin_ = i + 1;
    }
    return std::move(outline_);
  }

 private:
  void blank_preprocessor() {
    for (std::size_t i = 0; i < code_.size();) {
      const std::size_t end = std::min(code_.find('\n', i), code_.size());
      const bool directive = trim(std::string_view(code_).substr(i, end - i)).starts_with("#");
      bool more = directive;
      std::size_t stop = end;
      while (more && stop > i && code_[stop - 1] == '\\' && stop < code_.size()) {
        stop = std::min(code_.find('\n', stop + 1), code_.size());
      }
      if (directive) blank(code_, i, stop);
      i = stop + 1;
    }
  }

  Scope scope() const { return stack_.empty() ? Scope::names : stack_.back().scope; }
  std::string header(std::size_t end) const {
    return std::string(trim(std::string_view(code_).substr(begin_, end - begin_)));
  }
  std::int64_t line_at(std::size_t at) const {
    return 1 + std::count(code_.begin(), code_.begin() + static_cast<std::ptrdiff_t>(at), '\n');
  }
  std::size_t first_of_header() const {
    const std::size_t at = code_.find_first_not_of(" \t\r\n", begin_);
    return at == std::string::npos ? begin_ : at;
  }

  void open(std::size_t at) {
    const Scope kind = scope_of(header(at), scope());
    if (kind == Scope::inner) keep_static(at);
    stack_.push_back({kind, header(at), first_of_header()});
    parentheses_ = 0;
    begin_ = at + 1;
  }

  void close(std::size_t at) {
    if (!stack_.empty()) {
      const Open top = stack_.back();
      stack_.pop_back();
      if (top.scope == Scope::initializer) {  // the statement goes on to its semicolon
        begin_ = top.header_begin;
        return;
      }
      if (top.scope == Scope::function) {
        outline_.functions.push_back({top.header, code_.substr(top.header_begin, at + 1 - top.header_begin),
                                      line_at(top.header_begin), line_at(at)});
      }
    }
    begin_ = at + 1;
  }

  void end_statement(std::size_t at) {
    if (scope() == Scope::names) keep(outline_.at_namespace_scope, at);
    if (scope() == Scope::function || scope() == Scope::inner) keep_static(at);
    begin_ = at + 1;
  }
  void keep(std::vector<Statement>& list, std::size_t end) {
    if (!header(end).empty()) list.push_back({header(end), line_at(first_of_header())});
  }
  void keep_static(std::size_t end) {
    static const std::regex is_static(R"(^(static|thread_local)\b)");
    if (std::regex_search(header(end), is_static)) keep(outline_.static_in_function, end);
  }

  std::string code_;
  std::size_t begin_ = 0;  // of the statement being read
  int parentheses_ = 0;
  std::vector<Open> stack_;
  Outline outline_;
};

}  // namespace

namespace {
enum class Blanked : std::uint8_t { all, raw_strings };

std::string blanked(std::string_view source, Blanked what) {
  const auto hide = [what](std::string& text, std::size_t begin, std::size_t end) {
    if (what == Blanked::all) blank(text, begin, end);
  };
  std::string text(source);
  for (std::size_t i = 0; i < text.size();) {
    const std::string_view rest = std::string_view(text).substr(i);
    if (rest.starts_with("//")) {
      const std::size_t end = std::min(text.find('\n', i), text.size());
      hide(text, i, end);
      i = end;
    } else if (rest.starts_with("/*")) {
      const std::size_t found = text.find("*/", i + 2);
      const std::size_t end = found == std::string::npos ? text.size() : found + 2;
      hide(text, i, end);
      i = end;
    } else if (rest.starts_with("R\"") && (i == 0 || !is_word(text[i - 1]))) {
      const std::size_t end = end_of_raw(text, i + 1);
      blank(text, i, end);
      i = end;
    } else if (text[i] == '"' || (text[i] == '\'' && (i == 0 || !is_word(text[i - 1])))) {
      const std::size_t end = end_of_literal(text, i);
      hide(text, i + 1, end - 1);  // the quotes stay: an empty string is still an expression
      i = end;
    } else {
      ++i;
    }
  }
  return text;
}
}  // namespace

std::string code_only(std::string_view source) {
  return blanked(source, Blanked::all);
}

std::string without_raw_strings(std::string_view source) {
  return blanked(source, Blanked::raw_strings);
}

Outline outline_of(std::string_view text) {
  return Reader(code_only(text)).read();
}

}  // namespace tessera::house
