#include "comm/message/monitor.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <chrono>

#include "base/clock.h"
#include "base/text.h"
#include "comm/message/watch.h"

namespace tessera::comm::message {

namespace {

constexpr auto kTick = std::chrono::milliseconds(10);
constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kSecond = 1000 * kMillisecond;
// What separates the parts of an error on the wire.
constexpr char kPart = '\x1f';
constexpr char kEntry = '\x1e';

std::string pack(const std::vector<Problem>& problems) {
  std::string text;
  for (const Problem& p : problems) text += p.what + kPart + p.where + kPart + p.mend + kEntry;
  return text;
}

std::vector<Problem> unpack(std::string_view text) {
  std::vector<Problem> problems;
  for (const std::string& entry : split(text, kEntry)) {
    std::vector<std::string> parts = split(entry, kPart);
    if (entry.empty()) continue;
    parts.resize(3);  // a long one may be cut off
    problems.push_back({parts[0], parts[1], parts[2]});
  }
  return problems;
}

}  // namespace

Monitor::Monitor(Wire& wire, Post& post, thread::World& world, const Options& options)
    : wire_(wire),
      post_(post),
      world_(world),
      each_(options.ranks_per_process),
      silence_ns_(options.silence_ns),
      on_sigterm_(options.on_sigterm),
      left_run_(static_cast<std::size_t>(world.size())),
      has_state_(static_cast<std::size_t>(world.size())),
      goodbye_(static_cast<std::size_t>(wire.processes())),
      thread_([this](const std::stop_token& stop) { loop(stop); }) {}

Monitor::~Monitor() = default;

void Monitor::send_all(const Envelope& envelope, std::string_view text) {
  for (std::int32_t p = 0; p < wire_.processes(); ++p)
    if (p != wire_.process()) post_.send_control(p, envelope, text);
}

void Monitor::begin_run(std::int64_t run) {
  const std::lock_guard lock(mutex_);
  run_ = run;
  for (std::int32_t r = 0; r < world_.size(); ++r) {
    if (is_local(Rank(r))) continue;
    const bool left = left_run_[static_cast<std::size_t>(r)] >= run;
    world_.set_state(Rank(r), left ? thread::RankState::finished : thread::RankState::elsewhere);
  }
}

void Monitor::tell_left(Rank rank) {
  {
    const std::lock_guard lock(mutex_);
    left_run_[static_cast<std::size_t>(rank.value)] = run_;
  }
  send_all({.kind = Kind::left, .from = rank.value, .number = run_}, "");
  changed_.notify_all();
}

void Monitor::wait_for_all_ranks() {
  std::unique_lock lock(mutex_);
  const auto done = [&] {
    return world_.stopped() || std::ranges::all_of(left_run_, [&](std::int64_t r) { return r >= run_; });
  };
  while (!changed_.wait_for(lock, kTick, done)) {
  }
}

void Monitor::wait_for_states() {
  std::unique_lock lock(mutex_);
  if (wire_.process() != 0 && stopped_by_ >= 0) return;  // the others tell the first one and the failed one
  changed_.wait_for(lock, std::chrono::milliseconds(600), [&] {
    for (std::int32_t r = 0; r < world_.size(); ++r)
      if (!is_local(Rank(r)) && !has_state_[static_cast<std::size_t>(r)]) return false;
    return true;
  });
  for (std::int32_t r = 0; r < world_.size(); ++r) {
    if (is_local(Rank(r)) || has_state_[static_cast<std::size_t>(r)]) continue;
    world_.set_remote_state(Rank(r), last_words(Rank(r)));
  }
}

std::string Monitor::last_words(Rank rank) {
  std::string line = "no word from its process";
  if (const auto last = post_.last_of(rank)) {
    line += fmt::format("; its last message to this one: {}", call_text(last->info, last->number));
    if (const std::string site = text(last->site); !site.empty()) line += " at " + site;
  }
  return line;
}

void Monitor::tell_reported() {
  send_all({.kind = Kind::reported}, "");
  // Until it is on its way.
  for (int i = 0; i < 20; ++i) {
    post_.poll();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

bool Monitor::say_goodbye() {
  if (!world_.stopped()) {
    send_all({.kind = Kind::goodbye}, "");
    std::unique_lock lock(mutex_);
    goodbye_[static_cast<std::size_t>(wire_.process())] = true;
    const auto all = [&] { return std::ranges::all_of(goodbye_, [](bool b) { return b; }); };
    while (!changed_.wait_for(lock, kTick, [&] { return world_.stopped() || all(); })) {
    }
  }
  thread_.request_stop();
  thread_.join();
  return !world_.stopped();
}

void Monitor::send_states(std::int32_t process) {
  const std::vector<std::string> lines = world_.states();
  for (std::int32_t r = 0; r < world_.size(); ++r)
    if (is_local(Rank(r)))
      post_.send_control(process, {.kind = Kind::state, .from = r}, lines[static_cast<std::size_t>(r)]);
}

void Monitor::tell_stop() {
  told_stop_ = true;
  if (stopped_by_ >= 0) {
    send_states(0);
    if (stopped_by_ != 0) send_states(stopped_by_);
    return;
  }
  const auto failure = world_.failure();
  // First the words that end the others' waits, then the long ones.
  send_all({.kind = Kind::stop,
            .from = failure->rank.value,
            .info = {.detail = static_cast<std::int64_t>(failure->kind)}},
           pack(failure->problems));
  for (std::int32_t p = 0; p < wire_.processes(); ++p)
    if (p != wire_.process()) send_states(p);
}

void Monitor::take_in_stop(const Post::Control& control) {
  if (world_.stopped()) return;
  stopped_by_ = control.process;
  const auto kind = static_cast<ErrorKind>(control.envelope.info.detail);
  world_.stop(Rank(control.envelope.from), Error(kind, unpack(control.text)), false);
}

void Monitor::take_in(const Post::Control& control) {
  const Envelope& e = control.envelope;
  const auto from = static_cast<std::size_t>(e.from);
  switch (e.kind) {
    case Kind::stop:
      return take_in_stop(control);
    case Kind::state:
      world_.set_remote_state(Rank(e.from), control.text);
      has_state_[from] = true;
      return;
    case Kind::left:
      left_run_[from] = std::max(left_run_[from], e.number);
      if (e.number == run_) world_.set_state(Rank(e.from), thread::RankState::finished);
      return;
    case Kind::goodbye:
      goodbye_[static_cast<std::size_t>(control.process)] = true;
      return;
    case Kind::reported:
      reported_ = true;
      return;
    case Kind::alive:
    case Kind::collective:
    case Kind::direct:
      return;
  }
}

void Monitor::show_life(std::int64_t now) {
  if (now - shown_ns_ < std::min(silence_ns_ / 8, kSecond)) return;
  shown_ns_ = now;
  post_.send_control((wire_.process() + 1) % wire_.processes(), {.kind = Kind::alive}, "");
}

void Monitor::lost(std::int32_t process, std::string_view how, std::int64_t silent_ns) {
  const Wire::Peer& peer = wire_.peer(process);
  const std::int32_t first = process * each_;
  std::string ranks = fmt::format("rank {}", first);
  if (each_ > 1) ranks = fmt::format("ranks {} to {}", first, first + each_ - 1);
  {
    const std::lock_guard lock(mutex_);  // nobody waits for its words
    for (std::int32_t r = first; r < first + each_; ++r) has_state_[static_cast<std::size_t>(r)] = true;
  }
  for (std::int32_t r = first; r < first + each_; ++r) world_.set_remote_state(Rank(r), last_words(Rank(r)));
  world_.stop(Rank(first),
              Error(ErrorKind::comm,
                    fmt::format("the process of {} {} (process {}, pid {} on {}; last sign of life {} ago)",
                                ranks, how, process, peer.pid, peer.host,
                                human(Seconds(static_cast<double>(silent_ns) * 1e-9))),
                    fmt::format("process {}, which watches it", wire_.process()),
                    "look there for the cause (killed for memory? a node or network down? stopped by hand?), "
                    "then start the job again: it goes on from its last checkpoint"),
              false);
}

void Monitor::watch(std::int64_t now) {
  const std::int32_t process = before();
  {
    const std::lock_guard lock(mutex_);
    if (goodbye_[static_cast<std::size_t>(process)]) return;
  }
  // When this process itself stood still (stopped and continued, or no core), the others may have, too.
  if (now - watched_ns_ > kSecond) heard_from_ns_ = now;
  watched_ns_ = now;
  const std::int64_t silent = now - std::max(heard_from_ns_, post_.heard_ns(process));
  if (silent < std::min(silence_ns_, kSecond)) return;
  const Wire::Peer& peer = wire_.peer(process);
  const bool same_host = peer.host == wire_.peer(wire_.process()).host;
  const Life life = same_host ? life_of(peer.pid) : Life::runs;
  if (life == Life::dead) return lost(process, "has died", silent);
  if (silent < silence_ns_) return;
  if (life == Life::stopped) return lost(process, "is stopped (by SIGSTOP or a debugger)", silent);
  lost(process, same_host ? "hangs" : "is dead, hangs, or cannot be reached", silent);
}

void Monitor::watch_connections(const std::vector<std::int32_t>& gone, std::int64_t now) {
  for (const std::int32_t p : gone) {
    {
      const std::lock_guard lock(mutex_);
      if (goodbye_[static_cast<std::size_t>(p)]) continue;
    }
    if (gone_ns_ == 0) gone_ns_ = now;
    const Wire::Peer& peer = wire_.peer(p);
    const bool same_host = peer.host == wire_.peer(wire_.process()).host;
    const bool dead = same_host && life_of(peer.pid) == Life::dead;
    // Its connections close a moment before the kernel lists it as dead.
    if (same_host && !dead && now - gone_ns_ < kSecond / 2) continue;
    const char* how = dead        ? "has died"
                      : same_host ? "has closed its connection"
                                  : "has died or lost its network";
    return lost(p, how, now - post_.heard_ns(p));
  }
}

void Monitor::take_sigterm(std::int64_t now) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  constexpr timespec kNow{};
  if (::sigtimedwait(&set, nullptr, &kNow) != SIGTERM) return;
  const std::string& host = wire_.peer(wire_.process()).host;
  for (std::int32_t p = 0; p < wire_.processes() && !world_.stopped(); ++p)
    if (wire_.peer(p).host == host && life_of(wire_.peer(p).pid) == Life::dead)
      lost(p, "has died", now - post_.heard_ns(p));
  if (!world_.stopped()) on_sigterm_();
}

void Monitor::loop(const std::stop_token& stop) {
  watched_ns_ = wall_ns();
  heard_from_ns_ = watched_ns_;
  while (!stop.stop_requested()) {
    post_.poll();
    // In this order: what a process said before it left explains why it did.
    const std::vector<std::int32_t> gone = post_.gone();
    if (const std::vector<Post::Control> controls = post_.take_control(); !controls.empty()) {
      {
        const std::lock_guard lock(mutex_);
        for (const Post::Control& c : controls) take_in(c);
      }
      changed_.notify_all();
    }
    if (world_.stopped() && !told_stop_) tell_stop();
    const std::int64_t now = wall_ns();
    if (on_sigterm_) take_sigterm(now);
    if (wire_.processes() > 1) {
      show_life(now);
      if (!world_.stopped()) watch(now);
      if (!world_.stopped()) watch_connections(gone, now);
    }
    std::this_thread::sleep_for(kTick);
  }
}

}  // namespace tessera::comm::message
