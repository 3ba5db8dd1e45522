#include "comm/tcp/tcp_wire.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "comm/tcp/link.h"

namespace tessera::comm::tcp {

namespace {

using message::Open;
using message::Wire;

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kParting = 5 * kSecond;    // for the others to close, too
constexpr std::int64_t kLastWords = kSecond / 2;  // for "die" to go out
constexpr std::int32_t kNotEnding = -1;
constexpr auto kPause = std::chrono::milliseconds(1);

// Notes that came and were not asked for yet, one behind the other.
class Notes {
 public:
  void add(std::int32_t from, std::span<const std::byte> first, std::span<const std::byte> rest) {
    const Head head{from, static_cast<std::int32_t>(first.size() + rest.size())};
    for (const auto part : {std::as_bytes(std::span(&head, 1)), first, rest})
      memory_.insert(memory_.end(), part.begin(), part.end());
  }
  std::optional<Wire::Note> next() {
    if (read_ == memory_.size()) {
      memory_.clear();
      read_ = 0;
      return std::nullopt;
    }
    Head head;
    std::memcpy(&head, memory_.data() + read_, sizeof head);
    const auto bytes = static_cast<std::size_t>(head.bytes);
    const std::span<const std::byte> text(memory_.data() + read_ + sizeof head, bytes);
    read_ += sizeof head + bytes;
    return Wire::Note{head.from, text};
  }

 private:
  struct Head {
    std::int32_t from, bytes;
  };
  std::vector<std::byte> memory_;
  std::size_t read_ = 0;
};

class TcpWire final : public Wire {
 public:
  TcpWire(std::int32_t process, Links links, std::function<void(std::int32_t)> end_process);

  [[nodiscard]] std::int32_t process() const override { return process_; }
  [[nodiscard]] std::int32_t processes() const override { return static_cast<std::int32_t>(peers_.size()); }
  [[nodiscard]] std::int32_t processes_on_host() const override {
    return static_cast<std::int32_t>(std::ranges::count(peers_, peer(process_).host, &Peer::host));
  }
  [[nodiscard]] const Peer& peer(std::int32_t p) const override {
    return peers_[static_cast<std::size_t>(p)];
  }
  [[nodiscard]] std::int32_t max_tag() const override { return std::numeric_limits<std::int32_t>::max(); }
  void send_note(std::int32_t to, std::span<const std::byte> head, std::span<const std::byte> rest) override {
    if (to == process_) return notes_.add(process_, head, rest);
    link(to).send_note(head, rest);
    watch(to);
  }
  [[nodiscard]] std::optional<Note> next_note() override { return notes_.next(); }
  void send_body(std::int32_t to, std::int32_t tag, const void* data, std::int64_t bytes,
                 Open& open) override {
    link(to).send_body(tag, data, bytes, open);
    watch(to);
  }
  void receive_body(std::int32_t from, std::int32_t tag, void* data, std::int64_t bytes,
                    Open& open) override {
    link(from).receive_body(tag, data, bytes, open);
    watch(from);
  }
  void progress() override;
  [[nodiscard]] bool busy() const override {
    return std::ranges::any_of(links_, [](const auto& l) { return l && !l->is_gone() && l->busy(); });
  }
  [[nodiscard]] bool is_gone(std::int32_t p) const override {
    const auto& l = links_[static_cast<std::size_t>(p)];
    return l && l->is_gone();
  }
  void forget(Open& open) override {
    for (const auto& l : links_)
      if (l) l->forget(open);
  }
  [[nodiscard]] std::unique_ptr<Sums> make_sums(std::span<const std::int32_t>) override { return nullptr; }
  void close() override;
  void kill_all(std::int32_t exit_code) noexcept override;

 private:
  // What one link brings.
  struct From final : Link::Sink {
    From(TcpWire& w, std::int32_t p) : wire(w), process(p) {}
    void note(std::span<const std::byte> bytes) override { wire.notes_.add(process, bytes, {}); }
    void die(std::int32_t exit_code) override { wire.end_process_(exit_code); }
    TcpWire& wire;
    std::int32_t process;
  };
  Link& link(std::int32_t p) {
    TESSERA_CHECK(links_[static_cast<std::size_t>(p)] != nullptr, "no process sends a body to itself");
    return *links_[static_cast<std::size_t>(p)];
  }
  void watch(std::int32_t p);
  bool write_all(std::int64_t patience_ns);

  std::int32_t process_;
  std::vector<Peer> peers_;
  std::function<void(std::int32_t)> end_process_;
  std::vector<std::unique_ptr<Link>> links_;  // null: this process
  std::vector<std::uint32_t> watched_;        // of each link: epoll's events
  Socket epoll_;
  Notes notes_;
  std::atomic<std::int32_t> ending_ = kNotEnding;  // exit code of all, still to be told
  std::atomic<bool> ended_ = false;
};

TcpWire::TcpWire(std::int32_t process, Links links, std::function<void(std::int32_t)> end_process)
    : process_(process),
      peers_(std::move(links.peers)),
      end_process_(std::move(end_process)),
      watched_(peers_.size()),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_.is_open())
    throw Error(ErrorKind::comm, "epoll_create1 failed: " + std::generic_category().message(errno), "TCP",
                "raise the limit of open files (ulimit -n)");
  for (std::int32_t p = 0; p < processes(); ++p) {
    Socket& s = links.sockets[static_cast<std::size_t>(p)];
    links_.push_back(p == process_ ? nullptr : std::make_unique<Link>(std::move(s)));
    if (p != process_) watch(p);
  }
}

// Room to write is asked for only while something waits for it.
void TcpWire::watch(std::int32_t p) {
  Link& l = link(p);
  std::uint32_t& now = watched_[static_cast<std::size_t>(p)];
  const std::uint32_t want = l.is_gone() ? 0U : EPOLLIN | (l.wants_to_write() ? EPOLLOUT : 0U);
  if (want == now) return;
  epoll_event event{};
  event.events = want;
  event.data.u32 = static_cast<std::uint32_t>(p);
  const int change = want == 0 ? EPOLL_CTL_DEL : now == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  (void)::epoll_ctl(epoll_.fd(), change, l.fd(), &event);
  now = want;
}

void TcpWire::progress() {
  if (const std::int32_t code = ending_.load(); code >= 0) {
    ending_ = kNotEnding;
    for (const auto& l : links_)
      if (l) l->send_die(code);
    (void)write_all(kLastWords);
    ended_ = true;
  }
  std::array<epoll_event, 64> events;
  const int n = ::epoll_wait(epoll_.fd(), events.data(), static_cast<int>(events.size()), 0);
  for (int i = 0; i < n; ++i) {
    const auto p = static_cast<std::int32_t>(events[static_cast<std::size_t>(i)].data.u32);
    From sink(*this, p);
    Link& l = link(p);
    l.read(sink);
    l.write();
    watch(p);
  }
}

bool TcpWire::write_all(std::int64_t patience_ns) {
  const std::int64_t start = wall_ns();
  for (;;) {
    bool left = false;
    for (const auto& l : links_) {
      if (!l) continue;
      l->write();
      left = left || l->wants_to_write();
    }
    if (!left || wall_ns() - start > patience_ns) return !left;
    std::this_thread::sleep_for(kPause);
  }
}

void TcpWire::close() {
  (void)write_all(kParting);
  for (const auto& l : links_)
    if (l) l->shut();
  // A socket that is closed with bytes unread takes back what it has sent.
  const std::int64_t start = wall_ns();
  const auto open = [](const auto& l) { return l && !l->drain(); };
  while (std::ranges::any_of(links_, open) && wall_ns() - start < kParting)
    std::this_thread::sleep_for(kPause);
  for (auto& l : links_) l.reset();
}

void TcpWire::kill_all(std::int32_t exit_code) noexcept {
  // Comes without Post's lock, which may be held for long: whoever looks for progress next tells the others.
  ended_ = false;
  ending_ = exit_code;
  const std::int64_t start = wall_ns();
  while (!ended_ && wall_ns() - start < 2 * kLastWords) std::this_thread::sleep_for(kPause);
}

}  // namespace

std::unique_ptr<Wire> open_wire(Meeting meeting, std::function<void(std::int32_t)> end_process) {
  const std::int32_t process = meeting.process;
  return std::make_unique<TcpWire>(process, meet(std::move(meeting)), std::move(end_process));
}

}  // namespace tessera::comm::tcp
