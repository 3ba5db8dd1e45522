#include "exec/generation_queue.h"

#include <algorithm>

#include "base/error.h"

namespace tessera::exec {

GenerationQueue::GenerationQueue(std::span<const Request> requests, std::int32_t num_slots,
                                 std::int32_t replicas)
    : requests_(requests), replicas_(replicas), slots_(static_cast<std::size_t>(num_slots)) {}

void GenerationQueue::admit() {
  for (Sequence& s : slots_) {
    while (!s.active && next_ < requests_.size()) {
      const std::size_t request = next_++;
      const Request& r = requests_[request];
      std::int64_t repeats = 0;
      for (std::size_t i = 0; i < request; ++i) repeats += requests_[i].prompt == r.prompt ? 1 : 0;
      s = {.request = request,
           .tokens = r.prompt,
           .cached = 0,
           .made = 0,
           .stream = sample_stream(r.prompt, repeats),
           .active = r.sampling.max_new_tokens > 0};
    }
  }
}

bool GenerationQueue::done() const {
  return next_ == requests_.size() && num_active() == 0;
}

std::int32_t GenerationQueue::num_active() const {
  return static_cast<std::int32_t>(std::ranges::count_if(slots_, [](const Sequence& s) { return s.active; }));
}

namespace {
std::int64_t waiting_of(const GenerationQueue::Sequence& s) {
  return s.active ? std::ssize(s.tokens) - 1 - s.cached : 0;
}
}  // namespace

std::int64_t GenerationQueue::waiting_rows(std::int32_t replica) const {
  std::int64_t n = 0;
  for (std::int32_t s = replica; s < num_slots(); s += replicas_) n += waiting_of(at(s));
  return n;
}

std::int64_t GenerationQueue::most_waiting_rows() const {
  std::int64_t most = 0;
  for (std::int32_t r = 0; r < replicas_; ++r) most = std::max(most, waiting_rows(r));
  return most;
}

std::int64_t GenerationQueue::most_active() const {
  std::int64_t most = 0;
  for (std::int32_t r = 0; r < replicas_; ++r) most = std::max(most, std::ssize(last_rows(r)));
  return most;
}

std::vector<DecodeRow> GenerationQueue::rows_of(std::int32_t replica, std::int64_t count) const {
  std::vector<DecodeRow> rows;
  for (std::int32_t s = replica; s < num_slots(); s += replicas_) {
    const Sequence& q = at(s);
    for (std::int64_t i = 0; i < waiting_of(q) && std::ssize(rows) < count; ++i) {
      const std::int64_t position = q.cached + i;
      rows.push_back({.id = q.tokens[static_cast<std::size_t>(position)],
                      .slot = s / replicas_,
                      .position = static_cast<std::int32_t>(position)});
    }
  }
  return rows;
}

void GenerationQueue::mark_cached(std::int64_t count) {
  for (std::int32_t r = 0; r < replicas_; ++r) {
    std::int64_t left = count;
    for (std::int32_t s = r; s < num_slots(); s += replicas_) {
      const std::int64_t n = std::min(left, waiting_of(at(s)));
      at(s).cached += n;
      left -= n;
    }
  }
}

std::vector<DecodeRow> GenerationQueue::last_rows(std::int32_t replica) const {
  std::vector<DecodeRow> rows;
  for (std::int32_t s = replica; s < num_slots(); s += replicas_) {
    const Sequence& q = at(s);
    if (!q.active) continue;
    rows.push_back({.id = q.tokens.back(),
                    .slot = s / replicas_,
                    .position = static_cast<std::int32_t>(std::ssize(q.tokens) - 1)});
  }
  return rows;
}

void GenerationQueue::append(std::int32_t slot, std::int32_t token) {
  Sequence& s = at(slot);
  s.cached = std::ssize(s.tokens);
  s.tokens.push_back(token);
  ++s.made;
}

void GenerationQueue::slide(std::int32_t slot, std::int64_t keep) {
  Sequence& s = at(slot);
  s.tokens.erase(s.tokens.begin(), s.tokens.end() - keep);
  s.cached = 0;
}

void GenerationQueue::finish(std::int32_t slot) {
  at(slot).active = false;
}

}  // namespace tessera::exec
