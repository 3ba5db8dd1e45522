// Value: a tree of JSON or YAML data that remembers where each part stood, and MapReader, which takes typed
// fields out of one map and reports every fault. Used inside the spec room by both readers and both writers.
// Thread safe as far as plain data is; a MapReader belongs to one thread.
//
//   const Value root = parse_yaml(text, "job.yaml");
//   MapReader reader(root, {.file = "job.yaml", .path = ""}, problems);
//   reader.required("steps", steps);
//   reader.refuse_unknown();
#pragma once
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"

namespace tessera::spec {

// Deepest nesting that the readers accept.
inline constexpr std::int32_t kMaxDepth = 32;

struct Value {
  enum class Kind : std::uint8_t { null, boolean, integer, number, string, list, map };
  using Member = std::pair<std::string, Value>;

  Kind kind = Kind::null;
  std::string text;             // of a scalar, as written (numbers) or unquoted (strings)
  std::vector<Value> items;     // of a list
  std::vector<Member> members;  // of a map, in the order of the file; keys are unique
  std::int32_t line = 0;        // 1-based; 0: unknown
  std::string origin;           // of a value that came from a flag: "flag train.steps=50"

  [[nodiscard]] const Value* find(std::string_view key) const;  // nullptr: no such member
  [[nodiscard]] Value* find(std::string_view key);
  void set(std::string_view key, Value value);  // of a map; replaces or appends
};

[[nodiscard]] Value scalar(bool v);
[[nodiscard]] Value scalar(std::int64_t v);
[[nodiscard]] Value scalar(std::uint64_t v);
[[nodiscard]] Value scalar(double v);  // shortest text that reads back exactly
[[nodiscard]] Value scalar(std::string_view v);
[[nodiscard]] Value map_value();

// Both throw Error{config} with file and line (JSON: byte) of a syntax fault, a key given twice, nesting
// beyond kMaxDepth; YAML also for aliases, more than one document and keys that are not plain words. YAML
// scalars follow the core schema, booleans are true and false only.
[[nodiscard]] Value parse_json(std::string_view text, std::string_view file);
[[nodiscard]] Value parse_yaml(std::string_view text, std::string_view file);

[[nodiscard]] std::string to_json(const Value& value);  // two blanks a level, newline at the end
[[nodiscard]] std::string to_yaml(const Value& value);  // a map in block style; lists in one line

// Where a map stands: the file, and the path of the map in it ("" or "train").
struct Place {
  std::string file;
  std::string path;
  [[nodiscard]] std::string child(std::string_view key) const;  // "train.steps"
  // "job.yaml:12: train.steps"; the flag when it came from one; without the line when unknown or value is
  // nullptr.
  [[nodiscard]] std::string where(std::string_view key, const Value* value) const;
};

class MapReader {
 public:
  MapReader(const Value& map, Place place, Problems& problems)
      : map_(map), place_(std::move(place)), problems_(problems) {}

  // Absent (for optional also: null) leaves `out` alone; a wrong type is a problem and leaves it alone too.
  template <class T>
  void required(std::string_view key, T& out) {
    if (const Value* v = take(key)) {
      convert(key, *v, out);
    } else {
      missing(key);
    }
  }
  template <class T>
  void optional(std::string_view key, T& out) {
    const Value* v = take(key);
    if (v != nullptr && v->kind != Value::Kind::null) convert(key, *v, out);
  }

  const Value* take(std::string_view key);       // marks the key as known; nullptr: absent
  void know(std::span<const std::string> keys);  // without influence: accepted, not read
  void problem(std::string_view key, std::string what, std::string mend);
  void missing(std::string_view key);
  void mark_faulty(std::string_view key) { faulty_.insert(place_.child(key)); }
  void refuse_unknown();  // every member not taken, with the nearest known key

  void convert(std::string_view key, const Value& v, bool& out);
  void convert(std::string_view key, const Value& v, std::int32_t& out);
  void convert(std::string_view key, const Value& v, std::int64_t& out);
  void convert(std::string_view key, const Value& v, std::uint64_t& out);
  void convert(std::string_view key, const Value& v, double& out);
  void convert(std::string_view key, const Value& v, std::string& out);
  void convert(std::string_view key, const Value& v, std::vector<std::int32_t>& out);
  void convert(std::string_view key, const Value& v, std::vector<std::string>& out);

  [[nodiscard]] const Place& place() const { return place_; }
  [[nodiscard]] const std::vector<std::string>& known() const { return known_; }
  // Full paths ("train.steps") that a problem was added for.
  [[nodiscard]] const std::set<std::string, std::less<>>& faulty() const { return faulty_; }

 private:
  template <class T>
  void integer(std::string_view key, const Value& v, T& out);
  template <class T>
  void list(std::string_view key, const Value& v, std::string_view example, std::vector<T>& out);

  const Value& map_;
  Place place_;
  Problems& problems_;
  std::vector<std::string> known_;
  std::set<std::string, std::less<>> faulty_;
};

}  // namespace tessera::spec
