#include "comm/tcp/words.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace tessera::comm::tcp {

namespace {

constexpr std::int64_t kMostText = 64 << 20;

struct WordHead {
  std::uint64_t magic = kMagic;
  WordKind kind{};
  std::int32_t error = 0;
  std::int64_t bytes = 0;
};

std::int32_t milliseconds_until(std::int64_t until_ns) {
  const std::int64_t left = (until_ns - wall_ns() + 999'999) / 1'000'000;
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(left, 0, 1'000'000));
}

}  // namespace

std::string Hello::who() const {
  return fmt::format("rank {} (pid {} on {})", process, pid, get(host));
}

Intake::State Intake::take(const Socket& socket, std::size_t bytes) {
  if (memory_.size() < bytes) memory_.resize(bytes);
  while (have_ < bytes) {
    const ssize_t n = ::recv(socket.fd(), memory_.data() + have_, bytes - have_, 0);
    if (n > 0) {
      have_ += static_cast<std::size_t>(n);
    } else if (n < 0 && errno == EINTR) {
      continue;
    } else {
      return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? State::waits : State::closed;
    }
  }
  return State::whole;
}

Intake::State WordIntake::take(const Socket& socket) {
  if (const auto state = head_.take(socket, sizeof(WordHead)); state != Intake::State::whole) return state;
  WordHead head;
  std::memcpy(&head, head_.bytes().data(), sizeof head);
  if (head.magic != kMagic || head.bytes < 0 || head.bytes > kMostText) return Intake::State::closed;
  if (const auto state = text_.take(socket, static_cast<std::size_t>(head.bytes));
      state != Intake::State::whole)
    return state;
  word_ = {head.kind, static_cast<ErrorKind>(head.error),
           std::string(reinterpret_cast<const char*>(text_.bytes().data()), text_.bytes().size())};
  return Intake::State::whole;
}

bool send_bytes(const Socket& socket, std::span<const std::byte> bytes, std::int64_t until_ns) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n >= 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(n));
      continue;
    }
    if (errno == EINTR) continue;
    if ((errno != EAGAIN && errno != EWOULDBLOCK) || wall_ns() > until_ns) return false;
    pollfd wait{socket.fd(), POLLOUT, 0};
    (void)::poll(&wait, 1, milliseconds_until(until_ns));
  }
  return true;
}

bool send_word(const Socket& socket, const Word& word, std::int64_t until_ns) {
  const WordHead head{
      .kind = word.kind, .error = static_cast<std::int32_t>(word.error), .bytes = std::ssize(word.text)};
  return send_bytes(socket, std::as_bytes(std::span(&head, 1)), until_ns) &&
         send_bytes(socket, std::as_bytes(std::span(word.text)), until_ns);
}

void wait_readable(std::span<const int> fds, std::int64_t until_ns) {
  std::vector<pollfd> waits;
  for (const int fd : fds) waits.push_back({fd, POLLIN, 0});
  (void)::poll(waits.data(), waits.size(), milliseconds_until(until_ns));
}

}  // namespace tessera::comm::tcp
