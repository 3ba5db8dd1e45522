// The page of a simulated step.
#include "report/simulation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "report/numbers.h"
#include "report/page.h"
#include "report/plan_table.h"
#include "report/table.h"
#include "report/waterfall.h"
#include "search/search.h"

namespace tessera::report {

namespace {

using cost::Part;
using sim::RankResult;

constexpr std::int32_t kMinStrip = 12, kMaxStrip = 96;
constexpr std::int32_t kMaxRows = 32;  // ranks that are shown; of more, both ends

struct Unit {
  const char* name;
  double bytes;
};
Unit unit_for(double largest) {
  constexpr std::array<Unit, 3> kUnits = {{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}}};
  for (const Unit& u : kUnits) {
    if (largest >= u.bytes) return u;
  }
  return {"kB", 1e3};
}

std::string plural(std::int64_t n, std::string_view one) {
  return fmt::format("{} {}{}", n, one, n == 1 ? "" : "s");
}

double world(const SimulationView& view) {
  return view.candidate->world_size();
}
double tokens(const SimulationView& view) {
  const cost::Workload& w = view.setup->work;
  return static_cast<double>(w.global_batch_size) * static_cast<double>(w.sequence_length);
}

// Enough digits to tell two layouts apart.
std::string seconds_text(double seconds) {
  if (!(std::abs(seconds) < 60.0)) return duration(Seconds(seconds));
  if (seconds < 1e-3) return fmt::format("{:.1f} us", seconds * 1e6);
  return seconds < 1.0 ? fmt::format("{:.2f} ms", seconds * 1e3) : fmt::format("{:.3f} s", seconds);
}

std::string recompute_words(const cost::Candidate& c) {
  const std::string text = recompute_text(c);
  return text == "none" ? "nothing recomputed" : "recompute " + text;
}

// Layers of each stage, when they differ.
std::string split_text(const SimulationView& view) {
  const std::vector<std::int32_t>& layers = view.stage_layers;
  if (layers.size() < 2 || std::all_of(layers.begin(), layers.end(), [&](auto n) { return n == layers[0]; }))
    return "";
  std::vector<std::string> words;
  for (std::size_t i = 0; i < layers.size();) {
    std::size_t end = i;
    while (end < layers.size() && layers[end] == layers[i]) ++end;
    words.push_back(end - i == 1 ? fmt::format("{}", layers[i]) : fmt::format("{} x {}", end - i, layers[i]));
    i = end;
  }
  return "; layers of the stages: " + join(words, ", ");
}

void put_head(Page& page, const SimulationView& view) {
  const cost::Setup& s = *view.setup;
  const cost::Candidate& c = *view.candidate;
  const spec::ModelSpec& m = s.model;
  page.title(fmt::format("{}: one step on {} of {} ({})", view.model, plural(c.world_size(), "device"),
                         s.cluster.name, s.calibration.name));
  std::string params = quantity(static_cast<double>(spec::num_parameters(m))) + " parameters";
  if (m.moe) {
    params += fmt::format(", {} used by a token (top {} of {} experts)",
                          quantity(static_cast<double>(spec::num_active_parameters(m))),
                          m.moe->num_experts_per_tok, m.moe->num_experts);
  }
  page.description(fmt::format(
      "work    {}; {}; {} of {} tokens: {} of {} on {}", params, spec::name(s.work.precision),
      plural(s.work.global_batch_size, "sequence"), s.work.sequence_length,
      view.schedule->num_microbatches == 1 ? "1 micro-batch"
                                           : fmt::format("{} micro-batches", view.schedule->num_microbatches),
      c.micro_batch_size, plural(c.dp, "replica")));
  std::string experts;
  if (m.moe) experts = fmt::format("; experts: ep {} x etp {} x edp {}", c.ep, c.etp, c.edp());
  std::string order;
  if (c.order != cost::AxisOrder::tp_cp_ep_dp_pp) order = fmt::format("; order {}", cost::name(c.order));
  const std::string stages = c.vpp > 1 ? fmt::format(", {} stages a rank", c.vpp) : "";
  page.description(fmt::format("layout  tp {} x cp {} x dp {} x pp {}{}; {}{}; ZeRO {}, {}; {}{}{}", c.tp,
                               c.cp, c.dp, c.pp, experts, schedule::name(view.schedule->kind), stages,
                               c.zero_stage, recompute_words(c), s.practice.name, order, split_text(view)));
}

void put_fit(Page& page, const SimulationView& view) {
  const double usable = search::usable_memory(*view.setup);
  std::int32_t over = 0;
  const RankResult* worst = &view.result->ranks.front();
  for (const RankResult& r : view.result->ranks) {
    over += reserved_bytes(r.peak_bytes) > usable ? 1 : 0;
    if (r.peak_bytes > worst->peak_bytes) worst = &r;
  }
  if (over == 0) return;
  const double needs = reserved_bytes(worst->peak_bytes);
  const Unit unit = unit_for(needs);
  page.item("! ",
            fmt::format("does not fit: {} of {} need more than the {:.1f} {} of a device, rank {} the most: "
                        "{:.1f} {} reserved. More tp, pp or ZeRO, a smaller micro-batch or recomputation "
                        "take less; tessera plan lists what fits.",
                        over, plural(view.schedule->pp, "pipeline rank"), usable / unit.bytes, unit.name,
                        worst - view.result->ranks.data(), needs / unit.bytes, unit.name),
            Tone::bad);
}

void put_speed(Page& page, const SimulationView& view) {
  const cost::StepCost& cost = view.cost;
  const double seconds = cost.seconds();
  std::vector<Fact> facts;
  std::string step = "simulated";
  if (view.closed_form) {
    step += fmt::format("; the planner's closed form says {} ({:+.1f}%)", seconds_text(*view.closed_form),
                        100.0 * (*view.closed_form / seconds - 1.0));
  }
  facts.push_back({"step", seconds_text(seconds), step});
  if (view.without_stragglers) {
    facts.push_back(
        {"stragglers", fmt::format("{:+.1f}%", 100.0 * (seconds / *view.without_stragglers - 1.0)),
         fmt::format("of the {} that the step takes without them", seconds_text(*view.without_stragglers)),
         Tone::warning});
  }
  facts.push_back({"throughput", quantity(tokens(view) / seconds / world(view)),
                   fmt::format("tokens/s a device; {} tokens/s in all", quantity(tokens(view) / seconds))});
  facts.push_back({"MFU", percent(cost.mfu()),
                   "model FLOPs / (time x peak), causal attention counted as half the square"});
  facts.push_back({"MFU, full square", percent(cost.mfu_full()),
                   "the masked half of attention counted too, as Megatron and PaLM count"});
  facts.push_back({"HFU", percent(cost.hfu()), "FLOPs executed, recomputation included"});
  facts.push_back({"peak", quantity(cost.peak),
                   fmt::format("FLOP/s, {} in {}", view.setup->calibration.name,
                               spec::name(view.setup->work.precision))});
  page.section("Speed");
  page.facts(facts);
}

// Ranks that get a line: all, or both ends of a long pipeline.
std::vector<std::int32_t> shown_ranks(std::int32_t pp) {
  std::vector<std::int32_t> out;
  for (std::int32_t r = 0; r < pp; ++r) {
    if (pp <= kMaxRows || r < kMaxRows / 2 || r >= pp - kMaxRows / 2) out.push_back(r);
  }
  return out;
}

std::string range_text(std::int32_t first, std::int32_t count) {
  if (count == 0) return "";
  return count == 1 ? fmt::format("{}", first) : fmt::format("{}-{}", first, first + count - 1);
}

// "embedding 0-4" or "0-4, 20-24": what the stages of a rank hold.
std::string layers_text(const SimulationView& view, std::int32_t rank) {
  std::vector<std::string> words;
  const auto last = static_cast<std::int32_t>(view.stage_layers.size()) - 1;
  for (const StageId stage : view.schedule->stages_of(rank)) {
    std::int32_t first = 0;
    for (std::int32_t s = 0; s < stage.value; ++s) first += view.stage_layers[static_cast<std::size_t>(s)];
    std::string text = range_text(first, view.stage_layers[static_cast<std::size_t>(stage.value)]);
    if (stage.value == 0) text = text.empty() ? "emb" : "emb+" + text;
    if (stage.value == last) text += text.empty() ? "head" : "+head";
    words.push_back(text);
  }
  constexpr std::size_t kMaxWords = 2;
  if (words.size() > kMaxWords) words = {words.front(), "..", words.back()};
  return join(words, " ");
}

void put_ranks(Page& page, const SimulationView& view) {
  const std::int32_t pp = view.schedule->pp;
  const std::int32_t width = std::clamp(columns(page.inner()) - 52, kMinStrip, kMaxStrip);
  Table table({{.header = "rank"},
               {.header = "layers", .align = Align::left, .drop = 3},
               {.header = "busy"},
               {.header = "exposed", .drop = 1},
               {.header = "idle"},
               {.header = fmt::format("0 to {}", duration(Seconds(view.cost.seconds()))),
                .align = Align::left,
                .drop = 2}});
  std::int32_t before = -1;
  for (const std::int32_t r : shown_ranks(pp)) {
    if (r != before + 1) table.add_rule();
    before = r;
    const RankShares shares = rank_shares(view.result->ranks[static_cast<std::size_t>(r)]);
    table.add_row({fmt::format("{}", r), layers_text(view, r), percent(shares.busy), percent(shares.exposed),
                   percent(shares.idle),
                   paint(rank_strip(*view.result, r, width), Tone::accent, page.inner())});
  }
  page.section(fmt::format("Pipeline: {}, {} each", plural(pp, "rank"),
                           plural(view.candidate->world_size() / pp, "device")));
  page.block(table.render(page.inner()));
  page.paragraph(
      "\u2588 computes, \u2592 stands still for communication, \u00b7 waits: what most of that time is. "
      "exposed: communication that no compute hides, inside of layers too.",
      Tone::faint);
}

void put_axes(Page& page, const SimulationView& view) {
  Table table({{.header = "axis", .align = Align::left},
               {.header = "sent a device"},
               {.header = "in flight"},
               {.header = "exposed"},
               {.header = "hidden"}});
  const auto ranks = static_cast<double>(view.result->ranks.size());
  for (std::int32_t a = 0; a < graph::kNumAxes; ++a) {
    const auto i = static_cast<std::size_t>(a);
    double bytes = 0.0, comm = 0.0, exposed = 0.0;
    for (const RankResult& r : view.result->ranks) {
      bytes += r.bytes_sent[i] / ranks;
      comm += static_cast<double>(r.comm[i].value) * 1e-12 / ranks;
      exposed += static_cast<double>(r.exposed[i].value) * 1e-12 / ranks;
    }
    if (!(bytes > 0.0 || comm > 0.0 || exposed > 0.0)) continue;
    const Unit unit = unit_for(bytes);
    table.add_row({std::string(graph::name(static_cast<graph::Axis>(a))),
                   fmt::format("{:.1f} {}", bytes / unit.bytes, unit.name), duration(Seconds(comm)),
                   duration(Seconds(exposed)),
                   percent(comm > 0.0 ? std::max(0.0, 1.0 - exposed / comm) : 0.0)});
  }
  if (table.empty()) return;
  page.section("Communication of an average device");
  page.block(table.render(page.inner()));
  page.paragraph(
      "in flight: seconds of its links; exposed: that the device stands still for it, at both ends of a "
      "message.",
      Tone::faint);
}

void put_memory(Page& page, const SimulationView& view) {
  double most = 0.0;
  for (const RankResult& r : view.result->ranks) most = std::max(most, r.peak_bytes);
  const Unit unit = unit_for(most);
  const double usable = search::usable_memory(*view.setup);
  const std::int32_t width = std::clamp(columns(page.inner()) - 82, kMinStrip, kMaxStrip);
  const auto text = [&](double bytes) { return fixed(bytes / unit.bytes, 1); };
  Table table({{.header = "rank"},
               {.header = "static", .drop = 2},
               {.header = "activations", .drop = 2},
               {.header = "transient", .drop = 4},
               {.header = "peak"},
               {.header = "reserved"},
               {.header = "of usable"},
               {.header = "at", .drop = 3},
               {.header = "over time", .align = Align::left, .drop = 1}});
  std::int32_t before = -1;
  for (const std::int32_t r : shown_ranks(view.schedule->pp)) {
    if (r != before + 1) table.add_rule();
    before = r;
    const RankResult& rank = view.result->ranks[static_cast<std::size_t>(r)];
    const PeakParts parts = peak_parts(*view.schedule, *view.work, r, rank);
    const double reserved = reserved_bytes(rank.peak_bytes);
    table.add_row({fmt::format("{}", r), text(parts.fixed), text(parts.activations), text(parts.transient),
                   text(rank.peak_bytes), text(reserved), percent(reserved / usable),
                   duration(schedule::to_seconds(rank.peak_at)),
                   memory_strip(rank, view.result->makespan, most, width)},
                  reserved > usable ? Tone::bad : Tone::plain);
  }
  page.section(fmt::format("Memory of a device of each pipeline rank, {}", unit.name));
  page.block(table.render(page.inner()));
  page.paragraph(
      fmt::format("static: weights, gradients, optimizer, buffers; activations and transient as they are at "
                  "the peak; reserved: with the allocator's gaps; usable: {} of a {}. A full bar is {} {}.",
                  fmt::format("{} {}", text(usable), unit.name), view.setup->calibration.name, text(most),
                  unit.name),
      Tone::faint);
}

}  // namespace

std::string simulation_page(const SimulationView& view, const Style& style) {
  Page page(style);
  put_head(page, view);
  put_fit(page, view);
  put_speed(page, view);
  page.section("Where the step goes");
  page.block(waterfall(view.cost.parts, page.inner()));
  put_ranks(page, view);
  put_axes(page, view);
  put_memory(page, view);
  page.gap();
  page.paragraph(simulation_bottleneck(view), Tone::strong);
  return page.text();
}

}  // namespace tessera::report
