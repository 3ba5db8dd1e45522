// The trace file: what it looks like, that it reads back exactly, and that damaged or foreign
// files are refused.
#include "trace/chrome.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "support.h"

namespace tessera::trace {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::Not;

class Chrome : public testing::Test {
 protected:
  Chrome() {
    std::string pattern = std::filesystem::temp_directory_path() / "tessera_trace_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~Chrome() override { std::filesystem::remove_all(folder_); }
  std::string written(const Trace& t) const {
    write_chrome(folder_ / "t.json", t);
    return read_text(folder_ / "t.json");
  }
  std::filesystem::path folder_;
};

Trace small() {
  Trace t;
  t.names = {"attention", "all_reduce"};
  t.streams = {"compute", "dp"};
  t.metadata = {{"job", "demo"}};
  t.dropped = 2;
  t.spans.push_back({.name = NameId(0),
                     .category = Category::forward,
                     .rank = Rank(0),
                     .stream = StreamId(0),
                     .start_ns = 2'000'001'500,
                     .end_ns = 2'000'021'500,
                     .cpu_ns = 19'000,
                     .flops = Flops(1000),
                     .step = 4,
                     .stage = 0,
                     .microbatch = 3});
  t.spans.push_back({.name = NameId(1),
                     .category = Category::communication,
                     .axis = Axis::dp,
                     .runner = Runner::helper,
                     .rank = Rank(1),
                     .stream = StreamId(1),
                     .start_ns = 2'000'000'000,
                     .end_ns = 2'000'000'001,
                     .bytes = Bytes(4096)});
  return t;
}

TEST_F(Chrome, LooksAsDocumented) {
  EXPECT_EQ(written(small()),
            R"({"otherData":{"tessera_trace":"1","origin_ns":"2000000000","dropped":"2","job":"demo"},
"displayTimeUnit":"ns",
"traceEvents":[
{"ph":"M","pid":0,"name":"process_name","args":{"name":"rank 0"}},
{"ph":"M","pid":0,"tid":1,"name":"thread_name","args":{"name":"compute"}},
{"ph":"X","pid":0,"tid":1,"name":"attention","cat":"forward","ts":1.500,"dur":20.000,)"
            R"("args":{"step":4,"stage":0,"microbatch":3,"flops":1000,"cpu_us":19.000}},
{"ph":"M","pid":1,"name":"process_name","args":{"name":"rank 1"}},
{"ph":"M","pid":1,"tid":2,"name":"thread_name","args":{"name":"dp"}},
{"ph":"X","pid":1,"tid":2,"name":"all_reduce","cat":"communication","ts":0.000,"dur":0.001,)"
            R"("args":{"axis":"dp","bytes":4096,"runner":"helper"}}
]}
)");
}

TEST_F(Chrome, ReadsBackExactly) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    const Trace t = random_trace(seed, 400);
    write_chrome(folder_ / "t.json", t);
    EXPECT_EQ(read_chrome(folder_ / "t.json"), canonical(t));
  }
}

TEST_F(Chrome, ReadsBackAnEmptyTrace) {
  Trace t;
  t.metadata = {{"why", "nothing ran"}};
  write_chrome(folder_ / "t.json", t);
  EXPECT_EQ(read_chrome(folder_ / "t.json"), t);
}

TEST_F(Chrome, IsJsonForOthersToo) {
  const Trace t = random_trace(3, 300);
  const nlohmann::json j = nlohmann::json::parse(written(t));
  std::int64_t spans = 0, rows = 0;
  for (const auto& e : j.at("traceEvents")) {
    spans += e.at("ph") == "X" ? 1 : 0;
    rows += e.at("name") == "thread_name" ? 1 : 0;
  }
  EXPECT_EQ(spans, 300);
  EXPECT_EQ(rows, 4 * 3);
  EXPECT_EQ(j.at("otherData").at("job"), "tiny \"moe\"");
}

TEST_F(Chrome, WritesBytesThatAreNoUtf8AsQuestionMarks) {
  Trace t = small();
  t.names[0] = "bad\xff\xfe";
  EXPECT_THAT(written(t), HasSubstr("\"bad??\""));
  EXPECT_EQ(read_chrome(folder_ / "t.json").names[1], "bad??");
}

TEST_F(Chrome, KeepsTheOldFileWhenWritingFails) {
  write_chrome(folder_ / "t.json", small());
  Trace bad = small();
  bad.metadata["origin_ns"] = "7";
  try {
    write_chrome(folder_ / "t.json", bad);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), AllOf(HasSubstr("metadata 'origin_ns'"), HasSubstr("mend: use another key")));
  }
  EXPECT_EQ(read_chrome(folder_ / "t.json"), canonical(small()));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1);  // nothing left aside
}

TEST_F(Chrome, NamesTheFolderThatIsNotThere) {
  try {
    write_chrome(folder_ / "no" / "t.json", small());
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_THAT(e.what(), AllOf(HasSubstr("cannot create the trace"), HasSubstr("/no/t.json"),
                                HasSubstr("check the path")));
  }
  EXPECT_THROW(static_cast<void>(read_chrome(folder_ / "missing.json")), Error);
}

std::string write_error(const std::filesystem::path& folder, void (*change)(Span&)) {
  Trace t = small();
  change(t.spans[0]);
  try {
    write_chrome(folder / "t.json", t);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    return e.what();
  }
  return "no error";
}

TEST_F(Chrome, RefusesSpansThatAreNone) {
  EXPECT_THAT(
      write_error(folder_, [](Span& s) { s.end_ns = s.start_ns - 1; }),
      AllOf(HasSubstr("2000001500 to 2000001499 ns"), HasSubstr("is no span"), HasSubstr("mend: end spans")));
  EXPECT_THAT(write_error(folder_, [](Span& s) { s.cpu_ns = -2; }), HasSubstr("cpu -2 ns"));
  EXPECT_THAT(write_error(folder_, [](Span& s) { s.start_ns = -5; }), HasSubstr("one clock, from 0 on"));
  EXPECT_THAT(write_error(folder_, [](Span& s) { s.start_ns = s.end_ns = INT64_MAX; }), HasSubstr("50 days"));
  EXPECT_THAT(write_error(folder_, [](Span& s) { s.name = NameId(2); }), HasSubstr("name 2 of 2"));
}

std::string read_error(std::string_view text, ErrorKind kind = ErrorKind::io) {
  try {
    static_cast<void>(parse_chrome(text, "t.json"));
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    EXPECT_THAT(e.what(), AllOf(HasSubstr("where: t.json"), HasSubstr("mend: ")));
    return e.what();
  }
  return "accepted";
}

TEST_F(Chrome, SaysWhenAFileIsCutOff) {
  const std::string text = written(small());
  EXPECT_THAT(read_error(text.substr(0, 300)),
              AllOf(HasSubstr("cut off after 300 bytes"), HasSubstr("copy the whole")));
  EXPECT_THAT(read_error(""), HasSubstr("cut off after 0 bytes"));
}

TEST_F(Chrome, RefusesForeignFiles) {
  EXPECT_THAT(read_error("{\"traceEvents\":[]}"),
              AllOf(HasSubstr("no trace of Tessera"), HasSubstr("tessera train")));
  EXPECT_THAT(read_error("{\"otherData\":{},\"traceEvents\":[]}"), HasSubstr("no trace of Tessera"));
  EXPECT_THAT(read_error("{\"schemaVersion\":1,\"traceEvents\":[]}"),
              HasSubstr("unknown member 'schemaVersion'"));
  EXPECT_THAT(read_error("[1,2]"), HasSubstr("trace"));
  EXPECT_THAT(read_error("{}"), HasSubstr("no trace of Tessera"));
  EXPECT_THAT(read_error("{\"otherData\":{\"tessera_trace\":\"1\"}}"), HasSubstr("'traceEvents' is missing"));
  EXPECT_THAT(
      read_error("{\"otherData\":{\"tessera_trace\":\"2\"},\"traceEvents\":[]}", ErrorKind::unsupported),
      AllOf(HasSubstr("version 2; this reader knows 1"), HasSubstr("use a newer one")));
}

std::string with(std::string text, std::string_view old_part, std::string_view new_part) {
  const std::size_t place = text.find(old_part);
  EXPECT_NE(place, std::string::npos);
  return text.replace(place, old_part.size(), new_part);
}

TEST_F(Chrome, NamesTheEventThatIsWrong) {
  const std::string text = written(small());
  EXPECT_THAT(read_error(with(text, "\"cat\":\"forward\"", "\"cat\":\"foreword\"")),
              AllOf(HasSubstr("unknown category 'foreword'"), HasSubstr("t.json: traceEvents[2]")));
  EXPECT_THAT(read_error(with(text, "\"axis\":\"dp\"", "\"axis\":\"xp\"")), HasSubstr("unknown axis 'xp'"));
  EXPECT_THAT(read_error(with(text, "\"tid\":1,\"name\":\"att", "\"tid\":9,\"name\":\"att")),
              HasSubstr("row 9 of process 0 has no thread_name"));
  EXPECT_THAT(read_error(with(text, "\"dur\":20.000", "\"dur\":-1")), HasSubstr("-1 us is no time"));
  EXPECT_THAT(read_error(with(text, "\"ph\":\"X\"", "\"ph\":\"B\"")), HasSubstr("phase 'B'"));
  EXPECT_THAT(read_error(with(text, "\"stage\":0", "\"stage\":-4")), HasSubstr("-4 is no step, stage"));
  EXPECT_THAT(read_error(with(text, "\"pid\":1", "\"pid\":-1")), HasSubstr("pid -1 is no rank"));
  EXPECT_THAT(read_error(with(text, "\"origin_ns\":\"2", "\"origin_ns\":\"-2")),
              HasSubstr("is not a number"));
  EXPECT_THAT(read_error(with(text, "\"flops\":1000", "\"flops\":1e99")), HasSubstr("traceEvents[2]"));
  EXPECT_THAT(read_error(text + "{}"), AnyOf(HasSubstr("text follows"), HasSubstr("not well-formed")));
}

// Any damage gives an Error of the right kind or a trace, never a crash or a defect.
void survive(const std::string& text, std::int64_t& refused) {
  try {
    static_cast<void>(parse_chrome(text, "t.json"));
  } catch (const Error& e) {
    EXPECT_THAT(e.kind(), AnyOf(ErrorKind::io, ErrorKind::unsupported)) << e.what();
    ++refused;
  }
}

TEST_F(Chrome, SurvivesTruncationAtEveryByte) {
  const std::string text = written(random_trace(5, 6));
  std::int64_t refused = 0;
  for (std::size_t n = 0; n + 3 < text.size(); ++n) survive(text.substr(0, n), refused);
  EXPECT_EQ(refused, static_cast<std::int64_t>(text.size()) - 3);
}

TEST_F(Chrome, SurvivesEveryFlippedBit) {
  const std::string text = written(random_trace(6, 5));
  std::int64_t refused = 0;
  for (std::size_t n = 0; n < text.size(); ++n) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string broken = text;
      broken[n] = static_cast<char>(static_cast<unsigned char>(broken[n]) ^ (1 << bit));
      survive(broken, refused);
    }
  }
  EXPECT_GT(refused, static_cast<std::int64_t>(text.size()) * 2);
}

TEST_F(Chrome, SurvivesPiecesPutTogetherAtRandom) {
  const std::string text = written(random_trace(7, 5));
  std::int64_t refused = 0;
  std::uint64_t next = 0;
  const auto below = [&](std::size_t n) { return uniform_below(n, 8, 1, next++); };
  for (std::int32_t n = 0; n < 3000; ++n) {
    std::string broken;
    for (std::int32_t k = 0; k < 3; ++k) {
      const std::size_t from = below(text.size());
      broken += text.substr(k == 0 ? 0 : from, below(text.size() - from) + 1);
    }
    survive(broken, refused);
  }
  EXPECT_GT(refused, 2900);
}

}  // namespace
}  // namespace tessera::trace
