// A wire between "processes" that are objects of one process: the backend of several processes, without MPI.
#pragma once
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/message/wire.h"

namespace tessera::comm {

class LocalWire final : public message::Wire {
 public:
  struct Body {
    std::int32_t from = 0, tag = 0;
    void* data = nullptr;
    std::int64_t bytes = 0;
    message::Open* open = nullptr;
  };
  struct Inbox {
    std::deque<std::pair<std::int32_t, std::vector<std::byte>>> notes;
    std::deque<Body> sent, wanted;
  };
  struct Hub {
    std::mutex mutex;
    std::vector<Inbox> inboxes;
    explicit Hub(std::int32_t processes) : inboxes(static_cast<std::size_t>(processes)) {}
  };

  LocalWire(std::shared_ptr<Hub> hub, std::int32_t process)
      : hub_(std::move(hub)), process_(process), peer_{"here", ::getpid()} {}

  std::int32_t process() const override { return process_; }
  std::int32_t processes() const override { return static_cast<std::int32_t>(hub_->inboxes.size()); }
  std::int32_t processes_on_host() const override { return processes(); }
  const Peer& peer(std::int32_t) const override { return peer_; }
  std::int32_t max_tag() const override { return 32767; }
  void send_note(std::int32_t to, std::span<const std::byte> head, std::span<const std::byte> rest) override {
    std::vector<std::byte> note(head.begin(), head.end());
    note.insert(note.end(), rest.begin(), rest.end());
    const std::lock_guard lock(hub_->mutex);
    hub_->inboxes[to].notes.emplace_back(process_, std::move(note));
  }
  std::optional<Note> next_note() override {
    const std::lock_guard lock(hub_->mutex);
    auto& notes = hub_->inboxes[process_].notes;
    if (notes.empty()) return std::nullopt;
    note_ = std::move(notes.front().second);
    const std::int32_t from = notes.front().first;
    notes.pop_front();
    return Note{from, note_};
  }
  void send_body(std::int32_t to, std::int32_t tag, const void* data, std::int64_t bytes,
                 message::Open& open) override {
    open.fetch_add(1);
    const std::lock_guard lock(hub_->mutex);
    hub_->inboxes[to].sent.push_back({process_, tag, const_cast<void*>(data), bytes, &open});
  }
  void receive_body(std::int32_t from, std::int32_t tag, void* data, std::int64_t bytes,
                    message::Open& open) override {
    open.fetch_add(1);
    const std::lock_guard lock(hub_->mutex);
    hub_->inboxes[process_].wanted.push_back({from, tag, data, bytes, &open});
  }
  void progress() override {
    const std::lock_guard lock(hub_->mutex);
    Inbox& in = hub_->inboxes[process_];
    for (auto want = in.wanted.begin(); want != in.wanted.end();) {
      auto sent = in.sent.begin();
      while (sent != in.sent.end() && (sent->from != want->from || sent->tag != want->tag)) ++sent;
      if (sent == in.sent.end()) {
        ++want;
        continue;
      }
      std::memcpy(want->data, sent->data, static_cast<std::size_t>(want->bytes));
      sent->open->fetch_sub(1);
      want->open->fetch_sub(1);
      in.sent.erase(sent);
      want = in.wanted.erase(want);
    }
  }
  bool busy() const override {
    const std::lock_guard lock(hub_->mutex);
    return !hub_->inboxes[process_].wanted.empty();
  }
  std::unique_ptr<Sums> make_sums(std::span<const std::int32_t>) override { return nullptr; }
  void close() override {}
  void kill_all(std::int32_t exit_code) noexcept override { std::_Exit(exit_code); }

 private:
  std::shared_ptr<Hub> hub_;
  std::int32_t process_;
  Peer peer_;
  std::vector<std::byte> note_;
};

}  // namespace tessera::comm
