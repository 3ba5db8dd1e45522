// What processes say to each other before the wire is there: a Hello of fixed size, and words with a text.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "comm/tcp/socket.h"

namespace tessera::comm::tcp {

inline constexpr std::uint64_t kMagic = 0x31706354'61726554;  // "TeraTcp1" where bytes are little-endian
inline constexpr std::int32_t kProtocol = 1;                  // raised by every change of what is sent

// Who connects. What stands before `process` stays where it is in every protocol.
struct Hello {
  std::uint64_t magic = kMagic;
  std::array<char, 256> token{};
  std::int32_t protocol = kProtocol;
  std::array<char, 64> version{};
  std::int32_t process = 0, processes = 0;
  std::int64_t pid = 0;
  std::array<char, 256> host{};
  Address listener;  // where others reach it

  [[nodiscard]] std::string who() const;  // "rank 3 (pid 4711 on node2)"
};
static_assert(std::is_trivially_copyable_v<Hello>);

template <std::size_t N>
void put(std::array<char, N>& field, std::string_view text) {
  field = {};
  text.copy(field.data(), N - 1);
}
template <std::size_t N>
std::string get(const std::array<char, N>& field) {
  return {field.data(), ::strnlen(field.data(), N)};
}

enum class WordKind : std::int32_t { table = 1, refused, done, go };
struct Word {
  WordKind kind{};
  ErrorKind error{};  // of refused
  std::string text;   // of refused: what, a line feed, the mend; of table: Hellos
};

// Exactly so many bytes from a socket, as they come; nothing of what follows is taken.
class Intake {
 public:
  enum class State : std::uint8_t { waits, whole, closed };
  [[nodiscard]] State take(const Socket& socket, std::size_t bytes);
  [[nodiscard]] std::span<const std::byte> bytes() const { return {memory_.data(), have_}; }
  void clear() { have_ = 0; }

 private:
  std::vector<std::byte> memory_;
  std::size_t have_ = 0;
};

// A word as it comes. Closed: also where the other end says something else.
class WordIntake {
 public:
  [[nodiscard]] Intake::State take(const Socket& socket);
  [[nodiscard]] const Word& word() const { return word_; }

 private:
  Intake head_, text_;
  Word word_;
};

// False where the peer is gone or the time is over.
bool send_bytes(const Socket& socket, std::span<const std::byte> bytes, std::int64_t until_ns);
bool send_word(const Socket& socket, const Word& word, std::int64_t until_ns);
// Until one of them can be read, at most so long.
void wait_readable(std::span<const int> fds, std::int64_t until_ns);

}  // namespace tessera::comm::tcp
