// What happens when ranks disagree, die, leave or dawdle: every rank ends, nobody waits for ever, and the
// errors name ranks, calls and numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <stdexcept>
#include <thread>

#include "base/clock.h"
#include "comm/backends.h"

namespace tessera::comm {
namespace {

using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Outcome {
  std::string text;                // of run()'s error
  ErrorKind kind{};                //
  std::vector<std::string> ranks;  // what each rank saw
};

struct Options {
  std::int32_t size = 1;
  double timeout = 60.0;
  std::function<std::unique_ptr<TestWorld>(std::int32_t size, double timeout)> make;
};

// Runs body on `size` ranks, which must fail.
Outcome failing_run(const Options& options, const std::function<void(Rank, Communicator&)>& body) {
  Outcome outcome;
  outcome.ranks.resize(options.size);
  const auto world = options.make(options.size, options.timeout);
  const std::vector<Rank> members = ranks_upto(options.size);
  try {
    world->run([&](Rank rank) {
      const auto comm = world->make(rank, members, "tp", 0);
      try {
        body(rank, *comm);
      } catch (const std::exception& e) {
        outcome.ranks[rank.value] = e.what();
        throw;
      }
    });
    ADD_FAILURE() << "run() returned without an error";
  } catch (const Error& e) {
    outcome.text = e.what();
    outcome.kind = e.kind();
  }
  return outcome;
}

enum class Kind : std::uint8_t { sleeping, spinning, processes, processes_of_two, tcp };

std::unique_ptr<TestWorld> make_world(Kind kind, std::int32_t size, double timeout) {
  if (kind == Kind::sleeping || kind == Kind::spinning)
    return std::make_unique<ThreadTestWorld>(ThreadWorld::Options{
        .size = size, .timeout = Seconds(timeout), .cores = kind == Kind::sleeping ? 1 : 64});
  const std::int32_t each = kind == Kind::processes_of_two && size % 2 == 0 ? 2 : 1;
  return std::make_unique<ProcessesTestWorld>(
      kind == Kind::tcp ? tcp_wires(size) : local_wires(size / each),
      ProcessWorld::Options{.ranks_per_process = each, .timeout = Seconds(timeout), .cores = 1});
}

// All ways of waiting.
class Failures : public ::testing::TestWithParam<Kind> {
 protected:
  static Options options(std::int32_t size, double timeout = 60.0) {
    return {size, timeout, [kind = GetParam()](auto n, auto t) { return make_world(kind, n, t); }};
  }
};
INSTANTIATE_TEST_SUITE_P(Worlds, Failures,
                         ::testing::Values(Kind::sleeping, Kind::spinning, Kind::processes,
                                           Kind::processes_of_two, Kind::tcp),
                         [](const auto& info) {
                           switch (info.param) {
                             case Kind::sleeping:
                               return "Sleeping";
                             case Kind::spinning:
                               return "Spinning";
                             case Kind::processes:
                               return "Processes";
                             case Kind::processes_of_two:
                               return "ProcessesOfTwo";
                             case Kind::tcp:
                               return "Tcp";
                           }
                           return "";
                         });

TEST_P(Failures, DifferentCallsAreReportedOnEveryRankWithBothCalls) {
  for (const std::int32_t size : {2, 3, 5}) {
    const Outcome o = failing_run(options(size), [&](Rank rank, Communicator& c) {
      std::vector<float> x(4000);
      c.barrier();
      if (rank.value == size - 1)
        c.barrier();
      else
        c.all_reduce(tensor_of(x));
    });
    EXPECT_EQ(o.kind, ErrorKind::comm);
    EXPECT_THAT(o.text, AllOf(HasSubstr("calls do not match"), HasSubstr("tp all_reduce #2 (15.62 KiB f32)"),
                              HasSubstr("tp barrier #2"), HasSubstr("mend: every rank of a group")));
    for (const std::string& text : o.ranks)
      EXPECT_THAT(text, AllOf(HasSubstr("all_reduce #2"), HasSubstr("barrier #2"),
                              HasSubstr("rank " + std::to_string(size - 1))));
  }
}

TEST_P(Failures, DifferentSizesDtypesRootsAndOperationsAreMismatches) {
  const auto text_of = [&](const std::function<void(Communicator&)>& first,
                           const std::function<void(Communicator&)>& second) {
    return failing_run(options(2),
                       [&](Rank rank, Communicator& c) { rank.value == 0 ? first(c) : second(c); })
        .text;
  };
  std::vector<float> f(64);
  std::vector<float> g(2000);
  std::vector<double> d(32);
  std::vector<float> f2(64);
  EXPECT_THAT(text_of([&](Communicator& c) { c.all_reduce(tensor_of(f)); },
                      [&](Communicator& c) { c.all_reduce(tensor_of(g)); }),
              AllOf(HasSubstr("(256 B f32)"), HasSubstr("(7.81 KiB f32)")));
  EXPECT_THAT(text_of([&](Communicator& c) { c.all_reduce(tensor_of(f)); },
                      [&](Communicator& c) { c.all_reduce(tensor_of(d)); }),
              AllOf(HasSubstr("(256 B f32)"), HasSubstr("(256 B f64)")));
  EXPECT_THAT(text_of([&](Communicator& c) { c.broadcast(tensor_of(f), 0); },
                      [&](Communicator& c) { c.broadcast(tensor_of(f2), 1); }),
              HasSubstr("roots"));
  EXPECT_THAT(text_of([&](Communicator& c) { c.all_reduce_direct(tensor_of(f), Op::max); },
                      [&](Communicator& c) { c.all_reduce_direct(tensor_of(f2), Op::sum); }),
              HasSubstr("another operation"));
}

TEST_P(Failures, UnequalRowCountsOfAllToAllNameBothRanksAndCounts) {
  const Outcome o = failing_run(options(3), [&](Rank rank, Communicator& c) {
    std::vector<std::int64_t> send(3, 2);
    std::vector<std::int64_t> recv(3, 2);
    if (rank.value == 1) recv[2] = 5;  // rank 2 sends 2
    std::vector<float> in(6);
    std::vector<float> out(rank.value == 1 ? 9 : 6);
    c.all_to_all_v(tensor_of(out), recv, tensor_of(in), send);
    c.barrier();  // of several processes only the one that expects other rows sees it in the call itself
  });
  EXPECT_THAT(o.text, HasSubstr("rank 2 sends 2 rows to rank 1, which expects 5"));
  for (const std::string& text : o.ranks) EXPECT_THAT(text, HasSubstr("rank 2 sends 2 rows to rank 1"));
}

TEST_P(Failures, DifferentRowListsOfGathersAreMismatches) {
  const Outcome o = failing_run(options(2), [&](Rank rank, Communicator& c) {
    const std::vector<std::int64_t> rows = {3, rank.value == 0 ? 4 : 2};
    std::vector<double> in(rows[rank.value]);
    std::vector<double> out(rows[0] + rows[1]);
    c.all_gather_v(tensor_of(out), tensor_of(in), rows);
  });
  EXPECT_THAT(o.text, AnyOf(HasSubstr("rows[1] is 4 on rank 0 and 2 on rank 1"),
                            HasSubstr("rows[1] is 2 on rank 1 and 4 on rank 0")));
}

TEST_P(Failures, ARankThatLeavesOutOneOfManyEqualCallsIsFoundAtTheNextOneByStepLayerAndMicrobatch) {
  const Outcome o = failing_run(options(4), [&](Rank rank, Communicator& c) {
    Whereabouts place;
    c.set_whereabouts(&place);
    c.compare_sites(true);
    std::vector<float> x(3000);
    place.set_step(7, Phase::forward);
    for (std::int32_t layer = 0; layer < 5; ++layer) {
      place.set_action(1, Phase::forward);
      place.set_layer(layer);
      if (rank.value == 2 && layer == 3) continue;
      c.all_reduce(tensor_of(x));
    }
  });
  EXPECT_EQ(o.kind, ErrorKind::comm);
  EXPECT_THAT(o.text, AllOf(HasSubstr("calls do not match"), HasSubstr("rank 2 calls tp all_reduce #4"),
                            HasSubstr("at step 7, layer 3, micro-batch 1, forward"),
                            HasSubstr("at step 7, layer 4, micro-batch 1, forward"),
                            HasSubstr("last calls: tp: all_reduce #1 (11.72 KiB f32) x")));
}

TEST_P(Failures, ARankThatThrowsBeforeACollectiveEndsAllWithItsOwnErrorAndTheStatesOfAllRanks) {
  const Outcome o = failing_run(options(4), [&](Rank rank, Communicator& c) {
    std::vector<float> x(300000);
    c.all_reduce(tensor_of(x));
    if (rank.value == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      throw Error(ErrorKind::io, "no space left on disk", "/data/ckpt", "free 3 GiB");
    }
    c.all_reduce(tensor_of(x));
  });
  EXPECT_EQ(o.kind, ErrorKind::io);
  EXPECT_THAT(o.text, AllOf(HasSubstr("rank 2 failed: no space left on disk"), HasSubstr("mend: free 3 GiB"),
                            HasSubstr("states of the ranks"),
                            HasSubstr("rank 2: this one failed; outside of communication"),
                            HasSubstr("rank 3: waits in tp all_reduce #2 (1.14 MiB f32) for rank 2"),
                            HasSubstr("last calls: tp: all_reduce #1 (1.14 MiB f32) x2")));
  EXPECT_EQ(o.ranks[2], "no space left on disk\n  where: /data/ckpt\n  mend: free 3 GiB");
  for (const std::int32_t r : {0, 1, 3})
    EXPECT_THAT(o.ranks[r], AllOf(HasSubstr("stopped because rank 2 failed: no space left on disk"),
                                  HasSubstr("all_reduce #2"), HasSubstr("mend the failure of rank 2")));
}

TEST_P(Failures, OrdinaryExceptionsAreNamedWithTheirRank) {
  const Outcome o = failing_run(options(2), [&](Rank rank, Communicator& c) {
    if (rank.value == 1) throw std::runtime_error("vector too long");
    c.barrier();
  });
  EXPECT_EQ(o.kind, ErrorKind::internal);
  EXPECT_THAT(o.text, HasSubstr("rank 1 failed: vector too long"));
}

TEST_P(Failures, ARankThatReturnsEarlyIsNoticedAtOnce) {
  const std::int64_t start = wall_ns();
  const Outcome o = failing_run(options(3), [&](Rank rank, Communicator& c) {
    if (rank.value != 1) c.barrier();
  });
  EXPECT_LT(wall_ns() - start, 20'000'000'000);  // not the timeout
  EXPECT_THAT(o.text,
              AllOf(HasSubstr("tp barrier #1"), HasSubstr("rank 1 has left"), HasSubstr("rank 1: finished")));
}

TEST_P(Failures, AWaitLongerThanTheTimeoutNamesWhoWasWaitedFor) {
  const Outcome o = failing_run(options(3, 0.1), [&](Rank rank, Communicator& c) {
    std::vector<double> x(200);
    if (rank.value != 0) return c.all_reduce(tensor_of(x));
    const std::int64_t start = wall_ns();
    while (wall_ns() - start < 400'000'000) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    c.all_reduce(tensor_of(x));
  });
  EXPECT_EQ(o.kind, ErrorKind::comm);
  EXPECT_THAT(o.text, AllOf(HasSubstr("waits in tp all_reduce #1 (1.56 KiB f64) for rank 0"),
                            HasSubstr("no answer for 1"), HasSubstr("raise the timeout"),
                            HasSubstr("rank 0: outside of communication")));
  EXPECT_THAT(o.ranks[0], HasSubstr("stopped because rank"));
}

TEST_P(Failures, AReceiveWithoutASendTimesOut) {
  const Outcome o = failing_run(options(2, 0.1), [&](Rank rank, Communicator& c) {
    std::vector<float> x(3);
    if (rank.value == 0) return c.recv(tensor_of(x), 1, 42);
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    c.barrier();
  });
  EXPECT_THAT(o.text, AllOf(HasSubstr("rank 0 waits in tp recv #1 tag 42 (12 B f32) for rank 1: no answer"),
                            HasSubstr("rank 1: waits in tp barrier #1 for rank 0")));
}

TEST_P(Failures, AMessageOfAnotherSizeIsAMismatch) {
  const Outcome o = failing_run(options(2), [&](Rank rank, Communicator& c) {
    std::vector<float> x(8);
    if (rank.value == 0) {
      c.send(tensor_of(x), 1, 3);
      c.wait_send(1, 3);
    } else {
      c.recv(tensor_of(x).narrow_rows(0, 5), 0, 3);
    }
  });
  EXPECT_THAT(o.text,
              HasSubstr("rank 0 sends tp tag 3 with 32 bytes of f32, rank 1 receives 20 bytes of f32"));
}

TEST_P(Failures, ASenderThatLeavesWithoutWaitingIsNamed) {
  if (GetParam() != Kind::sleeping && GetParam() != Kind::spinning)
    GTEST_SKIP() << "between processes the message is under way by then, and arrives";
  const Outcome o = failing_run(options(2), [&](Rank rank, Communicator& c) {
    std::vector<float> x(8);
    c.barrier();
    if (rank.value == 0) return c.send(tensor_of(x), 1, 3);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    c.recv(tensor_of(x), 0, 3);
  });
  EXPECT_THAT(o.text, AllOf(HasSubstr("rank 0"), HasSubstr("rank 1"), HasSubstr("tag 3")));
}

TEST_P(Failures, NobodyHangsWhereverARankThrows) {
  // Rank `who` throws after `when` calls of a mix of everything; the others must all end.
  for (const std::int32_t size : {2, 3, 4}) {
    for (std::int32_t when = 0; when < 12; ++when) {
      const std::int32_t who = when % size;
      // What is sent lives longer than the communicators.
      std::vector<std::vector<float>> sent(size, std::vector<float>(70000, 1.0F));
      const Outcome o = failing_run(options(size, 20.0), [&](Rank rank, Communicator& c) {
        std::vector<float>& x = sent[rank.value];
        std::vector<float> y(70000);
        std::vector<float> part(70000 * size);
        std::int32_t calls = 0;
        const auto maybe_throw = [&] {
          if (calls++ == when && rank.value == who) throw Error(ErrorKind::io, "boom", "", "");
        };
        c.barrier();  // all have begun
        const std::int32_t next = (rank.value + 1) % size;
        for (std::int32_t round = 0; round < 3; ++round) {
          maybe_throw();
          c.all_reduce(tensor_of(x));
          maybe_throw();
          c.send(tensor_of(x), next, round);
          maybe_throw();
          c.all_gather(tensor_of(part), tensor_of(y));
          maybe_throw();
          c.recv(tensor_of(y), (rank.value + size - 1) % size, round);
          c.wait_send(next, round);
          maybe_throw();
          c.all_reduce_direct(tensor_of(y), Op::sum);
        }
      });
      EXPECT_THAT(o.text, HasSubstr("rank " + std::to_string(who) + " failed: boom"));
      for (const std::string& text : o.ranks) EXPECT_THAT(text, HasSubstr("boom"));
    }
  }
}

TEST_P(Failures, AbortFromOutsideEndsEveryWaitAndTheRanksOwnErrorReplacesItsReason) {
  const auto world = make_world(GetParam(), 2, 60.0);
  const std::vector<Rank> members = ranks_upto(2);
  try {
    world->run([&](Rank rank) {
      const auto c = world->make(rank, members, "dp", 0);
      if (rank.value == 0) return c->barrier();
      world->abort(rank, "left");
      throw Error(ErrorKind::config, "wrong learning rate -1", "job.yaml", "use a positive one");
    });
    FAIL() << "run() returned";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_THAT(e.what(), HasSubstr("rank 1 failed: wrong learning rate -1"));
  }
  EXPECT_THROW(world->run([](Rank) {}), Error);  // a stopped world stays stopped
}

TEST(Arguments, WrongOnesAreRefusedBeforeAnyPeerIsInvolved) {
  ThreadWorld world({.size = 2});
  const std::vector<Rank> members = ranks_upto(2);
  const auto refused = [](const std::function<void()>& call) -> std::string {
    try {
      call();
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::internal);
      return e.what();
    }
    return "not refused";
  };
  world.run([&](Rank rank) {
    const auto c = world.communicator(rank, members, "ep");
    std::vector<std::int32_t> i(4);
    std::vector<float> f(4);
    std::vector<float> g(3);
    const std::vector<std::int64_t> rows = {1, 3};
    const std::vector<std::int64_t> one = {1};
    EXPECT_THAT(refused([&] { c->all_reduce(tensor_of(i)); }),
                AllOf(HasSubstr("dtype i32"), HasSubstr("ep all_reduce, rank"), HasSubstr("use f64 or f32")));
    EXPECT_THAT(refused([&] { c->reduce_scatter(tensor_of(g), tensor_of(f)); }),
                AllOf(HasSubstr("`in` [4] is not 2 times `out` [3]"), HasSubstr("2 equal parts")));
    EXPECT_THAT(refused([&] { c->all_gather(tensor_of(f), tensor_of(g)); }), HasSubstr("not 2 times"));
    EXPECT_THAT(refused([&] { c->all_gather_v(tensor_of(f), tensor_of(g), one); }),
                HasSubstr("1 counts for 2 ranks"));
    EXPECT_THAT(refused([&] { c->reduce_scatter_v(tensor_of(f), tensor_of(f), rows); }),
                HasSubstr("must have"));
    EXPECT_THAT(refused([&] { c->all_to_all_v(tensor_of(f), rows, tensor_of(i), rows); }), HasSubstr("i32"));
    EXPECT_THAT(refused([&] { c->send(tensor_of(f), rank.value, 0); }), HasSubstr("is not another rank"));
    EXPECT_THAT(refused([&] { c->recv(tensor_of(f), 2, 0); }), HasSubstr("peer 2"));
    EXPECT_THAT(refused([&] { c->broadcast(tensor_of(f), -1); }), HasSubstr("root -1"));
    EXPECT_THAT(refused([&] { c->all_reduce(Tensor(nullptr, DType::f32, {4})); }), HasSubstr("no memory"));
    c->barrier();  // and nothing is broken
  });
}

TEST(Arguments, CommunicatorsCheckTheirMembers) {
  ThreadWorld world({.size = 3});
  const auto refused = [&](std::vector<Rank> members) -> std::string {
    try {
      (void)world.communicator(Rank(0), members, "tp");
    } catch (const Error& e) {
      return e.what();
    }
    return "not refused";
  };
  EXPECT_THAT(refused({Rank(1), Rank(2)}), HasSubstr("rank 0 is not a member"));
  EXPECT_THAT(refused({Rank(0), Rank(3)}), HasSubstr("rank 3 in a world of 3"));
  EXPECT_THAT(refused({Rank(0), Rank(0)}), HasSubstr("listed twice"));
  const auto held = world.communicator(Rank(0), ranks_upto(3), "tp");
  EXPECT_THAT(refused({Rank(0), Rank(1), Rank(2)}),
              AllOf(HasSubstr("instance 0 is already in use"), HasSubstr("ask for another instance")));
  EXPECT_NO_THROW((void)world.communicator(Rank(0), ranks_upto(3), "tp", 1));
}

}  // namespace
}  // namespace tessera::comm
