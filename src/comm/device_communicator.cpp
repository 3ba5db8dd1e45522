#include "comm/device_communicator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <list>
#include <mutex>
#include <utility>
#include <vector>

#include "base/text.h"
#include "comm/flight_log.h"
#include "comm/staged.h"

namespace tessera::comm {

namespace {

using tensor::Buffer;
using tensor::Device;
using tensor::DType;
using tensor::Event;
using tensor::InLane;
using tensor::Memory;
using tensor::Reach;
using Piece = DeviceGroup::Piece;
using Rows = std::span<const std::int64_t>;

// Of the host's messages that announce those of devices; the caller's own tags are small.
constexpr std::int64_t kNoteTag = std::int64_t{1} << 40;

struct Note {
  std::int64_t tag = 0;
  std::int64_t bytes = 0;
  std::int64_t dtype = 0;
};

Tensor tensor_of(Note& note) {
  return {&note, DType::i64, {3}};
}
Tensor tensor_of(DeviceNetwork::Id& id) {
  return {id.data(), DType::u8, {static_cast<std::int64_t>(id.size())}};
}
std::byte* bytes_of(const Tensor& x) {
  return static_cast<std::byte*>(x.raw());
}

// The last calls that were queued, and which of them the device has done.
class QueuedCalls {
 public:
  explicit QueuedCalls(Memory& memory) {
    for (Entry& e : entries_) e.end = memory.make_event();
  }
  void add(const CallInfo& info, const Site& site) {
    const std::lock_guard lock(mutex_);
    Entry& e = entries_[static_cast<std::size_t>(count_ % kRecords)];
    e.info = info;
    e.site = site;
    e.number = ++count_;
    e.end->record();
  }
  // "tp all_reduce #41 (1.00 MiB bf16) at step 7, layer 3", the first that is not done; else "".
  [[nodiscard]] std::string first_open(std::string_view label) const {
    const std::lock_guard lock(mutex_);
    const Entry* first = nullptr;
    for (const Entry& e : entries_) {
      if (e.number > 0 && !e.end->done() && (first == nullptr || e.number < first->number)) first = &e;
    }
    if (first == nullptr) return "";
    const std::string where = text(first->site);
    return fmt::format("{} {}{}{}", label, call_text(first->info, first->number), where.empty() ? "" : " at ",
                       where);
  }

 private:
  struct Entry {
    CallInfo info;
    Site site;
    std::int64_t number = 0;
    std::unique_ptr<Event> end;
  };
  mutable std::mutex mutex_;  // helper threads add, any thread asks
  std::array<Entry, kRecords> entries_;
  std::int64_t count_ = 0;
};

// One direction between this rank and another.
struct Link {
  std::int32_t peer = 0;
  std::unique_ptr<DeviceGroup> group;
  std::int32_t lane = 0;    // of what is sent; what is received comes in the lane that asks
  std::int64_t number = 0;  // notes so far
};

struct Sending {  // until wait_send
  bool open = false;
  std::int32_t to = 0;
  std::int64_t tag = 0;
  Note note;
  std::int64_t number = 0;
  std::unique_ptr<Event> made, gone;
};

struct Kept {  // came before it was asked for
  bool full = false;
  std::int32_t from = 0;
  Note note;
  Buffer buffer;
  std::unique_ptr<Event> arrived;
};

class DeviceCommunicator final : public Communicator {
 public:
  DeviceCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<Memory> memory,
                     DeviceNetwork& network, MessagePairs pairs)
      : Communicator(inner->rank(), inner->size(), inner->label()),
        memory_(std::move(memory)),
        network_(network),
        calls_(*memory_),
        host_(*inner),
        inner_(make_staged(std::move(inner), memory_)),
        exceptions_at_start_(std::uncaught_exceptions()) {
    set_whereabouts(host_.whereabouts());
    sent_.reserve(static_cast<std::size_t>(size()));
    received_.reserve(static_cast<std::size_t>(size()));
    connect(pairs);
  }
  // A rank that an error unwinds must not leave its device waiting for peers: memory goes next.
  ~DeviceCommunicator() override {
    if (std::uncaught_exceptions() > exceptions_at_start_) network_.end_all();
  }

  [[nodiscard]] bool moves(Device device) const override { return inner_->moves(device); }
  void compare_sites(bool compare) override { inner_->compare_sites(compare); }
  void check(std::int64_t waited_ns) override {
    inner_->check(waited_ns);
    network_.check();
    if (waited_ns < network_.patience_ns()) return;
    const std::string open = calls_.first_open(label());
    if (open.empty()) return;
    throw Error(ErrorKind::comm,
                fmt::format("rank {} of {} waits for its GPU in {}: no answer for {}", rank(), size(), open,
                            human(Seconds(static_cast<double>(waited_ns) * 1e-9))),
                network_.device_name(),
                "see what the other ranks of the group did in the list of states; if they were only slow, "
                "raise --comm-timeout; NCCL_DEBUG=INFO shows what NCCL does");
  }

 private:
  static bool on_device(const Tensor& x) { return x.device() != Device::cpu; }
  static bool on_device(const Tensor& out, const Tensor& in) { return on_device(out) && on_device(in); }

  // --- groups

  [[nodiscard]] bool connected(MessagePairs pairs, std::int32_t from, std::int32_t to) const {
    if (from == to || pairs == MessagePairs::none) return false;
    const std::int32_t distance = (to - from + size()) % size();
    return pairs == MessagePairs::all || distance == 1 || distance == size() - 1;
  }
  // The same order of pairs on every rank: each pair waits only for pairs before it.
  void connect(MessagePairs pairs) {
    for (std::int32_t from = 0; from < size(); ++from) {
      for (std::int32_t to = 0; to < size(); ++to) {
        if (!connected(pairs, from, to) || (rank() != from && rank() != to)) continue;
        DeviceNetwork::Id id{};
        Link link{.peer = rank() == from ? to : from, .group = nullptr};
        if (rank() == from) {
          id = network_.new_id();
          host_.send(tensor_of(id), to, kNoteTag - 1);
          link.lane = memory_->new_lane();
          link.group = network_.join(id, 0, 2, label());
          host_.wait_send(to, kNoteTag - 1);
          outgoing_.push_back(std::move(link));
        } else {
          host_.recv(tensor_of(id), from, kNoteTag - 1);
          link.group = network_.join(id, 1, 2, label());
          incoming_.push_back(std::move(link));
        }
      }
    }
  }
  // Made by the first collective, which all ranks of the group call alike.
  [[nodiscard]] DeviceGroup& group() {
    if (!group_) {
      DeviceNetwork::Id id{};
      if (rank() == 0) id = network_.new_id();
      host_.broadcast(tensor_of(id), 0);
      group_ = network_.join(id, rank(), size(), label());
    }
    return *group_;
  }
  [[nodiscard]] Link& link_to(std::vector<Link>& links, std::int32_t peer) const {
    const auto link = std::ranges::find(links, peer, &Link::peer);
    if (link == links.end())
      throw Error(
          ErrorKind::internal,
          fmt::format("no messages of devices go between ranks {} and {} of {}", rank(), peer, label()),
          std::string(label()), "make the communicator with other MessagePairs");
    return *link;
  }

  void note(Call call, const Tensor& x, std::int32_t peer = kNobody, std::int64_t tag = 0) {
    calls_.add({.call = call, .dtype = x.dtype(), .bytes = x.bytes().value, .peer = peer, .tag = tag},
               site());
  }

  // --- collectives

  void do_all_reduce(Tensor x) override {
    if (!on_device(x)) return inner_->all_reduce(x);
    if (x.empty()) return;
    group().all_reduce(x, Op::sum);
    note(Call::all_reduce, x);
  }
  void do_all_reduce_direct(Tensor x, Op op) override {
    if (!on_device(x)) return inner_->all_reduce_direct(x, op);
    if (x.empty()) return;
    group().all_reduce(x, op);
    note(Call::all_reduce_direct, x);
  }
  void do_reduce_scatter(Tensor out, Tensor in) override {
    if (!on_device(out, in)) return inner_->reduce_scatter(out, in);
    if (in.empty()) return;
    group().reduce_scatter(out, in);
    note(Call::reduce_scatter, in);
  }
  void do_all_gather(Tensor out, Tensor in) override {
    if (!on_device(out, in)) return inner_->all_gather(out, in);
    if (out.empty()) return;
    group().all_gather(out, in);
    note(Call::all_gather, out);
  }
  void do_all_gather_v(Tensor out, Tensor in, Rows rows) override {
    if (!on_device(out, in)) return inner_->all_gather_v(out, in, rows);
    begin_pieces();
    std::int64_t first = 0;
    for (std::int32_t r = 0; r < size(); ++r) {
      const std::int64_t count = rows[static_cast<std::size_t>(r)];
      const Tensor part = out.narrow_rows(first, count);
      if (r == rank()) {
        memory_->copy(part, in);
      } else {
        add_piece(sent_, r, in);
        add_piece(received_, r, part);
      }
      first += count;
    }
    group().exchange(sent_, received_);
    note(Call::all_gather_v, out);
  }
  void do_reduce_scatter_v(Tensor out, Tensor in, Rows rows) override {
    if (!on_device(out, in)) return inner_->reduce_scatter_v(out, in, rows);
    if (in.empty()) return;
    group().reduce_rows(out, in, rows);
    note(Call::reduce_scatter_v, in);
  }
  void do_all_to_all_v(Tensor out, Rows recv_rows, Tensor in, Rows send_rows) override {
    if (!on_device(out, in)) return inner_->all_to_all_v(out, recv_rows, in, send_rows);
    begin_pieces();
    std::int64_t to = 0, from = 0;
    for (std::int32_t r = 0; r < size(); ++r) {
      const std::int64_t sent = send_rows[static_cast<std::size_t>(r)];
      const std::int64_t received = recv_rows[static_cast<std::size_t>(r)];
      if (r == rank()) {
        memory_->copy(out.narrow_rows(from, received), in.narrow_rows(to, sent));
      } else {
        add_piece(sent_, r, in.narrow_rows(to, sent));
        add_piece(received_, r, out.narrow_rows(from, received));
      }
      to += sent;
      from += received;
    }
    group().exchange(sent_, received_);
    note(Call::all_to_all_v, in);
  }
  void do_broadcast(Tensor x, std::int32_t root) override {
    if (!on_device(x)) return inner_->broadcast(x, root);
    if (x.empty()) return;
    group().broadcast(x, root);
    note(Call::broadcast, x);
  }
  void do_barrier() override { inner_->barrier(); }

  void begin_pieces() {
    sent_.clear();
    received_.clear();
  }
  static void add_piece(std::vector<Piece>& pieces, std::int32_t peer, const Tensor& x) {
    if (!x.empty()) pieces.push_back({peer, bytes_of(x), x.bytes().value});
  }

  // --- messages

  void do_send(Tensor x, std::int32_t to, std::int64_t tag) override {
    if (!on_device(x)) return inner_->send(x, to, tag);
    Link& link = link_to(outgoing_, to);
    Sending& s = free_sending();
    s.open = true;
    s.to = to;
    s.tag = tag;
    s.note = {tag, x.bytes().value, static_cast<std::int64_t>(x.dtype())};
    s.number = link.number++;
    host_.send(tensor_of(s.note), to, kNoteTag + s.number);
    s.made->record();
    const InLane lane(*memory_, link.lane);
    s.made->wait();
    if (!x.empty()) link.group->exchange(std::array{Piece{1, bytes_of(x), x.bytes().value}}, {});
    s.gone->record();
    note(Call::send, x, to, tag);
  }
  void do_wait_send(std::int32_t to, std::int64_t tag) override {
    bool found = false;
    for (Sending& s : sending_) {
      if (!s.open || s.to != to || s.tag != tag) continue;
      host_.wait_send(to, kNoteTag + s.number);
      s.gone->wait();
      s.open = false;
      found = true;
    }
    if (!found) inner_->wait_send(to, tag);
  }
  void do_recv(Tensor x, std::int32_t from, std::int64_t tag) override {
    if (!on_device(x)) return inner_->recv(x, from, tag);
    Link& link = link_to(incoming_, from);
    for (Kept& k : kept_) {
      if (!k.full || k.from != from || k.note.tag != tag) continue;
      compare(k.note, x, from);
      k.full = false;
      k.arrived->wait();
      memory_->copy(x, Tensor(k.buffer.data(), x.dtype(), x.shape(), memory_->device()));
      k.arrived->record();  // and read, for who keeps the next one there
      return;
    }
    for (;;) {
      Note came;
      host_.recv(tensor_of(came), from, kNoteTag + link.number++);
      if (came.tag == tag) {
        compare(came, x, from);
        if (!x.empty()) link.group->exchange({}, std::array{Piece{0, bytes_of(x), came.bytes}});
        return note(Call::recv, x, from, tag);
      }
      keep(link, came);
    }
  }

  void compare(const Note& came, const Tensor& x, std::int32_t from) const {
    if (came.bytes == x.bytes().value && came.dtype == static_cast<std::int64_t>(x.dtype())) return;
    throw Error(ErrorKind::comm,
                fmt::format("rank {} of {} sends tag {} with {} bytes of {}, rank {} receives {} bytes of {}",
                            from, label(), came.tag, came.bytes, tensor::name(static_cast<DType>(came.dtype)),
                            rank(), x.bytes().value, tensor::name(x.dtype())),
                std::string(label()), "give send and recv of one tag the same shape and dtype");
  }
  [[nodiscard]] Sending& free_sending() {
    for (Sending& s : sending_) {
      if (!s.open) return s;
    }
    Sending& s = sending_.emplace_back();
    s.made = memory_->make_event();
    s.gone = memory_->make_event();
    return s;
  }
  void keep(Link& link, const Note& came) {
    auto k = std::ranges::find_if(
        kept_, [&](const Kept& slot) { return !slot.full && slot.buffer.size().value >= came.bytes; });
    if (k == kept_.end()) {
      k = kept_.emplace(kept_.end());
      k->buffer = Buffer(memory_, Bytes(std::max<std::int64_t>(1, came.bytes)), Reach::own);
      k->arrived = memory_->make_event();
    }
    k->arrived->wait();
    k->full = true;
    k->from = link.peer;
    k->note = came;
    if (came.bytes > 0) link.group->exchange({}, std::array{Piece{0, k->buffer.data(), came.bytes}});
    k->arrived->record();
  }

  std::shared_ptr<Memory> memory_;
  DeviceNetwork& network_;
  QueuedCalls calls_;
  std::list<Sending> sending_;           // notes keep their place; before inner_, which takes them back
  Communicator& host_;                   // which waits for no device: notes and ids
  std::unique_ptr<Communicator> inner_;  // over it, for tensors of the host
  std::int32_t exceptions_at_start_;
  std::unique_ptr<DeviceGroup> group_;
  std::vector<Link> outgoing_, incoming_;
  std::list<Kept> kept_;
  std::vector<Piece> sent_, received_;
};

// Whether each rank of the group has a GPU of its own. Collective.
bool apart(Communicator& inner, const DeviceNetwork& network) {
  constexpr std::int64_t kName = 64;
  std::vector<char> names(static_cast<std::size_t>(kName * inner.size()));
  std::array<char, kName> mine{};
  const std::string name = network.device_name();
  std::memcpy(mine.data(), name.data(), std::min(name.size(), mine.size() - 1));
  inner.all_gather(Tensor(names.data(), DType::u8, {kName * inner.size()}),
                   Tensor(mine.data(), DType::u8, {kName}));
  std::vector<std::string> all;
  for (std::int32_t r = 0; r < inner.size(); ++r) all.emplace_back(names.data() + r * kName);
  std::ranges::sort(all);
  return std::ranges::adjacent_find(all) == all.end();
}

}  // namespace

std::unique_ptr<Communicator> make_between_devices(std::unique_ptr<Communicator> inner,
                                                   const std::shared_ptr<Memory>& memory,
                                                   DeviceNetwork* network, MessagePairs pairs) {
  if (network == nullptr || inner->size() == 1 || !apart(*inner, *network))
    return make_staged(std::move(inner), memory);
  return std::make_unique<DeviceCommunicator>(std::move(inner), memory, *network, pairs);
}

}  // namespace tessera::comm
