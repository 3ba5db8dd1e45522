#include "validate/row.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>

#include "base/text.h"

namespace tessera::validate {
namespace {

constexpr std::int32_t kMaxProblems = 50;

// Reads the cells of one record by column name.
class Cells {
 public:
  Cells(const CsvTable& table, std::string_view where, Problems& problems)
      : table_(table), where_(where), problems_(problems) {}

  void at(const CsvRecord& record) { record_ = &record; }

  [[nodiscard]] std::string text(std::string_view column) const {
    const std::int32_t i = table_.column(column);
    return i < 0 ? "" : std::string(trim(record_->cells[static_cast<std::size_t>(i)]));
  }

  std::optional<double> number(std::string_view column) {
    const std::string cell = text(column);
    if (cell.empty()) return std::nullopt;
    double value = 0;
    const auto [end, error] = std::from_chars(cell.data(), cell.data() + cell.size(), value);
    if (error != std::errc() || end != cell.data() + cell.size() || !std::isfinite(value)) {
      add(column, fmt::format("'{}' is not a number", cell.substr(0, 40)),
          "give a plain number like 12.5 or 7.1e9");
      return std::nullopt;
    }
    if (!(value > 0.0)) {
      add(column, fmt::format("{} is not above zero", cell),
          "leave the cell empty when the value is not known");
      return std::nullopt;
    }
    return value;
  }

  std::optional<std::int64_t> count(std::string_view column) {
    const std::optional<double> value = number(column);
    if (!value) return std::nullopt;
    if (*value != std::floor(*value)) return std::nullopt;  // a fraction of a sequence: not usable
    if (*value > 1e12) {
      add(column, fmt::format("{} is too large for a count", *value), "check the unit");
      return std::nullopt;
    }
    return static_cast<std::int64_t>(*value);
  }

  void add(std::string_view column, std::string what, std::string mend) {
    if (++faults_ < kMaxProblems) {
      problems_.add(std::move(what), fmt::format("{}:{}: column {}", where_, record_->line, column),
                    std::move(mend));
    } else if (faults_ == kMaxProblems) {
      problems_.add("more faults follow", fmt::format("{}:{}", where_, record_->line), "mend these first");
    }
  }

 private:
  const CsvTable& table_;
  std::string where_;
  Problems& problems_;
  const CsvRecord* record_ = nullptr;
  std::int32_t faults_ = 0;
};

Status status_of(std::string_view text) {
  const std::string s = to_lower(text);
  if (s.empty() || s == "ok") return Status::ok;
  if (has(s, {"nan in chart", "reason not shown", "oom or broken"})) return Status::missing;
  if (has(s, {"oom", "out of memory"})) return Status::out_of_memory;
  return Status::other;
}

void read_shape(Cells& cells, Row& row) {
  row.params_total = cells.number("params_total");
  row.layers = cells.count("layers");
  row.hidden = cells.count("hidden");
  row.ffn_hidden = cells.count("ffn_hidden");
  row.heads = cells.count("heads");
  row.kv_heads = cells.count("kv_heads");
  row.vocab = cells.count("vocab");
  row.experts = cells.count("experts");
  row.topk = cells.count("topk");
  row.moe_ffn_hidden = cells.count("moe_ffn_hidden");
  row.seq_len = cells.count("seq_len");
}

void read_layout(Cells& cells, Row& row) {
  row.gpus = cells.count("gpus");
  row.gpus_per_node = cells.count("gpus_per_node");
  row.gbs = cells.count("gbs");
  row.mbs = cells.count("mbs");
  row.tp = cells.count("tp");
  row.pp = cells.count("pp");
  row.vpp = cells.count("vpp");
  row.cp = cells.count("cp");
  row.ep = cells.count("ep");
  row.etp = cells.count("etp");
  row.dp = cells.count("dp");
  row.sp = to_lower(cells.text("sp"));
  row.zero = cells.text("zero");
  row.recompute = cells.text("recompute");
}

void read_measured(Cells& cells, Row& row) {
  row.tokens_per_s_per_gpu = cells.number("tokens_per_s_per_gpu");
  row.tflops_per_gpu = cells.number("tflops_per_gpu");
  row.mfu = cells.number("mfu");
  row.step_time_s = cells.number("step_time_s");
  row.derived_step_time_s = cells.number("derived_step_time_s");
  row.memory_gb = cells.number("memory_gb");
  row.memory_text = cells.text("memory_kind");
  row.flops_convention = cells.text("flops_convention");
  row.status = status_of(cells.text("status"));
  row.core = cells.text("pick") == "core";
  const std::string quality = cells.text("quality");
  if (quality == "A") row.quality = Quality::a;
  if (quality == "C") row.quality = Quality::c;
  if (!quality.empty() && quality != "A" && quality != "B" && quality != "C") {
    cells.add("quality", fmt::format("'{}' is no quality", quality.substr(0, 20)), "use A, B or C");
  }
}

}  // namespace

std::string_view name(Quality quality) {
  switch (quality) {
    case Quality::a:
      return "A";
    case Quality::b:
      return "B";
    case Quality::c:
      return "C";
  }
  return "?";
}

std::string_view name(Status status) {
  switch (status) {
    case Status::ok:
      return "ok";
    case Status::out_of_memory:
      return "out of memory";
    case Status::missing:
      return "not shown";
    case Status::other:
      return "other failure";
  }
  return "?";
}

std::string_view name(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::unknown:
      return "unknown";
    case MemoryKind::allocated:
      return "allocated";
    case MemoryKind::reserved:
      return "reserved";
    case MemoryKind::process:
      return "process";
  }
  return "?";
}

std::string Row::prefix() const {
  std::size_t n = 0;
  while (n < id.size() && id[n] != '-' && id[n] != '_' && id[n] != '.' && id[n] != ' ') ++n;
  return id.substr(0, n);
}

std::string Row::words() const {
  return to_lower(overlap_notes + " ; " + notes);
}

std::vector<Row> parse_rows(const CsvTable& table, std::string_view where, Problems& problems) {
  std::vector<Row> rows;
  for (const std::string_view column : {"id", "model", "gpu"}) {
    if (table.column(column) < 0) {
      const std::string near = nearest(column, table.header);
      problems.add(fmt::format("no column '{}'", column), fmt::format("{}:1", where),
                   near.empty() ? "add it; validation/README.md lists the columns"
                                : fmt::format("did you mean the column '{}'?", near));
    }
  }
  if (table.column("id") < 0 || table.column("model") < 0 || table.column("gpu") < 0) return rows;
  Cells cells(table, where, problems);
  std::set<std::string> ids;
  for (const CsvRecord& record : table.records) {
    cells.at(record);
    Row row;
    row.line = record.line;
    row.id = cells.text("id");
    if (row.id.empty()) cells.add("id", "the run has no id", "give every run an id of its own");
    if (!row.id.empty() && !ids.insert(row.id).second) {
      cells.add("id", fmt::format("the id '{}' occurs twice", row.id), "give every run an id of its own");
    }
    row.source = cells.text("source");
    row.date = cells.text("date");
    row.model = cells.text("model");
    row.gpu = cells.text("gpu");
    row.precision = cells.text("precision");
    row.overlap_notes = cells.text("overlap_notes");
    row.framework = cells.text("framework");
    row.task = cells.text("task");
    row.notes = cells.text("notes");
    read_shape(cells, row);
    read_layout(cells, row);
    read_measured(cells, row);
    rows.push_back(std::move(row));
  }
  return rows;
}

std::vector<Row> parse_rows(std::string_view csv, std::string_view where, Problems& problems) {
  Problems own;
  const CsvTable table = parse_csv(csv, where, own);
  problems.append(own);
  return table.header.empty() ? std::vector<Row>{} : parse_rows(table, where, problems);
}

std::optional<std::int64_t> printed(const Row& row, std::string_view column) {
  const std::optional<double> value = number_after(row.notes, fmt::format("{} as printed:", column));
  if (!value || *value != std::floor(*value) || !(*value > 0.0) || *value > 1e9) return std::nullopt;
  return static_cast<std::int64_t>(*value);
}

std::string to_lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return out;
}

bool has(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(),
                     [&](std::string_view w) { return text.find(w) != std::string_view::npos; });
}

std::optional<double> number_after(std::string_view text, std::string_view before) {
  const std::size_t at = text.find(before);
  if (at == std::string_view::npos) return std::nullopt;
  std::string_view rest = text.substr(at + before.size());
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (error != std::errc() || !std::isfinite(value)) return std::nullopt;
  return value;
}

}  // namespace tessera::validate
