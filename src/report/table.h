// Tables for a terminal: aligned columns under a rule, footers under another, as wide as they need and never
// wider than the style. Where room lacks, columns of the highest `drop` go first (a last line says which);
// then left-aligned columns are clipped.
//
//   Table t({{.header = "axis", .align = Align::left}, {.header = "bytes"},
//            {.header = "what", .drop = 1}});
//   t.add_row({"tp", "12.0 MiB", "activations"});
//   t.add_footer({"all", "12.0 MiB", ""});
//   t.render({.width = 80})
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "report/terminal.h"

namespace tessera::report {

struct Column {
  std::string header;
  Align align = Align::right;
  std::int32_t drop = 0;  // 0: always kept
};

class Table {
 public:
  explicit Table(std::vector<Column> columns);  // throws Error{internal} on none
  // One cell a column, of one line; may hold paint(). Throws Error{internal} on another number of cells.
  void add_row(std::vector<std::string> cells, Tone tone = Tone::plain);
  void add_rule();
  void add_footer(std::vector<std::string> cells);  // below all rows, under a rule
  [[nodiscard]] bool empty() const { return rows_.empty(); }
  [[nodiscard]] std::string render(const Style& style) const;  // ends with a line feed

 private:
  struct Row {
    std::vector<std::string> cells;  // none: a rule
    Tone tone = Tone::plain;
  };
  struct Fit {
    std::vector<std::size_t> shown;   // columns
    std::vector<std::int32_t> width;  // of the shown ones
    std::vector<std::string> hidden;  // headers
  };
  [[nodiscard]] Fit fit(std::int32_t width) const;
  [[nodiscard]] std::string line(const Row& row, const Fit& fit, const Style& style) const;

  std::vector<Column> columns_;
  std::vector<Row> rows_, footers_;
};

}  // namespace tessera::report
