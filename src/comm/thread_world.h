// ThreadWorld: N ranks as threads of this process.
//
//   ThreadWorld world({.size = 4, .timeout = Seconds(60)});
//   world.run([&](Rank rank) { auto tp = world.communicator(rank, {Rank(0), Rank(1)}, "tp"); ... });
//
// Waits: with ranks <= cores a short spin, then futex; with more ranks than cores futex at once.
#pragma once
#include "base/quantity.h"
#include "comm/world.h"

namespace tessera::comm {

class ThreadWorld final : public World {
 public:
  struct Options {
    std::int32_t size = 1;
    Seconds timeout = Seconds(120.0);  // of one wait
    std::int32_t cores = 0;            // that the ranks share; 0: those this process may use
  };
  explicit ThreadWorld(Options options);
  ~ThreadWorld() override;

  [[nodiscard]] std::int32_t size() const override;
  [[nodiscard]] std::span<const Rank> local_ranks() const override;
  [[nodiscard]] std::int64_t first_process_id() const override;
  [[nodiscard]] std::unique_ptr<Communicator> communicator(Rank rank, std::span<const Rank> members,
                                                           std::string_view label,
                                                           std::int32_t instance = 0) override;
  [[nodiscard]] Whereabouts& whereabouts(Rank rank) override;
  void run(const std::function<void(Rank)>& body) override;
  void abort(Rank rank, std::string_view why) override;

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace tessera::comm
