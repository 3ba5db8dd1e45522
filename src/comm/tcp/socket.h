// TCP sockets as the rendezvous and the wire need them: owned, never blocking, closed on exec; writing to one
// that its peer has closed is an error code, no signal.
#pragma once
#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::comm::tcp {

class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket();
  void close();
  [[nodiscard]] int fd() const { return fd_; }
  [[nodiscard]] bool is_open() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// An IPv4 or IPv6 address with a port. Travels as it lies in memory, between hosts of one byte order.
struct Address {
  sockaddr_storage storage{};
  socklen_t length = 0;
  [[nodiscard]] std::string text() const;  // "10.0.0.1:29500", "[::1]:29500"
  [[nodiscard]] std::int32_t port() const;
  void set_port(std::int32_t port);
  [[nodiscard]] bool is_loopback() const;
};

// In the resolver's order, never empty. Error{config} for a name that nobody knows, Error{comm} where the
// resolver does not answer.
[[nodiscard]] std::vector<Address> resolve(const std::string& host, std::int32_t port);

// Listens at the first of the addresses that this host has. Port 0: a free one. Error{comm} for a port in
// use; Error{config} where none of the addresses is of this host.
[[nodiscard]] Socket listen_at(const std::vector<Address>& addresses, std::int32_t backlog);

// Until the time (of wall_ns) is over. Not open when nobody answers; then errno says why.
[[nodiscard]] Socket connect_to(const Address& address, std::int64_t until_ns);
// Not open: nobody waits to be let in.
[[nodiscard]] Socket accept_from(const Socket& listener);

[[nodiscard]] Address local_address(const Socket& socket);
[[nodiscard]] Address peer_address(const Socket& socket);

}  // namespace tessera::comm::tcp
