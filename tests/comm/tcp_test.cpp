// The TCP wire and the rendezvous of its processes: notes and bodies of every size and order, exchanges that
// would deadlock where a side stopped reading, what a lost connection looks like, and everything that can go
// wrong before the processes have found each other.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <numeric>

#include "base/clock.h"
#include "base/error.h"
#include "comm/backends.h"
#include "comm/tcp/link.h"
#include "comm/tcp/words.h"
#include "comm/tcp_wires.h"

namespace tessera::comm {
namespace {

using message::Open;
using message::Wire;
using ::testing::AllOf;
using ::testing::AnyOf;
using ::testing::HasSubstr;

std::vector<std::byte> pattern(std::int64_t bytes, std::uint64_t seed) {
  std::vector<std::byte> v(static_cast<std::size_t>(bytes));
  std::uint64_t state = seed * 2654435761U + 1;
  for (std::byte& b : v) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    b = static_cast<std::byte>(state >> 56);
  }
  return v;
}

// Turns the wires until done, at most for 20 s.
bool turn(std::vector<std::unique_ptr<Wire>>& wires, const std::function<bool()>& done) {
  const std::int64_t start = wall_ns();
  while (!done()) {
    if (wall_ns() - start > 20'000'000'000) return false;
    for (auto& w : wires)
      if (w) w->progress();
  }
  return true;
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST(TcpWire, NotesArriveInOrderFromEveryProcess) {
  auto wires = tcp_wires(3);
  constexpr int kNotes = 3000;
  for (int i = 0; i < kNotes; ++i)
    for (const int from : {0, 1})
      wires[from]->send_note(2, bytes_of(std::to_string(i) + "/"), bytes_of(std::string(i % 3000, 'x')));
  std::array<int, 2> next{};
  ASSERT_TRUE(turn(wires, [&] {
    while (const auto note = wires[2]->next_note()) {
      const int i = next[note->from]++;
      EXPECT_EQ(text_of(note->bytes), std::to_string(i) + "/" + std::string(i % 3000, 'x'));
    }
    return next[0] == kNotes && next[1] == kNotes;
  }));
}

TEST(TcpWire, BodiesOfEverySizeArriveWhetherTheirReceiveIsPostedBeforeOrAfter) {
  auto wires = tcp_wires(2);
  for (const bool before : {true, false}) {
    std::vector<std::vector<std::byte>> sent, got;
    std::deque<Open> out, in;
    const std::vector<std::int64_t> sizes = {1,     4000,    tcp::kUnasked - 1,   tcp::kUnasked,
                                             65537, 300'000, 3 * tcp::kPiece + 1, 5'000'000};
    const auto receive = [&](std::size_t i) {
      wires[1]->receive_body(0, static_cast<std::int32_t>(i), got[i].data(), sizes[i], in[i]);
    };
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      sent.push_back(pattern(sizes[i], i));
      got.emplace_back(sent.back().size());
      out.emplace_back(0);
      in.emplace_back(0);
    }
    if (before)
      for (std::size_t i = sizes.size(); i-- > 0;) receive(i);
    for (std::size_t i = 0; i < sizes.size(); ++i)
      wires[0]->send_body(1, static_cast<std::int32_t>(i), sent[i].data(), sizes[i], out[i]);
    for (int i = 0; i < 100; ++i) wires[1]->progress();
    if (!before)
      for (std::size_t i = sizes.size(); i-- > 0;) receive(i);
    const auto none = [](const std::deque<Open>& list) {
      return std::ranges::all_of(list, [](const Open& o) { return o == 0; });
    };
    ASSERT_TRUE(turn(wires, [&] { return none(out) && none(in); }));
    EXPECT_EQ(sent, got);
  }
  EXPECT_FALSE(wires[0]->busy());
  EXPECT_FALSE(wires[1]->busy());
}

TEST(TcpWire, ManyBodiesThatNobodyReceivesYetHoldUpNeitherNotesNorOtherBodies) {
  auto wires = tcp_wires(2);
  constexpr int kBodies = 400;
  constexpr std::int64_t kBytes = 40'000;  // together far more than may wait at the receiver
  const std::vector<std::byte> data = pattern(kBytes, 1);
  std::deque<Open> out(kBodies + 1), in(kBodies + 1);
  for (int i = 0; i < kBodies; ++i) wires[0]->send_body(1, i, data.data(), kBytes, out[i]);
  wires[0]->send_note(1, bytes_of("word"), {});
  ASSERT_TRUE(turn(wires, [&] { return wires[1]->next_note().has_value(); }));
  // The last one, small and large.
  std::vector<std::byte> got(kBytes), last(3'000'000);
  const std::vector<std::byte> large = pattern(3'000'000, 2);
  wires[1]->receive_body(0, kBodies - 1, got.data(), kBytes, in[kBodies - 1]);
  wires[0]->send_body(1, kBodies, large.data(), std::ssize(large), out[kBodies]);
  wires[1]->receive_body(0, kBodies, last.data(), std::ssize(last), in[kBodies]);
  ASSERT_TRUE(turn(wires, [&] { return in[kBodies - 1] == 0 && in[kBodies] == 0 && out[kBodies] == 0; }));
  EXPECT_EQ(got, data);
  EXPECT_EQ(last, large);
  // And the rest, once they are wanted.
  std::vector<std::vector<std::byte>> rest(kBodies - 1, std::vector<std::byte>(kBytes));
  for (int i = 0; i + 1 < kBodies; ++i) wires[1]->receive_body(0, i, rest[i].data(), kBytes, in[i]);
  ASSERT_TRUE(turn(wires, [&] { return !wires[0]->busy() && !wires[1]->busy(); }));
  for (const auto& r : rest) ASSERT_EQ(r, data);
  for (const Open& o : out) EXPECT_EQ(o, 0);
}

TEST(TcpWire, TwoThatSendLargeBodiesToEachOtherBothEnd) {
  auto wires = tcp_wires(2);
  constexpr std::int64_t kBytes = 64 << 20;
  const std::vector<std::byte> a = pattern(kBytes, 1), b = pattern(kBytes, 2);
  std::vector<std::byte> at_b(kBytes), at_a(kBytes);
  Open out_a = 0, out_b = 0, in_a = 0, in_b = 0;
  wires[0]->send_body(1, 7, a.data(), kBytes, out_a);
  wires[1]->send_body(0, 7, b.data(), kBytes, out_b);
  wires[0]->receive_body(1, 7, at_a.data(), kBytes, in_a);
  wires[1]->receive_body(0, 7, at_b.data(), kBytes, in_b);
  ASSERT_TRUE(turn(wires, [&] { return out_a == 0 && out_b == 0 && in_a == 0 && in_b == 0; }));
  EXPECT_TRUE(at_a == b);
  EXPECT_TRUE(at_b == a);
}

TEST(TcpWire, ANoteOvertakesALargeBody) {
  auto wires = tcp_wires(2);
  constexpr std::int64_t kBytes = 256 << 20;
  std::vector<std::byte> data(kBytes), got(kBytes);
  Open out = 0, in = 0;
  wires[0]->send_body(1, 1, data.data(), kBytes, out);
  wires[1]->receive_body(0, 1, got.data(), kBytes, in);
  for (int i = 0; i < 20; ++i)
    for (auto& w : wires) w->progress();
  ASSERT_EQ(in, 1);
  wires[0]->send_note(1, bytes_of("word"), {});
  ASSERT_TRUE(turn(wires, [&] { return wires[1]->next_note().has_value(); }));
  EXPECT_EQ(in, 1) << "the note came behind the whole body";
}

TEST(TcpWire, ForgottenBodiesFreeTheirMemoryAndTheRestGoesOn) {
  auto wires = tcp_wires(2);
  constexpr std::int64_t kBytes = 64 << 20;
  Open out = 0, in = 0;
  auto data = std::make_unique<std::vector<std::byte>>(pattern(kBytes, 3));
  auto got = std::make_unique<std::vector<std::byte>>(kBytes);
  wires[0]->send_body(1, 1, data->data(), kBytes, out);
  wires[1]->receive_body(0, 1, got->data(), kBytes, in);
  for (int i = 0; i < 10; ++i)
    for (auto& w : wires) w->progress();
  ASSERT_EQ(out, 1);
  ASSERT_EQ(in, 1);
  wires[0]->forget(out);
  wires[1]->forget(in);
  EXPECT_EQ(out, 0);
  EXPECT_EQ(in, 0);
  data.reset();
  got.reset();
  wires[0]->send_note(1, bytes_of("after"), {});
  std::string note;
  ASSERT_TRUE(turn(wires, [&] {
    if (const auto n = wires[1]->next_note()) note = text_of(n->bytes);
    return !note.empty();
  }));
  EXPECT_EQ(note, "after");
}

TEST(TcpWire, AProcessThatIsGoneIsSeenByAllAfterItsLastWords) {
  auto wires = tcp_wires(3);
  wires[1]->send_note(0, bytes_of("last words"), {});
  wires[1]->send_note(2, bytes_of("last words"), {});
  wires[1].reset();
  for (const int p : {0, 2}) {
    std::string note;
    ASSERT_TRUE(turn(wires, [&] {
      if (const auto n = wires[p]->next_note()) note = text_of(n->bytes);
      return wires[p]->is_gone(1) && !note.empty();
    }));
    EXPECT_EQ(note, "last words");
    EXPECT_FALSE(wires[p]->is_gone(2 - p));
    // What is sent there now is lost, without a signal.
    Open open = 0;
    for (int i = 0; i < 10; ++i) wires[p]->send_note(1, bytes_of("too late"), {});
    wires[p]->send_body(1, 1, note.data(), std::ssize(note), open);
  }
}

TEST(TcpWire, OneEndsAllWithItsExitCode) {
  tcp::Meeting host = host_meeting(2);
  tcp::Meeting guest = guest_meeting(host, 1);
  std::atomic<int> code = -1;
  std::unique_ptr<Wire> first, second;
  {
    std::jthread a([&] { first = tcp::open_wire(std::move(host), [](std::int32_t) {}); });
    std::jthread b([&] { second = tcp::open_wire(std::move(guest), [&](std::int32_t c) { code = c; }); });
  }
  std::jthread kill([&] { first->kill_all(3); });
  const std::int64_t start = wall_ns();
  while (code < 0 && wall_ns() - start < 10'000'000'000) {
    first->progress();
    second->progress();
  }
  EXPECT_EQ(code, 3);
}

TEST(TcpWire, WhatIsNoFrameEndsTheConnectionAndNotTheProcess) {
  tcp::Meeting host = host_meeting(2);
  tcp::Hello hello;
  tcp::put(hello.token, host.token);
  tcp::put(hello.version, host.version);
  hello.process = 1;
  hello.processes = 2;
  std::unique_ptr<Wire> wire;
  tcp::Socket evil;
  const tcp::Address where = tcp::local_address(host.listener);
  {
    std::jthread a([&] { wire = tcp::open_wire(std::move(host), [](std::int32_t) {}); });
    evil = tcp::connect_to(where, wall_ns() + 10'000'000'000);
    ASSERT_TRUE(evil.is_open());
    const std::int64_t until = wall_ns() + 10'000'000'000;
    ASSERT_TRUE(tcp::send_bytes(evil, std::as_bytes(std::span(&hello, 1)), until));
    ASSERT_TRUE(tcp::send_word(evil, {.kind = tcp::WordKind::done, .error = {}, .text = {}}, until));
  }
  const std::vector<std::byte> junk = pattern(4096, 9);
  ASSERT_TRUE(tcp::send_bytes(evil, junk, wall_ns() + 1'000'000'000));
  const std::int64_t start = wall_ns();
  while (!wire->is_gone(1) && wall_ns() - start < 10'000'000'000) wire->progress();
  EXPECT_TRUE(wire->is_gone(1));
}

// ---------------------------------------------------------------- rendezvous

// What a process of a meeting says that fails; "" when it meets.
std::string failure(tcp::Meeting m) {
  try {
    (void)tcp::meet(std::move(m));
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

struct Failures {
  std::string host;
  std::vector<std::string> guests;
};

// Process 0 and others, each on a thread, with what is to be wrong.
Failures fail_together(tcp::Meeting host, std::vector<tcp::Meeting> guests) {
  Failures f;
  f.guests.resize(guests.size());
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < guests.size(); ++i)
    threads.emplace_back([&, i] { f.guests[i] = failure(std::move(guests[i])); });
  f.host = failure(std::move(host));
  threads.clear();
  return f;
}

TEST(Rendezvous, AnAddressInUseIsNamed) {
  const tcp::Meeting busy = host_meeting(2);
  const std::string text =
      failure({.host = "127.0.0.1", .port = busy.port, .processes = 2, .timeout = Seconds(1.0)});
  EXPECT_THAT(text, AllOf(HasSubstr("127.0.0.1:" + std::to_string(busy.port) + " is in use"),
                          HasSubstr("give another port")));
}

TEST(Rendezvous, AHostThatNobodyKnowsIsNamedByBothSides) {
  for (const std::int32_t process : {0, 1}) {
    const std::string text = failure({.host = "no-such-host.invalid",
                                      .port = 29500,
                                      .process = process,
                                      .processes = 2,
                                      .timeout = Seconds(5.0)});
    EXPECT_THAT(text, AllOf(HasSubstr("\"no-such-host.invalid\""), HasSubstr("mend:")));
  }
}

TEST(Rendezvous, AnAddressOfAnotherHostIsNoPlaceToListen) {
  EXPECT_THAT(failure({.host = "192.0.2.1", .port = 29500, .processes = 2, .timeout = Seconds(1.0)}),
              AllOf(HasSubstr("cannot listen at 192.0.2.1:29500"), HasSubstr("process 0 runs on the host")));
}

TEST(Rendezvous, WhoIsMissingWhenTheTimeIsOverIsToldToAll) {
  tcp::Meeting host = host_meeting(5);
  host.timeout = Seconds(0.7);
  std::vector<tcp::Meeting> guests;
  guests.push_back(guest_meeting(host, 1));
  guests.push_back(guest_meeting(host, 3));
  for (auto& g : guests) g.timeout = Seconds(20.0);
  const Failures f = fail_together(std::move(host), std::move(guests));
  const auto missing = HasSubstr("2 of 5 processes did not come within 700.0 ms: ranks 2, 4");
  EXPECT_THAT(f.host, AllOf(missing, HasSubstr("can be reached from this host alone")));
  for (const std::string& text : f.guests) EXPECT_THAT(text, missing);
}

TEST(Rendezvous, AProcessZeroThatIsNotThereIsNamed) {
  tcp::Meeting host = host_meeting(2);
  tcp::Meeting guest = guest_meeting(host, 1);
  guest.timeout = Seconds(0.5);
  host.listener.close();
  const std::string place = "127.0.0.1:" + std::to_string(guest.port);
  EXPECT_THAT(failure(std::move(guest)), AllOf(HasSubstr("process 0 could not be met at " + place),
                                               HasSubstr("refused"), HasSubstr("rank 1 (pid ")));
}

TEST(Rendezvous, AnotherJobsProcessIsRefusedAndHoldsNobodyUp) {
  tcp::Meeting host = host_meeting(2);
  tcp::Meeting stranger = guest_meeting(host, 1);
  stranger.token = "another job";
  tcp::Meeting guest = guest_meeting(host, 1);
  std::string refused, met;
  std::jthread zero([&, h = std::move(host)]() mutable { met = failure(std::move(h)); });
  refused = failure(std::move(stranger));
  EXPECT_THAT(refused, AllOf(HasSubstr("belongs to another job: its token differs"), HasSubstr("--rdzv-id")));
  EXPECT_EQ(failure(std::move(guest)), "");
  zero.join();
  EXPECT_EQ(met, "");
}

TEST(Rendezvous, TwoProcessesOfOneRankAreNamedToAll) {
  tcp::Meeting host = host_meeting(3);
  std::vector<tcp::Meeting> guests;
  guests.push_back(guest_meeting(host, 2));
  guests.push_back(guest_meeting(host, 2));
  const Failures f = fail_together(std::move(host), std::move(guests));
  const auto both = HasSubstr("two processes have rank 2: pid ");
  EXPECT_THAT(f.host, both);
  for (const std::string& text : f.guests) EXPECT_THAT(text, both);
}

TEST(Rendezvous, AnotherNumberOfProcessesIsNamedToAll) {
  tcp::Meeting host = host_meeting(3);
  std::vector<tcp::Meeting> guests;
  guests.push_back(guest_meeting(host, 1));
  guests.back().processes = 4;
  const Failures f = fail_together(std::move(host), std::move(guests));
  for (const std::string& text : {f.host, f.guests[0]})
    EXPECT_THAT(text, HasSubstr("was started as one of 4 processes, process 0 as one of 3"));
}

TEST(Rendezvous, AnotherVersionIsNamedToAll) {
  tcp::Meeting host = host_meeting(2);
  std::vector<tcp::Meeting> guests;
  guests.push_back(guest_meeting(host, 1));
  guests.back().version = "0.9";
  const Failures f = fail_together(std::move(host), std::move(guests));
  for (const std::string& text : {f.host, f.guests[0]})
    EXPECT_THAT(text, AllOf(HasSubstr("is Tessera 0.9"), HasSubstr("process 0 is Tessera 1"),
                            HasSubstr("install the same Tessera")));
}

TEST(Rendezvous, StrangersThatSayNothingOrSomethingElseHoldNobodyUp) {
  tcp::Meeting host = host_meeting(2);
  const tcp::Address where = tcp::local_address(host.listener);
  std::vector<tcp::Socket> strangers;
  const std::int64_t until = wall_ns() + 10'000'000'000;
  for (int i = 0; i < 8; ++i) {
    strangers.push_back(tcp::connect_to(where, until));
    ASSERT_TRUE(strangers.back().is_open());
    const std::string text = i % 2 == 0 ? "" : "GET / HTTP/1.1\r\n\r\n" + std::string(i * 1000, 'x');
    ASSERT_TRUE(tcp::send_bytes(strangers.back(), bytes_of(text), until));
  }
  std::vector<tcp::Meeting> guests;
  guests.push_back(guest_meeting(host, 1));
  const std::int64_t start = wall_ns();
  const Failures f = fail_together(std::move(host), std::move(guests));
  EXPECT_EQ(f.host, "");
  EXPECT_EQ(f.guests[0], "");
  EXPECT_LT(static_cast<double>(wall_ns() - start) * 1e-9, 4.0);
}

TEST(Rendezvous, ProcessesMayComeBeforeProcessZero) {
  tcp::Meeting host = host_meeting(3);
  std::vector<tcp::Meeting> guests;
  for (const std::int32_t p : {1, 2}) guests.push_back(guest_meeting(host, p));
  host.listener.close();
  std::vector<std::string> texts(2);
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < 2; ++i)
    threads.emplace_back([&, i] { texts[i] = failure(std::move(guests[i])); });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(failure(std::move(host)), "");
  threads.clear();
  for (const std::string& t : texts) EXPECT_EQ(t, "");
}

TEST(Rendezvous, WhatIsNoRankOrPortIsRefused) {
  EXPECT_THAT(failure({.host = "127.0.0.1", .port = 29500, .process = 2, .processes = 2}),
              HasSubstr("rank 2 of 2 processes"));
  EXPECT_THAT(failure({.host = "127.0.0.1", .port = 70000, .processes = 2}), HasSubstr("port 70000"));
  EXPECT_THAT(failure({.host = "127.0.0.1", .port = 29500, .processes = 2, .token = std::string(300, 'x')}),
              HasSubstr("a token of 300 bytes"));
}

}  // namespace
}  // namespace tessera::comm
