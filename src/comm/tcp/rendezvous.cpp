#include "comm/tcp/rendezvous.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <optional>
#include <system_error>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "comm/tcp/words.h"

namespace tessera::comm::tcp {

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kStranger = 5 * kSecond;  // to say who one is
constexpr std::int64_t kAttempt = 10 * kSecond;  // to connect once
constexpr std::int64_t kLook = kSecond / 2;      // between looks at the clocks
constexpr auto kPause = std::chrono::milliseconds(100);

using State = Intake::State;

Hello hello_of(const Meeting& m) {
  Hello h;
  put(h.token, m.token);
  put(h.version, m.version);
  h.process = m.process;
  h.processes = m.processes;
  h.pid = ::getpid();
  (void)::gethostname(h.host.data(), h.host.size() - 1);
  return h;
}

std::string table_text(const std::vector<Hello>& table) {
  return {reinterpret_cast<const char*>(table.data()), table.size() * sizeof(Hello)};
}

Links links_of(const std::vector<Hello>& table, std::vector<Socket> sockets) {
  Links links{.peers = {}, .sockets = std::move(sockets)};
  for (const Hello& h : table) links.peers.push_back({get(h.host), h.pid});
  return links;
}

[[noreturn]] void throw_refused(const Word& w, const std::string& where) {
  const std::size_t cut = w.text.find('\n');
  throw Error(w.error, w.text.substr(0, cut), where, cut == std::string::npos ? "" : w.text.substr(cut + 1));
}

// Those who came in and have not said yet who they are.
class Door {
 public:
  explicit Door(const Socket& listener, std::size_t most) : listener_(listener), most_(most) {}

  // Looks once, waiting for a while. in(hello, socket): of each that said a Hello.
  void look(std::vector<int> also, std::int64_t until_ns,
            const std::function<void(const Hello&, Socket)>& in) {
    also.push_back(listener_.fd());
    for (const Visitor& v : visitors_) also.push_back(v.socket.fd());
    wait_readable(also, std::min(until_ns, wall_ns() + kLook));
    for (Socket s = accept_from(listener_); s.is_open(); s = accept_from(listener_)) {
      if (visitors_.size() >= most_) visitors_.erase(visitors_.begin());
      visitors_.push_back({std::move(s), {}, wall_ns() + kStranger});
    }
    for (std::size_t i = 0; i < visitors_.size();) {
      Visitor& v = visitors_[i];
      State state = v.intake.take(v.socket, sizeof(Hello));
      Hello hello;
      const std::span<const std::byte> got = v.intake.bytes();
      if (got.size() >= sizeof kMagic && std::memcmp(got.data(), &kMagic, sizeof kMagic) != 0)
        state = State::closed;
      if (state == State::waits && wall_ns() < v.until) {
        ++i;
        continue;
      }
      if (state == State::whole) {
        std::memcpy(static_cast<void*>(&hello), got.data(), sizeof hello);
        in(hello, std::move(v.socket));
      }
      visitors_.erase(visitors_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }

 private:
  struct Visitor {
    Socket socket;
    Intake intake;
    std::int64_t until = 0;
  };
  const Socket& listener_;
  std::size_t most_;
  std::vector<Visitor> visitors_;
};

// Process 0.
class Host {
 public:
  explicit Host(Meeting m)
      : m_(std::move(m)), until_(wall_ns() + static_cast<std::int64_t>(m_.timeout.value * 1e9)) {
    if (!m_.listener.is_open())
      m_.listener = listen_at(resolve(m_.bind.empty() ? m_.host : m_.bind, m_.port), m_.processes + 64);
    table_.resize(static_cast<std::size_t>(m_.processes));
    sockets_.resize(table_.size());
    table_[0] = hello_of(m_);
  }

  Links meet() {
    Door door(m_.listener, table_.size() + 64);
    while (!missing().empty()) {
      if (wall_ns() > until_) fail(ErrorKind::comm, too_late(), where_late());
      door.look(open_fds(), until_, [this](const Hello& h, Socket s) { let_in(h, std::move(s)); });
      for (std::size_t p = 1; p < sockets_.size(); ++p) drop_if_gone(p);
    }
    m_.listener.close();
    for (const Socket& s : sockets_)
      if (s.is_open())
        (void)send_word(s, {.kind = WordKind::table, .error = {}, .text = table_text(table_)}, until_);
    for (std::size_t p = 1; p < sockets_.size(); ++p) await_done(p);
    for (const Socket& s : sockets_)
      if (s.is_open()) (void)send_word(s, {.kind = WordKind::go, .error = {}, .text = {}}, until_);
    return links_of(table_, std::move(sockets_));
  }

 private:
  void let_in(const Hello& h, Socket s) {
    const auto at = static_cast<std::size_t>(h.process);
    if (get(h.token) != m_.token) {
      refused_ =
          fmt::format("a process on {} (pid {}) came with the token of another job", get(h.host), h.pid);
      const Word word{WordKind::refused, ErrorKind::config,
                      "process 0 at this address belongs to another job: its token differs\n"
                      "give every process of a job the same --rdzv-id, and each job a port of its own"};
      (void)send_word(s, word, wall_ns() + kSecond);
      return;
    }
    std::string what;
    std::string mend =
        "start every process of a job with the same number of processes, each with another rank";
    if (h.protocol != kProtocol || get(h.version) != m_.version) {
      what = fmt::format("{} is Tessera {} (protocol {}), process 0 is Tessera {} (protocol {})", h.who(),
                         get(h.version), h.protocol, m_.version, kProtocol);
      mend = "install the same Tessera on all hosts";
    } else if (h.processes != m_.processes) {
      what = fmt::format("{} was started as one of {} processes, process 0 as one of {}", h.who(),
                         h.processes, m_.processes);
    } else if (h.process < 1 || h.process >= m_.processes) {
      what = fmt::format("{} connects to process 0 of {} processes", h.who(), m_.processes);
    } else if (sockets_[at].is_open() && !drop_if_gone(at)) {
      what = fmt::format("two processes have rank {}: pid {} on {} and pid {} on {}", h.process,
                         table_[at].pid, get(table_[at].host), h.pid, get(h.host));
    }
    if (!what.empty()) {
      const Word word{WordKind::refused, ErrorKind::config, what + "\n" + mend};
      (void)send_word(s, word, wall_ns() + kSecond);
      fail(ErrorKind::config, what, mend);
    }
    table_[at] = h;
    sockets_[at] = std::move(s);
  }

  // One that died while the others were on their way: it may come again.
  bool drop_if_gone(std::size_t p) {
    char byte = 0;
    if (!sockets_[p].is_open() || ::recv(sockets_[p].fd(), &byte, 1, MSG_PEEK) != 0) return false;
    sockets_[p].close();
    return true;
  }

  void await_done(std::size_t p) {
    WordIntake intake;
    State state = State::waits;
    while ((state = intake.take(sockets_[p])) == State::waits) {
      if (wall_ns() > until_)
        fail(ErrorKind::comm, fmt::format("{} has not connected to the others in time", table_[p].who()),
             "see whether a firewall keeps the hosts apart");
      const int fd = sockets_[p].fd();
      wait_readable({&fd, 1}, until_);
    }
    if (state == State::closed)
      fail(ErrorKind::comm, fmt::format("{} has gone during the rendezvous", table_[p].who()),
           "see there why it ended");
    if (intake.word().kind == WordKind::done) return;
    const std::string& text = intake.word().text;
    const std::size_t cut = std::min(text.find('\n'), text.size());
    fail(intake.word().error, text.substr(0, cut), text.substr(std::min(cut + 1, text.size())));
  }

  [[nodiscard]] std::vector<int> open_fds() const {
    std::vector<int> fds;
    for (const Socket& s : sockets_)
      if (s.is_open()) fds.push_back(s.fd());
    return fds;
  }
  [[nodiscard]] std::vector<std::string> missing() const {
    std::vector<std::string> ranks;
    for (std::size_t p = 1; p < sockets_.size(); ++p)
      if (!sockets_[p].is_open()) ranks.push_back(fmt::to_string(p));
    return ranks;
  }
  [[nodiscard]] std::string too_late() const {
    std::vector<std::string> ranks = missing();
    const std::size_t count = ranks.size();
    constexpr std::size_t kShown = 16;
    if (count > kShown) {
      ranks.resize(kShown);
      ranks.emplace_back("...");
    }
    std::string text = fmt::format("{} of {} processes did not come within {}: rank{} {}", count,
                                   m_.processes, human(m_.timeout), count == 1 ? "" : "s", join(ranks, ", "));
    if (!refused_.empty()) text += "; " + refused_;
    return text;
  }
  [[nodiscard]] std::string where_late() const {
    const Address here = local_address(m_.listener);
    std::string mend = "see on their hosts whether they were started, and what they say";
    if (here.is_loopback() && m_.bind.empty())
      mend += fmt::format(
          "; {} can be reached from this host alone: name another address of it, or give "
          "--bind-address",
          here.text());
    return mend;
  }

  [[noreturn]] void fail(ErrorKind kind, const std::string& what, const std::string& mend) {
    for (const Socket& s : sockets_)
      if (s.is_open()) (void)send_word(s, {WordKind::refused, kind, what + "\n" + mend}, wall_ns() + kSecond);
    throw Error(kind, what, fmt::format("rendezvous at {}:{}, process 0", m_.host, m_.port), mend);
  }

  Meeting m_;
  std::int64_t until_;
  std::vector<Hello> table_;
  std::vector<Socket> sockets_;
  std::string refused_;
};

// Every other process.
class Guest {
 public:
  explicit Guest(const Meeting& m)
      : m_(m), until_(wall_ns() + static_cast<std::int64_t>(m_.timeout.value * 1e9)), me_(hello_of(m)) {
    sockets_.resize(static_cast<std::size_t>(m_.processes));
  }

  Links meet() {
    const std::vector<Address> addresses = resolve(m_.host, m_.port);
    while (!arrive(addresses)) {
      if (wall_ns() > until_)
        throw Error(ErrorKind::comm,
                    fmt::format("process 0 could not be met at {}:{} within {}: {}", m_.host, m_.port,
                                human(m_.timeout), why_),
                    where(), "start process 0 there too; see whether a firewall is between the hosts");
      std::this_thread::sleep_for(kPause);
    }
    for (std::int32_t p = 1; p < m_.process; ++p) connect_with(static_cast<std::size_t>(p));
    Door door(listener_, sockets_.size() + 64);
    while (!all_here()) {
      door.look({sockets_[0].fd()}, until_, [this](const Hello& h, Socket s) { let_in(h, std::move(s)); });
      if (const auto word = word_of_host(); word && word->kind == WordKind::refused)
        throw_refused(*word, where());
    }
    (void)send_word(sockets_[0], {.kind = WordKind::done, .error = {}, .text = {}}, until_);
    for (;;) {
      const auto word = word_of_host();
      if (word && word->kind == WordKind::refused) throw_refused(*word, where());
      if (word && word->kind == WordKind::go) return links_of(table_, std::move(sockets_));
      const int fd = sockets_[0].fd();
      wait_readable({&fd, 1}, std::min(until_, wall_ns() + kLook));
    }
  }

 private:
  [[nodiscard]] std::string where() const {
    return fmt::format("rendezvous at {}:{}, {}", m_.host, m_.port, me_.who());
  }

  // One attempt: to say hello and to be given the table.
  bool arrive(const std::vector<Address>& addresses) {
    Socket s;
    for (const Address& a : addresses) {
      s = connect_to(a, std::min(until_, wall_ns() + kAttempt));
      if (s.is_open()) break;
      why_ = std::generic_category().message(errno);
    }
    if (!s.is_open()) return false;
    Address here = local_address(s);
    here.set_port(0);
    listener_ = listen_at({here}, m_.processes + 64);
    me_.listener = local_address(listener_);
    (void)send_bytes(s, std::as_bytes(std::span(&me_, 1)), until_);
    WordIntake intake;
    State state = State::waits;
    // Process 0 tells who is missing when the time is over: it has a little longer for that.
    while ((state = intake.take(s)) == State::waits && wall_ns() <= until_ + kAttempt) {
      const int fd = s.fd();
      wait_readable({&fd, 1}, std::max(until_, wall_ns() + kLook));
    }
    if (state == State::waits) why_ = "something listens there, and does not answer";
    if (state == State::closed) why_ = "what listens there is not process 0 of this job, or has ended";
    if (state != State::whole) return false;
    const Word& word = intake.word();
    if (word.kind == WordKind::refused) throw_refused(word, where());
    TESSERA_CHECK(word.kind == WordKind::table && word.text.size() == sockets_.size() * sizeof(Hello),
                  "process 0 sends the table of all processes");
    table_.resize(sockets_.size());
    std::memcpy(static_cast<void*>(table_.data()), word.text.data(), word.text.size());
    sockets_[0] = std::move(s);
    return true;
  }

  void connect_with(std::size_t p) {
    const Address& address = table_[p].listener;
    const std::int64_t until = std::min(until_, wall_ns() + 3 * kAttempt);
    while (!sockets_[p].is_open()) {
      sockets_[p] = connect_to(address, until);
      if (sockets_[p].is_open()) break;
      const int code = errno;
      if (const auto word = word_of_host(); word && word->kind == WordKind::refused)
        throw_refused(*word, where());
      if (wall_ns() > until) {
        const std::string what = fmt::format("{} cannot reach {} at {}: {}", me_.who(), table_[p].who(),
                                             address.text(), std::generic_category().message(code));
        const std::string mend = "let the hosts of the job reach each other at all ports";
        (void)send_word(sockets_[0], {WordKind::refused, ErrorKind::comm, what + "\n" + mend}, until_);
        throw Error(ErrorKind::comm, what, where(), mend);
      }
      std::this_thread::sleep_for(kPause);
    }
    (void)send_bytes(sockets_[p], std::as_bytes(std::span(&me_, 1)), until_);
  }

  void let_in(const Hello& h, Socket s) {
    const auto at = static_cast<std::size_t>(h.process);
    const bool ours = get(h.token) == m_.token && h.process > m_.process && h.process < m_.processes &&
                      h.pid == table_[at].pid && !sockets_[at].is_open();
    if (ours) sockets_[at] = std::move(s);
  }

  [[nodiscard]] bool all_here() const {
    return std::count_if(sockets_.begin(), sockets_.end(), [](const Socket& s) { return s.is_open(); }) ==
           m_.processes - 1;
  }

  // What process 0 has said by now. It decides when the time is over; a little later it is given up.
  std::optional<Word> word_of_host() {
    const State state = from_host_.take(sockets_[0]);
    if (state == State::whole) return from_host_.word();
    if (state == State::closed || wall_ns() > until_ + kAttempt)
      throw Error(ErrorKind::comm,
                  state == State::closed ? "process 0 has ended" : "process 0 does not answer", where(),
                  "see there what it says");
    return std::nullopt;
  }

  const Meeting& m_;
  std::int64_t until_;
  Hello me_;
  Socket listener_;
  std::vector<Hello> table_;
  std::vector<Socket> sockets_;
  WordIntake from_host_;
  std::string why_ = "no attempt was made";
};

void check(const Meeting& m) {
  const auto bad = [](std::string what, const char* mend) {
    throw Error(ErrorKind::config, std::move(what), "rendezvous", mend);
  };
  if (m.processes < 1 || m.process < 0 || m.process >= m.processes)
    bad(fmt::format("rank {} of {} processes", m.process, m.processes),
        "ranks count from 0, below their number");
  if (m.port < 1 || m.port > 65535)
    bad(fmt::format("port {}", m.port), "give a port from 1 to 65535 that is free on the host of process 0");
  if (m.token.size() > 255 || m.version.size() > 63)
    bad(fmt::format("a token of {} bytes", m.token.size()), "give one of at most 255 bytes");
  if (!(m.timeout.value > 0.0) || m.timeout.value > 1e9)
    bad(fmt::format("a timeout of {} s", m.timeout.value), "give seconds above 0");
}

}  // namespace

Links meet(Meeting meeting) {
  check(meeting);
  if (meeting.processes == 1) return links_of({hello_of(meeting)}, std::vector<Socket>(1));
  if (meeting.process == 0) return Host(std::move(meeting)).meet();
  return Guest(meeting).meet();
}

}  // namespace tessera::comm::tcp
