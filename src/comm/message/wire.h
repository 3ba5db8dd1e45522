// Wire: what carries bytes between the processes of one job. Two kinds of traffic: notes, small, copied, in
// order for each pair of processes; and bodies, large, straight between the memories of both ends, matched by
// (process, tag). mpi/ is one over MPI, tcp/ one over sockets; tests have one inside a process.
//
// Not thread safe: Post calls it under its lock. Nothing here waits.
#pragma once
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "comm/communicator.h"

namespace tessera::comm::message {

inline constexpr std::int64_t kNoteBytes = 4000;  // largest note

// Bodies that still use a memory: 0 when it may be used again.
using Open = std::atomic<std::int32_t>;

class Wire {
 public:
  virtual ~Wire() = default;
  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  struct Note {
    std::int32_t from = 0;
    std::span<const std::byte> bytes;  // until the next call of next_note
  };
  struct Peer {
    std::string host;
    std::int64_t pid = 0;
  };

  [[nodiscard]] virtual std::int32_t process() const = 0;
  [[nodiscard]] virtual std::int32_t processes() const = 0;
  [[nodiscard]] virtual std::int32_t processes_on_host() const = 0;
  [[nodiscard]] virtual const Peer& peer(std::int32_t process) const = 0;
  [[nodiscard]] virtual std::int32_t max_tag() const = 0;  // of bodies, at least 32767

  virtual void send_note(std::int32_t to, std::span<const std::byte> head,
                         std::span<const std::byte> rest) = 0;
  [[nodiscard]] virtual std::optional<Note> next_note() = 0;
  // open counts up now and down when the memory is free again.
  virtual void send_body(std::int32_t to, std::int32_t tag, const void* data, std::int64_t bytes,
                         Open& open) = 0;
  virtual void receive_body(std::int32_t from, std::int32_t tag, void* data, std::int64_t bytes,
                            Open& open) = 0;
  // Moves what can be moved.
  virtual void progress() = 0;
  [[nodiscard]] virtual bool busy() const = 0;  // something is on its way
  // The connection to a process has ended; nothing will come of it. A wire that cannot know says false.
  [[nodiscard]] virtual bool is_gone(std::int32_t /*process*/) const { return false; }
  // Of a stopped world: bodies that count this down are given up where the wire can, and their memory is
  // free.
  virtual void forget(Open& /*open*/) {}

  // Sums by the library's own algorithms, in an order that nobody states. Null: this wire has none.
  // Collective over the processes listed, which waits.
  class Sums {
   public:
    virtual ~Sums() = default;
    virtual void all_reduce(const Tensor& x, Open& open) = 0;
    virtual void reduce_scatter(const Tensor& out, const Tensor& in, Open& open) = 0;
  };
  [[nodiscard]] virtual std::unique_ptr<Sums> make_sums(std::span<const std::int32_t> processes) = 0;

  // All processes have said goodbye.
  virtual void close() = 0;
  // Ends all processes, this one included; may return before it ends.
  virtual void kill_all(std::int32_t exit_code) noexcept = 0;

 protected:
  Wire() = default;
};

}  // namespace tessera::comm::message
