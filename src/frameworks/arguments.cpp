#include "frameworks/arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "base/text.h"

namespace tessera::frameworks {

namespace {

using spec::Value;

std::string joined_words(const Value& v) {
  std::vector<std::string> words;
  for (const Value& item : v.items) words.push_back(item.text);
  return join(words, ",");
}

}  // namespace

std::string Argument::text() const {
  return join(values, " ");
}

const Argument* Arguments::find(std::string_view name) {
  const Argument* last = nullptr;
  for (Argument& a : list_) {
    if (a.name != name) continue;
    a.asked = true;
    last = &a;
  }
  return last;
}

const Argument* Arguments::resolved(std::string_view name, Problems& problems) {
  const Argument* a = find(name);
  if (a == nullptr) return nullptr;
  if (!a->unresolved.empty()) {
    problems.add(
        fmt::format("{} is {}, and no line sets {}", spelt(name), a->text(), a->unresolved), where(name),
        fmt::format("write the value there, or {}=VALUE on a line above",
                    a->unresolved.find_first_of("$(`") == std::string::npos ? a->unresolved : "NAME"));
    return nullptr;
  }
  if (a->values.size() == 1) return a;
  problems.add(a->values.empty()
                   ? fmt::format("{} has no value", spelt(name))
                   : fmt::format("{} has {} values: {}", spelt(name), a->values.size(), a->text()),
               where(name), "give it one value");
  return nullptr;
}

bool Arguments::on(std::string_view name, Problems& problems) {
  const Argument* a = find(name);
  if (a == nullptr) return false;
  if (a->values.empty()) return true;
  const std::string word = a->text();
  if (word == "true" || word == "True") return true;
  if (word == "false" || word == "False") return false;
  problems.add(fmt::format("{} is {}, not true or false", spelt(name), word), where(name),
               "use true or false");
  return false;
}

std::optional<std::int64_t> Arguments::integer(std::string_view name, Problems& problems) {
  const Argument* a = resolved(name, problems);
  if (a == nullptr) return std::nullopt;
  const std::string& text = a->values.front();
  std::int64_t out = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (code == std::errc() && end == text.data() + text.size() && std::abs(out) < (std::int64_t{1} << 40))
    return out;
  problems.add(fmt::format("{} is \"{}\", no whole number", spelt(name), text), where(name),
               "use a whole number");
  return std::nullopt;
}

std::optional<double> Arguments::number(std::string_view name, Problems& problems) {
  const Argument* a = resolved(name, problems);
  if (a == nullptr) return std::nullopt;
  const std::string& text = a->values.front();
  double out = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), out);
  if (code == std::errc() && end == text.data() + text.size() && std::isfinite(out)) return out;
  problems.add(fmt::format("{} is \"{}\", no number", spelt(name), text), where(name), "use a number");
  return std::nullopt;
}

std::optional<std::string> Arguments::word(std::string_view name, Problems& problems) {
  const Argument* a = resolved(name, problems);
  if (a == nullptr) return std::nullopt;
  return a->values.front();
}

std::optional<std::string> Arguments::choice(std::string_view name, const std::vector<std::string>& known,
                                             Problems& problems) {
  std::optional<std::string> out = word(name, problems);
  if (!out || std::ranges::find(known, *out) != known.end()) return out;
  const std::string near = nearest(*out, known);
  problems.add(fmt::format("{} is \"{}\"", spelt(name), *out), where(name),
               (near.empty() ? "" : "did you mean " + near + "? ") + "use one of " + join(known, ", "));
  return std::nullopt;
}

void Arguments::refuse_contradictions(Problems& problems) const {
  std::map<std::string, const Argument*> first;
  for (const Argument& a : list_) {
    const auto [at, fresh] = first.try_emplace(a.name, &a);
    if (fresh || !a.asked || at->second->values == a.values) continue;
    problems.add(fmt::format("{} is {} on line {} and {} on line {}", spelt(a.name), at->second->text(),
                             at->second->line, a.text(), a.line),
                 fmt::format("{}:{}: {}", file_, a.line, spelt(a.name)), "keep one of them");
  }
}

std::string Arguments::where(std::string_view name) const {
  std::int32_t line = 0;
  for (const Argument& a : list_) {
    if (a.name == name) line = a.line;
  }
  return line > 0 ? fmt::format("{}:{}: {}", file_, line, spelt(name))
                  : fmt::format("{}: {}", file_, spelt(name));
}

void add_leaves(const Value& root, std::string_view path, Arguments& out) {
  for (const auto& [key, value] : root.members) {
    const std::string name = path.empty() ? key : fmt::format("{}.{}", path, key);
    if (value.kind == Value::Kind::map) {
      add_leaves(value, name, out);
      continue;
    }
    Argument a{.name = name, .values = {}, .line = value.line};
    if (value.kind == Value::Kind::list) {
      for (const Value& item : value.items)
        a.values.push_back(item.kind == Value::Kind::list ? joined_words(item) : item.text);
    } else if (value.kind == Value::Kind::null) {
      a.values.emplace_back("null");
    } else {
      a.values.push_back(value.text);
    }
    out.add(std::move(a));
  }
}

}  // namespace tessera::frameworks
