#include "comm/thread/world.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"

namespace tessera::comm::thread {

namespace {
// Between two cores a futex wake costs tens of microseconds, a look tens of nanoseconds: with a core for each
// rank, look for about as long as a wake would take. With more ranks than cores a look only delays the rank
// that is waited for.
constexpr std::int32_t kSpins = 1000;
std::int32_t place_in(const Group& group, Rank rank) {
  for (std::int32_t r = 0; r < group.size(); ++r)
    if (group.world_rank(r) == rank) return r;
  return kNobody;
}
}  // namespace

World::World(std::int32_t size, std::int64_t timeout_ns, std::int32_t cores)
    : size_(size),
      timeout_ns_(timeout_ns),
      spins_(size <= cores ? kSpins : 0),
      states_(static_cast<std::size_t>(size)),
      whereabouts_(static_cast<std::size_t>(size)),
      remote_states_(static_cast<std::size_t>(size)) {}

void World::stop(Rank rank, const Error& error, bool provisional) {
  {
    const std::lock_guard lock(mutex_);
    if (first_ && !(first_->provisional && first_->rank == rank)) return;
    // The states of the moment at which it went wrong: soon all ranks will have left.
    std::vector<std::string> states = first_ ? std::move(first_->states) : describe_ranks();
    first_ = Failure{rank, error.kind(), error.problems(), std::move(states), provisional};
    stopped_.store(true, std::memory_order_seq_cst);
  }
  wake_all();
}

void World::throw_stopped(const std::string& where) {
  const std::lock_guard lock(mutex_);
  std::string why = "it left";
  std::int32_t rank = 0;
  if (first_) {
    rank = first_->rank.value;
    why = first_->problems.empty() ? "it left" : first_->problems.front().what;
  }
  throw Stopped(ErrorKind::comm, fmt::format("stopped because rank {} failed: {}", rank, why), where,
                fmt::format("mend the failure of rank {}; this rank only noticed it", rank));
}

void World::fail(Rank rank, const Error& error) {
  stop(rank, error, false);
  throw error;
}

void World::set_state(Rank rank, RankState state) {
  states_[static_cast<std::size_t>(rank.value)].store(state, std::memory_order_seq_cst);
  if (state == RankState::finished || state == RankState::failed) wake_all();
}

Group& World::group(std::span<const Rank> members, std::string_view label, std::int32_t instance) {
  const std::lock_guard lock(mutex_);
  for (const auto& g : groups_)
    if (g->instance() == instance && g->label() == label && std::ranges::equal(g->members(), members))
      return *g;
  groups_.push_back(
      std::make_unique<Group>(*this, std::vector<Rank>(members.begin(), members.end()), label, instance));
  return *groups_.back();
}

// A rank may ask for its communicators before the others have: nobody has closed theirs in this run.
void World::open_groups() {
  const std::lock_guard lock(mutex_);
  for (const auto& g : groups_) g->open_all();
}

void World::wake_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& g : groups_) g->wake_all();
}

void World::withdraw(Rank rank) {
  const std::lock_guard lock(mutex_);
  for (const auto& g : groups_)
    if (const std::int32_t r = place_in(*g, rank); r != kNobody) g->withdraw(r, false);
}

std::string World::describe_calls(Rank rank) const {
  std::vector<std::string> parts;
  for (const auto& g : groups_)
    if (const std::int32_t r = place_in(*g, rank); r != kNobody)
      if (std::string text = g->recent(r); !text.empty()) parts.push_back(std::move(text));
  for (const Log& l : logs_)
    if (l.rank == rank)
      if (std::string text = l.log->recent(l.group); !text.empty()) parts.push_back(std::move(text));
  return join(parts, "; ");
}

namespace {
std::string whom(const GroupName& group, std::int32_t peer) {
  if (peer < 0) return "the other ranks";
  return fmt::format("rank {}", group.members[static_cast<std::size_t>(peer)].value);
}
}  // namespace

std::string World::describe_rank(Rank rank) const {
  std::vector<std::string> parts;
  for (const auto& g : groups_)
    if (const std::int32_t r = place_in(*g, rank); r != kNobody)
      if (std::string text = g->doing(r); !text.empty()) parts.push_back(std::move(text));
  for (const Log& l : logs_)
    if (l.rank == rank)
      if (std::string text = l.log->doing(l.group, whom(l.group, l.log->waiting_for())); !text.empty())
        parts.push_back(std::move(text));
  std::string line = join(parts, " and ");
  switch (state(rank)) {
    case RankState::idle:
      if (parts.empty()) line = "not started";
      break;
    case RankState::running:
      if (parts.empty()) {
        const std::string site = text(whereabouts_[static_cast<std::size_t>(rank.value)].site());
        line = site.empty() ? "outside of communication" : "outside of communication, at " + site;
      }
      break;
    case RankState::finished:
      line = "finished";
      break;
    case RankState::failed:
      line = "left after an error";
      break;
    case RankState::elsewhere:
      line = "no word from its process";
      break;
  }
  if (const std::string calls = describe_calls(rank); !calls.empty())
    line += fmt::format("; last calls: {}", calls);
  return line;
}

std::vector<std::string> World::describe_ranks() const {
  std::vector<std::string> lines;
  for (std::int32_t i = 0; i < size_; ++i) lines.push_back(describe_rank(Rank(i)));
  return lines;
}

void World::add_log(Rank rank, const GroupName& group, const FlightLog* log) {
  const std::lock_guard lock(mutex_);
  logs_.push_back({rank, group, log});
}

void World::set_remote_state(Rank rank, std::string line) {
  const std::lock_guard lock(mutex_);
  remote_states_[static_cast<std::size_t>(rank.value)] = std::move(line);
}

std::vector<std::string> World::states() {
  const std::lock_guard lock(mutex_);
  return first_ ? first_->states : describe_ranks();
}

std::optional<World::Failure> World::failure() const {
  const std::lock_guard lock(mutex_);
  return first_;
}

std::optional<Error> World::verdict() {
  const std::lock_guard lock(mutex_);
  if (!first_) return std::nullopt;
  std::vector<Problem> problems = first_->problems;
  if (problems.empty()) problems.push_back({"it left", "", ""});
  problems.front().what = fmt::format("rank {} failed: {}", first_->rank.value, problems.front().what);
  std::string states = "states of the ranks when it failed:";
  for (std::int32_t i = 0; i < size_; ++i) {
    const std::string& line = remote_states_[static_cast<std::size_t>(i)].empty()
                                  ? first_->states[static_cast<std::size_t>(i)]
                                  : remote_states_[static_cast<std::size_t>(i)];
    states += fmt::format("\n  rank {}: {}{}", i, first_->rank.value == i ? "this one failed; " : "", line);
  }
  problems.push_back(
      {std::move(states), "", fmt::format("start with rank {}: it failed first", first_->rank.value)});
  return Error(first_->kind, std::move(problems));
}

}  // namespace tessera::comm::thread
