// A job that goes wrong on purpose, for mpi_faults_test: mpirun -n P faults FAULT [SILENCE] [TIMEOUT]. All
// ranks sum small tensors, layer by layer; in step 3, layer 2, rank 1 does FAULT: none, skip (leaves one sum
// out), size (sums another size), kill and stop (a signal to itself), slow (comes late), throw.
#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "comm/message/process_world.h"
#include "comm/mpi/mpi_wire.h"

namespace tessera::comm {
namespace {

void go_wrong(const std::string& fault, double silence) {
  if (fault == "kill") ::raise(SIGKILL);
  if (fault == "stop") ::raise(SIGSTOP);
  if (fault == "slow") std::this_thread::sleep_for(std::chrono::duration<double>(silence * 1.5));
  if (fault == "throw") throw Error(ErrorKind::io, "no space left on disk", "/data/ckpt", "free 3 GiB");
}

void work(ProcessWorld& world, Rank rank, const std::string& fault, double silence) {
  std::vector<Rank> everyone;
  for (std::int32_t r = 0; r < world.size(); ++r) everyone.emplace_back(r);
  const auto tp = world.communicator(rank, everyone, "tp");
  tp->compare_sites(true);
  Whereabouts& place = world.whereabouts(rank);
  std::vector<float> x(1000);
  std::vector<float> longer(1001);
  for (std::int64_t step = 0; step < 5; ++step) {
    place.set_step(step, Phase::forward);
    for (std::int32_t layer = 0; layer < 4; ++layer) {
      place.set_action(0, Phase::forward);
      place.set_layer(layer);
      const bool here = step == 3 && layer == 2 && rank.value == 1;
      if (here) go_wrong(fault, silence);
      if (here && fault == "skip") continue;
      std::vector<float>& sum = here && fault == "size" ? longer : x;
      tp->all_reduce({sum.data(), tensor::DType::f32, {static_cast<std::int64_t>(sum.size())}});
    }
  }
  if (rank.value == 0) std::printf("all steps done\n");
}

int run(int argc, char** argv) {
  const std::string fault = argc > 1 ? argv[1] : "none";
  const double silence = argc > 2 ? std::atof(argv[2]) : 20.0;
  const double timeout = argc > 3 ? std::atof(argv[3]) : 30.0;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ProcessWorld world(
      mpi::open_wire(),
      {.timeout = Seconds(timeout), .silence = Seconds(silence), .on_sigterm = [] { std::_Exit(143); }});
  try {
    world.run([&](Rank rank) { work(world, rank, fault, silence); });
    return 0;
  } catch (const Error& e) {
    world.fail(e);
    if (world.speaks()) std::fprintf(stderr, "process %d tells: %s\n", world.process(), e.what());
    world.end(1);
    std::_Exit(1);
  }
}

}  // namespace
}  // namespace tessera::comm

int main(int argc, char** argv) {
  return tessera::comm::run(argc, argv);
}
