// A network between devices that are none, as strict as NCCL: every rank must queue the same operations of a
// group, an exchange ends when its peers have taken part, joining waits for all members. Devices need
// Pace::beside. Sums are in rank order, in f64 or i64, rounded once.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/device_network.h"
#include "support/queue.h"
#include "tensor/bf16.h"
#include "tensor/memory.h"

namespace tessera::test {

class FakeNetwork final : public comm::DeviceNetwork {
 public:
  struct Message {
    std::vector<std::byte> bytes;
    std::atomic<bool> taken{false};
  };
  struct Round {  // of a collective
    std::vector<std::vector<std::byte>> parts;
    std::size_t given = 0, read = 0;
  };
  struct Meeting {  // a group
    std::mutex mutex;
    std::int32_t joined = 0;
    std::map<std::int64_t, Round> rounds;
    std::map<std::pair<std::int32_t, std::int32_t>, std::deque<std::shared_ptr<Message>>> mail;
  };
  struct Hub {  // of all ranks
    std::mutex mutex;
    std::uint64_t ids = 0;
    std::map<std::uint64_t, std::shared_ptr<Meeting>> meetings;
    std::atomic<bool> stopped{false};
  };

  FakeNetwork(std::shared_ptr<Hub> hub, std::shared_ptr<tensor::Memory> memory, std::string device,
              std::int64_t patience_ns = 20'000'000'000)
      : hub_(std::move(hub)),
        memory_(std::move(memory)),
        device_(std::move(device)),
        patience_ns_(patience_ns) {}

  [[nodiscard]] std::string device_name() const override { return device_; }
  [[nodiscard]] Id new_id() override {
    const std::lock_guard lock(hub_->mutex);
    Id id{};
    ++hub_->ids;
    std::memcpy(id.data(), &hub_->ids, sizeof hub_->ids);
    return id;
  }
  [[nodiscard]] std::unique_ptr<comm::DeviceGroup> join(const Id& id, std::int32_t rank, std::int32_t size,
                                                        std::string_view label) override;
  void check() override {
    if (fails_.load()) throw Error(ErrorKind::comm, "a link of the network is down", device_, "");
  }
  void end_all() noexcept override { *ended_ = true; }
  [[nodiscard]] std::int64_t patience_ns() const override { return patience_ns_; }
  void fail() { fails_ = true; }
  [[nodiscard]] bool ended() const { return ended_->load(); }
  [[nodiscard]] std::int32_t groups() const { return groups_; }

 private:
  class Group;
  std::shared_ptr<Hub> hub_;
  std::shared_ptr<tensor::Memory> memory_;
  std::string device_;
  std::int64_t patience_ns_;
  std::int32_t groups_ = 0;
  std::atomic<bool> fails_{false};
  // What is queued outlives the network.
  std::shared_ptr<std::atomic<bool>> ended_ = std::make_shared<std::atomic<bool>>(false);
};

namespace detail {

template <class T, class Wide>
void fold(std::byte* out, const std::vector<const std::byte*>& parts, std::int64_t n, comm::Op op) {
  T* to = reinterpret_cast<T*>(out);
  for (std::int64_t i = 0; i < n; ++i) {
    Wide sum{};
    for (std::size_t r = 0; r < parts.size(); ++r) {
      const auto x = static_cast<Wide>(reinterpret_cast<const T*>(parts[r])[i]);
      sum = r == 0 ? x : op == comm::Op::sum ? sum + x : std::max(sum, x);
    }
    to[i] = T(sum);
  }
}
inline void fold(std::byte* out, const std::vector<const std::byte*>& parts, std::int64_t n,
                 tensor::DType dtype, comm::Op op) {
  using tensor::DType;
  if (dtype == DType::f64) return fold<double, double>(out, parts, n, op);
  if (dtype == DType::f32) return fold<float, double>(out, parts, n, op);
  if (dtype == DType::bf16) return fold<tensor::Bf16, float>(out, parts, n, op);
  if (dtype == DType::i64) return fold<std::int64_t, std::int64_t>(out, parts, n, op);
  return fold<std::int32_t, std::int64_t>(out, parts, n, op);
}

}  // namespace detail

class FakeNetwork::Group final : public comm::DeviceGroup {
 public:
  Group(FakeNetwork& network, std::shared_ptr<Meeting> meeting, std::int32_t rank, std::int32_t size)
      : memory_(network.memory_),
        ended_(network.ended_),
        meeting_(std::move(meeting)),
        rank_(rank),
        size_(size) {}

  void all_reduce(const comm::Tensor& x, comm::Op op) override {
    const std::int64_t n = x.num_elements();
    collective(x, [to = bytes_of(x), n, dtype = x.dtype(), op](const Round& round) {
      detail::fold(to, parts(round, 0), n, dtype, op);
    });
  }
  void reduce_scatter(const comm::Tensor& out, const comm::Tensor& in) override {
    const std::int64_t n = out.num_elements();
    collective(in, [to = bytes_of(out), at = rank_ * out.bytes().value, n, dtype = in.dtype()](
                       const Round& round) { detail::fold(to, parts(round, at), n, dtype, comm::Op::sum); });
  }
  void all_gather(const comm::Tensor& out, const comm::Tensor& in) override {
    collective(in, [to = bytes_of(out)](const Round& round) {
      std::byte* at = to;
      for (const auto& part : round.parts) at = std::copy(part.begin(), part.end(), at);
    });
  }
  void broadcast(const comm::Tensor& x, std::int32_t root) override {
    collective(x, [to = bytes_of(x), root](const Round& round) {
      const auto& part = round.parts[static_cast<std::size_t>(root)];
      std::copy(part.begin(), part.end(), to);
    });
  }
  void reduce_rows(const comm::Tensor& out, const comm::Tensor& in,
                   std::span<const std::int64_t> rows) override {
    std::int64_t first = 0;
    for (std::int32_t r = 0; r < rank_; ++r) first += rows[static_cast<std::size_t>(r)];
    const std::int64_t row = in.row_elements() * size_of(in.dtype());
    const std::int64_t n = rows[static_cast<std::size_t>(rank_)] * in.row_elements();
    collective(in, [to = bytes_of(out), at = first * row, n, dtype = in.dtype()](const Round& round) {
      detail::fold(to, parts(round, at), n, dtype, comm::Op::sum);
    });
  }
  void exchange(std::span<const Piece> sent, std::span<const Piece> received) override {
    struct State {
      std::vector<Piece> sent, received;
      std::vector<std::shared_ptr<Message>> messages;
    };
    const auto state = std::make_shared<State>();
    state->sent.assign(sent.begin(), sent.end());
    state->received.assign(received.begin(), received.end());
    queue().put_attempts([state, rank = rank_, meeting = meeting_, ended = ended_] {
      if (*ended) return true;
      const std::lock_guard lock(meeting->mutex);
      for (const Piece& p : state->sent) {
        auto& m = state->messages.emplace_back(std::make_shared<Message>());
        m->bytes.assign(p.data, p.data + p.bytes);
        meeting->mail[{rank, p.peer}].push_back(m);
      }
      state->sent.clear();
      std::erase_if(state->received, [&](const Piece& p) {
        auto& mail = meeting->mail[{p.peer, rank}];
        if (mail.empty()) return false;
        TESSERA_CHECK_EQ(static_cast<std::int64_t>(mail.front()->bytes.size()), p.bytes, "both ends agree");
        std::copy(mail.front()->bytes.begin(), mail.front()->bytes.end(), p.data);
        mail.front()->taken = true;
        mail.pop_front();
        return true;
      });
      return state->received.empty() &&
             std::ranges::all_of(state->messages, [](const auto& m) { return m->taken.load(); });
    });
  }

 private:
  static std::byte* bytes_of(const comm::Tensor& x) { return static_cast<std::byte*>(x.raw()); }
  static std::vector<const std::byte*> parts(const Round& round, std::int64_t at) {
    std::vector<const std::byte*> list;
    for (const auto& part : round.parts) list.push_back(part.data() + at);
    return list;
  }
  [[nodiscard]] emulation::Queue& queue() { return *static_cast<emulation::Queue*>(memory_->queue()); }

  // Gives `in`, and calls use(round) when all have given.
  template <class Use>
  void collective(const comm::Tensor& in, Use use) {
    const std::int64_t number = calls_++;
    const auto size = static_cast<std::size_t>(size_);
    queue().put_attempts([=, from = bytes_of(in), bytes = in.bytes().value,
                          rank = static_cast<std::size_t>(rank_), meeting = meeting_, ended = ended_] {
      if (*ended) return true;
      const std::lock_guard lock(meeting->mutex);
      Round& round = meeting->rounds[number];
      round.parts.resize(size);
      if (round.parts[rank].empty()) {
        round.parts[rank].assign(from, from + bytes);
        ++round.given;
      }
      if (round.given < size) return false;
      use(round);
      if (++round.read == size) meeting->rounds.erase(number);
      return true;
    });
  }

  std::shared_ptr<tensor::Memory> memory_;
  std::shared_ptr<std::atomic<bool>> ended_;
  std::shared_ptr<Meeting> meeting_;
  std::int32_t rank_, size_;
  std::int64_t calls_ = 0;
};

inline std::unique_ptr<comm::DeviceGroup> FakeNetwork::join(const Id& id, std::int32_t rank,
                                                            std::int32_t size, std::string_view label) {
  std::uint64_t number = 0;
  std::memcpy(&number, id.data(), sizeof number);
  std::shared_ptr<Meeting> meeting;
  {
    const std::lock_guard lock(hub_->mutex);
    auto& known = hub_->meetings[number];
    if (!known) known = std::make_shared<Meeting>();
    meeting = known;
    ++meeting->joined;
  }
  for (;;) {
    {
      const std::lock_guard lock(hub_->mutex);
      if (meeting->joined == size) break;
      if (*ended_ || hub_->stopped)
        throw Error(ErrorKind::comm, "given up while joining", std::string(label), "");
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  ++groups_;
  return std::make_unique<Group>(*this, meeting, rank, size);
}

}  // namespace tessera::test
