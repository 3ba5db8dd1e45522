// CheckpointWriter: one staging buffer a rank, one background thread.
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/math.h"
#include "ckpt/checkpoint.h"
#include "ckpt/rectangle.h"
#include "ckpt/step_folder.h"
#include "tensor/arena.h"

namespace tessera::ckpt {

namespace {

// A rank's copy of its pieces. `staged` is guarded by the writer's mutex, the rest belongs to the rank while
// staged is false and to the background thread from the moment all ranks have staged.
struct Slot {
  tensor::Buffer memory;
  std::vector<PieceBytes> pieces;
  bool staged = false;
};

std::int64_t staged_bytes(const Piece& piece) {
  return round_up(area(piece.slice) * tensor::size_of(piece.data.dtype()), tensor::kAlignment);
}

void check_piece(const Piece& piece) {
  const tensor::DType dtype = piece.data.dtype();
  TESSERA_CHECK(dtype == tensor::DType::f32 || dtype == tensor::DType::f64,
                fmt::format("piece \"{}\" is neither f32 nor f64", piece.name));
  TESSERA_CHECK(piece.num_dims == 1 || piece.num_dims == 2,
                fmt::format("piece \"{}\" has {} dims, not 1 or 2", piece.name, piece.num_dims));
  TESSERA_CHECK_EQ(piece.data.num_elements(), area(piece.slice), piece.name);
}

void fill(Slot& slot, std::span<const Piece> pieces, tensor::Memory& memory) {
  std::int64_t bytes = 0;
  for (const Piece& piece : pieces) {
    check_piece(piece);
    bytes += staged_bytes(piece);
  }
  if (bytes > slot.memory.size().value) {
    slot.memory = tensor::Buffer();  // before the larger one, so that both never exist
    slot.memory = tensor::Buffer(Bytes(bytes));
  }
  slot.pieces.clear();
  std::byte* to = slot.memory.data();
  for (const Piece& piece : pieces) {
    if (area(piece.slice) == 0) continue;
    memory.copy(tensor::Tensor(to, piece.data.dtype(), piece.data.shape()), piece.data);
    slot.pieces.push_back({.name = piece.name,
                           .num_dims = piece.num_dims,
                           .global = piece.global,
                           .slice = piece.slice,
                           .type = stored_type(piece.data.dtype()),
                           .data = to});
    to += staged_bytes(piece);
  }
  memory.synchronise();
}

}  // namespace

struct CheckpointWriter::State {
  explicit State(Options o)
      : options(std::move(o)),
        local(options.local_ranks > 0 ? options.local_ranks : options.world_size),
        slots(static_cast<std::size_t>(local)) {}

  Options options;
  std::int32_t local;  // ranks that stage here
  std::mutex mutex;
  std::condition_variable_any changed;
  // Guarded by mutex:
  std::vector<Slot> slots;
  Meta meta;                    // of the step being staged or written
  std::int32_t num_staged = 0;  // local: being written
  std::int64_t progress = 0;    // counts stagings and writings
  std::exception_ptr error;     // the first; nothing is written after it
  std::jthread thread;          // last: stops before the rest goes away

  [[nodiscard]] bool writing() const { return num_staged == local && error == nullptr; }

  // Waits until `done`. While a checkpoint is written there is no limit, a disk takes its time; but ranks
  // that never stage are not waited for.
  template <class Done>
  void wait(std::unique_lock<std::mutex>& lock, Done done) {
    const std::chrono::duration<double> patience(options.timeout_seconds);
    while (error == nullptr && !done()) {
      const std::int64_t before = progress;
      if (writing()) {
        changed.wait(lock);
      } else if (!changed.wait_for(lock, patience, [&] { return progress != before || error != nullptr; })) {
        throw Error(ErrorKind::comm,
                    fmt::format("{} of {} ranks staged step {} within {} s", num_staged, local, meta.step,
                                options.timeout_seconds),
                    options.folder.string(), "find out why the other ranks did not reach the checkpoint");
      }
    }
    if (error != nullptr) std::rethrow_exception(error);
  }

  void write() {
    std::vector<RankPieces> ranks;
    for (std::size_t r = 0; r < slots.size(); ++r)
      ranks.push_back(
          {.rank = Rank(options.first_rank + static_cast<std::int32_t>(r)), .pieces = slots[r].pieces});
    if (options.processes > 1) {
      write_step_part(options.folder, meta, options.world_size, ranks,
                      {.part = options.process,
                       .count = options.processes,
                       .owner = options.first_process_id,
                       .timeout_seconds = options.timeout_seconds});
      if (options.process != 0) return;
    } else {
      write_step_folder(options.folder, meta, options.world_size, ranks);
    }
    // Of several processes a faster one may be writing the next step by now, under this process's number.
    if (options.processes == 1) remove_leftovers(options.folder);
    prune(options.folder, meta.step, options.keep);
  }

  void run(const std::stop_token& stop) {
    // Hashing and writing take what the ranks leave of their cores. Who waits for a checkpoint leaves all.
    (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), 19);
    std::unique_lock lock(mutex);
    while (changed.wait(lock, stop, [this] { return writing(); })) {
      lock.unlock();
      std::exception_ptr failure;
      try {
        write();
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      error = failure;
      if (error == nullptr) {
        for (Slot& slot : slots) slot.staged = false;
        num_staged = 0;
      }
      ++progress;
      changed.notify_all();
    }
  }
};

CheckpointWriter::CheckpointWriter(Options options) : state_(std::make_unique<State>(std::move(options))) {
  const Options& o = state_->options;
  TESSERA_CHECK(o.keep >= 1 && o.world_size >= 1,
                "a checkpoint writer keeps at least one and has at least one rank");
  std::error_code code;
  std::filesystem::create_directories(o.folder, code);
  if (code) {
    throw Error(ErrorKind::io, fmt::format("cannot create the checkpoint folder: {}", code.message()),
                o.folder.string(), "give a folder that can be written");
  }
  if (o.process == 0) remove_leftovers(o.folder);
  state_->thread = std::jthread([state = state_.get()](const std::stop_token& stop) { state->run(stop); });
}

CheckpointWriter::~CheckpointWriter() {
  {
    std::unique_lock lock(state_->mutex);
    state_->changed.wait(lock, [this] { return !state_->writing(); });
  }
  state_->thread.request_stop();
  state_->thread.join();
}

void CheckpointWriter::stage(Rank rank, const Meta& meta, std::span<const Piece> pieces,
                             tensor::Memory& memory) {
  State& s = *state_;
  const std::int32_t place = rank.value - s.options.first_rank;
  TESSERA_CHECK(place >= 0 && place < s.local, "the rank is one of the writer's");
  TESSERA_CHECK(meta.step >= 0 && meta.tokens >= 0, "steps and tokens are 0 or more");
  Slot& slot = s.slots[static_cast<std::size_t>(place)];
  {
    std::unique_lock lock(s.mutex);
    s.wait(lock, [&] { return !slot.staged; });
  }
  fill(slot, pieces, memory);
  const std::lock_guard lock(s.mutex);
  if (s.num_staged == 0) s.meta = meta;
  TESSERA_CHECK_EQ(meta.step, s.meta.step, "all ranks stage the same step");
  TESSERA_CHECK(meta == s.meta, "all ranks stage the same description of a step");
  slot.staged = true;
  ++s.num_staged;
  ++s.progress;
  s.changed.notify_all();
}

void CheckpointWriter::wait() {
  std::unique_lock lock(state_->mutex);
  state_->wait(lock, [this] { return state_->num_staged == 0; });
}

}  // namespace tessera::ckpt
