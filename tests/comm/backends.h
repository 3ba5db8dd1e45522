// The worlds that the communicator tests run in. A further backend joins by one more entry of all_backends().
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "comm/communicator.h"
#include "comm/local_wire.h"
#include "comm/message/process_world.h"
#include "comm/tcp_wires.h"
#include "comm/thread_world.h"
#ifdef TESSERA_TEST_MPI
#include "comm/mpi/world.h"
#endif

namespace tessera::comm {

using tensor::DType;

class TestWorld {
 public:
  virtual ~TestWorld() = default;
  virtual std::unique_ptr<Communicator> make(Rank rank, std::span<const Rank> members, std::string_view label,
                                             std::int32_t instance) = 0;
  virtual void run(const std::function<void(Rank)>& body) = 0;
  virtual void abort(Rank, std::string_view) {}
};

struct Backend {
  std::string name;
  std::int32_t min_ranks, max_ranks;
  std::function<std::unique_ptr<TestWorld>(std::int32_t size)> make;
};

class ThreadTestWorld final : public TestWorld {
 public:
  explicit ThreadTestWorld(ThreadWorld::Options options) : world_(options) {}
  std::unique_ptr<Communicator> make(Rank rank, std::span<const Rank> members, std::string_view label,
                                     std::int32_t instance) override {
    return world_.communicator(rank, members, label, instance);
  }
  void run(const std::function<void(Rank)>& body) override { world_.run(body); }
  void abort(Rank rank, std::string_view why) override { world_.abort(rank, why); }

 private:
  ThreadWorld world_;
};

using Wires = std::vector<std::unique_ptr<message::Wire>>;

inline Wires local_wires(std::int32_t processes) {
  const auto hub = std::make_shared<LocalWire::Hub>(processes);
  Wires wires;
  for (std::int32_t p = 0; p < processes; ++p) wires.push_back(std::make_unique<LocalWire>(hub, p));
  return wires;
}

// Several processes, played by objects of this one; each runs some ranks.
class ProcessesTestWorld final : public TestWorld {
 public:
  ProcessesTestWorld(Wires wires, const ProcessWorld::Options& options) : each_(options.ranks_per_process) {
    for (auto& wire : wires) worlds_.push_back(std::make_unique<ProcessWorld>(std::move(wire), options));
  }
  ~ProcessesTestWorld() override {
    std::vector<std::jthread> threads;  // each waits for the others' goodbye
    for (auto& w : worlds_) threads.emplace_back([&w] { w.reset(); });
  }
  std::unique_ptr<Communicator> make(Rank rank, std::span<const Rank> members, std::string_view label,
                                     std::int32_t instance) override {
    return worlds_[rank.value / each_]->communicator(rank, members, label, instance);
  }
  void run(const std::function<void(Rank)>& body) override {
    std::exception_ptr error;
    {
      std::vector<std::jthread> threads;
      for (std::size_t p = 0; p < worlds_.size(); ++p)
        threads.emplace_back([&, p] {
          try {
            worlds_[p]->run(body);
          } catch (...) {
            if (p == 0) error = std::current_exception();
          }
        });
    }
    if (error) std::rethrow_exception(error);
  }
  void abort(Rank rank, std::string_view why) override { worlds_[rank.value / each_]->abort(rank, why); }

 private:
  std::int32_t each_;
  std::vector<std::unique_ptr<ProcessWorld>> worlds_;
};

class SelfTestWorld final : public TestWorld {
 public:
  std::unique_ptr<Communicator> make(Rank, std::span<const Rank>, std::string_view label,
                                     std::int32_t) override {
    return make_self(label);
  }
  void run(const std::function<void(Rank)>& body) override { body(Rank(0)); }
};

#ifdef TESSERA_TEST_MPI
// The one world that mpirun made.
class MpiTestWorld final : public TestWorld {
 public:
  std::unique_ptr<Communicator> make(Rank rank, std::span<const Rank> members, std::string_view label,
                                     std::int32_t instance) override {
    return mpi_world()->communicator(rank, members, label, instance);
  }
  void run(const std::function<void(Rank)>& body) override { mpi_world()->run(body); }
};

constexpr std::int32_t kAllRanks = 0;  // as many as mpirun started
inline std::vector<Backend> all_backends() {
  return {{"Mpi", kAllRanks, kAllRanks, [](std::int32_t) { return std::make_unique<MpiTestWorld>(); }}};
}
#else
using SharedCount = std::atomic<std::int64_t>;
inline std::vector<Backend> all_backends() {
  // The two thread worlds differ in how they wait: looking first, as with a core per rank, or sleeping.
  const auto threads = [](std::int32_t cores) {
    return [cores](std::int32_t size) -> std::unique_ptr<TestWorld> {
      return std::make_unique<ThreadTestWorld>(
          ThreadWorld::Options{.size = size, .timeout = Seconds(60.0), .cores = cores});
    };
  };
  // One rank in each process, or two where that divides the ranks.
  const auto processes = [](Wires (*wires)(std::int32_t), std::int32_t each) {
    return [wires, each](std::int32_t size) -> std::unique_ptr<TestWorld> {
      const std::int32_t in_each = size % each == 0 ? each : 1;
      return std::make_unique<ProcessesTestWorld>(
          wires(size / in_each),
          ProcessWorld::Options{.ranks_per_process = in_each, .timeout = Seconds(60.0), .cores = 1});
    };
  };
  return {{"Self", 1, 1, [](std::int32_t) { return std::make_unique<SelfTestWorld>(); }},
          {"SpinningThreads", 1, 1 << 20, threads(64)},
          {"SleepingThreads", 1, 1 << 20, threads(1)},
          {"Processes", 1, 6, processes(local_wires, 1)},
          {"ProcessesOfTwo", 2, 8, processes(local_wires, 2)},
          {"Tcp", 1, 4, processes(tcp_wires, 1)},
          {"TcpOfTwo", 6, 8, processes(tcp_wires, 2)}};
}
#endif

inline std::vector<Rank> ranks_upto(std::int32_t n) {
  std::vector<Rank> ranks;
  for (std::int32_t r = 0; r < n; ++r) ranks.push_back(Rank(r));
  return ranks;
}

template <class T>
Tensor tensor_of(std::vector<T>& v) {
  return Tensor(v.data(), tensor::dtype_of<T>(), {static_cast<std::int64_t>(v.size())});
}
template <class T>
Tensor rows_of(std::vector<T>& v, std::int64_t columns) {
  return Tensor(v.data(), tensor::dtype_of<T>(), {static_cast<std::int64_t>(v.size()) / columns, columns});
}

// Numbers whose sum depends on the order of additions: signs and sizes differ, 20 bits of mantissa are in
// use.
template <class T>
std::vector<T> random_vector(std::int64_t n, std::int32_t rank) {
  std::vector<T> v(static_cast<std::size_t>(n));
  std::uint64_t state = stream_of("comm") + static_cast<std::uint64_t>(rank);
  for (std::int64_t i = 0; i < n; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    const auto value = static_cast<std::int64_t>(state >> 44) - (1 << 19);
    v[i] = static_cast<T>(value) * static_cast<T>(i % 3 == 0 ? 1.37 : 0.0173);
  }
  return v;
}

// The first difference in words, or "".
template <class T>
std::string difference(const std::vector<T>& got, const std::vector<T>& want) {
  if (got.size() != want.size()) return "sizes differ";
  if (got.empty() || std::memcmp(got.data(), want.data(), got.size() * sizeof(T)) == 0) return "";
  for (std::size_t i = 0; i < got.size(); ++i)
    if (std::memcmp(&got[i], &want[i], sizeof(T)) != 0)
      return "element " + std::to_string(i) + " of " + std::to_string(got.size()) + ": got " +
             std::to_string(got[i]) + ", want " + std::to_string(want[i]);
  return "";
}

struct Setting {
  Backend backend;
  std::int32_t size;
};

inline std::vector<Setting> settings() {
#ifdef TESSERA_TEST_MPI
  return {{all_backends().front(), kAllRanks}};
#endif
  std::vector<Setting> list;
  for (const Backend& b : all_backends())
    for (const std::int32_t size : {1, 2, 3, 4, 6, 7, 8})
      if (size >= b.min_ranks && size <= b.max_ranks) list.push_back({b, size});
  return list;
}
inline std::string setting_name(const ::testing::TestParamInfo<Setting>& info) {
  return info.param.backend.name + "_" + std::to_string(info.param.size) + "ranks";
}

// A test over (backend, number of ranks).
class OnEveryBackend : public ::testing::TestWithParam<Setting> {
 protected:
  [[nodiscard]] std::int32_t size() const {
#ifdef TESSERA_TEST_MPI
    return mpi_world()->size();
#endif
    return GetParam().size;
  }
  // Runs body(communicator of all ranks) on every rank.
  void on_ranks(const std::function<void(Communicator&)>& body) {
    const auto world = GetParam().backend.make(size());
    const std::vector<Rank> members = ranks_upto(size());
    world->run([&](Rank rank) {
      const auto comm = world->make(rank, members, "all", 0);
      body(*comm);
    });
  }
};

}  // namespace tessera::comm
