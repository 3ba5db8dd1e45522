#include "report/compare_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "report/numbers.h"
#include "report/page.h"
#include "report/table.h"
#include "report/waterfall.h"

namespace tessera::report {

namespace {

using explain::Side;

// One table of a section: a line a figure.
class Rows {
 public:
  Rows(const CompareView& view, const char* what)
      : table_({{.header = what, .align = Align::left},
                {.header = clip(view.first->name, kWidest)},
                {.header = clip(view.second->name, kWidest)},
                {.header = "B / A", .drop = 1}}) {}
  // `decimals` of a number as it stands.
  void number(const char* what, double a, double b, std::int32_t decimals) {
    add(what, a, b, fixed(a, decimals), fixed(b, decimals));
  }
  void count(const char* what, double a, double b) { add(what, a, b, quantity(a), quantity(b)); }
  void share(const char* what, double a, double b) { add(what, a, b, percent(a), percent(b)); }
  void text(const char* what, std::string a, std::string b) {
    table_.add_row({what, std::move(a), std::move(b), ""});
  }
  [[nodiscard]] std::string render(const Style& style) const { return table_.render(style); }

 private:
  static constexpr std::int32_t kWidest = 28;
  void add(const char* what, double a, double b, std::string a_text, std::string b_text) {
    const bool ratio = a > 0.0 && b > 0.0;
    table_.add_row({what, std::move(a_text), std::move(b_text), ratio ? fixed(b / a, 2) : ""});
  }
  Table table_;
};

std::string money(double dollars) {
  return dollars > 0.0 ? quantity(dollars) : std::string("--");
}

double flops(const Side& s) {
  return spec::train_flops_per_token(s.setup.model, s.setup.work.sequence_length,
                                     spec::AttentionFlops::causal);
}

std::string model_table(const CompareView& v, const Style& style) {
  const Side &a = *v.first, &b = *v.second;
  const auto all = [](const Side& s) { return static_cast<double>(spec::num_parameters(s.setup.model)); };
  const auto active = [](const Side& s) {
    return static_cast<double>(spec::num_active_parameters(s.setup.model));
  };
  Rows rows(v, "model");
  rows.count("parameters", all(a), all(b));
  rows.count("active for a token", active(a), active(b));
  rows.count("FLOPs to train on a token", flops(a), flops(b));
  const auto of = [](std::int64_t n) { return static_cast<double>(n); };
  rows.number("layers", a.setup.model.num_hidden_layers, b.setup.model.num_hidden_layers, 0);
  rows.number("width", of(a.setup.model.hidden_size), of(b.setup.model.hidden_size), 0);
  rows.number("devices", a.setup.cluster.num_devices, b.setup.cluster.num_devices, 0);
  return rows.render(style);
}

std::string training_table(const CompareView& v, const Style& style) {
  const Side &a = *v.first, &b = *v.second;
  const auto rate = [](const Side& s) { return s.step_tokens() / s.cost.seconds(); };
  Rows rows(v, "training");
  rows.number("step, s", a.cost.seconds(), b.cost.seconds(), 3);
  rows.count("tokens/s", rate(a), rate(b));
  rows.number("tokens/s a device", rate(a) / a.candidate.world_size(), rate(b) / b.candidate.world_size(), 0);
  rows.share("MFU", a.cost.mfu(), b.cost.mfu());
  rows.number("days", a.days, b.days, 1);
  rows.text("price", money(a.price), money(b.price));
  if (a.has_experts() || b.has_experts()) {
    rows.number("step under even routing, s", a.even_seconds, b.even_seconds, 3);
    rows.number("under uneven routing, s", a.uneven_seconds, b.uneven_seconds, 3);
    rows.number(fmt::format("under power:{:g}, s", v.options->alpha).c_str(), a.power_seconds,
                b.power_seconds, 3);
  }
  if (a.network_seconds > 0.0 && b.network_seconds > 0.0)
    rows.number("on twice the network, s", a.network_seconds, b.network_seconds, 3);
  if (a.fewest_devices > 0 && b.fewest_devices > 0)
    rows.number("devices it fits on", a.fewest_devices, b.fewest_devices, 0);
  return rows.render(style);
}

std::string time_table(const CompareView& v, const Style& style) {
  const auto micros = [](const Side& s, double seconds) {
    return seconds * s.candidate.world_size() / s.step_tokens() * 1e6;
  };
  const Side &a = *v.first, &b = *v.second;
  Rows rows(v, "device microseconds a token");
  for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
    const auto part = static_cast<cost::Part>(p);
    const double x = micros(a, a.cost[part]), y = micros(b, b.cost[part]);
    constexpr double kSeen = 0.005;
    if (x >= kSeen || y >= kSeen) rows.number(std::string(describe(part)).c_str(), x, y, 2);
  }
  rows.number("together", micros(a, a.cost.seconds()), micros(b, b.cost.seconds()), 2);
  return rows.render(style);
}

double sent(const Side& s, std::initializer_list<graph::Axis> axes) {
  double bytes = 0.0;
  for (const graph::Axis axis : axes) bytes += s.cost.bytes_sent[static_cast<std::size_t>(axis)];
  return bytes / 1e9;
}

std::string bytes_table(const CompareView& v, const Style& style) {
  using graph::Axis;
  const Side &a = *v.first, &b = *v.second;
  Rows rows(v, "GB that a device sends in a step");
  const std::pair<const char*, std::vector<Axis>> axes[] = {
      {"tp, activations inside a layer", {Axis::tp}},
      {"cp, keys and values", {Axis::cp}},
      {"ep, tokens to experts and back", {Axis::ep, Axis::ep_inter, Axis::ep_intra, Axis::etp}},
      {"pp, activations between stages", {Axis::pp}},
      {"dp, gradients and weights", {Axis::dp, Axis::edp}}};
  for (const auto& [what, list] : axes) {
    double x = 0.0, y = 0.0;
    for (const Axis axis : list) x += sent(a, {axis}), y += sent(b, {axis});
    if (x > 0.0 || y > 0.0) rows.number(what, x, y, 2);
  }
  return rows.render(style);
}

std::string memory_table_of(const CompareView& v, const Style& style) {
  const Side &a = *v.first, &b = *v.second;
  Rows rows(v, "GB of the fullest device");
  for (std::int32_t p = 0; p < cost::kNumMemoryParts; ++p) {
    const auto part = static_cast<cost::MemoryPart>(p);
    rows.number(std::string(cost::name(part)).c_str(), a.cost.memory[part] / 1e9, b.cost.memory[part] / 1e9,
                1);
  }
  rows.number("reserved", a.cost.memory.reserved() / 1e9, b.cost.memory.reserved() / 1e9, 1);
  return rows.render(style);
}

std::string serving_table(const CompareView& v, const Style& style) {
  const explain::Serving &a = v.first->serving, &b = v.second->serving;
  const std::int64_t batch = v.options->serving.batch;
  Rows rows(v, "serving in bf16");
  rows.number("weights, GB", a.weight_bytes / 1e9, b.weight_bytes / 1e9, 1);
  rows.number("cache of a token, KB", a.cache_of_token / 1e3, b.cache_of_token / 1e3, 1);
  rows.number(fmt::format("cache of {} x {} tokens, GB", batch, v.options->serving.context).c_str(),
              a.cache_bytes / 1e9, b.cache_bytes / 1e9, 1);
  rows.number("devices that hold both", a.devices, b.devices, 0);
  rows.number("GB read for a token, batch 1", a.read_alone / 1e9, b.read_alone / 1e9, 1);
  rows.number("  ms at least, on these devices", a.seconds_alone * 1e3, b.seconds_alone * 1e3, 2);
  rows.number(fmt::format("GB read for a step, batch {}", batch).c_str(), a.read_batch / 1e9,
              b.read_batch / 1e9, 1);
  rows.number("  ms at least, on these devices", a.seconds_batch * 1e3, b.seconds_batch * 1e3, 2);
  rows.number("  device ms a token at least", a.device_seconds(batch) * 1e3, b.device_seconds(batch) * 1e3,
              3);
  if (a.experts_touched > 0.0 || b.experts_touched > 0.0)
    rows.number("  experts touched of a layer", a.experts_touched, b.experts_touched, 1);
  return rows.render(style);
}

// "1.31 times".
std::string times(double ratio) {
  return fixed(ratio, ratio < 0.2 ? 3 : 2) + " times";
}

const Side& side(const CompareView& v, std::int32_t index) {
  return index == 0 ? *v.first : *v.second;
}

class Verdict {
 public:
  explicit Verdict(const CompareView& v)
      : v_(v), mixture_(explain::mixture_verdict(*v.first, *v.second, *v.options)) {}

  std::vector<std::string> sentences() {
    if (!v_.first->found || !v_.second->found) {
      missing();
    } else if (mixture_.mixture >= 0) {
      of_mixture();
    } else {
      of_any();
    }
    for (const explain::Against why : mixture_.against) say(reason(why));
    if (mixture_.mixture < 0) serving();
    return std::move(out_);
  }

 private:
  void say(std::string sentence) {
    if (!sentence.empty()) out_.push_back(std::move(sentence));
  }

  void missing() {
    for (const Side* s : {v_.first, v_.second}) {
      if (!s->found) say(fmt::format("{}: {} of {} devices.", s->name, s->why, s->setup.cluster.num_devices));
    }
  }

  void of_mixture() {
    const bool prices = v_.first->price > 0.0 && v_.second->price > 0.0;
    const std::string what = prices ? "money" : "device time";
    const std::string token =
        fmt::format("to train on a token costs {} {} {} that of {}.", mixture().name,
                    prices ? "money" : "device time", times(mixture_.cost_ratio), dense().name);
    std::string text = "T" + token.substr(1);
    if (v_.options->gain > 0.0) {
      text = fmt::format(
          "Training: {} {}. {} It pays when the dense one needs more than {} its tokens for the same loss; "
          "assumed are {:g} ({}).",
          mixture().name, mixture_.pays ? "pays" : "does not pay", text, times(mixture_.cost_ratio),
          v_.options->gain, v_.gain_source);
    } else if (mixture_.cost_ratio >= 1.0) {
      text += fmt::format(
          " It pays when the dense one needs more than {} its tokens for the same loss (--gain says how "
          "many).",
          times(mixture_.cost_ratio));
    } else {
      text += fmt::format(
          " It pays as long as it needs fewer than {} the tokens of the dense one for the same loss "
          "(--gain).",
          times(1.0 / mixture_.cost_ratio));
    }
    say(text);
    if (mixture_.network_cost_ratio > 0.0 && mixture_.cost_ratio > 1.0) {
      const bool part = mixture_.network_cost_ratio < 0.98 * mixture_.cost_ratio;
      say(fmt::format("On twice the network the ratio would be {}: the network {} the reason.",
                      fixed(mixture_.network_cost_ratio, 2), part ? "is a part of" : "is not"));
    }
  }

  [[nodiscard]] static std::string_view most_waited(const Side& s) {
    using cost::Part;
    return describe(std::ranges::max({Part::tp, Part::cp, Part::ep, Part::pp, Part::dp}, {},
                                     [&](Part p) { return s.cost[p]; }));
  }

  [[nodiscard]] std::string uneven(const Side& m) const {
    if (m.setup.routing.kind != cost::LoadKind::balanced) return cost::to_text(m.setup.routing);
    return fmt::format("uneven routing (the busiest expert {:g} times the mean)",
                       1.0 + v_.options->routing_excess);
  }

  [[nodiscard]] std::string reason(explain::Against why) const {
    using explain::Against;
    const Side &m = mixture(), &d = dense();
    switch (why) {
      case Against::no_layout:
        return "It does not fit where the dense one does.";
      case Against::cost:
        return "";  // said above
      case Against::network:
        return fmt::format(
            "Starved of bandwidth: {} of its step waits for messages, most of it for {}; of the dense one's "
            "{}.",
            percent(mixture_.waiting), most_waited(m), percent(mixture_.dense_waiting));
      case Against::imbalance:
        return fmt::format(
            "Imbalance: under {} its step is {} longer than under even routing, and a token costs {} that of "
            "the dense one{}.",
            uneven(m), percent(m.uneven_seconds / m.even_seconds - 1.0), times(mixture_.uneven_cost_ratio),
            mixture_.pays && mixture_.uneven_cost_ratio > v_.options->gain
                ? ": more than the assumed gain gives back"
                : "");
      case Against::small_scale:
        return fmt::format(
            "At small scale it cannot start: training fits on {} devices, the dense one on {}.",
            m.fewest_devices, d.fewest_devices);
      case Against::serving_memory:
        return fmt::format(
            "Serving holds {} GB of weights and {} GB of cache on {} devices; the dense one needs {}. At "
            "batch "
            "1 it reads {} GB a token, the dense one {}.",
            fixed(m.serving.weight_bytes / 1e9, 1), fixed(m.serving.cache_bytes / 1e9, 1), m.serving.devices,
            d.serving.devices, fixed(m.serving.read_alone / 1e9, 1), fixed(d.serving.read_alone / 1e9, 1));
      case Against::latency:
        return fmt::format(
            "Bound by latency: a batch of {} touches {} of {} experts of a layer, so a step reads {} GB, {} "
            "those of the dense one: on the same devices it takes as much longer at least.",
            v_.options->serving.batch, fixed(m.serving.experts_touched, 1), m.setup.model.moe->num_experts,
            fixed(m.serving.read_batch / 1e9, 1), times(m.serving.read_batch / d.serving.read_batch));
    }
    return "";
  }

  void of_any() {
    const double days = v_.second->days / v_.first->days;
    const std::int32_t faster = days >= 1.0 ? 0 : 1;
    constexpr double kSame = 0.02;
    const std::string tokens = quantity(v_.options->tokens);
    if (std::abs(days - 1.0) <= kSame) {
      say(fmt::format("Both train {} tokens in {} days.", tokens, fixed(v_.first->days, 1)));
    } else {
      say(fmt::format("{} trains {} tokens in {} days, {} in {}: {} as fast.", side(v_, faster).name, tokens,
                      fixed(side(v_, faster).days, 1), side(v_, 1 - faster).name,
                      fixed(side(v_, 1 - faster).days, 1), times(std::max(days, 1.0 / days))));
    }
    const bool prices = v_.first->price > 0.0 && v_.second->price > 0.0;
    const double a = prices ? v_.first->price : v_.first->token_cost();
    const double b = prices ? v_.second->price : v_.second->token_cost();
    if (std::abs(b / a - 1.0) > kSame) {
      say(fmt::format("{} takes {} less {} a token: {}.", side(v_, a < b ? 0 : 1).name,
                      percent(1.0 - std::min(a, b) / std::max(a, b)), prices ? "money" : "device time",
                      largest_difference(a < b ? 0 : 1)));
    }
  }

  // Where the dearer one loses.
  [[nodiscard]] std::string largest_difference(std::int32_t cheaper) const {
    const Side &good = side(v_, cheaper), &bad = side(v_, 1 - cheaper);
    const auto micros = [](const Side& s, cost::Part p) {
      return s.cost[p] * s.candidate.world_size() / s.step_tokens() * 1e6;
    };
    std::vector<std::pair<double, cost::Part>> parts;
    for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
      const auto part = static_cast<cost::Part>(p);
      parts.emplace_back(micros(bad, part) - micros(good, part), part);
    }
    std::ranges::stable_sort(parts, [](const auto& x, const auto& y) { return x.first > y.first; });
    std::string text = "the other loses";
    for (std::size_t i = 0; i < 2 && parts[i].first > 0.0; ++i) {
      text += fmt::format("{} {} us of a device by {}", i == 0 ? "" : " and", fixed(parts[i].first, 2),
                          describe(parts[i].second));
    }
    return text;
  }

  void serving() {
    const explain::Serving &a = v_.first->serving, &b = v_.second->serving;
    if (a.devices == b.devices && v_.first->setup.model == v_.second->setup.model &&
        v_.first->setup.calibration.name == v_.second->setup.calibration.name) {
      return;
    }
    say(fmt::format("Serving needs {} devices and {}; a token of a batch of {} takes at least {} and {} ms.",
                    a.devices, b.devices, v_.options->serving.batch, fixed(a.seconds_batch * 1e3, 2),
                    fixed(b.seconds_batch * 1e3, 2)));
  }

  [[nodiscard]] const Side& mixture() const { return side(v_, mixture_.mixture); }
  [[nodiscard]] const Side& dense() const { return side(v_, 1 - mixture_.mixture); }

  const CompareView& v_;
  explain::MixtureVerdict mixture_;
  std::vector<std::string> out_;
};

std::string where(const Side& s) {
  return fmt::format("{} on {} x {} ({})", s.name, s.setup.cluster.num_devices, s.setup.calibration.name,
                     s.setup.cluster.name);
}

}  // namespace

std::vector<std::string> verdict_sentences(const CompareView& view) {
  return Verdict(view).sentences();
}

std::string compare_page(const CompareView& view, const Style& style) {
  const Side &a = *view.first, &b = *view.second;
  Page page(style);
  page.title(view.title);
  for (const auto& [mark, s] : {std::pair{"A", &a}, {"B", &b}}) {
    const cost::Workload& w = s->setup.work;
    page.description(fmt::format("{}  {}, steps of {} x {} tokens in {}", mark, where(*s),
                                 w.global_batch_size, w.sequence_length, spec::name(w.precision)));
    page.description(fmt::format("{}  {}", mark, s->found ? cost::to_text(s->candidate) : s->why));
  }
  if (!view.note.empty()) page.paragraph(view.note, Tone::faint);
  page.section("Verdict");
  for (const std::string& sentence : verdict_sentences(view)) page.item("- ", sentence, Tone::plain);
  page.section("Side by side");
  page.block(model_table(view, page.inner()));
  if (a.found && b.found) {
    for (const auto& table : {training_table, time_table, bytes_table, memory_table_of}) {
      page.gap();
      page.block(table(view, page.inner()));
    }
  }
  page.gap();
  page.block(serving_table(view, page.inner()));
  page.paragraph(
      fmt::format("Days and price are of {} tokens. Serving is a floor: bytes over the bandwidth of the data "
                  "sheet, no computation, no messages.",
                  quantity(view.options->tokens)),
      Tone::faint);
  return page.text();
}

}  // namespace tessera::report
