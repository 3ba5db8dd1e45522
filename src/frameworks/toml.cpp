// The TOML library stays in this file.
#include "frameworks/toml.h"

#include <fmt/format.h>

#include <sstream>
#include <string>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <toml++/toml.h>
#pragma GCC diagnostic pop

#include "base/error.h"

namespace tessera::frameworks {

namespace {

using spec::Value;

Value convert(const toml::node& node, std::int32_t depth) {
  Value out;
  if (depth > spec::kMaxDepth) {
    throw Error(ErrorKind::config, fmt::format("nested deeper than {} levels", spec::kMaxDepth), "",
                "flatten it");
  }
  if (const toml::table* table = node.as_table()) {
    out.kind = Value::Kind::map;
    for (const auto& [key, value] : *table)
      out.members.emplace_back(std::string(key.str()), convert(value, depth + 1));
  } else if (const toml::array* array = node.as_array()) {
    out.kind = Value::Kind::list;
    for (const toml::node& item : *array) out.items.push_back(convert(item, depth + 1));
  } else if (const auto* text = node.as_string()) {
    out = spec::scalar(std::string_view(text->get()));
  } else if (const auto* flag = node.as_boolean()) {
    out = spec::scalar(flag->get());
  } else if (const auto* whole = node.as_integer()) {
    out = spec::scalar(static_cast<std::int64_t>(whole->get()));
  } else if (const auto* number = node.as_floating_point()) {
    out = spec::scalar(number->get());
  } else {
    std::ostringstream date;
    node.visit([&](const auto& v) {
      if constexpr (toml::is_date<decltype(v)> || toml::is_time<decltype(v)> ||
                    toml::is_date_time<decltype(v)>)
        date << v;
    });
    out = spec::scalar(std::string_view(date.str()));
  }
  out.line = static_cast<std::int32_t>(node.source().begin.line);
  return out;
}

}  // namespace

Value parse_toml(std::string_view text, std::string_view file) {
  try {
    return convert(toml::parse(text, file), 0);
  } catch (const toml::parse_error& e) {
    throw Error(ErrorKind::config, std::string(e.description()),
                fmt::format("{}:{}", file, e.source().begin.line), "correct the syntax there");
  } catch (const Error& e) {
    throw Error(ErrorKind::config, e.problems().front().what, std::string(file), e.problems().front().mend);
  }
}

}  // namespace tessera::frameworks
