#include "validate/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace tessera::validate {
namespace {

using Rows = std::vector<std::vector<std::string>>;

// The nanotron charts come from a shared cluster: repeats of one layout and neighbouring layouts differ by
// factors of 2 to 100. Figures are printed with and without them.
constexpr std::string_view kNoisy = "nano";

std::string percent(double v) {
  return std::isfinite(v) ? fmt::format("{:.1f} %", 100 * v) : "-";
}
std::string signed_percent(double v) {
  return std::isfinite(v) ? fmt::format("{:+.1f} %", 100 * v) : "-";
}

std::vector<std::string> error_cells(std::string name, const ErrorStats& s) {
  return {std::move(name), std::to_string(s.rows), percent(s.median),      percent(s.mean),
          percent(s.p90),  signed_percent(s.bias), signed_percent(s.worst)};
}

const std::vector<std::string> kErrorHeader = {"", "rows", "median", "mean", "p90", "bias", "worst"};

SummaryTable counts_table(std::span<const Outcome> outcomes) {
  SummaryTable t{.title = "Rows", .note = "", .header = {"", "rows", "A", "B", "C"}, .rows = {}};
  const auto line = [&](std::string name, const std::function<bool(const Outcome&)>& which) {
    std::array<std::int32_t, 4> n{};
    for (const Outcome& o : outcomes) {
      if (!which(o)) continue;
      ++n[0];
      ++n[static_cast<std::size_t>(o.row.quality) + 1];
    }
    t.rows.push_back({std::move(name), std::to_string(n[0]), std::to_string(n[1]), std::to_string(n[2]),
                      std::to_string(n[3])});
  };
  line("read", [](const Outcome&) { return true; });
  line("measured runs", [](const Outcome& o) { return o.row.status == Status::ok; });
  line("layouts that failed", [](const Outcome& o) { return o.row.status != Status::ok; });
  line("predicted", [](const Outcome& o) { return o.cost.has_value(); });
  line("step time compared", [](const Outcome& o) { return o.timed(); });
  line("of these with something guessed", [](const Outcome& o) { return o.timed() && o.question->guessed; });
  line("count in the figures below", [](const Outcome& o) { return counts(o); });
  return t;
}

SummaryTable reason_table(std::span<const Outcome> outcomes) {
  SummaryTable t{.title = "Rows that are not predicted",
                 .note = "good: of quality A or B, with a measured step time",
                 .header = {"why", "rows", "good", "first"},
                 .rows = {}};
  for (const ReasonCount& r : reasons(outcomes)) {
    t.rows.push_back(
        {r.reason, std::to_string(r.rows), std::to_string(r.good_rows), r.example.substr(0, 70)});
  }
  return t;
}

SummaryTable target_table(std::span<const Outcome> outcomes, std::span<const double> baseline) {
  SummaryTable t{
      .title = "Step time, rows of quality A and B",
      .note = "baseline: one constant MFU per accelerator and precision, from the other sources",
      .header = {"", "rows", "median", "mean", "p90", "bias", "worst", "baseline median", "baseline mean"},
      .rows = {}};
  const auto line = [&](std::string_view title, const std::function<bool(const Outcome&)>& which) {
    const std::vector<Group> g = grouped(
        outcomes, which, [&](const Outcome&) { return std::string(title); }, baseline);
    if (g.empty()) return;
    std::vector<std::string> cells = error_cells(g[0].name, g[0].model);
    const bool known = g[0].baseline.rows > 0;
    cells.push_back(known ? percent(g[0].baseline.median) : "-");
    cells.push_back(known ? percent(g[0].baseline.mean) : "-");
    t.rows.push_back(std::move(cells));
  };
  for (std::int32_t i = 0; i < kNumTargets; ++i) {
    const auto target = static_cast<Target>(i);
    line(name(target), [&](const Outcome& o) { return counts(o) && belongs(o, target); });
  }
  line("dense, A100 and H100, without nano", [&](const Outcome& o) {
    return counts(o) && belongs(o, Target::dense_ampere_hopper) && o.question->source != kNoisy;
  });
  line("all", counts);
  line("all, without nano", [](const Outcome& o) { return counts(o) && o.question->source != kNoisy; });
  line("all, also with a guess", [](const Outcome& o) { return o.timed() && o.row.quality != Quality::c; });
  line("quality C", [](const Outcome& o) { return o.timed() && o.row.quality == Quality::c; });
  return t;
}

SummaryTable group_table(std::string title, std::span<const Outcome> outcomes, const KeyOf& key,
                         std::span<const double> baseline) {
  SummaryTable t{.title = std::move(title), .note = "", .header = kErrorHeader, .rows = {}};
  t.header.push_back("baseline");
  for (const Group& g : grouped(outcomes, counts, key, baseline)) {
    std::vector<std::string> cells = error_cells(g.name, g.model);
    cells.push_back(g.baseline.rows > 0 ? percent(g.baseline.median) : "-");
    t.rows.push_back(std::move(cells));
  }
  return t;
}

struct SweepSums {
  std::int32_t sweeps = 0, layouts = 0;
  double tau = 0, regret = 0, worst = 0;
  void add(const Sweep& s) {
    ++sweeps;
    layouts += s.layouts;
    tau += s.tau;
    regret += s.regret;
    worst = std::max(worst, s.regret);
  }
};

SummaryTable sweep_table(std::string title, std::span<const Outcome> outcomes,
                         const std::function<bool(const Outcome&)>& which) {
  SummaryTable t{.title = std::move(title),
                 .note =
                     "sweep: 3 or more layouts of one model, cluster and batch; regret: measured time of the "
                     "layout ranked first / of the best - 1",
                 .header = {"", "sweeps", "layouts", "mean tau", "mean regret", "worst regret"},
                 .rows = {}};
  std::map<std::string, SweepSums> by_source;
  SweepSums all, quiet;
  for (const Sweep& s : sweeps(outcomes, which)) {
    by_source[s.source].add(s);
    all.add(s);
    if (s.source != kNoisy) quiet.add(s);
  }
  const auto line = [&](std::string name, const SweepSums& s) {
    if (s.sweeps == 0) return;
    t.rows.push_back({std::move(name), std::to_string(s.sweeps), std::to_string(s.layouts),
                      fmt::format("{:.2f}", s.tau / s.sweeps), percent(s.regret / s.sweeps),
                      percent(s.worst)});
  };
  for (const auto& [source, s] : by_source) line(source, s);
  line("all", all);
  line("all, without nano", quiet);
  return t;
}

SummaryTable memory_table(std::span<const Outcome> outcomes) {
  SummaryTable t{.title = "Memory of the fullest rank",
                 .note = "of an unknown kind: compared with allocated",
                 .header = kErrorHeader,
                 .rows = {}};
  for (const MemoryGroup& g : memory_groups(outcomes)) t.rows.push_back(error_cells(g.name, g.errors));
  return t;
}

SummaryTable verdict_table(std::span<const Outcome> outcomes) {
  SummaryTable t{.title = "Fits or does not fit",
                 .note =
                     "right verdicts of layouts that ran, that ran out of memory, and that show no value "
                     "(out of memory or a crash)",
                 .header = {"", "ran", "right", "out of memory", "right", "no value", "right"},
                 .rows = {}};
  const auto share = [](std::int32_t right, std::int32_t of) {
    return of == 0 ? std::string("-") : percent(static_cast<double>(right) / of);
  };
  for (const Verdicts& v : verdicts(outcomes)) {
    t.rows.push_back({v.name, std::to_string(v.ran), share(v.ran_right, v.ran), std::to_string(v.oom),
                      share(v.oom_right, v.oom), std::to_string(v.missing),
                      share(v.missing_right, v.missing)});
  }
  return t;
}

// Columns aligned: the first to the left, the others to the right.
std::string table_text(const SummaryTable& t) {
  std::vector<std::size_t> width(t.header.size(), 0);
  const auto measure = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size() && i < width.size(); ++i)
      width[i] = std::max(width[i], cells[i].size());
  };
  measure(t.header);
  for (const auto& r : t.rows) measure(r);
  std::string out = t.title + "\n";
  if (!t.note.empty()) out += fmt::format("({})\n", t.note);
  const auto line = [&](const std::vector<std::string>& cells) {
    std::string text;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      text +=
          i == 0 ? fmt::format("  {:<{}}", cells[i], width[i]) : fmt::format("  {:>{}}", cells[i], width[i]);
    }
    while (!text.empty() && text.back() == ' ') text.pop_back();
    out += text + "\n";
  };
  line(t.header);
  for (const auto& r : t.rows) line(r);
  return out;
}

std::string json_text(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<int>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string number(double v) {
  return std::isfinite(v) ? fmt::format("{:.6g}", v) : "";
}

std::string json_stats(const ErrorStats& s) {
  return fmt::format(
      "{{\"rows\": {}, \"median\": {:.6g}, \"mean\": {:.6g}, \"p90\": {:.6g}, \"bias\": {:.6g}}}", s.rows,
      s.median, s.mean, s.p90, s.bias);
}

// The figures of the tables as numbers.
std::string json_figures(std::span<const Outcome> outcomes) {
  const std::vector<double> baseline =
      constant_mfu_errors(outcomes, [](const Outcome& o) { return o.question->source; });
  std::string out = "\"step_time\": [";
  for (std::int32_t i = 0; i < kNumTargets; ++i) {
    const auto target = static_cast<Target>(i);
    const std::vector<Group> g = grouped(
        outcomes, [&](const Outcome& o) { return counts(o) && belongs(o, target); },
        [&](const Outcome&) { return std::string(name(target)); }, baseline);
    const Group group =
        g.empty() ? Group{.name = std::string(name(target)), .model = {}, .baseline = {}} : g[0];
    out += fmt::format("{}\n {{\"rows_of\": {}, \"model\": {}, \"constant_mfu\": {}}}", i == 0 ? "" : ",",
                       json_text(group.name), json_stats(group.model), json_stats(group.baseline));
  }
  out += "\n],\n\"sweeps\": [";
  const std::vector<Sweep> all = sweeps(outcomes, [](const Outcome& o) { return !o.question->guessed; });
  for (std::size_t i = 0; i < all.size(); ++i) {
    out += fmt::format(
        "{}\n {{\"source\": {}, \"sweep\": {}, \"layouts\": {}, \"tau\": {:.5g}, \"regret\": {:.5g}}}",
        i == 0 ? "" : ",", json_text(all[i].source), json_text(all[i].name), all[i].layouts, all[i].tau,
        all[i].regret);
  }
  out += "\n],\n\"memory\": [";
  const std::vector<MemoryGroup> memory = memory_groups(outcomes);
  for (std::size_t i = 0; i < memory.size(); ++i) {
    out += fmt::format("{}\n {{\"rows_of\": {}, \"error\": {}}}", i == 0 ? "" : ",",
                       json_text(memory[i].name), json_stats(memory[i].errors));
  }
  const Verdicts v = verdicts(outcomes)[0];
  return out + fmt::format(
                   "\n],\n\"verdicts\": {{\"ran\": {}, \"ran_right\": {}, \"out_of_memory\": {}, "
                   "\"out_of_memory_right\": {}, \"no_value\": {}, \"no_value_right\": {}}}",
                   v.ran, v.ran_right, v.oom, v.oom_right, v.missing, v.missing_right);
}

std::string json_row(const Outcome& o) {
  std::string out =
      fmt::format("{{\"id\": {}, \"quality\": \"{}\"", json_text(o.row.id), name(o.row.quality));
  if (!o.cost) return out + fmt::format(", \"not_predicted\": {}}}", json_text(o.reason));
  out += fmt::format(", \"predicted_s\": {:.6g}", o.predicted());
  if (o.timed()) out += fmt::format(", \"measured_s\": {:.6g}, \"error\": {:.5f}", o.measured(), o.error());
  out += fmt::format(", \"guessed\": {}, \"parts\": {{", o.question->guessed);
  for (std::int32_t i = 0; i < cost::kNumParts; ++i) {
    const auto part = static_cast<cost::Part>(i);
    out += fmt::format("{}{}: {:.6g}", i == 0 ? "" : ", ", json_text(cost::name(part)), (*o.cost)[part]);
  }
  out += fmt::format("}}, \"allocated_bytes\": {:.0f}, \"reserved_bytes\": {:.0f}",
                     o.cost->memory.allocated(), o.cost->memory.reserved());
  if (o.question->memory) {
    out += fmt::format(", \"memory_measured_bytes\": {:.0f}, \"memory_kind\": \"{}\"",
                       o.question->memory->bytes, name(o.question->memory->kind));
  }
  return out + fmt::format(", \"fits\": {}, \"status\": \"{}\"}}", fits(o), name(o.row.status));
}

}  // namespace

std::string_view name(Sample s) {
  switch (s) {
    case Sample::shipped:
      return "calibrations as shipped";
    case Sample::fitted:
      return "constants fitted on all rows";
    case Sample::out_of_source:
      return "each source predicted with constants fitted on the other sources";
    case Sample::out_of_model:
      return "each model predicted with constants fitted on the other models";
  }
  return "?";
}

std::vector<SummaryTable> summary(std::span<const Outcome> outcomes, Sample sample) {
  const std::vector<double> baseline =
      constant_mfu_errors(outcomes, [](const Outcome& o) { return o.question->source; });
  std::vector<SummaryTable> t;
  t.push_back(counts_table(outcomes));
  t.back().note = name(sample);
  t.push_back(target_table(outcomes, baseline));
  const auto question = [](auto member) {
    return [member](const Outcome& o) { return std::string((*o.question).*member); };
  };
  t.push_back(group_table("By source", outcomes, question(&Case::source), baseline));
  t.push_back(group_table(
      "By class and accelerator", outcomes,
      [](const Outcome& o) {
        return fmt::format("{}, {}", name(o.question->model_class), o.question->accelerator);
      },
      baseline));
  t.push_back(group_table("By axes in use", outcomes, question(&Case::axes), baseline));
  t.push_back(group_table("By model", outcomes, question(&Case::model), baseline));
  t.push_back(sweep_table("Order of layouts within sweeps, all rows", outcomes,
                          [](const Outcome& o) { return !o.question->guessed; }));
  t.push_back(sweep_table("Order of layouts within sweeps, rows of quality A and B", outcomes, counts));
  t.push_back(memory_table(outcomes));
  t.push_back(verdict_table(outcomes));
  t.push_back(reason_table(outcomes));
  return t;
}

std::string to_text(std::span<const SummaryTable> tables) {
  std::string out;
  for (const SummaryTable& t : tables) {
    if (!t.rows.empty()) out += (out.empty() ? "" : "\n") + table_text(t);
  }
  return out;
}

std::string to_markdown(std::span<const SummaryTable> tables) {
  std::string out;
  const auto cell = [](const std::string& text) {
    std::string safe;
    for (const char c : text) safe += c == '|' ? std::string("\\|") : std::string(1, c);
    return safe;
  };
  for (const SummaryTable& t : tables) {
    if (t.rows.empty()) continue;
    out += fmt::format("{}### {}\n\n", out.empty() ? "" : "\n", t.title);
    if (!t.note.empty())
      out += fmt::format("{}.\n\n", static_cast<char>(std::toupper(t.note[0])) + t.note.substr(1));
    const auto line = [&](const std::vector<std::string>& cells) {
      out += "|";
      for (const std::string& c : cells) out += fmt::format(" {} |", cell(c));
      out += "\n";
    };
    line(t.header);
    out += "|---|";
    for (std::size_t i = 1; i < t.header.size(); ++i) out += "---:|";
    out += "\n";
    for (const auto& r : t.rows) line(r);
  }
  return out;
}

std::string to_csv(std::span<const Outcome> outcomes) {
  std::string out =
      "id,source,model,accelerator,quality,status,measured_s,predicted_s,error,guessed,not_predicted";
  for (std::int32_t i = 0; i < cost::kNumParts; ++i) {
    std::string part(cost::name(static_cast<cost::Part>(i)));
    std::replace(part.begin(), part.end(), ' ', '_');
    out += fmt::format(",{}_s", part);
  }
  out += ",mfu,memory_measured_bytes,memory_kind,allocated_bytes,reserved_bytes,fits,layout\n";
  for (const Outcome& o : outcomes) {
    const bool asked = o.question.has_value();
    std::vector<std::string> cells = {
        o.row.id,
        asked ? o.question->source : o.row.prefix(),
        o.row.model,
        asked ? o.question->accelerator : o.row.gpu,
        std::string(name(o.row.quality)),
        std::string(name(o.row.status)),
        asked && o.question->step_seconds ? number(*o.question->step_seconds) : "",
        o.cost ? number(o.predicted()) : "",
        o.timed() ? fmt::format("{:.5f}", o.error()) : "",
        asked && o.question->guessed ? "yes" : "no",
        o.cost ? "" : o.reason};
    for (std::int32_t i = 0; i < cost::kNumParts; ++i) {
      cells.push_back(o.cost ? number((*o.cost)[static_cast<cost::Part>(i)]) : "");
    }
    const bool memory = asked && o.question->memory;
    cells.push_back(o.cost ? fmt::format("{:.4f}", o.cost->mfu()) : "");
    cells.push_back(memory ? fmt::format("{:.0f}", o.question->memory->bytes) : "");
    cells.push_back(memory ? std::string(name(o.question->memory->kind)) : "");
    cells.push_back(o.cost ? fmt::format("{:.0f}", o.cost->memory.allocated()) : "");
    cells.push_back(o.cost ? fmt::format("{:.0f}", o.cost->memory.reserved()) : "");
    cells.push_back(o.cost ? (fits(o) ? "yes" : "no") : "");
    cells.push_back(asked ? cost::to_text(o.question->candidate) : "");
    for (std::size_t i = 0; i < cells.size(); ++i) out += (i == 0 ? "" : ",") + csv_cell(cells[i]);
    out += "\n";
  }
  return out;
}

std::string to_json(std::span<const Outcome> outcomes, std::span<const SummaryTable> tables) {
  std::string out = "{\n\"tables\": [";
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const SummaryTable& t = tables[i];
    out += fmt::format("{}\n {{\"title\": {}, \"columns\": [", i == 0 ? "" : ",", json_text(t.title));
    for (std::size_t c = 0; c < t.header.size(); ++c) out += (c == 0 ? "" : ", ") + json_text(t.header[c]);
    out += "], \"rows\": [";
    for (std::size_t r = 0; r < t.rows.size(); ++r) {
      out += r == 0 ? "[" : ", [";
      for (std::size_t c = 0; c < t.rows[r].size(); ++c)
        out += (c == 0 ? "" : ", ") + json_text(t.rows[r][c]);
      out += "]";
    }
    out += "]}";
  }
  out += "\n],\n\"rows\": [";
  for (std::size_t i = 0; i < outcomes.size(); ++i) out += (i == 0 ? "\n " : ",\n ") + json_row(outcomes[i]);
  return out + "\n],\n" + json_figures(outcomes) + "\n}\n";
}

}  // namespace tessera::validate
