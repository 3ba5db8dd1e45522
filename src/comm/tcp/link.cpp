#include "comm/tcp/link.h"

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace tessera::comm::tcp {

namespace {

constexpr std::int64_t kAtOnce = 4 << 20;  // bytes of one call: the others have a turn, too
constexpr std::size_t kFrames = 16;        // in one system call

bool would_block() {
  return errno == EAGAIN || errno == EWOULDBLOCK;
}

iovec part(const void* data, std::int64_t bytes) {
  return {const_cast<void*>(data), static_cast<std::size_t>(bytes)};
}

std::int64_t send_parts(int fd, std::span<iovec> parts) {
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = parts.size();
  for (;;) {
    const ssize_t n = ::sendmsg(fd, &message, MSG_NOSIGNAL);
    if (n >= 0 || errno != EINTR) return n;
  }
}

}  // namespace

void Link::lose() {
  gone_ = true;
}

// ---------------------------------------------------------------- out

Link::Frame& Link::queue(Kind kind, std::int32_t tag, std::int64_t value) {
  queue_.push_back({.head = {kind, tag, value}, .own = {}});
  return queue_.back();
}

void Link::queue_data(Kind kind, Body& body, std::int64_t bytes) {
  Frame& f = queue(kind, body.tag, bytes);
  f.data = body.data + body.queued;
  f.bytes = bytes;
  f.open = body.open;
  body.queued += bytes;
  f.last = body.queued == body.bytes;
}

void Link::send_note(std::span<const std::byte> head, std::span<const std::byte> rest) {
  if (gone_) return;
  const auto bytes = std::ssize(head) + std::ssize(rest);
  TESSERA_CHECK(bytes <= message::kNoteBytes, "a note is small");
  const Head frame{Kind::note, 0, bytes};
  std::int64_t sent = 0;
  if (queue_.empty()) {
    std::array<iovec, 3> parts{part(&frame, sizeof frame), part(head.data(), std::ssize(head)),
                               part(rest.data(), std::ssize(rest))};
    sent = send_parts(fd(), parts);
    if (sent < 0 && !would_block()) return lose();
    sent = std::max<std::int64_t>(sent, 0);
    if (sent == static_cast<std::int64_t>(sizeof frame) + bytes) return;
  }
  Frame& f = queue(Kind::note, 0, bytes);
  f.own.assign(head.begin(), head.end());
  f.own.insert(f.own.end(), rest.begin(), rest.end());
  f.bytes = bytes;
  f.sent = sent;
}

void Link::send_body(std::int32_t tag, const void* data, std::int64_t bytes, Open& open) {
  if (bytes == 0) return;
  open.fetch_add(1, std::memory_order_relaxed);
  Body body{.tag = tag, .data = static_cast<const std::byte*>(data), .bytes = bytes, .open = &open};
  const std::int64_t unasked = std::min(bytes, kUnasked);
  if (unconfirmed_ + unasked <= kWindow) {
    unconfirmed_ += unasked;
    queue_data(Kind::unasked, body, unasked);
  } else if (bytes <= kUnasked) {
    (void)queue(Kind::held, tag, 0);
  }
  if (body.queued < bytes) waiting_.push_back(body);
  write();
}

void Link::send_die(std::int32_t exit_code) {
  (void)queue(Kind::die, 0, exit_code);
  write();
}

void Link::write() {
  for (std::int64_t done = 0; wants_to_write() && done < kAtOnce;) {
    if (queue_.empty()) {
      Body& body = flowing_[turn_++ % flowing_.size()];
      queue_data(Kind::asked, body, std::min(kPiece, body.bytes - body.queued));
      if (body.queued == body.bytes) flowing_.erase(flowing_.begin() + (&body - flowing_.data()));
    }
    std::array<iovec, 2 * kFrames> parts;
    std::size_t count = 0;
    std::int64_t bytes = 0;
    constexpr std::int64_t kHead = sizeof(Head);
    for (std::size_t i = 0; i < std::min(kFrames, queue_.size()); ++i) {
      const Frame& f = queue_[i];
      const std::byte* data = f.own.empty() ? f.data : f.own.data();
      const std::int64_t of_head = std::min(f.sent, kHead);
      if (of_head < kHead)
        parts[count++] = part(reinterpret_cast<const std::byte*>(&f.head) + of_head, kHead - of_head);
      const std::int64_t of_data = f.sent - of_head;
      if (of_data < f.bytes) parts[count++] = part(data + of_data, f.bytes - of_data);
      bytes += kHead + f.bytes - f.sent;
    }
    const std::int64_t sent = send_parts(fd(), std::span(parts).first(count));
    if (sent < 0 && !would_block()) return lose();
    advance(std::max<std::int64_t>(sent, 0));
    if (sent < bytes) return;
    done += sent;
  }
}

void Link::advance(std::int64_t bytes) {
  while (bytes > 0) {
    Frame& f = queue_.front();
    const std::int64_t step = std::min(bytes, static_cast<std::int64_t>(sizeof(Head)) + f.bytes - f.sent);
    f.sent += step;
    bytes -= step;
    if (f.sent < static_cast<std::int64_t>(sizeof(Head)) + f.bytes) return;
    if (f.last && f.open != nullptr) f.open->fetch_sub(1, std::memory_order_acq_rel);
    queue_.pop_front();
  }
}

void Link::forget(Open& open) {
  // A frame that has begun must be ended, and what it promised be true: its bytes are kept.
  for (Frame& f : queue_) {
    if (f.open != &open) continue;
    f.own.assign(f.data, f.data + f.bytes);
    f.open = nullptr;
    if (f.last) open.fetch_sub(1, std::memory_order_acq_rel);
  }
  const auto drop = [&](std::vector<Body>& bodies) {
    const auto gone = std::erase_if(bodies, [&](const Body& b) { return b.open == &open; });
    open.fetch_sub(static_cast<std::int32_t>(gone), std::memory_order_acq_rel);
  };
  drop(waiting_);
  drop(flowing_);
  for (Incoming& in : incoming_) {
    if (in.open != &open) continue;
    in.forgotten = true;
    in.open = nullptr;
    in.data = nullptr;
    open.fetch_sub(1, std::memory_order_acq_rel);
  }
}

// ---------------------------------------------------------------- in

Link::Incoming& Link::incoming(std::int32_t tag) {
  const auto it = std::ranges::find(incoming_, tag, &Incoming::tag);
  if (it != incoming_.end()) return *it;
  incoming_.push_back({.tag = tag, .early = {}});
  return incoming_.back();
}

void Link::receive_body(std::int32_t tag, void* data, std::int64_t bytes, Open& open) {
  if (bytes == 0) return;
  open.fetch_add(1, std::memory_order_relaxed);
  Incoming& in = incoming(tag);
  in.data = static_cast<std::byte*>(data);
  in.bytes = bytes;
  in.open = &open;
  if (in.here > bytes) return lose();
  if (!in.early.empty()) {
    std::memcpy(in.data, in.early.data(), static_cast<std::size_t>(in.here));
    spare_.push_back(std::move(in.early));
    in.early = {};
    const bool comes = body_left_ > 0 && body_.tag == tag;
    if (!comes) take(in.here);
  }
  if (bytes > kUnasked || in.held) say_ready(tag);
  finish_if_whole(tag);
  write();
}

void Link::say_ready(std::int32_t tag) {
  (void)queue(Kind::ready, tag, std::exchange(taken_, 0));
}

void Link::take(std::int64_t unasked) {
  taken_ += unasked;
  if (taken_ >= kWindow / 4) (void)queue(Kind::taken, 0, std::exchange(taken_, 0));
}

void Link::finish_if_whole(std::int32_t tag) {
  const auto it = std::ranges::find(incoming_, tag, &Incoming::tag);
  if (it->bytes < 0 || it->here < it->bytes) return;
  if (it->open != nullptr) it->open->fetch_sub(1, std::memory_order_acq_rel);
  *it = std::move(incoming_.back());
  incoming_.pop_back();
}

bool Link::begin_body(const Head& head) {
  Incoming& in = incoming(head.tag);
  const bool posted = in.bytes >= 0;
  const std::int64_t most = posted ? in.bytes - in.here : head.kind == Kind::unasked ? kUnasked - in.here : 0;
  if (head.bytes < 1 || head.bytes > most) return false;
  if (!posted) {
    if (!spare_.empty()) {
      in.early = std::move(spare_.back());
      spare_.pop_back();
    }
    in.early.resize(static_cast<std::size_t>(kUnasked));
  }
  body_ = head;
  body_left_ = head.bytes;
  return true;
}

bool Link::handle(const Head& head, Sink& sink) {
  switch (head.kind) {
    case Kind::unasked:
    case Kind::asked:
      return begin_body(head);
    case Kind::ready: {
      unconfirmed_ -= head.bytes;
      const auto it = std::ranges::find(waiting_, head.tag, &Body::tag);
      if (it == waiting_.end()) return true;  // forgotten
      flowing_.push_back(*it);
      waiting_.erase(it);
      return true;
    }
    case Kind::held: {
      Incoming& in = incoming(head.tag);
      in.held = true;
      if (in.bytes >= 0) say_ready(head.tag);
      return true;
    }
    case Kind::taken:
      unconfirmed_ -= head.bytes;
      return true;
    case Kind::die:
      sink.die(static_cast<std::int32_t>(head.bytes));
      return true;
    case Kind::note:
      break;
  }
  return false;
}

std::span<std::byte> Link::target() {
  Incoming& in = incoming(body_.tag);
  if (in.forgotten) {
    scrap_.resize(static_cast<std::size_t>(kPiece));
    return std::span(scrap_).first(std::min(scrap_.size(), static_cast<std::size_t>(body_left_)));
  }
  std::byte* base = in.bytes >= 0 ? in.data : in.early.data();
  return {base + in.here, static_cast<std::size_t>(body_left_)};
}

void Link::arrived(std::int64_t bytes) {
  Incoming& in = incoming(body_.tag);
  in.here += bytes;
  body_left_ -= bytes;
  if (body_left_ > 0) return;
  if (body_.kind == Kind::unasked && in.bytes >= 0) take(body_.bytes);
  finish_if_whole(body_.tag);
}

bool Link::parse(Sink& sink) {
  while (begin_ < end_) {
    const std::span<const std::byte> have(buffer_.data() + begin_, end_ - begin_);
    if (body_left_ > 0) {
      const std::span<std::byte> to = target();
      const std::size_t n = std::min(have.size(), to.size());
      std::memcpy(to.data(), have.data(), n);
      begin_ += n;
      arrived(static_cast<std::int64_t>(n));
      continue;
    }
    Head head;
    if (have.size() < sizeof head) break;
    std::memcpy(&head, have.data(), sizeof head);
    if (head.kind != Kind::note) {
      begin_ += sizeof head;
      if (!handle(head, sink)) return false;
      continue;
    }
    if (head.bytes < 0 || head.bytes > message::kNoteBytes) return false;
    const auto whole = sizeof head + static_cast<std::size_t>(head.bytes);
    if (have.size() < whole) break;
    sink.note(have.subspan(sizeof head, static_cast<std::size_t>(head.bytes)));
    begin_ += whole;
  }
  std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
  return true;
}

void Link::read(Sink& sink) {
  for (std::int64_t done = 0; !gone_ && done < kAtOnce;) {
    std::array<iovec, 2> parts{};
    const std::span<std::byte> to = body_left_ > 0 ? target() : std::span<std::byte>{};
    parts[0] = part(to.data(), std::ssize(to));
    // A piece in full ends at a head: behind it there is room for heads and notes.
    parts[1] = part(buffer_.data() + end_, std::ssize(buffer_) - static_cast<std::int64_t>(end_));
    const ssize_t n = ::readv(fd(), parts.data(), 2);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && would_block()) return;
    if (n <= 0) return lose();
    const auto straight = std::min<std::int64_t>(n, std::ssize(to));
    if (straight > 0) arrived(straight);
    end_ += static_cast<std::size_t>(n - straight);
    if (!parse(sink)) return lose();
    if (n < std::ssize(to) + std::ssize(buffer_) / 2) return;  // it was all there was
    done += n;
  }
}

void Link::shut() {
  if (!gone_) ::shutdown(fd(), SHUT_WR);
}

bool Link::drain() {
  while (!gone_) {
    const ssize_t n = ::recv(fd(), buffer_.data(), buffer_.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && would_block()) return false;
    if (n <= 0) lose();
  }
  return true;
}

}  // namespace tessera::comm::tcp
