#include "validate/csv.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace tessera::validate {
namespace {

constexpr std::int32_t kMaxProblems = 50;  // then one line says that there are more

class Reader {
 public:
  Reader(std::string_view text, std::string_view where, Problems& problems)
      : text_(text), where_(where), problems_(problems) {}

  CsvTable read() {
    CsvTable table;
    if (text_.substr(0, 3) == "\xEF\xBB\xBF") at_ = 3;
    CsvRecord record;
    bool good = true;
    if (!next(record, good)) {
      problems_.add("the file is empty", where_, "give a header line and one line a run");
      return table;
    }
    table.header = std::move(record.cells);
    check_header(table.header);
    while (next(record, good)) {
      if (!good) continue;
      if (record.cells.size() != table.header.size()) {
        add(record.line, 1,
            fmt::format("{} cells where the header has {}", record.cells.size(), table.header.size()),
            "give every column a cell (it may be empty) and quote cells that hold a comma");
        continue;
      }
      table.records.push_back(std::move(record));
    }
    return table;
  }

 private:
  void add(std::int32_t line, std::int64_t column, std::string what, std::string mend) {
    if (++faults_ < kMaxProblems) {
      problems_.add(std::move(what), fmt::format("{}:{}:{}", where_, line, column), std::move(mend));
    } else if (faults_ == kMaxProblems) {
      problems_.add("more faults follow", fmt::format("{}:{}", where_, line), "mend these first");
    }
  }

  void check_header(const std::vector<std::string>& header) {
    std::set<std::string> seen;
    for (std::size_t i = 0; i < header.size(); ++i) {
      if (header[i].empty()) {
        add(1, 1, fmt::format("column {} of the header has no name", i + 1), "name every column");
      } else if (!seen.insert(header[i]).second) {
        add(1, 1, fmt::format("column '{}' occurs twice", header[i]), "keep one of them");
      }
    }
  }

  [[nodiscard]] bool done() const { return at_ >= text_.size(); }
  [[nodiscard]] char peek() const { return text_[at_]; }
  [[nodiscard]] std::int64_t column() const { return static_cast<std::int64_t>(at_ - line_start_) + 1; }
  void advance() {
    if (text_[at_] == '\n') {
      ++line_;
      line_start_ = at_ + 1;
    }
    ++at_;
  }
  [[nodiscard]] bool at_line_end() const {
    return done() || peek() == '\n' || (peek() == '\r' && at_ + 1 < text_.size() && text_[at_ + 1] == '\n');
  }
  void end_line() {
    if (!done() && peek() == '\r') advance();
    if (!done()) advance();
  }
  void skip_line() {
    while (!done() && peek() != '\n') advance();
    end_line();
  }

  // False at the end of the text. A bad line is reported and skipped: good = false.
  bool next(CsvRecord& record, bool& good) {
    while (!done() && at_line_end()) end_line();  // blank lines say nothing
    if (done()) return false;
    record = {.line = line_, .cells = {}};
    good = true;
    while (true) {
      std::string cell;
      good = cell_at(cell);
      if (!good) {
        skip_line();
        return true;
      }
      record.cells.push_back(std::move(cell));
      if (at_line_end()) {
        end_line();
        return true;
      }
      advance();  // the comma
    }
  }

  bool cell_at(std::string& cell) {
    if (!done() && peek() == '"') return quoted(cell);
    while (!at_line_end() && peek() != ',') {
      const char c = peek();
      if (c == '"') {
        add(line_, column(), "a quote inside of a cell that is not quoted",
            "quote the whole cell, double quotes in it");
        return false;
      }
      if (!plain(c)) return false;
      cell += c;
      advance();
    }
    return true;
  }

  bool plain(char c) {
    const auto code = static_cast<unsigned char>(c);
    if (code >= 0x20 || c == '\t') return true;
    add(line_, column(), fmt::format("control character 0x{:02x}", static_cast<int>(code)), "remove it");
    return false;
  }

  bool quoted(std::string& cell) {
    const std::int32_t open_line = line_;
    const std::int64_t open_column = column();
    advance();
    while (!done()) {
      const char c = peek();
      if (c == '"') {
        advance();
        if (!done() && peek() == '"') {
          cell += '"';
          advance();
          continue;
        }
        if (at_line_end() || peek() == ',') return true;
        add(line_, column(), "text after the closing quote of a cell", "end the cell there with a comma");
        return false;
      }
      if (c != '\n' && c != '\r' && !plain(c)) return false;
      cell += c;
      advance();
    }
    add(open_line, open_column, "a quote that is never closed", "close the cell with a quote");
    return false;
  }

  std::string_view text_;
  std::string where_;
  Problems& problems_;
  std::size_t at_ = 0, line_start_ = 0;
  std::int32_t line_ = 1, faults_ = 0;
};

}  // namespace

std::int32_t CsvTable::column(std::string_view name) const {
  const auto it = std::find(header.begin(), header.end(), name);
  return it == header.end() ? -1 : static_cast<std::int32_t>(it - header.begin());
}

CsvTable parse_csv(std::string_view text, std::string_view where, Problems& problems) {
  return Reader(text, where, problems).read();
}

std::string csv_cell(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

}  // namespace tessera::validate
