#include "cli/size_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/count.h"
#include "base/error.h"
#include "cli/explain_plan.h"
#include "explain/sizing.h"
#include "report/sizing_view.h"

namespace tessera::cli {
namespace {

using Json = nlohmann::ordered_json;
using explain::Size;

explain::SizingOptions options_of(const SizeFlags& flags) {
  Problems problems;
  explain::SizingOptions o{.deadline_days = flags.deadline_days,
                           .price_per_device_hour = flags.price,
                           .reliability = {.device_mtbf_hours = flags.mtbf_hours,
                                           .checkpoint_seconds = flags.checkpoint_seconds,
                                           .restart_seconds = flags.restart_seconds,
                                           .interval_seconds = flags.interval_seconds},
                           .devices = flags.sizes,
                           .most_devices = flags.most_devices,
                           .memory_fraction = flags.memory,
                           .threads = flags.threads};
  o.tokens = tokens_of(flags.tokens, problems);
  problems.throw_if_any();
  return o;
}

Json to_json(const Size& s) {
  Json j = {{"devices", s.devices},
            {"days", s.days},
            {"meets_deadline", s.meets_deadline},
            {"step_seconds", s.cost.seconds()},
            {"mfu", s.cost.mfu()},
            {"goodput", s.goodput.share},
            {"failures_per_day", s.goodput.failures_per_day},
            {"checkpoint_interval_seconds", s.goodput.interval_seconds}};
  if (s.price > 0.0) j["price"] = s.price;
  j["layout"] = Json::parse(layout_json(s.candidate));
  return j;
}

void print_json(const SizeFlags& flags, const cost::Setup& setup, const explain::Sizing& s,
                const explain::SizingOptions& o, const Size* base,
                std::span<const explain::Marginal> marginals) {
  const auto devices_at = [&](std::int32_t i) {
    return i < 0 ? Json() : Json(s.sizes[static_cast<std::size_t>(i)].devices);
  };
  Json sizes = Json::array(), changes = Json::array();
  for (const Size& size : s.sizes) sizes.push_back(to_json(size));
  for (const explain::Marginal& m : marginals) {
    Json j = {{"change", explain::name(m.upgrade)}, {"factor", m.factor}, {"worth", m.worth(*base)}};
    j["saved_days"] = base->days - m.size.days;
    if (base->price > 0.0) j["saved_price"] = base->price - m.size.price;
    j["size"] = to_json(m.size);
    changes.push_back(std::move(j));
  }
  Json j = {{"model", flags.model},
            {"cluster", setup.cluster.name},
            {"device", setup.calibration.name},
            {"tokens", o.tokens},
            {"global_batch_size", setup.work.global_batch_size},
            {"sequence_length", setup.work.sequence_length},
            {"deadline_days", o.deadline_days},
            {"fewest", devices_at(s.fewest)},
            {"cheapest", devices_at(s.cheapest)},
            {"fastest", devices_at(s.fastest)},
            {"nearest", devices_at(s.nearest)},
            {"sizes", std::move(sizes)},
            {"too_small", s.too_small},
            {"undivided", s.undivided},
            {"too_late_at_any_layout", s.hopeless}};
  if (base != nullptr) j["better_machines"] = {{"devices", base->devices}, {"changes", std::move(changes)}};
  std::printf("%s\n", j.dump(2).c_str());
}

}  // namespace

double tokens_of(const std::string& text, Problems& problems) {
  const std::optional<double> tokens = parse_count(text);
  if (tokens && *tokens > 0.0) return *tokens;
  problems.add(fmt::format("\"{}\" is no number of tokens", text), "--tokens",
               "write a number above 0: 15T, 300B or 1.4e12");
  return 1.0;
}

int size(const SizeFlags& flags, const Terminal& terminal) {
  const explain::SizingOptions options = options_of(flags);
  const Question q = read_question(flags);
  const explain::Sizing sizing = explain::size_training(q.setup, q.space, options);
  if (sizing.sizes.empty()) {
    const bool memory = sizing.undivided.empty();
    throw Error(ErrorKind::config,
                fmt::format("no layout of {} on {} to {} x {}{}", flags.model,
                            std::min(sizing.too_small.empty() ? 1 << 30 : sizing.too_small.front(),
                                     memory ? 1 << 30 : sizing.undivided.front()),
                            std::max(sizing.too_small.empty() ? 0 : sizing.too_small.back(),
                                     memory ? 0 : sizing.undivided.back()),
                            q.setup.calibration.name, memory ? " fits" : " is valid"),
                "tessera size",
                memory ? "try more devices (--max-devices), or devices with more memory"
                       : "try another --gbs, other --devices, or lift a --pin");
  }
  const std::int32_t index = sizing.fewest < 0           ? sizing.nearest
                             : flags.deadline_days > 0.0 ? sizing.fewest
                                                         : sizing.cheapest;
  const Size& base = sizing.sizes[static_cast<std::size_t>(index)];
  std::vector<explain::Marginal> marginals;
  if (!flags.only_sizes) {
    cost::Setup sized = q.setup;
    sized.cluster = spec::with_devices(q.setup.cluster, base.devices);
    marginals = explain::marginal_values(sized, q.space, options, base);
  }
  const Size* shown = flags.only_sizes ? nullptr : &base;
  if (flags.json) {
    print_json(flags, q.setup, sizing, options, shown, marginals);
  } else {
    const report::SizingView view{.model = std::filesystem::path(flags.model).filename().string(),
                                  .cluster = q.setup.cluster.name,
                                  .sizing = &sizing,
                                  .options = &options,
                                  .setup = &q.setup,
                                  .base = shown,
                                  .marginals = marginals};
    std::printf("%s", report::sizing_page(view, terminal.style).c_str());
  }
  return sizing.fewest < 0 ? 1 : 0;
}

}  // namespace tessera::cli
