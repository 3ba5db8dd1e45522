// CSV as in RFC 4180, strict: one header line, every line with as many cells, quotes only around whole cells.
// Lines end in LF or CRLF; a quoted cell may hold commas, doubled quotes and line ends.
//
//   Problems problems;
//   const CsvTable t = parse_csv(text, "runs.csv", problems);
//   problems.throw_if_any();
//
// Every fault carries line and column ("runs.csv:12:7"); reading goes on with the next line. Pure.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera::validate {

struct CsvRecord {
  std::int32_t line = 0;           // where it starts, from 1
  std::vector<std::string> cells;  // as many as the header has
  friend bool operator==(const CsvRecord&, const CsvRecord&) = default;
};

struct CsvTable {
  std::vector<std::string> header;
  std::vector<CsvRecord> records;

  // Of the column of that name; -1 when absent.
  [[nodiscard]] std::int32_t column(std::string_view name) const;
};

[[nodiscard]] CsvTable parse_csv(std::string_view text, std::string_view where, Problems& problems);

// A cell quoted where it must be.
[[nodiscard]] std::string csv_cell(std::string_view text);

}  // namespace tessera::validate
