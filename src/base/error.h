// Failures. One class Error with a kind, thrown by value, for what ends an operation; Problems for inputs,
// where every fault is reported at once. Every message says what (with the values), where, and how to mend
// it.
//
//   Problems p;
//   p.add("tp=3 does not divide num_attention_heads=32", "job.yaml: parallel.tp", "use tp in {1, 2, 4, 8, 16,
//   32}"); p.throw_if_any();
#pragma once
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

enum class ErrorKind : std::uint8_t {
  config,       // the user's input is wrong: exit code 2
  io,           // a file or device failed
  comm,         // a peer failed, a wait timed out, a collective did not match
  unsupported,  // well-formed, but this build or version cannot do it
  internal,     // a broken invariant: a defect of Tessera
};
[[nodiscard]] std::string_view name(ErrorKind kind);

struct Problem {
  std::string what;   // with the values
  std::string where;  // file and path in it; or rank, layer, operation
  std::string mend;   // what to do
  friend bool operator==(const Problem&, const Problem&) = default;
};

class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::vector<Problem> problems);
  Error(ErrorKind kind, std::string what, std::string where, std::string mend);
  [[nodiscard]] ErrorKind kind() const { return kind_; }
  [[nodiscard]] const std::vector<Problem>& problems() const { return problems_; }
  [[nodiscard]] const char* what() const noexcept override { return text_.c_str(); }

 private:
  ErrorKind kind_;
  std::vector<Problem> problems_;
  std::string text_;  // all problems, three lines each
};

// Collects the faults of one input. Not thread safe.
class Problems {
 public:
  void add(std::string what, std::string where, std::string mend);
  void append(const Problems& others);
  [[nodiscard]] bool empty() const { return list_.empty(); }
  [[nodiscard]] const std::vector<Problem>& list() const { return list_; }
  void throw_if_any(ErrorKind kind = ErrorKind::config) const;

 private:
  std::vector<Problem> list_;
};

namespace detail {
[[noreturn]] void check_failed(const char* condition, std::string_view why, const char* file, int line);
[[noreturn]] void check_eq_failed(const char* a_text, const char* b_text, std::int64_t a, std::int64_t b,
                                  std::string_view why, const char* file, int line);
}  // namespace detail

}  // namespace tessera

// Always on; throw Error{internal} with the place (and both values for _EQ).
#define TESSERA_CHECK(condition, why)                                                       \
  do {                                                                                      \
    if (!(condition)) ::tessera::detail::check_failed(#condition, why, __FILE__, __LINE__); \
  } while (false)
#define TESSERA_CHECK_EQ(a, b, why)                                                              \
  do {                                                                                           \
    const auto tessera_a = static_cast<std::int64_t>(a);                                         \
    const auto tessera_b = static_cast<std::int64_t>(b);                                         \
    if (tessera_a != tessera_b)                                                                  \
      ::tessera::detail::check_eq_failed(#a, #b, tessera_a, tessera_b, why, __FILE__, __LINE__); \
  } while (false)
