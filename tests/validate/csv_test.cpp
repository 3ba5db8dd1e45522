// The CSV reader: what it accepts, and that each fault is named with line and column.
#include "validate/csv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/random.h"
#include "validate/row.h"

namespace tessera::validate {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

CsvTable read(std::string_view text) {
  Problems problems;
  CsvTable table = parse_csv(text, "runs.csv", problems);
  problems.throw_if_any();
  return table;
}

std::vector<Problem> faults(std::string_view text) {
  Problems problems;
  (void)parse_csv(text, "runs.csv", problems);
  return problems.list();
}

TEST(Csv, CellsMayHoldCommasQuotesAndLineEndsWhenQuoted) {
  const CsvTable t = read("a,b\r\n\"x, \"\"y\"\"\nz\",2\r\n\r\n3,\n");
  EXPECT_THAT(t.header, ElementsAre("a", "b"));
  ASSERT_EQ(t.records.size(), 2U);
  EXPECT_THAT(t.records[0].cells, ElementsAre("x, \"y\"\nz", "2"));
  EXPECT_EQ(t.records[0].line, 2);
  EXPECT_THAT(t.records[1].cells, ElementsAre("3", ""));
  EXPECT_EQ(t.records[1].line, 5);
}

TEST(Csv, WrittenCellsReadBack) {
  for (const std::string cell : {"plain", "a,b", "say \"no\"", "two\nlines", ""}) {
    const CsvTable t = read("h,i\n" + csv_cell(cell) + ",1\n");
    ASSERT_EQ(t.records.size(), 1U) << cell;
    EXPECT_EQ(t.records[0].cells[0], cell);
  }
}

TEST(Csv, FaultsCarryLineAndColumnAndReadingGoesOn) {
  const std::vector<Problem> p = faults("a,b\n1,x\"y\n\"q\"z,2\n1,2,3\n4,5\n");
  ASSERT_EQ(p.size(), 3U);
  EXPECT_EQ(p[0].where, "runs.csv:2:4");
  EXPECT_THAT(p[0].what, HasSubstr("not quoted"));
  EXPECT_EQ(p[1].where, "runs.csv:3:4");
  EXPECT_THAT(p[1].what, HasSubstr("after the closing quote"));
  EXPECT_THAT(p[2].what, HasSubstr("3 cells where the header has 2"));
  EXPECT_THAT(p[2].mend, HasSubstr("quote cells"));
}

TEST(Csv, AnEmptyFileADoubleColumnAndAnOpenQuoteAreRefused) {
  EXPECT_THAT(faults("").at(0).what, HasSubstr("empty"));
  EXPECT_THAT(faults("a,a\n").at(0).what, HasSubstr("'a' occurs twice"));
  const std::vector<Problem> p = faults("a\n1\n\"open\n");
  ASSERT_EQ(p.size(), 1U);
  EXPECT_EQ(p[0].where, "runs.csv:3:1");
  EXPECT_THAT(p[0].what, HasSubstr("never closed"));
}

TEST(Csv, AFileFullOfFaultsIsCutShort) {
  std::string text = "a,b\n";
  for (int i = 0; i < 1000; ++i) text += "1\n";
  const std::vector<Problem> p = faults(text);
  EXPECT_EQ(p.size(), 50U);
  EXPECT_THAT(p.back().what, HasSubstr("more faults"));
}

// Any bytes: no crash, and every table that is accepted is rectangular.
TEST(Csv, MutatedFilesNeverBreakTheReader) {
  const std::string good =
      "id,model,gpu,layers,step_time_s\nx-1,\"GPT, 3\",H100,12,1.5\nx-2,Llama,A100,8,\"2\"\n";
  const std::uint64_t stream = stream_of("csv mutations");
  for (std::uint64_t i = 0; i < 4000; ++i) {
    std::string text = good;
    for (std::uint64_t k = 0; k < 1 + i % 4; ++k) {
      const auto at = static_cast<std::size_t>(uniform_below(text.size(), 7, stream, 8 * i + 2 * k));
      const auto byte = static_cast<char>(uniform_below(256, 7, stream, 8 * i + 2 * k + 1));
      if (i % 3 == 0) {
        text.erase(at, 1);
      } else {
        text[at] = byte;
      }
    }
    Problems problems;
    const CsvTable t = parse_csv(text, "m", problems);
    for (const CsvRecord& r : t.records) ASSERT_EQ(r.cells.size(), t.header.size());
    (void)parse_rows(text, "m", problems);
  }
}

}  // namespace
}  // namespace tessera::validate
