#include "comm/message/post.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/clock.h"

namespace tessera::comm::message {

namespace {

bool is_control(Kind kind) {
  return kind != Kind::collective && kind != Kind::direct;
}

bool belongs(const Receipt& r, const Envelope& e) {
  return r.from == e.from && r.kind == e.kind && (r.kind == Kind::collective || r.info.tag == e.info.tag);
}

bool same_call(const CallInfo& a, const CallInfo& b) {
  return a.call == b.call && a.dtype == b.dtype && a.match == b.match && a.detail == b.detail;
}

bool accepts(const Receipt& r, const Envelope& e) {
  if (r.bytes != e.bytes) return false;
  if (r.kind == Kind::direct) return r.info.dtype == e.info.dtype;
  return r.number == e.number && same_call(r.info, e.info) && (!r.compares_sites || r.site == e.site);
}

void copy_bytes(void* to, const void* from, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

template <class T>
std::span<const std::byte> bytes_of(const T& x) {
  return std::as_bytes(std::span(&x, 1));
}

std::span<const std::byte> bytes_of(const void* data, std::int64_t bytes) {
  return {static_cast<const std::byte*>(data), static_cast<std::size_t>(bytes)};
}

}  // namespace

Post::Post(Wire& wire, std::vector<std::int32_t> process_of)
    : wire_(wire),
      process_of_(std::move(process_of)),
      body_tags_(static_cast<std::size_t>(wire.processes())),
      last_(process_of_.size()),
      heard_(static_cast<std::size_t>(wire.processes())) {
  static_assert(sizeof(Envelope) + kInlineBytes <= kNoteBytes);
  const std::int64_t now = wall_ns();
  for (auto& h : heard_) h.store(now, std::memory_order_relaxed);
}

Mailbox& Post::mailbox(std::uint64_t group, Rank rank) {
  const std::lock_guard lock(mutex_);
  auto& box = boxes_[{group, rank.value}];
  if (!box) {
    box = std::make_unique<Mailbox>();
    box->posted.reserve(64);
    box->arrivals.reserve(256);
  }
  return *box;
}

std::int32_t Post::next_body_tag(std::int32_t process) {
  std::int32_t& tag = body_tags_[static_cast<std::size_t>(process)];
  tag = tag >= wire_.max_tag() ? 1 : tag + 1;
  return tag;
}

void Post::drop_inside(Arrival& arrival) {
  if (arrival.inside) spare_.push_back(std::move(arrival.inside));
}

Post::Copy Post::start(Receipt& receipt, Arrival& arrival) {
  receipt.got = arrival.envelope;
  if (!accepts(receipt, arrival.envelope)) {
    receipt.state.store(Receipt::State::refused, std::memory_order_release);
    return {};
  }
  if (arrival.envelope.in_place) {
    receipt.open.store(1, std::memory_order_relaxed);
    receipt.state.store(Receipt::State::moving, std::memory_order_release);
    return {&receipt, arrival.data, arrival.sender};
  }
  if (arrival.envelope.body_tag < 0) {
    if (arrival.data != nullptr) copy_bytes(receipt.data, arrival.data, receipt.bytes);
    drop_inside(arrival);
    receipt.state.store(Receipt::State::here, std::memory_order_release);
    return {};
  }
  if (arrival.landing != nullptr) {
    receipt.open.store(1, std::memory_order_relaxed);
    receipt.state.store(Receipt::State::moving, std::memory_order_release);
    arrival.landing->receipt = &receipt;
    hand_over_landed();
    return {};
  }
  wire_.receive_body(arrival.process, arrival.envelope.body_tag, receipt.data, receipt.bytes, receipt.open);
  receipt.state.store(Receipt::State::moving, std::memory_order_release);
  return {};
}

void Post::finish(const Copy& c) {
  if (c.receipt == nullptr) return;
  copy_bytes(c.receipt->data, c.data, c.receipt->bytes);
  c.sender->open.fetch_sub(1, std::memory_order_acq_rel);
  c.receipt->open.store(0, std::memory_order_release);
}

void Post::send(const Envelope& envelope, const void* data, Outgoing& sent) {
  Copy job;
  {
    const std::lock_guard lock(mutex_);
    Envelope e = envelope;
    const std::int32_t process = process_of_[static_cast<std::size_t>(e.to)];
    if (process != wire_.process()) {
      const bool inside = e.bytes <= kInlineBytes;
      e.body_tag = inside ? -1 : next_body_tag(process);
      wire_.send_note(process, bytes_of(e), inside ? bytes_of(data, e.bytes) : std::span<const std::byte>{});
      if (!inside) wire_.send_body(process, e.body_tag, data, e.bytes, sent.open);
      return;
    }
    e.in_place = true;
    sent.open.fetch_add(1, std::memory_order_relaxed);
    auto& box = boxes_[{e.group, e.to}];
    if (!box) box = std::make_unique<Mailbox>();
    Arrival arrival{.envelope = e, .data = data, .sender = &sent};
    const auto it = std::ranges::find_if(box->posted, [&](const Receipt* r) { return belongs(*r, e); });
    if (it == box->posted.end()) {
      box->arrivals.push_back(std::move(arrival));
      return;
    }
    Receipt& receipt = **it;
    box->posted.erase(it);
    job = start(receipt, arrival);
  }
  finish(job);
}

void Post::receive(Receipt& receipt) {
  Copy job;
  {
    const std::lock_guard lock(mutex_);
    receipt.open.store(0, std::memory_order_relaxed);
    receipt.state.store(Receipt::State::waiting, std::memory_order_relaxed);
    std::vector<Arrival>& arrivals = receipt.box->arrivals;
    const auto it =
        std::ranges::find_if(arrivals, [&](const Arrival& a) { return belongs(receipt, a.envelope); });
    if (it == arrivals.end()) {
      receipt.box->posted.push_back(&receipt);
      return;
    }
    job = start(receipt, *it);
    // What was refused stays for the report and for its sender.
    if (receipt.state.load(std::memory_order_relaxed) != Receipt::State::refused) arrivals.erase(it);
  }
  finish(job);
}

void Post::handle(const Wire::Note& note) {
  heard_[static_cast<std::size_t>(note.from)].store(wall_ns(), std::memory_order_relaxed);
  Envelope e;
  std::memcpy(&e, note.bytes.data(), sizeof(e));
  const std::span<const std::byte> rest = note.bytes.subspan(sizeof(e));
  if (is_control(e.kind)) {
    control_.push_back({note.from, e, std::string(reinterpret_cast<const char*>(rest.data()), rest.size())});
    return;
  }
  last_[static_cast<std::size_t>(e.from)] = e;
  auto& box = boxes_[{e.group, e.to}];
  if (!box) box = std::make_unique<Mailbox>();
  Arrival arrival{.envelope = e, .process = note.from, .data = rest.data()};
  const auto it = std::ranges::find_if(box->posted, [&](const Receipt* r) { return belongs(*r, e); });
  if (it != box->posted.end()) {
    Receipt& receipt = **it;
    box->posted.erase(it);
    (void)start(receipt, arrival);
    return;
  }
  if (!rest.empty()) {
    if (spare_.empty()) spare_.push_back(std::make_unique<Block>());
    arrival.inside = std::move(spare_.back());
    spare_.pop_back();
    std::memcpy(arrival.inside->bytes.data(), rest.data(), rest.size());
  }
  arrival.data = arrival.inside ? arrival.inside->bytes.data() : nullptr;
  arrival.landing = land(e, note.from);
  box->arrivals.push_back(std::move(arrival));
}

void Post::set_lands(bool lands) {
  const std::lock_guard lock(mutex_);
  lands_ = lands;
}

Landing* Post::land(const Envelope& e, std::int32_t process) {
  if (!lands_ || e.kind != Kind::direct || e.body_tag < 0 || landed_bytes_ + e.bytes > kMostLanded)
    return nullptr;
  auto spare =
      std::ranges::find_if(spare_landings_, [&](const auto& l) { return std::ssize(l->memory) >= e.bytes; });
  if (spare == spare_landings_.end() && !spare_landings_.empty()) spare = spare_landings_.begin();
  std::unique_ptr<Landing> landing;
  if (spare == spare_landings_.end()) {
    landing = std::make_unique<Landing>();
  } else {
    landing = std::move(*spare);
    spare_landings_.erase(spare);
  }
  if (std::ssize(landing->memory) < e.bytes) landing->memory.resize(static_cast<std::size_t>(e.bytes));
  landing->bytes = e.bytes;
  landing->receipt = nullptr;
  landed_bytes_ += e.bytes;
  wire_.receive_body(process, e.body_tag, landing->memory.data(), e.bytes, landing->open);
  landings_.push_back(std::move(landing));
  return landings_.back().get();
}

void Post::hand_over_landed() {
  for (std::size_t i = landings_.size(); i-- > 0;) {
    Landing& l = *landings_[i];
    if (l.receipt == nullptr || l.open.load(std::memory_order_acquire) != 0) continue;
    copy_bytes(l.receipt->data, l.memory.data(), l.bytes);
    l.receipt->open.store(0, std::memory_order_release);
    landed_bytes_ -= l.bytes;
    spare_landings_.push_back(std::move(landings_[i]));
    landings_.erase(landings_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

bool Post::poll() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return true;
  wire_.progress();
  while (const auto note = wire_.next_note()) handle(*note);
  if (!landings_.empty()) hand_over_landed();
  return wire_.busy();
}

void Post::withdraw(Receipt& receipt) {
  const std::unique_lock lock(mutex_);
  if (receipt.state.load(std::memory_order_relaxed) == Receipt::State::waiting) {
    std::erase(receipt.box->posted, &receipt);
    receipt.state.store(Receipt::State::idle, std::memory_order_relaxed);
  }
  for (const auto& landing : landings_) {
    if (landing->receipt != &receipt) continue;
    landing->receipt = nullptr;  // the body ends in the post's memory
    receipt.open.store(0, std::memory_order_release);
  }
}

void Post::withdraw(Mailbox& receiver, Outgoing& sent) {
  const std::unique_lock lock(mutex_);
  const auto gone = std::erase_if(receiver.arrivals, [&](const Arrival& a) { return a.sender == &sent; });
  sent.open.fetch_sub(static_cast<std::int32_t>(gone), std::memory_order_acq_rel);
}

bool Post::find_other_call(Mailbox& box, const CallInfo& info, std::int64_t number, Envelope& found) {
  const std::lock_guard lock(mutex_);
  for (const Arrival& a : box.arrivals) {
    const Envelope& e = a.envelope;
    if (e.kind != Kind::collective) continue;
    if (e.number < number || (e.number == number && !same_call(e.info, info))) {
      found = e;
      return true;
    }
  }
  return false;
}

void Post::send_control(std::int32_t process, const Envelope& envelope, std::string_view text) {
  const auto most = static_cast<std::size_t>(kNoteBytes) - sizeof(Envelope);
  const std::lock_guard lock(mutex_);
  wire_.send_note(process, bytes_of(envelope), std::as_bytes(std::span(text.substr(0, most))));
}

std::vector<Post::Control> Post::take_control() {
  const std::lock_guard lock(mutex_);
  return std::exchange(control_, {});
}

std::optional<Envelope> Post::last_of(Rank rank) {
  const std::lock_guard lock(mutex_);
  const Envelope& e = last_[static_cast<std::size_t>(rank.value)];
  if (e.number == 0) return std::nullopt;
  return e;
}

void Post::forget(Open& open) {
  const std::lock_guard lock(mutex_);
  wire_.forget(open);
}

std::vector<std::int32_t> Post::gone() {
  std::vector<std::int32_t> processes;
  const std::lock_guard lock(mutex_);
  for (std::int32_t p = 0; p < wire_.processes(); ++p)
    if (p != wire_.process() && wire_.is_gone(p)) processes.push_back(p);
  return processes;
}

void Post::keep(std::shared_ptr<void> memory) {
  const std::lock_guard lock(mutex_);
  kept_.push_back(std::move(memory));
}

std::unique_ptr<Wire::Sums> Post::make_sums(std::span<const std::int32_t> processes) {
  const std::lock_guard lock(mutex_);
  return wire_.make_sums(processes);
}

}  // namespace tessera::comm::message
