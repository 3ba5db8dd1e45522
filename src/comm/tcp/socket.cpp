#include "comm/tcp/socket.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <system_error>

#include "base/clock.h"
#include "base/error.h"

namespace tessera::comm::tcp {

namespace {

// What the kernel may hold that is not on its way yet: the next note stands behind it.
constexpr int kUnsentBytes = 128 << 10;

sockaddr* raw(Address& a) {
  return reinterpret_cast<sockaddr*>(&a.storage);
}
const sockaddr* raw(const Address& a) {
  return reinterpret_cast<const sockaddr*>(&a.storage);
}

std::string reason(int code) {
  return std::generic_category().message(code);
}

void set(int fd, int level, int option, int value) {
  (void)::setsockopt(fd, level, option, &value, sizeof value);  // all of them are hints
}

// The kernel sizes the buffers by what a connection carries: better than any number here.
void prepare(int fd) {
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, kUnsentBytes);
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}

std::int32_t milliseconds_until(std::int64_t until_ns) {
  const std::int64_t left = (until_ns - wall_ns()) / 1'000'000;
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(left, 0, 1'000'000));
}

}  // namespace

Socket::~Socket() {
  close();
}

void Socket::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

std::string Address::text() const {
  std::array<char, INET6_ADDRSTRLEN> name{};
  if (storage.ss_family == AF_INET) {
    (void)::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(&storage)->sin_addr, name.data(),
                      name.size());
    return fmt::format("{}:{}", name.data(), port());
  }
  (void)::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_addr, name.data(),
                    name.size());
  return fmt::format("[{}]:{}", name.data(), port());
}

std::int32_t Address::port() const {
  return storage.ss_family == AF_INET ? ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port)
                                      : ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
}

void Address::set_port(std::int32_t port) {
  const in_port_t value = htons(static_cast<std::uint16_t>(port));
  if (storage.ss_family == AF_INET) reinterpret_cast<sockaddr_in*>(&storage)->sin_port = value;
  if (storage.ss_family == AF_INET6) reinterpret_cast<sockaddr_in6*>(&storage)->sin6_port = value;
}

bool Address::is_loopback() const {
  if (storage.ss_family == AF_INET)
    return (ntohl(reinterpret_cast<const sockaddr_in*>(&storage)->sin_addr.s_addr) >> 24) == 127;
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_addr) != 0;
}

std::vector<Address> resolve(const std::string& host, std::int32_t port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (code != 0) {
    const bool unknown = code == EAI_NONAME;
    throw Error(unknown ? ErrorKind::config : ErrorKind::comm,
                fmt::format("the host \"{}\" has no address: {}", host, ::gai_strerror(code)), "rendezvous",
                "give the name or the address of the host of process 0, as all hosts of the job know it");
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, ::freeaddrinfo);
  std::vector<Address> addresses;
  for (const addrinfo* i = found; i != nullptr; i = i->ai_next) {
    if (i->ai_family != AF_INET && i->ai_family != AF_INET6) continue;
    Address a;
    std::copy_n(reinterpret_cast<const std::byte*>(i->ai_addr), i->ai_addrlen,
                reinterpret_cast<std::byte*>(&a.storage));
    a.length = i->ai_addrlen;
    a.set_port(port);
    addresses.push_back(a);
  }
  if (addresses.empty())
    throw Error(ErrorKind::config, fmt::format("the host \"{}\" has no IPv4 or IPv6 address", host),
                "rendezvous", "give another name, or an address");
  return addresses;
}

Socket listen_at(const std::vector<Address>& addresses, std::int32_t backlog) {
  int code = 0;
  for (const Address& a : addresses) {
    Socket s(::socket(a.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    set(s.fd(), SOL_SOCKET, SO_REUSEADDR, 1);  // what the last run left behind is no obstacle
    if (s.is_open() && ::bind(s.fd(), raw(a), a.length) == 0 && ::listen(s.fd(), backlog) == 0) return s;
    code = errno;
    if (code == EADDRINUSE)
      throw Error(ErrorKind::comm, fmt::format("the address {} is in use by another program", a.text()),
                  "rendezvous of process 0", "give another port; ss -ltnp shows who listens");
  }
  const bool elsewhere = code == EADDRNOTAVAIL;
  throw Error(elsewhere ? ErrorKind::config : ErrorKind::comm,
              fmt::format("cannot listen at {}: {}", addresses.front().text(), reason(code)),
              "rendezvous of process 0",
              elsewhere ? "process 0 runs on the host of that address: start it there, or name its host"
                        : "give another address or port");
}

Socket connect_to(const Address& address, std::int64_t until_ns) {
  Socket s(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!s.is_open()) return s;
  prepare(s.fd());
  if (::connect(s.fd(), raw(address), address.length) == 0) return s;
  if (errno != EINPROGRESS && errno != EINTR) return {};
  pollfd wait{s.fd(), POLLOUT, 0};
  while (::poll(&wait, 1, milliseconds_until(until_ns)) < 0)
    if (errno != EINTR) return {};
  int code = ETIMEDOUT;
  socklen_t size = sizeof code;
  if (wait.revents != 0) (void)::getsockopt(s.fd(), SOL_SOCKET, SO_ERROR, &code, &size);
  if (code == 0) return s;
  s.close();
  errno = code;
  return s;
}

Socket accept_from(const Socket& listener) {
  Socket s(::accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (s.is_open()) prepare(s.fd());
  return s;
}

Address local_address(const Socket& socket) {
  Address a;
  a.length = sizeof a.storage;
  (void)::getsockname(socket.fd(), raw(a), &a.length);
  return a;
}

Address peer_address(const Socket& socket) {
  Address a;
  a.length = sizeof a.storage;
  (void)::getpeername(socket.fd(), raw(a), &a.length);
  return a;
}

}  // namespace tessera::comm::tcp
