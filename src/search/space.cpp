#include "search/space.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <numeric>
#include <tuple>

#include "base/text.h"
#include "graph/block.h"

namespace tessera::search {

namespace {

using spec::Recompute;

struct ModuleName {
  graph::Module module;
  std::string_view name;
};
constexpr std::array<ModuleName, 7> kModules = {{
    {graph::Module::core_attn, "core_attn"},
    {graph::Module::layernorm, "layernorm"},
    {graph::Module::mlp, "mlp"},
    {graph::Module::moe, "moe"},
    {graph::Module::moe_act, "moe_act"},
    {graph::Module::mla_up_proj, "mla_up_proj"},
    {graph::Module::shared_experts, "shared_experts"},
}};

std::uint32_t bit(graph::Module m) {
  return static_cast<std::uint32_t>(m);
}

std::string expected(const std::vector<std::string>& words) {
  return "use one of " + join(words, ", ");
}

std::string did_you_mean(std::string_view word, const std::vector<std::string>& words) {
  const std::string near = nearest(word, words);
  return near.empty() ? expected(words) : "did you mean " + near + "? " + expected(words);
}

std::vector<std::string> order_names() {
  std::vector<std::string> names;
  for (const auto o : {cost::AxisOrder::tp_cp_ep_dp_pp, cost::AxisOrder::tp_cp_ep_pp_dp}) {
    names.emplace_back(cost::name(o));
  }
  return names;
}

// Reads the values of one pin; `ok` turns false with a problem added.
class PinReader {
 public:
  PinReader(std::string_view pin, Problems& problems) : pin_(pin), problems_(problems) {}

  void wrong(std::string_view word, const std::string& mend) {
    problems_.add(fmt::format("\"{}\" is not a value of {}", word, pin_.substr(0, pin_.find('='))),
                  fmt::format("--pin {}", pin_), mend);
  }
  [[nodiscard]] std::vector<std::string> words() const { return split(pin_.substr(pin_.find('=') + 1), ','); }
  [[nodiscard]] std::vector<std::int32_t> numbers(std::int32_t smallest, std::int32_t largest) {
    std::vector<std::int32_t> values;
    for (const std::string& word : words()) {
      const std::string_view w = trim(word);
      std::int32_t value = 0;
      const auto [end, error] = std::from_chars(w.data(), w.data() + w.size(), value);
      if (error != std::errc() || end != w.data() + w.size() || value < smallest || value > largest) {
        wrong(word, fmt::format("use whole numbers from {} to {}, with commas between", smallest, largest));
        continue;
      }
      values.push_back(value);
    }
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    return values;
  }
  [[nodiscard]] std::vector<schedule::Kind> schedules() {
    std::vector<schedule::Kind> values;
    for (const std::string& word : words()) {
      try {
        values.push_back(schedule::parse_kind(trim(word), fmt::format("--pin {}", pin_)));
      } catch (const Error& e) {
        for (const Problem& p : e.problems()) problems_.add(p.what, p.where, p.mend);
      }
    }
    return values;
  }
  [[nodiscard]] std::vector<cost::AxisOrder> orders() {
    const std::vector<std::string> names = order_names();
    std::vector<cost::AxisOrder> values;
    for (const std::string& word : words()) {
      const auto at = std::find(names.begin(), names.end(), trim(word));
      if (at == names.end()) {
        wrong(word, did_you_mean(word, names));
      } else {
        values.push_back(static_cast<cost::AxisOrder>(at - names.begin()));
      }
    }
    return values;
  }
  [[nodiscard]] std::vector<RecomputeChoice> recompute() {
    std::vector<RecomputeChoice> values;
    for (const std::string& word : words()) {
      const std::vector<std::string> parts = split(trim(word), ':');
      const std::vector<std::string> modes = {"none", "selective", "full"};
      const auto at = std::find(modes.begin(), modes.end(), parts[0]);
      if (at == modes.end() || parts.size() > 2 || (parts.size() == 2 && parts[0] != "selective")) {
        wrong(word, did_you_mean(parts[0], modes) + ", or selective:layernorm+moe_act");
        continue;
      }
      RecomputeChoice choice{.mode = static_cast<Recompute>(at - modes.begin())};
      if (choice.mode == Recompute::selective) {
        choice.modules = parts.size() == 2 ? modules(parts[1])
                                           : bit(graph::Module::layernorm) | bit(graph::Module::moe_act);
      }
      values.push_back(choice);
    }
    return values;
  }

 private:
  std::uint32_t modules(std::string_view text) {
    std::vector<std::string> names;
    for (const ModuleName& m : kModules) names.emplace_back(m.name);
    std::uint32_t bits = 0;
    for (const std::string& word : split(text, '+')) {
      const auto at = std::find(names.begin(), names.end(), word);
      if (at == names.end()) {
        wrong(word, did_you_mean(word, names));
      } else {
        bits |= bit(kModules[static_cast<std::size_t>(at - names.begin())].module);
      }
    }
    return bits;
  }

  std::string_view pin_;
  Problems& problems_;
};

void apply_pin(std::string_view pin, Space& space, Problems& problems) {
  const std::size_t equal = pin.find('=');
  const std::string name(trim(pin.substr(0, equal)));
  const std::vector<std::string> names = pin_names();
  if (std::find(names.begin(), names.end(), name) == names.end()) {
    problems.add(fmt::format("there is no axis or choice \"{}\"", name), fmt::format("--pin {}", pin),
                 did_you_mean(name, names));
    return;
  }
  if (equal == std::string_view::npos || trim(pin.substr(equal + 1)).empty()) {
    problems.add(fmt::format("{} has no value", name), fmt::format("--pin {}", pin),
                 "write for example --pin tp=8 or --pin pp=4,8");
    return;
  }
  constexpr std::int32_t kMost = 1 << 20;
  PinReader reader(pin, problems);
  if (name == "zero") {
    space.zero_stages = reader.numbers(0, 3);
  } else if (name == "recompute") {
    space.recompute = reader.recompute();
  } else if (name == "schedule") {
    space.schedules = reader.schedules();
  } else if (name == "order") {
    space.orders = reader.orders();
  } else {
    const std::array<std::pair<std::string_view, std::vector<std::int32_t>*>, 8> axes = {{
        {"tp", &space.tp},
        {"cp", &space.cp},
        {"pp", &space.pp},
        {"dp", &space.dp},
        {"ep", &space.ep},
        {"etp", &space.etp},
        {"vpp", &space.vpp},
        {"mbs", &space.micro_batch_size},
    }};
    for (const auto& [axis, values] : axes) {
      if (axis == name) *values = reader.numbers(1, kMost);
    }
  }
}

}  // namespace

std::string to_text(const RecomputeChoice& choice) {
  switch (choice.mode) {
    case Recompute::none:
      return "none";
    case Recompute::full:
      return "full";
    case Recompute::selective:
      break;
  }
  std::vector<std::string> words;
  for (const ModuleName& m : kModules) {
    if ((choice.modules & bit(m.module)) != 0) words.emplace_back(m.name);
  }
  return "selective:" + join(words, "+");
}

std::vector<RecomputeChoice> default_recompute(const spec::ModelSpec& m, const graph::Practice& practice) {
  using graph::Module;
  std::vector<RecomputeChoice> choices = {{.mode = Recompute::none}};
  const auto add = [&](std::uint32_t modules) {
    const RecomputeChoice choice{.mode = Recompute::selective, .modules = modules};
    if (modules != 0 && std::find(choices.begin(), choices.end(), choice) == choices.end()) {
      choices.push_back(choice);
    }
  };
  // Without a flash kernel the scores are the first thing to drop (arXiv 2205.05198), so every set has them.
  const std::uint32_t core = practice.flash_attention ? 0U : bit(Module::core_attn);
  const std::uint32_t up = m.mla ? bit(Module::mla_up_proj) : 0U;
  const std::uint32_t cheap = bit(Module::layernorm) | bit(Module::moe_act);
  std::uint32_t feed_forward = bit(Module::mlp);
  if (m.moe) {
    feed_forward |= bit(Module::moe);
    if (m.moe->shared_intermediate_size > 0) feed_forward |= bit(Module::shared_experts);
  }
  add(core);
  add(core | bit(Module::layernorm));
  add(core | bit(Module::moe_act));
  add(core | cheap);
  add(core | up);
  add(core | cheap | up);
  add(core | feed_forward);
  add(core | feed_forward | bit(Module::layernorm) | up);
  choices.push_back({.mode = Recompute::full});
  return choices;
}

std::vector<std::string> pin_names() {
  return {"tp", "cp", "pp", "dp", "ep", "etp", "vpp", "mbs", "zero", "recompute", "schedule", "order"};
}

void apply_pins(std::span<const std::string> pins, Space& space, Problems& problems) {
  for (const std::string& pin : pins) apply_pin(pin, space, problems);
}

void check_space(const cost::Setup& setup, const Space& space, Problems& problems) {
  const std::int32_t world = setup.cluster.num_devices;
  const auto check = [&](const char* name, const std::vector<std::int32_t>& values, std::int64_t whole,
                         const std::string& whole_name) {
    const bool some = values.empty() || std::any_of(values.begin(), values.end(),
                                                    [&](std::int32_t v) { return v > 0 && whole % v == 0; });
    if (some) return;
    std::vector<std::string> words;
    for (const std::int32_t v : values) words.push_back(fmt::format("{}", v));
    problems.add(fmt::format("{}={} does not divide {}={}", name, join(words, ","), whole_name, whole),
                 fmt::format("--pin {}={}", name, join(words, ",")),
                 fmt::format("use {} in {}", name, divisors_text(whole)));
  };
  check("tp", space.tp, world, "devices");
  check("cp", space.cp, world, "devices");
  check("pp", space.pp, world, "devices");
  check("dp", space.dp, world, "devices");
  check("mbs", space.micro_batch_size, setup.work.global_batch_size, "global batch size");
  if (setup.model.moe) {
    check("ep", space.ep, setup.model.moe->num_experts, "experts");
    check("etp", space.etp, spec::expert_intermediate_size(setup.model), "expert width");
    return;
  }
  for (const auto& [name, values] : {std::pair{"ep", &space.ep}, std::pair{"etp", &space.etp}}) {
    if (values->empty() || std::find(values->begin(), values->end(), 1) != values->end()) continue;
    problems.add(
        fmt::format("{}={} needs a model with experts, and this one is dense", name, values->front()),
        fmt::format("--pin {}", name), fmt::format("remove the pin of {}", name));
  }
}

std::strong_ordering compare(const cost::Candidate& a, const cost::Candidate& b) {
  const auto key = [](const cost::Candidate& c) {
    return std::tuple(c.tp, c.cp, c.pp, c.ep, c.etp, c.dp, c.micro_batch_size, c.vpp, c.zero_stage,
                      c.recompute, c.recompute_modules, c.schedule, c.order, c.zero_group,
                      c.sequence_parallel);
  };
  return key(a) <=> key(b);
}

}  // namespace tessera::search
