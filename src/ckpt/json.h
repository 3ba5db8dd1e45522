// JSON text as a small tree: headers of safetensors files and the indices of this room. Strict, because the
// text may be damaged or foreign: syntax faults, keys given twice, deep nesting and absurd numbers of values
// are refused as Error{io} naming the origin. Plain data; any thread.
//
//   const Origin origin{.where = path.string(), .mend = "restore the file from a copy"};
//   const Json root = parse_json(text, origin);
//   const std::int64_t step = integer_of(member(root, "step", origin), "step", origin);
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::ckpt {

// Where a text came from, and what to do when it is not what it should be.
struct Origin {
  std::string where;
  std::string mend;
  [[noreturn]] void refuse(std::string what) const;  // Error{io}
};

struct Json {
  enum class Kind : std::uint8_t { null, boolean, integer, number, string, list, map };
  Kind kind = Kind::null;
  std::int64_t integer = 0;
  std::string text;               // of a string
  std::vector<std::string> keys;  // of a map, one beside each item; unique, in the order of the text
  std::vector<Json> items;        // of a list or map

  [[nodiscard]] const Json* find(std::string_view key) const;  // nullptr: no such member
};

inline constexpr std::int64_t kMaxJsonValues = 2'000'000;

[[nodiscard]] Json parse_json(std::string_view text, const Origin& origin);

// Typed access; `what` names the value in the refusal.
[[nodiscard]] const Json& member(const Json& map, std::string_view key, const Origin& origin);
void require_map(const Json& value, std::string_view what, const Origin& origin);
void require_list(const Json& value, std::string_view what, const Origin& origin);
[[nodiscard]] const std::string& string_of(const Json& value, std::string_view what, const Origin& origin);
// Not negative.
[[nodiscard]] std::int64_t integer_of(const Json& value, std::string_view what, const Origin& origin);
[[nodiscard]] std::vector<std::int64_t> integers_of(const Json& value, std::string_view what,
                                                    const Origin& origin);

// A JSON string literal. Error{config} when the text is not UTF-8.
[[nodiscard]] std::string json_quoted(std::string_view text);

}  // namespace tessera::ckpt
