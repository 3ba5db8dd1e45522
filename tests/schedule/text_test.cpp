// The text form: reads back exactly, and every malformed text is refused with line, column and mend.
#include "schedule/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "support.h"

namespace tessera::schedule {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(ScheduleText, ReadsBackExactly) {
  Dice dice(21);
  for (std::int32_t n = 0; n < 100; ++n) {
    const Schedule s =
        make(kAllKinds[dice.below(6)], dice.between(1, 12), dice.between(1, 30), dice.between(2, 5));
    EXPECT_EQ(from_text(to_text(s)), s);
    EXPECT_EQ(from_text(to_text(lower(s))), lower(s));
  }
}

TEST(ScheduleText, LooksAsDocumented) {
  EXPECT_EQ(to_text(make(Kind::one_f_one_b, 2, 2)),
            "tessera-schedule 1: kind=1f1b pp=2 vpp=1 m=2 placement=loop\n"
            "rank 0: 0F0 0F1 0B0 0B1\n"
            "rank 1: 1F0 1B0 1F1 1B1\n");
}

TEST(ScheduleText, WritesEveryActionAsPyTorchDoes) {
  const struct {
    Action action;
    const char* text;
  } cases[] = {
      {{ActionKind::forward, StageId(0), MicrobatchId(0)}, "0F0"},
      {{ActionKind::backward_input, StageId(2), MicrobatchId(0)}, "2I0"},
      {{ActionKind::backward_weight, StageId(2), MicrobatchId(10)}, "2W10"},
      {{ActionKind::backward, StageId(1), MicrobatchId(3)}, "1B3"},
      {{ActionKind::send_forward, StageId(1), MicrobatchId(3)}, "1SEND_F3"},
      {{ActionKind::recv_forward, StageId(12), MicrobatchId(3)}, "12RECV_F3"},
      {{ActionKind::send_backward, StageId(1), MicrobatchId(3)}, "1SEND_B3"},
      {{ActionKind::recv_backward, StageId(0), MicrobatchId(3)}, "0RECV_B3"},
      {{ActionKind::reduce_grad, StageId(1), MicrobatchId(0)}, "1REDUCE_GRAD"},
  };
  for (const auto& [action, text] : cases) {
    EXPECT_EQ(to_text(action), text);
    Action back;
    EXPECT_TRUE(parse_action(text, back)) << text;
    EXPECT_EQ(back, action);
  }
}

TEST(ScheduleText, RefusesWordsThatAreNoActions) {
  Action a;
  for (const char* word : {"", "F", "F0", "0", "00", "0F", "0G1", "0f1", "-1F0", "0F-1", "0F1x", "0F 1",
                           "0SEND_F", "0REDUCE_GRAD3", "99999999999F0", "0F99999999999", "0SEND_3", "+1F0"}) {
    EXPECT_FALSE(parse_action(word, a)) << word;
  }
}

TEST(ScheduleText, IgnoresCommentsEmptyLinesAndExtraBlanks) {
  const Schedule s = from_text(
      "# drawn by hand\n\ntessera-schedule  1: m=1 placement=loop pp=1 kind=gpipe vpp=1 # naive would do\r\n"
      "\trank 0:  0F0\t0B0   # done\n\n");
  EXPECT_EQ(s, make(Kind::gpipe, 1, 1));
}

TEST(ScheduleText, KeepsARankWithoutActions) {
  const Schedule s =
      from_text("tessera-schedule 1: kind=gpipe pp=2 vpp=1 m=1 placement=loop\nrank 0:\nrank 1: 1F0\n");
  EXPECT_TRUE(s.ranks[0].empty());
  EXPECT_EQ(from_text(to_text(s)), s);
}

std::string error_of(std::string_view text, ErrorKind kind = ErrorKind::config) {
  try {
    static_cast<void>(from_text(text, "my.schedule"));
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind);
    for (const Problem& p : e.problems()) {
      EXPECT_THAT(p.where, testing::MatchesRegex("my.schedule:[0-9]+:[0-9]+")) << p.what;
      EXPECT_FALSE(p.mend.empty()) << p.what;
    }
    return e.what();
  }
  return "accepted";
}

constexpr const char* kHeader = "tessera-schedule 1: kind=gpipe pp=2 vpp=1 m=2 placement=loop\n";

TEST(ScheduleText, SaysWhatIsWrongWithTheFirstLine) {
  EXPECT_THAT(error_of(""),
              AllOf(HasSubstr("the text is empty"), HasSubstr("mend: start with 'tessera-schedule 1:")));
  EXPECT_THAT(error_of("rank 0: 0F0\n"),
              AllOf(HasSubstr("'rank' does not start a schedule"), HasSubstr(":1:1")));
  EXPECT_THAT(error_of("tessera-schedule one: pp=1"), HasSubstr("'one:' is not a version"));
  EXPECT_THAT(error_of("tessera-schedule 2: pp=1", ErrorKind::unsupported),
              AllOf(HasSubstr("version 2; this reader knows 1"), HasSubstr("use a newer one")));
  EXPECT_THAT(error_of("tessera-schedule 1: kind=1f1d pp=0 vpp=x m=2 m=3 plcement=loop"),
              AllOf(HasSubstr("unknown schedule '1f1d'"), HasSubstr("did you mean '1f1b'?"),
                    HasSubstr("pp='0' is not a number of 1 or more"), HasSubstr("my.schedule:1:31"),
                    HasSubstr("vpp='x'"), HasSubstr("'m' is given twice"),
                    HasSubstr("did you mean 'placement='?"), HasSubstr("'placement' is missing")));
  EXPECT_THAT(error_of("tessera-schedule 1: kind=zb-v pp=2 vpp=3 m=2 placement=vee"),
              AllOf(HasSubstr("placement=vee with vpp=3"), HasSubstr("mend: use vpp=2")));
  EXPECT_THAT(error_of("tessera-schedule 1: kind=zb-v pp=2 vpp=2 m=2 placement=wee"),
              HasSubstr("use loop or vee"));
  EXPECT_THAT(error_of("tessera-schedule 1: kind=gpipe pp=2000000 vpp=1000 m=99999999 placement=loop"),
              HasSubstr("more than 16777216 cells"));
}

TEST(ScheduleText, SaysWhereAnActionIsWrong) {
  EXPECT_THAT(
      error_of(std::string(kHeader) + "rank 0: 0F0 0X1 5F0 0F2\nrank 1:\n"),
      AllOf(HasSubstr("'0X1' is not an action\n  where: my.schedule:2:13"),
            HasSubstr("stage 5 of '5F0' with 2 stages\n  where: my.schedule:2:17\n  mend: use stages 0 to 1"),
            HasSubstr("micro-batch 2 of '0F2' with m=2\n  where: my.schedule:2:21")));
}

TEST(ScheduleText, WantsOneLinePerRankInOrder) {
  EXPECT_THAT(error_of(std::string(kHeader) + "rank 0: 0F0\n"), HasSubstr("1 rank lines for pp=2"));
  EXPECT_THAT(error_of(std::string(kHeader) + "rank 1:\nrank 0:\n"),
              AllOf(HasSubstr("expected 'rank 0:', got 'rank 1:'"), HasSubstr("my.schedule:2:1")));
  EXPECT_THAT(error_of(std::string(kHeader) + "rank 0:\nrank 1:\nrank 2:\n"),
              HasSubstr("a line for rank 2 with pp=2"));
  EXPECT_THAT(error_of(std::string(kHeader) + "0F0 0F1\n"), HasSubstr("got '0F0 0F1'"));
}

TEST(ScheduleText, SurvivesTruncationAndFlippedBitsAnywhere) {
  const std::string text = to_text(lower(make(Kind::zb_v, 2, 3)));
  std::int32_t refused = 0;
  const auto try_one = [&](const std::string& broken) {
    try {
      static_cast<void>(check(from_text(broken)));
    } catch (const Error& e) {
      EXPECT_NE(e.kind(), ErrorKind::internal) << broken;
      ++refused;
    }
  };
  for (std::size_t n = 0; n < text.size(); ++n) try_one(text.substr(0, n));
  for (std::size_t n = 0; n < text.size(); ++n) {
    for (const int bit : {1, 2, 4, 8, 16, 32, 64, 128}) {
      std::string broken = text;
      broken[n] = static_cast<char>(static_cast<unsigned char>(broken[n]) ^ bit);
      try_one(broken);
    }
  }
  EXPECT_GT(refused, static_cast<std::int32_t>(text.size()));
}

}  // namespace
}  // namespace tessera::schedule
