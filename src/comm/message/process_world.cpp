#include "comm/message/process_world.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/text.h"
#include "comm/message/carrier.h"
#include "comm/message/message_communicator.h"
#include "comm/message/monitor.h"
#include "comm/thread/run_ranks.h"
#include "comm/thread/thread_communicator.h"

namespace tessera::comm {

using message::Envelope;
using message::Kind;
using message::Seat;

namespace {

constexpr std::int64_t kSecond = 1'000'000'000;

std::int64_t ns(Seconds s) {
  return static_cast<std::int64_t>(s.value * 1e9);
}

std::uint64_t group_id(std::span<const Rank> members, std::string_view label, std::int32_t instance) {
  std::uint64_t hash = 14695981039346656037ULL;
  const auto mix = [&](std::uint64_t value) {
    for (int i = 0; i < 8; ++i) {
      hash ^= (value >> (8 * i)) & 0xff;
      hash *= 1099511628211ULL;
    }
  };
  for (const char c : label) mix(static_cast<std::uint64_t>(c));
  mix(static_cast<std::uint64_t>(instance));
  for (const Rank r : members) mix(static_cast<std::uint64_t>(r.value));
  return hash;
}

std::vector<std::int32_t> process_of_ranks(std::int32_t processes, std::int32_t each) {
  std::vector<std::int32_t> of;
  for (std::int32_t r = 0; r < processes * each; ++r) of.push_back(r / each);
  return of;
}

// What this process may use when others share the host: mpirun's binding, or a fair part.
std::vector<std::int32_t> cores_of(const message::Wire& wire) {
  std::vector<std::int32_t> cores = thread::usable_cores();
  const bool bound = std::ssize(cores) < ::sysconf(_SC_NPROCESSORS_ONLN);
  if (wire.processes_on_host() > 1 && !bound) cores.clear();  // pins would pile up on the first cores
  return cores;
}

}  // namespace

struct ProcessWorld::Shared {
  Options options;
  std::unique_ptr<message::Wire> wire;
  std::vector<std::int32_t> cores;  // to pin to
  std::vector<Rank> ranks;          // local
  std::int32_t size;
  thread::World world;
  message::Post post;
  message::Monitor monitor;
  std::optional<message::Carrier> carrier;
  std::mutex mutex;
  std::map<std::pair<std::uint64_t, std::int32_t>, std::unique_ptr<Seat>> seats;
  std::int64_t runs = 0;

  Shared(std::unique_ptr<message::Wire> w, const Options& o)
      : options(o),
        wire(std::move(w)),
        cores(cores_of(*wire)),
        size(wire->processes() * o.ranks_per_process),
        world(size, ns(o.timeout), o.cores > 0 ? o.cores : static_cast<std::int32_t>(cores.size())),
        post(*wire, process_of_ranks(wire->processes(), o.ranks_per_process)),
        monitor(*wire, post, world,
                {.ranks_per_process = o.ranks_per_process,
                 .silence_ns = ns(o.silence),
                 .on_sigterm = o.on_sigterm}) {
    if (wire->processes() > 1) carrier.emplace(post);
    for (std::int32_t r = 0; r < o.ranks_per_process; ++r)
      ranks.emplace_back(wire->process() * o.ranks_per_process + r);
  }

  [[nodiscard]] bool is_local(Rank rank) const {
    return rank.value / options.ranks_per_process == wire->process();
  }
  Seat& seat(Rank rank, std::span<const Rank> members, std::string_view label, std::int32_t instance) {
    const std::uint64_t id = group_id(members, label, instance);
    const std::lock_guard lock(mutex);
    auto& seat = seats[{id, rank.value}];
    if (!seat) {
      seat = std::make_unique<Seat>();
      seat->group = id;
      seat->label = label;
      seat->members.assign(members.begin(), members.end());
      seat->place = place_of(rank, members, size, label);
      world.add_log(rank, seat->name(), &seat->log);
    }
    return *seat;
  }
};

ProcessWorld::ProcessWorld(std::unique_ptr<message::Wire> wire, Options options) {
  if (options.ranks_per_process < 1 || !(options.timeout.value > 0.0) || !(options.silence.value > 0.0))
    throw Error(ErrorKind::internal,
                fmt::format("{} ranks per process, a timeout of {} s, silence of {} s",
                            options.ranks_per_process, options.timeout.value, options.silence.value),
                "ProcessWorld", "use 1 rank or more and times above 0");
  shared_ = std::make_unique<Shared>(std::move(wire), options);
}

ProcessWorld::~ProcessWorld() {
  shared_->carrier.reset();
  if (shared_->monitor.say_goodbye()) shared_->wire->close();
}

std::int32_t ProcessWorld::size() const {
  return shared_->size;
}

std::span<const Rank> ProcessWorld::local_ranks() const {
  return shared_->ranks;
}

std::int64_t ProcessWorld::first_process_id() const {
  return shared_->wire->peer(0).pid;
}

std::int32_t ProcessWorld::hosts() const {
  std::set<std::string> names;
  for (std::int32_t p = 0; p < processes(); ++p) names.insert(shared_->wire->peer(p).host);
  return static_cast<std::int32_t>(names.size());
}

std::int32_t ProcessWorld::process_on_host() const {
  const message::Wire& wire = *shared_->wire;
  std::int32_t before = 0;
  for (std::int32_t p = 0; p < wire.process(); ++p)
    before += wire.peer(p).host == wire.peer(wire.process()).host ? 1 : 0;
  return before;
}

Whereabouts& ProcessWorld::whereabouts(Rank rank) {
  return shared_->world.whereabouts(rank);
}

std::unique_ptr<Communicator> ProcessWorld::communicator(Rank rank, std::span<const Rank> members,
                                                         std::string_view label, std::int32_t instance) {
  Shared& s = *shared_;
  const std::int32_t place = place_of(rank, members, size(), label);
  std::unique_ptr<Communicator> comm;
  if (std::ranges::all_of(members, [&](Rank r) { return s.is_local(r); })) {
    comm = thread::make_communicator(s.world.group(members, label, instance), place);
  } else {
    Seat& seat = s.seat(rank, members, label, instance);
    if (seat.held.exchange(true))
      throw Error(ErrorKind::internal, fmt::format("instance {} is already in use by this rank", instance),
                  fmt::format("rank {}, communicator {}", rank.value, label),
                  "ask for another instance, or destroy the first communicator");
    std::unique_ptr<message::Wire::Sums> sums;
    if (s.options.fast_reductions && s.options.ranks_per_process == 1) {
      std::vector<std::int32_t> processes;
      for (const Rank r : members) processes.push_back(r.value);
      sums = s.post.make_sums(processes);
    }
    comm = std::make_unique<message::MessageCommunicator>(seat, label, s.post, s.world, std::move(sums));
  }
  comm->set_whereabouts(&s.world.whereabouts(rank));
  return comm;
}

void ProcessWorld::run(const std::function<void(Rank)>& body) {
  Shared& s = *shared_;
  s.monitor.begin_run(++s.runs);
  thread::run_ranks(s.world, s.ranks, s.cores, [&](Rank rank) {
    body(rank);
    s.monitor.tell_left(rank);
  });
  s.monitor.wait_for_all_ranks();
  if (!s.world.stopped()) return;
  s.monitor.wait_for_states();
  if (auto error = s.world.verdict()) throw Error(std::move(*error));
}

void ProcessWorld::set_lands_messages(bool lands) {
  shared_->post.set_lands(lands);
}

void ProcessWorld::abort(Rank rank, std::string_view why) {
  shared_->world.stop(rank, Error(ErrorKind::comm, std::string(why), fmt::format("rank {}", rank.value), ""),
                      true);
}

void ProcessWorld::fail(const Error& error) {
  shared_->world.stop(shared_->ranks.front(), error, false);
}

bool ProcessWorld::speaks() {
  Shared& s = *shared_;
  // Before this process speaks for another, that one has had the time to.
  const std::int64_t patience = 4 * kSecond + process() * kSecond / 4;
  const std::int64_t start = wall_ns();
  while (process() != 0 && wall_ns() - start < patience) {
    if (s.monitor.was_reported()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return true;
}

void ProcessWorld::end(std::int32_t exit_code) {
  Shared& s = *shared_;
  if (!s.monitor.was_reported()) {
    s.monitor.tell_reported();
    return s.wire->kill_all(exit_code);
  }
  // The one that reported ends us; in case it cannot:
  std::this_thread::sleep_for(std::chrono::seconds(5));
}

}  // namespace tessera::comm
