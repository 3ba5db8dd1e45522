// ProcessWorld: the ranks of several processes, some in each (ranks_per_process consecutive ones), as
// threads. Groups inside one process are those of the thread backend; the others exchange messages over a
// Wire.
//
// Failures: the first error of any rank goes to all processes; their waits throw, and run() rethrows it in
// each of them, with the states of all ranks as far as they came within 0.6 s. Each process watches the
// one before it (signs of life over the wire; on the same host also the process itself), so that a dead or
// stopped process is an error too, within `silence`, wherever the others wait.
#pragma once
#include <functional>
#include <memory>

#include "base/error.h"
#include "base/quantity.h"
#include "comm/message/wire.h"
#include "comm/world.h"

namespace tessera::comm {

class ProcessWorld final : public World {
 public:
  struct Options {
    std::int32_t ranks_per_process = 1;
    Seconds timeout = Seconds(120.0);  // of one wait
    Seconds silence = Seconds(20.0);   // of a process, before it counts as lost
    // all_reduce and reduce_scatter by the library's own algorithms where every member is a process of its
    // own (ranks_per_process 1): faster on some networks, in an order of additions that nobody promises.
    bool fast_reductions = false;
    std::int32_t cores = 0;  // that the local ranks share; 0: as found
    // mpirun ends all processes by SIGTERM when one dies, a second before it kills them: time to tell why.
    // Called, on a thread of the world, for one that no dead process explains. The caller has blocked
    // SIGTERM before it started any thread. Empty: SIGTERM is not looked at.
    std::function<void()> on_sigterm;
  };
  ProcessWorld(std::unique_ptr<message::Wire> wire, Options options);
  // Waits for the other processes, unless something failed.
  ~ProcessWorld() override;

  [[nodiscard]] std::int32_t size() const override;
  [[nodiscard]] std::span<const Rank> local_ranks() const override;
  [[nodiscard]] std::int64_t first_process_id() const override;
  [[nodiscard]] std::unique_ptr<Communicator> communicator(Rank rank, std::span<const Rank> members,
                                                           std::string_view label,
                                                           std::int32_t instance = 0) override;
  [[nodiscard]] Whereabouts& whereabouts(Rank rank) override;
  void run(const std::function<void(Rank)>& body) override;
  void set_lands_messages(bool lands) override;
  void abort(Rank rank, std::string_view why) override;

  [[nodiscard]] std::int32_t hosts() const;
  [[nodiscard]] std::int32_t process_on_host() const;  // this one, counted among those of its host

  // An error outside of run: the other processes stop with it.
  void fail(const Error& error);
  // After an error: whether this process tells the user of it. One does: the first, or if nothing is heard of
  // it for some seconds, another one.
  [[nodiscard]] bool speaks();
  // After an error, and after it was told: ends all processes. Where it returns, the caller leaves at once,
  // without unwinding: no peer is there any more.
  void end(std::int32_t exit_code);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace tessera::comm
