#include "cli/explain_plan.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/text.h"
#include "explain/against.h"
#include "explain/what_if.h"
#include "report/what_if_view.h"
#include "search/space.h"

namespace tessera::cli {

namespace {

using Json = nlohmann::ordered_json;

// The one value of an axis, or what it is when nobody names it.
template <class T>
T one(const std::vector<T>& values, T otherwise, const char* what, Problems& problems) {
  if (values.size() > 1) {
    problems.add(fmt::format("{} has {} values", what, values.size()), "--against", "name one layout");
  }
  return values.empty() ? otherwise : values.front();
}

Json flags_of(const cost::Candidate& c) {
  Json j = {{"tp", c.tp},          {"cp", c.cp}, {"pp", c.pp},   {"vpp", c.vpp},
            {"dp", c.dp},          {"ep", c.ep}, {"etp", c.etp}, {"mbs", c.micro_batch_size},
            {"zero", c.zero_stage}};
  j["recompute"] = search::to_text({.mode = c.recompute, .modules = c.recompute_modules});
  j["schedule"] = schedule::name(c.schedule);
  j["order"] = cost::name(c.order);
  return j;
}

Json seconds_by_part(const cost::StepCost& cost) {
  Json j = Json::object();
  for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
    const auto part = static_cast<cost::Part>(p);
    if (cost[part] != 0.0) j[std::string(cost::name(part))] = cost[part];
  }
  return j;
}

explain::Priced price_valid(const cost::Setup& setup, const cost::Candidate& c, const std::string& name) {
  explain::Priced p = explain::price(setup, c);
  if (!p.valid()) {
    throw Error(ErrorKind::config, fmt::format("{} is no valid layout: {}", name, p.invalid),
                cost::to_text(c), "choose degrees that divide the model, the batch and the devices");
  }
  return p;
}

struct Compared {
  explain::Priced chosen, other;
  std::vector<explain::Margin> margins;
  bool turned = false;  // the other is faster: margins are of the other against the chosen
};

Compared compare(const cost::Setup& setup, const Comparison& c) {
  Compared out{.chosen = price_valid(setup, c.chosen, c.chosen_name),
               .other = price_valid(setup, c.other, c.other_name),
               .margins = {}};
  out.turned = out.other.seconds() < out.chosen.seconds();
  if (!(c.chosen == c.other)) {
    out.margins =
        out.turned ? explain::margins(setup, c.other, c.chosen) : explain::margins(setup, c.chosen, c.other);
  }
  return out;
}

}  // namespace

cost::Candidate parse_layout(const std::string& text, const cost::Setup& setup) {
  Problems problems;
  search::Space space;
  std::vector<std::string> pins;
  for (const std::string& pin : split(text, ',')) {
    if (!pin.empty()) pins.push_back(pin);
  }
  search::apply_pins(pins, space, problems);
  problems.throw_if_any();
  cost::Candidate c;
  c.tp = one(space.tp, 1, "tp", problems);
  c.cp = one(space.cp, 1, "cp", problems);
  c.pp = one(space.pp, 1, "pp", problems);
  c.ep = one(space.ep, 1, "ep", problems);
  c.etp = one(space.etp, 1, "etp", problems);
  c.vpp = one(space.vpp, 1, "vpp", problems);
  c.micro_batch_size = one(space.micro_batch_size, 1, "mbs", problems);
  c.zero_stage = one(space.zero_stages, 1, "zero", problems);
  c.order = one(space.orders, cost::AxisOrder::tp_cp_ep_dp_pp, "order", problems);
  const auto recompute = one(space.recompute, search::RecomputeChoice{}, "recompute", problems);
  c.recompute = recompute.mode;
  c.recompute_modules = recompute.modules;
  using schedule::Kind;
  c.schedule = one(space.schedules, c.vpp > 1 ? Kind::interleaved : Kind::one_f_one_b, "schedule", problems);
  const std::int64_t inner = std::int64_t{c.tp} * c.cp * c.pp;
  const std::int32_t devices = setup.cluster.num_devices;
  if (devices % inner != 0) {
    problems.add(fmt::format("tp {} x cp {} x pp {} = {} does not divide {} devices", c.tp, c.cp, c.pp, inner,
                             devices),
                 "--against", "name degrees whose product divides the devices");
  } else {
    c.dp = one(space.dp, static_cast<std::int32_t>(devices / inner), "dp", problems);
  }
  if (c.world_size() != devices && devices % inner == 0) {
    problems.add(fmt::format("the layout has {} ranks, the cluster {} devices", c.world_size(), devices),
                 "--against", "leave dp out: it is what the devices leave");
  }
  problems.throw_if_any();
  return c;
}

std::string layout_json(const cost::Candidate& c) {
  return flags_of(c).dump();
}

report::Style inner_of(const report::Style& style) {
  report::Style inner = style;
  inner.width -= 2;
  return inner;
}

std::string titled(const std::string& title, const std::string& lines, const report::Style& style) {
  std::string text =
      report::paint(report::clip(title, report::columns(style)), report::Tone::strong, style) + "\n\n";
  for (const std::string& line : split(lines, '\n')) text += line.empty() ? "\n" : "  " + line + "\n";
  while (text.ends_with("\n\n")) text.pop_back();
  return text;
}

std::string what_if_text(const cost::Setup& setup, const cost::Candidate& base, const report::Style& style) {
  const explain::Priced priced = price_valid(setup, base, "the plan");
  const std::vector<explain::Change> changes = explain::what_if(setup, base);
  return report::what_if_table({.setup = &setup, .base = &priced, .changes = changes}, style);
}

std::string what_if_json(const cost::Setup& setup, const cost::Candidate& base) {
  const explain::Priced priced = price_valid(setup, base, "the plan");
  Json list = Json::array();
  for (const explain::Change& c : explain::what_if(setup, base)) {
    Json j = {{"lever", explain::name(c.lever)}, {"change", c.text}, {"layout", flags_of(c.candidate)}};
    if (c.priced.valid()) {
      j["step_seconds"] = c.priced.seconds();
      j["gain"] = c.gain(setup, priced);
      j["mfu"] = c.priced.cost.mfu();
      j["reserved_bytes"] = c.priced.cost.memory.reserved();
      j["fits"] = c.priced.fits;
    } else {
      j["not_possible"] = c.priced.invalid;
    }
    list.push_back(std::move(j));
  }
  return Json{{"base_step_seconds", priced.seconds()}, {"base", flags_of(base)}, {"changes", std::move(list)}}
      .dump();
}

std::string against_text(const cost::Setup& setup, const Comparison& c, Detail detail,
                         const report::Style& style) {
  const Compared both = compare(setup, c);
  const report::AgainstView view{.chosen_name = c.chosen_name,
                                 .other_name = c.other_name,
                                 .chosen = &both.chosen,
                                 .other = &both.other,
                                 .margins = both.margins};
  std::string text;
  const auto paragraph = [&](const std::string& sentence) {
    for (const std::string& line : report::wrap(sentence, report::columns(style))) text += line + "\n";
  };
  paragraph(report::against_sentence(view));
  if (detail == Detail::table) text += "\n" + report::against_table(view, style) + "\n";
  if (const std::string margin = report::margin_sentence(view); !margin.empty()) paragraph(margin);
  return text;
}

std::string against_json(const cost::Setup& setup, const Comparison& c) {
  const Compared both = compare(setup, c);
  Json margins = Json::object();
  for (const explain::Margin& m : both.margins) {
    if (m.factor > 0.0) margins[std::string(explain::name(m.coefficient))] = m.factor;
  }
  Json differences = Json::object();
  for (const explain::Difference& d : explain::differences(both.chosen.cost, both.other.cost))
    differences[std::string(cost::name(d.part))] = d.seconds;
  return Json{{"layout", flags_of(c.other)},
              {"text", cost::to_text(c.other)},
              {"step_seconds", both.other.seconds()},
              {"chosen_step_seconds", both.chosen.seconds()},
              {"mfu", both.other.cost.mfu()},
              {"fits", both.other.fits},
              {"reserved_bytes", both.other.cost.memory.reserved()},
              {"seconds", seconds_by_part(both.other.cost)},
              {"slower_by_seconds", std::move(differences)},
              {"order_turns_at", std::move(margins)}}
      .dump();
}

}  // namespace tessera::cli
