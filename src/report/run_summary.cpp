#include "report/run_summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/text.h"
#include "report/chart.h"
#include "report/numbers.h"
#include "report/page.h"
#include "report/table.h"

namespace tessera::report {

namespace {

std::string plural(std::int64_t n, std::string_view one) {
  return fmt::format("{} {}{}", n, one, n == 1 ? "" : "s");
}

// "8 ranks share 2 cores", or "" when each has its own.
std::string sharing(const RunView& view) {
  if (view.ranks <= view.cores) return "";
  return fmt::format("{} ranks share {}", view.ranks, plural(view.cores, "core"));
}

std::string perplexity(double loss) {
  return "perplexity " + fixed(std::exp(loss), 1);
}

std::size_t tail_count(const RunView& view) {
  return std::max<std::size_t>(1, view.losses.size() / 10);
}

void put_head(Page& page, const RunView& view) {
  const auto steps = static_cast<std::int64_t>(view.losses.size());
  std::string title = view.title;
  if (steps > 0) {
    title += (title.empty() ? "" : ": ") + plural(steps, "step");
    if (view.seconds.value > 0) title += " in " + duration(view.seconds);
  }
  if (view.first_step > 0) title += fmt::format(", resumed after step {}", view.first_step);
  page.title(title);
  for (const std::string& line : view.description) page.description(line);
}

Fact entropy_fact(const RunView& view, std::optional<double> loss) {
  const double entropy = *view.unigram_entropy;
  Fact fact{"unigram entropy", fixed(entropy, 4), "the best a model can do from token frequencies alone"};
  if (!loss) return fact;
  const std::string by = fixed(std::abs(entropy - *loss), 2);
  if (*loss < entropy) {
    fact.meaning += "; this one is " + by + " nats below: it uses the context";
    fact.tone = Tone::good;
  } else {
    fact.meaning += "; this one is " + by + " nats above: it does not use the context yet";
    fact.tone = Tone::warning;
  }
  return fact;
}

void put_loss(Page& page, const RunView& view) {
  const std::optional<double> loss = final_loss(view);
  std::vector<Fact> facts;
  if (loss) {
    const auto tail = static_cast<std::int64_t>(tail_count(view));
    const std::string over = tail == 1 ? "last step" : "mean of the last " + plural(tail, "step");
    facts.push_back({"training loss", fixed(*loss, 4), "nats per token, " + over + "; " + perplexity(*loss)});
  }
  if (view.validation_loss) {
    std::string on = "text that the training never saw";
    if (view.validation_sequences > 0) on = plural(view.validation_sequences, "sequence") + " of " + on;
    facts.push_back({"validation loss", fixed(*view.validation_loss, 4),
                     "nats per token on " + on + "; " + perplexity(*view.validation_loss)});
  }
  if (view.unigram_entropy) facts.push_back(entropy_fact(view, loss));
  std::vector<ReferenceLine> lines;
  if (view.unigram_entropy) lines.push_back({"unigram entropy", *view.unigram_entropy});
  const Series series{
      .label = "loss", .values = view.losses, .first_x = static_cast<double>(view.first_step + 1)};
  const std::string chart = line_chart(
      {series}, lines, {.style = page.inner(), .height = 12, .x_label = "step", .y_label = "nats per token"});
  if (chart.empty() && facts.empty()) return;
  page.section("Loss");
  page.block(chart);
  if (!chart.empty()) page.gap();
  page.facts(facts);
}

void put_speed(Page& page, const RunView& view) {
  const SpeedView& s = view.speed;
  std::vector<Fact> facts;
  if (s.tokens_per_s > 0) {
    std::string step = s.step.value > 0 ? "tokens/s; a step takes " + duration(s.step) : "tokens/s";
    if (!sharing(view).empty()) step += "; " + sharing(view);
    facts.push_back({"throughput", quantity(s.tokens_per_s), step});
  }
  if (s.mfu) {
    facts.push_back(
        {"MFU", percent(*s.mfu), "model FLOPs / (time x peak), causal attention counted as half the square"});
  }
  if (s.mfu_full) {
    facts.push_back({"MFU, full square", percent(*s.mfu_full),
                     "the masked half of attention counted too, as PaLM and nanoGPT do"});
  }
  if (s.hfu) facts.push_back({"HFU", percent(*s.hfu), "FLOPs executed, recomputation included"});
  if (s.peak && s.peak->value > 0) {
    facts.push_back(
        {"peak", quantity(s.peak->value), s.peak_source.empty() ? "FLOP/s" : "FLOP/s; " + s.peak_source});
  }
  if (facts.empty()) return;
  page.section("Speed");
  page.facts(facts);
}

std::string_view what_moves(std::string_view axis) {
  if (axis == "tp") return "activations inside a layer";
  if (axis == "etp") return "activations inside an expert";
  if (axis == "cp") return "keys and values of a sequence";
  if (axis == "pp") return "activations between stages";
  if (axis == "dp") return "gradients between replicas";
  if (axis == "edp") return "gradients of experts";
  if (axis == "tp_dp") return "gradients that tp and dp sum";
  if (axis == "ep") return "tokens to experts and back";
  if (axis == "world") return "norms, losses, figures";
  return "";
}

void put_axes(Page& page, const RunView& view) {
  if (view.axes.empty()) return;
  Table table({{.header = "axis", .align = Align::left},
               {.header = "bytes"},
               {.header = "in calls", .drop = 1},
               {.header = "exposed"},
               {.header = "share"},
               {.header = "what moves", .align = Align::left, .drop = 2}});
  const double rank_seconds = view.speed.step.value * view.ranks;
  const auto cells = [&](const AxisRow& row) {
    const std::string share = rank_seconds > 0 ? percent(row.exposed.value / rank_seconds) : "--";
    return std::vector<std::string>{
        row.axis, human(row.bytes_per_step),        duration(row.total), duration(row.exposed),
        share,    std::string(what_moves(row.axis))};
  };
  AxisRow sum{.axis = "all"};
  for (const AxisRow& row : view.axes) {
    table.add_row(cells(row));
    sum.bytes_per_step += row.bytes_per_step;
    sum.total += row.total;
    sum.exposed += row.exposed;
  }
  if (view.axes.size() > 1) table.add_footer(cells(sum));
  page.section("Communication, per step" +
               (view.ranks > 1 ? fmt::format(", {} ranks together", view.ranks) : ""));
  page.block(table.render(page.inner()));
  std::string note = "exposed: seconds that a rank stood still for it; share: of all ranks' time.";
  if (!sharing(view).empty()) note += " " + sharing(view) + ", so seconds include waiting for a core.";
  page.paragraph(note, Tone::faint);
}

void put_bubble(Page& page, const RunView& view) {
  if (!view.bubble) return;
  const BubbleView& b = *view.bubble;
  std::string why = b.why;
  if (why.empty()) {
    switch (b.clock) {
      case BubbleClock::wall:
        why = "wall clock";
        break;
      case BubbleClock::cpu:
        why = "replayed from CPU clocks";
        if (!sharing(view).empty()) why += ": " + sharing(view);
        break;
    }
  }
  std::vector<Fact> facts;
  facts.push_back({"bubble", percent(b.fraction), "of the pipeline's time its ranks idle (" + why + ")"});
  const std::string schedule = b.schedule.empty() ? "the schedule" : b.schedule;
  if (b.ideal)
    facts.push_back({"ideal", percent(*b.ideal), "of " + schedule + " itself, were all stages equal"});
  if (!b.ideal && !b.schedule.empty()) facts.push_back({"schedule", b.schedule, ""});
  page.section("Pipeline");
  page.facts(facts);
}

void put_routing(Page& page, const RunView& view) {
  if (view.routing.empty()) return;
  page.section(fmt::format("Experts, {} a layer", most_experts(view.routing)));
  page.block(routing_map(view.routing, page.inner()));
  page.paragraph(routing_note(view.routing, page.inner()), Tone::faint);
  if (!view.expert_moves.empty()) page.paragraph(view.expert_moves, Tone::faint);
}

void put_sample(Page& page, const RunView& view) {
  if (view.prompt.empty() && view.sample.empty()) return;
  page.section("Sample from the trained model");
  page.quote(view.prompt, view.sample);
}

void put_warnings(Page& page, const RunView& view) {
  if (view.warnings.empty()) return;
  page.section(plural(static_cast<std::int64_t>(view.warnings.size()), "warning"));
  for (const std::string& warning : view.warnings) page.item("! ", warning, Tone::warning);
}

void put_files(Page& page, const RunView& view) {
  std::vector<Fact> facts;
  for (const FileRow& file : view.files) {
    if (!file.path.empty()) facts.push_back({file.what, "", file.path, Tone::plain});
  }
  if (facts.empty()) return;
  page.section("Files");
  page.facts(facts);
}

}  // namespace

std::optional<double> final_loss(const RunView& view) {
  const std::size_t tail = std::min(tail_count(view), view.losses.size());
  double sum = 0;
  std::int64_t count = 0;
  for (std::size_t i = view.losses.size() - tail; i < view.losses.size(); ++i) {
    if (!std::isfinite(view.losses[i])) continue;
    sum += view.losses[i];
    ++count;
  }
  if (count == 0) return std::nullopt;
  return sum / static_cast<double>(count);
}

std::string render(const RunView& view, const Style& style) {
  Page page(style);
  put_head(page, view);
  put_loss(page, view);
  put_speed(page, view);
  put_axes(page, view);
  put_bubble(page, view);
  put_routing(page, view);
  put_memory(page, view);
  put_sample(page, view);
  put_warnings(page, view);
  put_files(page, view);
  return page.text();
}

}  // namespace tessera::report
