#include "base/error.h"

#include <fmt/format.h>

#include <utility>

namespace tessera {

std::string_view name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::config:
      return "config";
    case ErrorKind::io:
      return "io";
    case ErrorKind::comm:
      return "comm";
    case ErrorKind::unsupported:
      return "unsupported";
    case ErrorKind::internal:
      return "internal";
  }
  return "unknown";
}

namespace {
std::string to_text(const std::vector<Problem>& problems) {
  std::string text;
  for (const Problem& p : problems) {
    if (!text.empty()) text += '\n';
    text += p.what;
    if (!p.where.empty()) text += "\n  where: " + p.where;
    if (!p.mend.empty()) text += "\n  mend: " + p.mend;
  }
  return text;
}
// A path of the machine that built this says nothing to a user: keep what follows src/.
std::string_view short_path(std::string_view file) {
  const auto at = file.rfind("src/");
  return at == std::string_view::npos ? file : file.substr(at);
}
constexpr const char* kDefect =
    "this is a defect of Tessera: please report it with the command and the input";
}  // namespace

Error::Error(ErrorKind kind, std::vector<Problem> problems)
    : kind_(kind), problems_(std::move(problems)), text_(to_text(problems_)) {}

Error::Error(ErrorKind kind, std::string what, std::string where, std::string mend)
    : Error(kind, {Problem{std::move(what), std::move(where), std::move(mend)}}) {}

void Problems::add(std::string what, std::string where, std::string mend) {
  list_.push_back({std::move(what), std::move(where), std::move(mend)});
}
void Problems::append(const Problems& others) {
  list_.insert(list_.end(), others.list_.begin(), others.list_.end());
}
void Problems::throw_if_any(ErrorKind kind) const {
  if (!list_.empty()) throw Error(kind, list_);
}

namespace detail {
void check_failed(const char* condition, std::string_view why, const char* file, int line) {
  throw Error(ErrorKind::internal, fmt::format("check failed: {} ({})", condition, why),
              fmt::format("{}:{}", short_path(file), line), kDefect);
}
void check_eq_failed(const char* a_text, const char* b_text, std::int64_t a, std::int64_t b,
                     std::string_view why, const char* file, int line) {
  throw Error(ErrorKind::internal,
              fmt::format("check failed: {} = {} but {} = {} ({})", a_text, a, b_text, b, why),
              fmt::format("{}:{}", short_path(file), line), kDefect);
}
}  // namespace detail

}  // namespace tessera
