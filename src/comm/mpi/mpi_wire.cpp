#include "comm/mpi/mpi_wire.h"

#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/error.h"

namespace tessera::comm::mpi {

namespace {

using message::kNoteBytes;
using message::Open;
using message::Wire;
using tensor::DType;

constexpr int kNoteTag = 0;
constexpr int kPostedNotes = 32;               // receives that wait for notes
constexpr std::int64_t kMostAtOnce = 1 << 30;  // MPI counts with int
// Between hosts bodies go in pieces that MPI sends unasked. A larger one asks the receiver first, whose
// answer stands behind what it sends itself: of two that exchange, first one would send and then the other.
constexpr std::int64_t kUnasked = 60 << 10;

void check(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  throw Error(
      ErrorKind::comm,
      fmt::format("{} failed: {}", what, std::string_view(text.data(), static_cast<std::size_t>(length))),
      "MPI", "see what MPI printed; tessera train without mpirun needs no MPI");
}

MPI_Datatype type_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return MPI_DOUBLE;
    case DType::f32:
      return MPI_FLOAT;
    case DType::i64:
      return MPI_INT64_T;
    case DType::i32:
      return MPI_INT32_T;
    case DType::bf16:
    case DType::u8:
      break;
  }
  return MPI_BYTE;
}

struct PeerName {
  std::array<char, 256> host{};
  std::int64_t pid = 0;
};

// Requests on their way, and what each counts down or frees when it is done.
class Requests {
 public:
  MPI_Request& add(Open* open, std::int32_t note) {
    requests_.push_back(MPI_REQUEST_NULL);
    owners_.push_back({open, note});
    return requests_.back();
  }
  [[nodiscard]] bool empty() const { return requests_.empty(); }
  template <class FreeNote>
  void progress(const FreeNote& free_note) {
    if (requests_.empty()) return;
    const auto n = static_cast<int>(requests_.size());
    done_.resize(requests_.size());
    int count = 0;
    check(MPI_Testsome(n, requests_.data(), &count, done_.data(), MPI_STATUSES_IGNORE), "MPI_Testsome");
    if (count == MPI_UNDEFINED || count == 0) return;
    std::sort(done_.begin(), done_.begin() + count, std::greater<>());
    for (int i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(done_[static_cast<std::size_t>(i)]);
      if (owners_[at].open != nullptr) owners_[at].open->fetch_sub(1, std::memory_order_acq_rel);
      if (owners_[at].note >= 0) free_note(owners_[at].note);
      requests_[at] = requests_.back();
      owners_[at] = owners_.back();
      requests_.pop_back();
      owners_.pop_back();
    }
  }

 private:
  struct Owner {
    Open* open = nullptr;
    std::int32_t note = -1;
  };
  std::vector<MPI_Request> requests_;
  std::vector<Owner> owners_;
  std::vector<int> done_;
};

using NoteBuffer = std::array<std::byte, kNoteBytes>;

class MpiSums final : public Wire::Sums {
 public:
  MpiSums(MPI_Comm comm, Requests& requests) : comm_(comm), requests_(requests) {}
  void all_reduce(const Tensor& x, Open& open) override {
    open.fetch_add(1);
    check(MPI_Iallreduce(MPI_IN_PLACE, x.raw(), count(x), type_of(x.dtype()), MPI_SUM, comm_,
                         &requests_.add(&open, -1)),
          "MPI_Iallreduce");
  }
  void reduce_scatter(const Tensor& out, const Tensor& in, Open& open) override {
    open.fetch_add(1);
    const bool inside = out.raw() >= in.raw() && static_cast<std::byte*>(out.raw()) <
                                                     static_cast<std::byte*>(in.raw()) + in.bytes().value;
    TESSERA_CHECK(!inside, "MPI's reduce_scatter writes beside its input");
    check(MPI_Ireduce_scatter_block(in.raw(), out.raw(), count(out), type_of(in.dtype()), MPI_SUM, comm_,
                                    &requests_.add(&open, -1)),
          "MPI_Ireduce_scatter_block");
  }

 private:
  static int count(const Tensor& x) {
    TESSERA_CHECK(x.num_elements() <= kMostAtOnce, "MPI counts elements with int");
    return static_cast<int>(x.num_elements());
  }
  MPI_Comm comm_;
  Requests& requests_;
};

class MpiWire final : public Wire {
 public:
  MpiWire();
  ~MpiWire() override = default;

  [[nodiscard]] std::int32_t process() const override { return process_; }
  [[nodiscard]] std::int32_t processes() const override { return static_cast<std::int32_t>(peers_.size()); }
  [[nodiscard]] std::int32_t processes_on_host() const override { return on_host_; }
  [[nodiscard]] const Peer& peer(std::int32_t p) const override {
    return peers_[static_cast<std::size_t>(p)];
  }
  [[nodiscard]] std::int32_t max_tag() const override { return max_tag_; }
  void send_note(std::int32_t to, std::span<const std::byte> head, std::span<const std::byte> rest) override;
  [[nodiscard]] std::optional<Note> next_note() override;
  void send_body(std::int32_t to, std::int32_t tag, const void* data, std::int64_t bytes,
                 Open& open) override;
  void receive_body(std::int32_t from, std::int32_t tag, void* data, std::int64_t bytes, Open& open) override;
  void progress() override;
  [[nodiscard]] bool busy() const override { return !requests_.empty(); }
  [[nodiscard]] std::unique_ptr<Sums> make_sums(std::span<const std::int32_t> processes) override;
  void close() override;
  void kill_all(std::int32_t exit_code) noexcept override;

 private:
  void learn_peers();
  void post_note(std::size_t i);
  [[nodiscard]] std::int64_t most_at_once(std::int32_t peer) const {
    return peers_[static_cast<std::size_t>(peer)].host == peers_[static_cast<std::size_t>(process_)].host
               ? kMostAtOnce
               : kUnasked;
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  std::int32_t process_ = 0;
  std::int32_t on_host_ = 1;
  std::int32_t max_tag_ = 32767;
  std::vector<Peer> peers_;
  Requests requests_;
  std::vector<std::unique_ptr<NoteBuffer>> notes_;  // of sends; grows to the most at once
  std::vector<std::int32_t> free_notes_;
  // Receives of notes, used in turn: MPI fills them in the order of posting, so notes stay in order.
  std::array<NoteBuffer, kPostedNotes> incoming_;
  std::array<MPI_Request, kPostedNotes> incoming_requests_;
  std::size_t head_ = 0;
  bool head_is_read_ = false;  // and may be posted again
};

MpiWire::MpiWire() {
  int provided = 0;
  // Calls come from several threads, one at a time (Post's lock).
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_SERIALIZED)
    throw Error(ErrorKind::unsupported, "this MPI does not let several threads of a process call it", "MPI",
                "use an MPI built with threads (MPI_THREAD_SERIALIZED), as those of Debian are");
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  int rank = 0;
  check(MPI_Comm_rank(comm_, &rank), "MPI_Comm_rank");
  process_ = rank;
  void* most = nullptr;
  int found = 0;
  check(MPI_Comm_get_attr(comm_, MPI_TAG_UB, static_cast<void*>(&most), &found), "MPI_Comm_get_attr");
  if (found != 0) max_tag_ = *static_cast<int*>(most);
  learn_peers();
  for (std::size_t i = 0; i < incoming_.size(); ++i) post_note(i);
}

void MpiWire::learn_peers() {
  int size = 0;
  check(MPI_Comm_size(comm_, &size), "MPI_Comm_size");
  PeerName mine;
  (void)::gethostname(mine.host.data(), mine.host.size() - 1);
  mine.pid = ::getpid();
  std::vector<PeerName> all(static_cast<std::size_t>(size));
  const int bytes = static_cast<int>(sizeof(PeerName));
  check(MPI_Allgather(&mine, bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, comm_), "MPI_Allgather");
  on_host_ = 0;
  for (const PeerName& p : all) {
    peers_.push_back({p.host.data(), p.pid});
    on_host_ += peers_.back().host == mine.host.data() ? 1 : 0;
  }
}

void MpiWire::post_note(std::size_t i) {
  check(MPI_Irecv(incoming_[i].data(), static_cast<int>(kNoteBytes), MPI_BYTE, MPI_ANY_SOURCE, kNoteTag,
                  comm_, &incoming_requests_[i]),
        "MPI_Irecv");
}

void MpiWire::send_note(std::int32_t to, std::span<const std::byte> head, std::span<const std::byte> rest) {
  if (free_notes_.empty()) {
    free_notes_.push_back(static_cast<std::int32_t>(notes_.size()));
    notes_.push_back(std::make_unique<NoteBuffer>());
  }
  const std::int32_t note = free_notes_.back();
  free_notes_.pop_back();
  std::byte* buffer = notes_[static_cast<std::size_t>(note)]->data();
  std::memcpy(buffer, head.data(), head.size());
  if (!rest.empty()) std::memcpy(buffer + head.size(), rest.data(), rest.size());
  check(MPI_Isend(buffer, static_cast<int>(head.size() + rest.size()), MPI_BYTE, to, kNoteTag, comm_,
                  &requests_.add(nullptr, note)),
        "MPI_Isend");
}

std::optional<Wire::Note> MpiWire::next_note() {
  if (head_is_read_) {
    post_note(head_);
    head_ = (head_ + 1) % incoming_.size();
    head_is_read_ = false;
  }
  int done = 0;
  MPI_Status status;
  check(MPI_Test(&incoming_requests_[head_], &done, &status), "MPI_Test");
  if (done == 0) return std::nullopt;
  head_is_read_ = true;
  int bytes = 0;
  check(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
  return Note{status.MPI_SOURCE, std::span(incoming_[head_]).first(static_cast<std::size_t>(bytes))};
}

void MpiWire::send_body(std::int32_t to, std::int32_t tag, const void* data, std::int64_t bytes, Open& open) {
  const std::int64_t most = most_at_once(to);
  for (std::int64_t done = 0; done < bytes; done += most) {
    open.fetch_add(1, std::memory_order_relaxed);
    check(
        MPI_Isend(static_cast<const std::byte*>(data) + done, static_cast<int>(std::min(most, bytes - done)),
                  MPI_BYTE, to, tag, comm_, &requests_.add(&open, -1)),
        "MPI_Isend");
  }
}

void MpiWire::receive_body(std::int32_t from, std::int32_t tag, void* data, std::int64_t bytes, Open& open) {
  const std::int64_t most = most_at_once(from);
  for (std::int64_t done = 0; done < bytes; done += most) {
    open.fetch_add(1, std::memory_order_relaxed);
    check(MPI_Irecv(static_cast<std::byte*>(data) + done, static_cast<int>(std::min(most, bytes - done)),
                    MPI_BYTE, from, tag, comm_, &requests_.add(&open, -1)),
          "MPI_Irecv");
  }
}

void MpiWire::progress() {
  requests_.progress([this](std::int32_t note) { free_notes_.push_back(note); });
}

std::unique_ptr<Wire::Sums> MpiWire::make_sums(std::span<const std::int32_t> processes) {
  MPI_Group world = MPI_GROUP_NULL;
  MPI_Group group = MPI_GROUP_NULL;
  MPI_Comm comm = MPI_COMM_NULL;
  const std::vector<int> ranks(processes.begin(), processes.end());
  check(MPI_Comm_group(comm_, &world), "MPI_Comm_group");
  check(MPI_Group_incl(world, static_cast<int>(ranks.size()), ranks.data(), &group), "MPI_Group_incl");
  check(MPI_Comm_create_group(comm_, group, 1, &comm), "MPI_Comm_create_group");
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  return std::make_unique<MpiSums>(comm, requests_);
}

void MpiWire::close() {
  for (MPI_Request& r : incoming_requests_) {
    if (r == MPI_REQUEST_NULL) continue;
    check(MPI_Cancel(&r), "MPI_Cancel");
    check(MPI_Wait(&r, MPI_STATUS_IGNORE), "MPI_Wait");
  }
  check(MPI_Finalize(), "MPI_Finalize");
}

void MpiWire::kill_all(std::int32_t exit_code) noexcept {
  MPI_Abort(MPI_COMM_WORLD, exit_code);
}

}  // namespace

bool is_built_in() {
  return true;
}

std::unique_ptr<Wire> open_wire() {
  return std::make_unique<MpiWire>();
}

}  // namespace tessera::comm::mpi
