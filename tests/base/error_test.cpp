// What a failure says: every problem with its values, its place and its mend, and the checks that guard
// invariants.
#include "base/error.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/math.h"

namespace tessera {
namespace {

using ::testing::HasSubstr;

// The text of the Error that `f` throws; fails the test when it throws none.
template <class F>
Error error_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "nothing was thrown";
  return {ErrorKind::internal, {}};
}

TEST(Error, SaysWhatWhereAndMendInThreeLines) {
  const Error e(ErrorKind::config, "tp=3 does not divide heads=32", "job.yaml: parallel.tp",
                "use tp in {1, 2, 4}");
  EXPECT_STREQ(e.what(),
               "tp=3 does not divide heads=32\n  where: job.yaml: parallel.tp\n  mend: use tp in {1, 2, 4}");
  EXPECT_EQ(e.kind(), ErrorKind::config);
}

TEST(Error, LeavesOutTheLinesThatAreEmpty) {
  EXPECT_STREQ(Error(ErrorKind::io, "disk full", "", "").what(), "disk full");
}

TEST(Error, KeepsEveryProblemInOrder) {
  Problems problems;
  EXPECT_TRUE(problems.empty());
  EXPECT_NO_THROW(problems.throw_if_any());
  problems.add("one=1", "here", "mend one");
  Problems more;
  more.add("two=2", "there", "mend two");
  problems.append(more);
  const Error e = error_of([&] { problems.throw_if_any(); });
  EXPECT_EQ(e.kind(), ErrorKind::config);
  ASSERT_EQ(e.problems().size(), 2U);
  EXPECT_EQ(e.problems()[1], (Problem{"two=2", "there", "mend two"}));
  EXPECT_STREQ(e.what(), "one=1\n  where: here\n  mend: mend one\ntwo=2\n  where: there\n  mend: mend two");
}

TEST(Error, EveryKindHasItsOwnName) {
  EXPECT_EQ(name(ErrorKind::config), "config");
  EXPECT_EQ(name(ErrorKind::io), "io");
  EXPECT_EQ(name(ErrorKind::comm), "comm");
  EXPECT_EQ(name(ErrorKind::unsupported), "unsupported");
  EXPECT_EQ(name(ErrorKind::internal), "internal");
}

TEST(Check, PassesInSilenceAndThrowsInternalWithConditionAndPlace) {
  EXPECT_NO_THROW([] { TESSERA_CHECK(1 < 2, "fine"); }());
  const Error e = error_of([] { TESSERA_CHECK(2 < 1, "order matters"); });
  EXPECT_EQ(e.kind(), ErrorKind::internal);
  EXPECT_THAT(e.what(), HasSubstr("2 < 1"));
  EXPECT_THAT(e.what(), HasSubstr("order matters"));
  EXPECT_THAT(e.what(), HasSubstr("error_test.cpp:"));
  EXPECT_THAT(e.what(), HasSubstr("mend: this is a defect of Tessera"));
}

TEST(CheckEq, PrintsBothExpressionsAndBothValues) {
  const int rows = 7;
  const int columns = 9;
  const Error e = error_of([&] { TESSERA_CHECK_EQ(rows, columns, "the matrix is square"); });
  EXPECT_THAT(e.what(), HasSubstr("rows = 7 but columns = 9"));
  EXPECT_THAT(e.what(), HasSubstr("the matrix is square"));
}

TEST(CheckEq, EvaluatesEachSideOnce) {
  int calls = 0;
  TESSERA_CHECK_EQ(++calls, 1, "side effects happen once");
  EXPECT_EQ(calls, 1);
}

TEST(Check, DoesNotCaptureAFollowingElse) {
  bool reached = false;
  if (false)
    TESSERA_CHECK(true, "not run");
  else
    reached = true;
  EXPECT_TRUE(reached);
}

TEST(Division, RoundsAsItsNameSays) {
  EXPECT_EQ(div_floor(7, 2), 3);
  EXPECT_EQ(div_ceil(7, 2), 4);
  EXPECT_EQ(div_ceil(8, 2), 4);
  EXPECT_EQ(div_ceil(0, 5), 0);
  EXPECT_EQ(div_exact(8, 2), 4);
  EXPECT_EQ(round_up(1, 64), 64);
  EXPECT_EQ(round_up(64, 64), 64);
  EXPECT_EQ(div_ceil(INT64_MAX, 2), INT64_MAX / 2 + 1);  // no overflow on the way
}

TEST(Division, RefusesARemainderAndADivisorBelowOne) {
  EXPECT_THAT(error_of([] { (void)div_exact(7, 2); }).what(), HasSubstr("a % b = 1 but 0 = 0"));
  EXPECT_THROW((void)div_exact(7, 0), Error);
  EXPECT_THROW((void)div_floor(7, 0), Error);
  EXPECT_THROW((void)div_ceil(7, -1), Error);
  EXPECT_THROW((void)div_floor(-1, 2), Error);
}

}  // namespace
}  // namespace tessera
