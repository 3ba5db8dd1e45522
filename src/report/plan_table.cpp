// The tables of a plan: layouts, times, memory, rejections.
#include "report/plan_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/text.h"
#include "graph/block.h"
#include "report/numbers.h"
#include "report/table.h"
#include "report/waterfall.h"

namespace tessera::report {

namespace {

using search::Ranked;

constexpr double kGB = 1e9;

std::string number(std::int64_t n) {
  return fmt::format("{}", n);
}

// A degree that is 1 on every line says nothing.
bool varies(const std::vector<Ranked>& best, std::int32_t cost::Candidate::*axis) {
  return std::any_of(best.begin(), best.end(), [&](const Ranked& r) { return r.candidate.*axis != 1; });
}

bool orders_vary(const std::vector<Ranked>& best) {
  const cost::AxisOrder first = best.front().candidate.order;
  return std::ranges::any_of(best, [&](const Ranked& r) { return r.candidate.order != first; });
}

std::string gigabytes(double bytes) {
  return fixed(bytes / kGB, 1);
}

std::string seconds_text(double s) {
  return s < 1.0 ? fmt::format("{:.1f} ms", s * 1e3) : fmt::format("{:.3f} s", s);
}

struct AxisColumn {
  const char* header;
  std::int32_t cost::Candidate::*axis;
  bool always;
};
constexpr std::array<AxisColumn, 8> kAxes = {{{"tp", &cost::Candidate::tp, true},
                                              {"cp", &cost::Candidate::cp, false},
                                              {"pp", &cost::Candidate::pp, true},
                                              {"vpp", &cost::Candidate::vpp, false},
                                              {"dp", &cost::Candidate::dp, true},
                                              {"ep", &cost::Candidate::ep, false},
                                              {"etp", &cost::Candidate::etp, false},
                                              {"mbs", &cost::Candidate::micro_batch_size, true}}};

std::string_view order_text(cost::AxisOrder order) {
  switch (order) {
    case cost::AxisOrder::tp_cp_ep_dp_pp:
      return "dp-pp";
    case cost::AxisOrder::tp_cp_ep_pp_dp:
      return "pp-dp";
  }
  return "";
}

}  // namespace

std::string recompute_text(const cost::Candidate& c) {
  using graph::Module;
  switch (c.recompute) {
    case spec::Recompute::none:
      return "none";
    case spec::Recompute::full:
      return "full";
    case spec::Recompute::selective:
      break;
  }
  constexpr std::array<std::pair<Module, const char*>, 7> kShort = {{{Module::core_attn, "scores"},
                                                                     {Module::layernorm, "norm"},
                                                                     {Module::mlp, "mlp"},
                                                                     {Module::moe, "moe"},
                                                                     {Module::moe_act, "act"},
                                                                     {Module::mla_up_proj, "up"},
                                                                     {Module::shared_experts, "shared"}}};
  std::vector<std::string> words;
  for (const auto& [module, word] : kShort) {
    if ((c.recompute_modules & static_cast<std::uint32_t>(module)) != 0) words.emplace_back(word);
  }
  return words.empty() ? "norm+act" : join(words, "+");
}

double tokens_per_device_second(const cost::Setup& setup, const cost::StepCost& cost) {
  const double tokens =
      static_cast<double>(setup.work.global_batch_size) * static_cast<double>(setup.work.sequence_length);
  return tokens / cost.seconds() / setup.cluster.num_devices;
}

double price_of_billion_tokens(const cost::Setup& setup, const cost::StepCost& cost) {
  const double device_hours = 1e9 / tokens_per_device_second(setup, cost) / 3600.0;
  return device_hours * setup.cluster.price_per_device_hour;
}

std::string layout_table(const PlanView& view, const Style& style) {
  const std::vector<Ranked>& best = view.result->best;
  const bool priced = view.setup->cluster.price_per_device_hour > 0;
  std::vector<Column> columns = {{.header = "#"}};
  std::vector<AxisColumn> axes;
  for (const AxisColumn& a : kAxes) {
    if (!a.always && !varies(best, a.axis)) continue;
    axes.push_back(a);
    columns.push_back({.header = a.header});
  }
  const bool orders = orders_vary(best);
  columns.push_back({.header = "zero"});
  if (orders) columns.push_back({.header = "order", .drop = 2});
  columns.push_back({.header = "recompute", .align = Align::left});
  columns.push_back({.header = "schedule", .align = Align::left});
  columns.push_back({.header = "step"});
  columns.push_back({.header = "tok/s", .drop = 3});
  columns.push_back({.header = "MFU"});
  columns.push_back({.header = "full", .drop = 5});
  columns.push_back({.header = "GB", .drop = 1});
  if (priced) columns.push_back({.header = "$/Gtoken", .drop = 4});
  Table table(columns);
  for (std::size_t i = 0; i < best.size(); ++i) {
    const cost::Candidate& c = best[i].candidate;
    const cost::StepCost& s = best[i].cost;
    std::vector<std::string> cells = {number(static_cast<std::int64_t>(i) + 1)};
    for (const AxisColumn& a : axes) cells.push_back(number(c.*a.axis));
    cells.push_back(number(c.zero_stage));
    if (orders) cells.emplace_back(order_text(c.order));
    cells.push_back(recompute_text(c));
    cells.emplace_back(schedule::name(c.schedule));
    cells.push_back(seconds_text(s.seconds()));
    cells.push_back(fixed(tokens_per_device_second(*view.setup, s), 0));
    cells.push_back(percent(s.mfu()));
    cells.push_back(percent(s.mfu_full()));
    cells.push_back(gigabytes(s.memory.reserved()));
    if (priced) cells.push_back(fixed(price_of_billion_tokens(*view.setup, s), 0));
    table.add_row(std::move(cells), i == 0 ? Tone::strong : Tone::plain);
  }
  return table.render(style);
}

std::string layout_legend(const PlanView& view) {
  const std::vector<Ranked>& best = view.result->best;
  const std::string order =
      orders_vary(best) ? "order: the inner of the two axes first."
                        : fmt::format("Rank order of all: {}.", cost::name(best.front().candidate.order));
  return "tok/s: tokens a second and device. MFU: model FLOPs, causal attention halved, over time and peak; "
         "full: attention not halved. GB: reserved on the fullest device. " +
         order;
}

std::string time_table(const PlanView& view, const Style& style) {
  using cost::Part;
  struct Group {
    const char* header;
    std::vector<Part> parts;
    std::int32_t drop;
  };
  const std::vector<Group> groups = {
      {"compute", {Part::ideal, Part::gemm, Part::attention, Part::memory_bound, Part::launch}, 0},
      {"again", {Part::recompute}, 0},
      {"uneven", {Part::imbalance}, 1},
      {"tp", {Part::tp}, 0},
      {"cp", {Part::cp}, 0},
      {"ep", {Part::ep}, 0},
      {"pp", {Part::pp}, 0},
      {"bubble", {Part::bubble}, 0},
      {"dp", {Part::dp}, 0},
      {"optim", {Part::optimizer}, 2},
      {"jitter", {Part::jitter}, 3}};
  const auto sum = [](const cost::StepCost& s, const Group& g) {
    double total = 0.0;
    for (const Part p : g.parts) total += s[p];
    return total;
  };
  std::vector<Group> shown;
  std::vector<Column> columns = {{.header = "#"}};
  for (const Group& g : groups) {
    const bool any = std::any_of(view.result->best.begin(), view.result->best.end(),
                                 [&](const Ranked& r) { return sum(r.cost, g) > 0.0; });
    if (!any) continue;
    shown.push_back(g);
    columns.push_back({.header = g.header, .drop = g.drop});
  }
  columns.push_back({.header = "step"});
  columns.push_back({.header = "bubble %", .drop = 1});
  Table table(columns);
  for (std::size_t i = 0; i < view.result->best.size(); ++i) {
    const cost::StepCost& s = view.result->best[i].cost;
    std::vector<std::string> cells = {number(static_cast<std::int64_t>(i) + 1)};
    for (const Group& g : shown) cells.push_back(fixed(sum(s, g) * 1e3, 1));
    cells.push_back(fixed(s.seconds() * 1e3, 1));
    cells.push_back(percent(s.bubble_fraction));
    table.add_row(std::move(cells), i == 0 ? Tone::strong : Tone::plain);
  }
  return table.render(style);
}

std::string memory_table(const PlanView& view, const Style& style) {
  std::vector<Column> columns = {{.header = "#"}};
  for (std::int32_t p = 0; p < cost::kNumMemoryParts; ++p) {
    columns.push_back({.header = std::string(cost::name(static_cast<cost::MemoryPart>(p)))});
  }
  columns.push_back({.header = "allocated"});
  columns.push_back({.header = "reserved"});
  columns.push_back({.header = "of usable", .drop = 1});
  columns.push_back({.header = "pipeline rank", .drop = 2});
  Table table(columns);
  for (std::size_t i = 0; i < view.result->best.size(); ++i) {
    const cost::MemoryCost& m = view.result->best[i].cost.memory;
    std::vector<std::string> cells = {number(static_cast<std::int64_t>(i) + 1)};
    for (const double bytes : m.parts) cells.push_back(gigabytes(bytes));
    cells.push_back(gigabytes(m.allocated()));
    cells.push_back(gigabytes(m.reserved()));
    cells.push_back(percent(m.reserved() / search::usable_memory(*view.setup)));
    cells.push_back(number(m.pipeline_rank));
    table.add_row(std::move(cells), i == 0 ? Tone::strong : Tone::plain);
  }
  return table.render(style);
}

std::string describe(const search::Rejection& r) {
  using search::Reason;
  const std::string nearest = cost::to_text(r.nearest);
  switch (r.reason) {
    case Reason::batch:
    case Reason::shape:
    case Reason::schedule:
      return fmt::format("{} ({})", r.why, nearest);
    case Reason::does_not_fit:
      return fmt::format("nearest: {} needs {} GB of {}, {} over", nearest, gigabytes(r.needs),
                         gigabytes(r.limit), percent(r.excess()));
    case Reason::bound:
      return fmt::format("nearest: {} takes at least {}, {} behind the best", nearest, seconds_text(r.needs),
                         percent(r.excess()));
    case Reason::slower:
      if (r.excess() < 0.0) {
        return fmt::format(
            "nearest: {} takes {} in closed form; what the simulator timed of its layout is slower", nearest,
            seconds_text(r.needs));
      }
      return fmt::format("nearest: {} takes {}, {} behind the best", nearest, seconds_text(r.needs),
                         percent(r.excess()));
  }
  return nearest;
}

namespace {

std::string reason_text(const search::Rejection& r) {
  using search::Reason;
  switch (r.reason) {
    case Reason::batch:
      return "layouts that do not divide the batch";
    case Reason::shape:
      return "layouts that do not divide the model";
    case Reason::schedule:
      return "choices that do not suit each other";
    case Reason::does_not_fit:
      return "do not fit in memory";
    case Reason::bound:
      return "slower, even without bubble and reductions";
    case Reason::slower:
      return fmt::format("slower, most by: {}", describe(r.lost_to));
  }
  return "";
}

}  // namespace

std::string rejection_table(const PlanView& view, const Style& style) {
  std::vector<search::Rejection> all = view.result->rejections;
  // By kind, then the most frequent first.
  std::stable_sort(all.begin(), all.end(), [](const search::Rejection& a, const search::Rejection& b) {
    return a.reason != b.reason ? a.reason < b.reason : a.count > b.count;
  });
  std::string text;
  for (const search::Rejection& r : all) {
    const std::string head = fmt::format("{:>11}  {}", grouped(r.count), reason_text(r));
    text += clip(head, columns(style)) + "\n";
    const std::int32_t depth = std::min(13, columns(style) / 4);
    const std::string indent(static_cast<std::size_t>(depth), ' ');
    const std::int32_t room = columns(style) - depth;
    for (const std::string& line : wrap(describe(r), room)) {
      text += paint(indent + line, Tone::faint, style) + "\n";
    }
  }
  return text;
}

}  // namespace tessera::report
