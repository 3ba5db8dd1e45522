#include "cli/compare_command.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/explain_plan.h"
#include "cli/simulate_input.h"
#include "cli/size_command.h"
#include "explain/compare.h"
#include "explain/dense_partner.h"
#include "report/compare_view.h"
#include "spec/presets.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using explain::Side;

// OLMoE (arXiv 2409.02060): a mixture with 1.3 of 6.9 G parameters active reaches the loss of the dense
// model of as many active ones with about a third of the tokens. Artetxe et al. (arXiv 2112.10684) saw
// about 4 at small budgets and less at large ones.
constexpr double kPublishedGain = 3.0;
constexpr const char* kGainSource = "OLMoE, arXiv 2409.02060; --gain says another";

enum class Thing : std::uint8_t { model, cluster, plan };

bool is_in(const std::vector<spec::PresetInfo>& presets, const std::string& word) {
  return std::ranges::any_of(presets, [&](const spec::PresetInfo& p) { return p.name == word; });
}

// None: neither; then a problem says what is near.
std::optional<Thing> kind_of(const std::string& word, Problems& problems) {
  if (is_in(spec::model_presets(), word)) return Thing::model;
  if (is_in(spec::cluster_presets(), word)) return Thing::cluster;
  const fs::path path = word;
  std::error_code none;
  if (fs::is_directory(path, none)) return Thing::model;
  if (fs::is_regular_file(path, none)) {
    if (path.extension() == ".yaml" || path.extension() == ".yml") return Thing::cluster;
    return read_text(path).find("tessera-plan") == std::string::npos ? Thing::model : Thing::plan;
  }
  std::vector<std::string> known;
  for (const auto& presets : {spec::model_presets(), spec::cluster_presets()})
    for (const spec::PresetInfo& p : presets) known.push_back(p.name);
  const std::string near = nearest(word, known);
  problems.add(fmt::format("\"{}\" is no shipped model or cluster and no file", word), "tessera compare",
               near.empty() ? "give a shipped model or cluster, a config.json, a cluster YAML or a plan.json"
                            : "did you mean " + near + "?");
  return std::nullopt;
}

struct Things {
  std::vector<std::string> models, clusters, plans;
};

Things sorted(const std::vector<std::string>& words) {
  Problems problems;
  Things out;
  for (const std::string& word : words) {
    const std::optional<Thing> kind = kind_of(word, problems);
    if (!kind) continue;
    (*kind == Thing::model ? out.models : *kind == Thing::cluster ? out.clusters : out.plans).push_back(word);
  }
  problems.throw_if_any();
  return out;
}

std::string base_name(const std::string& word) {
  const fs::path path = word;
  return path.filename() == "config.json" ? path.parent_path().filename().string() : path.filename().string();
}

explain::CompareOptions options_of(const CompareFlags& flags) {
  Problems problems;
  explain::CompareOptions o{.price_per_device_hour = flags.price,
                            .serving = {.batch = flags.serve_batch, .context = flags.serve_context},
                            .alpha = flags.alpha,
                            .routing_excess = flags.routing_excess,
                            .gain = std::max(0.0, flags.gain),
                            .memory_fraction = flags.memory,
                            .threads = flags.threads};
  o.tokens = tokens_of(flags.tokens, problems);
  problems.throw_if_any();
  return o;
}

// What is compared, ready to be planned.
struct Pair {
  Side first, second;
  std::string title, note, gain_source = "--gain";
};

Side plan_of(const CompareFlags& flags, const std::string& model, const std::string& cluster,
             const std::string& name, const explain::CompareOptions& o) {
  QuestionFlags q = flags;
  q.model = model;
  q.cluster = cluster;
  const Question question = read_question(q);
  return explain::planned_side(name, question.setup, question.space, o);
}

// Stages that the plan cuts otherwise than layouts are priced are told in the note.
Side side_of_plan(const CompareFlags& flags, const std::string& path, const std::string& cluster,
                  const explain::CompareOptions& o, std::string& note) {
  SimulateFlags s;
  s.plan = path;
  s.cluster = cluster;
  s.routing = flags.routing;
  s.placement = flags.placement;
  s.calibration = flags.calibration;
  const SimulateInput input = read_simulate_input(s);
  const cost::StageSplit cut(input.setup.model, input.candidate.pp * input.candidate.vpp,
                             input.setup.practice.balanced_stages);
  std::vector<std::int32_t> priced;
  for (std::int32_t i = 0; i < cut.num_stages(); ++i) priced.push_back(cut.layers(i));
  if (priced != input.stage_layers) {
    note += fmt::format(
        "{}{}: the layers of its stages ({}) are priced as they go most evenly; tessera simulate plays them "
        "as they are.",
        note.empty() ? "" : " ", base_name(path), fmt::join(input.stage_layers, " "));
  }
  return explain::fixed_side(base_name(path), input.setup, input.candidate, o);
}

Pair partners(const CompareFlags& flags, const Things& t, explain::CompareOptions& o) {
  const bool active = flags.equal == "active-compute";
  QuestionFlags q = flags;
  q.model = t.models[0];
  q.cluster = t.clusters[0];
  const Question mixture = read_question(q);
  const spec::ModelSpec partner = explain::dense_partner(
      mixture.setup.model, active ? explain::Equal::active_compute : explain::Equal::total_memory);
  q.routing = "balanced";
  q.placement.clear();
  const Question dense = read_question(q, partner);
  Pair pair;
  if (active && flags.gain < 0.0) {
    o.gain = kPublishedGain;
    pair.gain_source = kGainSource;
  }
  const std::string name = base_name(t.models[0]);
  pair.title = fmt::format("{} against a dense model of equal {} on {}", name,
                           active ? "active compute" : "total memory", mixture.setup.cluster.name);
  pair.note = fmt::format(
      "B is made from A: {}: {} layers of width {}, {} heads, feed-forward width {}.",
      active
          ? "the same model with a dense feed-forward part as wide as what a token of A goes through"
          : "depth and width of the dense model of equal active compute grow together until it has as many "
            "parameters as A",
      partner.num_hidden_layers, partner.hidden_size, partner.num_attention_heads, partner.intermediate_size);
  pair.first = explain::planned_side(name, mixture.setup, mixture.space, o);
  pair.second = explain::planned_side("dense partner", dense.setup, dense.space, o);
  return pair;
}

Pair pair_of(const CompareFlags& flags, explain::CompareOptions& o) {
  const Things t = sorted(flags.things);
  const auto is = [&](std::size_t models, std::size_t clusters, std::size_t plans) {
    return t.models.size() == models && t.clusters.size() == clusters && t.plans.size() == plans;
  };
  if (is(1, 1, 0) && !flags.equal.empty()) return partners(flags, t, o);
  if (flags.equal.empty() && is(2, 1, 0)) {
    const std::string a = base_name(t.models[0]), b = base_name(t.models[1]);
    return {.first = plan_of(flags, t.models[0], t.clusters[0], a, o),
            .second = plan_of(flags, t.models[1], t.clusters[0], b, o),
            .title = fmt::format("{} and {} on {}", a, b, base_name(t.clusters[0])),
            .note = ""};
  }
  if (flags.equal.empty() && is(1, 2, 0)) {
    const std::string a = base_name(t.clusters[0]), b = base_name(t.clusters[1]);
    return {.first = plan_of(flags, t.models[0], t.clusters[0], a, o),
            .second = plan_of(flags, t.models[0], t.clusters[1], b, o),
            .title = fmt::format("{} on {} and {}", base_name(t.models[0]), a, b),
            .note = ""};
  }
  if (flags.equal.empty() && (is(0, 0, 2) || is(0, 1, 2))) {
    const std::string cluster = t.clusters.empty() ? "" : t.clusters[0];
    Pair pair{.title = fmt::format("{} and {}", base_name(t.plans[0]), base_name(t.plans[1])), .note = ""};
    pair.first = side_of_plan(flags, t.plans[0], cluster, o, pair.note);
    pair.second = side_of_plan(flags, t.plans[1], cluster, o, pair.note);
    return pair;
  }
  throw Error(
      ErrorKind::config,
      fmt::format("{} models, {} clusters and {} plans{}", t.models.size(), t.clusters.size(), t.plans.size(),
                  flags.equal.empty() ? "" : " with --equal"),
      "tessera compare",
      "give MODEL MODEL CLUSTER, MODEL CLUSTER CLUSTER, PLAN PLAN [CLUSTER], or MODEL CLUSTER --equal "
      "active-compute|total-memory for a mixture of experts");
}

Json to_json(const Side& s, const explain::CompareOptions& o) {
  Json j = {{"name", s.name},
            {"cluster", s.setup.cluster.name},
            {"device", s.setup.calibration.name},
            {"num_devices", s.setup.cluster.num_devices},
            {"parameters", spec::num_parameters(s.setup.model)},
            {"active_parameters", spec::num_active_parameters(s.setup.model)},
            {"flops_per_token", spec::train_flops_per_token(s.setup.model, s.setup.work.sequence_length,
                                                            spec::AttentionFlops::causal)},
            {"found", s.found}};
  if (!s.found) j["why"] = s.why;
  if (s.found) {
    Json parts = Json::object(), sent = Json::object();
    for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
      const auto part = static_cast<cost::Part>(p);
      if (s.cost[part] != 0.0) parts[std::string(cost::name(part))] = s.cost[part];
    }
    for (std::int32_t a = 0; a < graph::kNumAxes; ++a) {
      const double bytes = s.cost.bytes_sent[static_cast<std::size_t>(a)];
      if (bytes > 0.0) sent[std::string(graph::name(static_cast<graph::Axis>(a)))] = bytes;
    }
    j["layout"] = Json::parse(layout_json(s.candidate));
    j["step_seconds"] = s.cost.seconds();
    j["tokens_per_s"] = s.step_tokens() / s.cost.seconds();
    j["mfu"] = s.cost.mfu();
    j["seconds"] = std::move(parts);
    j["bytes_sent"] = std::move(sent);
    j["reserved_bytes"] = s.cost.memory.reserved();
    j["even_step_seconds"] = s.even_seconds;
    j["uneven_step_seconds"] = s.uneven_seconds;
    j["power_law_step_seconds"] = s.power_seconds;
    if (s.network_seconds > 0.0) j["step_seconds_on_twice_the_network"] = s.network_seconds;
    if (s.fewest_devices > 0) j["fewest_devices"] = s.fewest_devices;
    j["days"] = s.days;
    if (s.price > 0.0) j["price"] = s.price;
  }
  const explain::Serving& v = s.serving;
  j["serving"] = {{"batch", o.serving.batch},
                  {"context", o.serving.context},
                  {"weight_bytes", v.weight_bytes},
                  {"cache_bytes", v.cache_bytes},
                  {"cache_bytes_per_token", v.cache_of_token},
                  {"devices", v.devices},
                  {"read_bytes_batch_1", v.read_alone},
                  {"read_bytes_batch", v.read_batch},
                  {"floor_seconds_batch_1", v.seconds_alone},
                  {"floor_seconds_batch", v.seconds_batch}};
  if (v.experts_touched > 0.0) j["serving"]["experts_touched"] = v.experts_touched;
  return j;
}

void print_json(const Pair& pair, const explain::CompareOptions& o, const std::vector<std::string>& verdict) {
  Json found = Json::array();
  for (const explain::Finding& f : explain::findings(pair.first, pair.second, o)) {
    found.push_back(
        {{"point", explain::name(f.point)}, {"a", f.first}, {"b", f.second}, {"better", f.better()}});
  }
  const explain::MixtureVerdict v = explain::mixture_verdict(pair.first, pair.second, o);
  Json j = {{"tokens", o.tokens},
            {"a", to_json(pair.first, o)},
            {"b", to_json(pair.second, o)},
            {"findings", std::move(found)}};
  if (!pair.note.empty()) j["note"] = pair.note;
  if (v.mixture >= 0) {
    j["mixture_against_dense"] = {{"cost_ratio", v.cost_ratio},
                                  {"cost_ratio_uneven_routing", v.uneven_cost_ratio},
                                  {"cost_ratio_on_twice_the_network", v.network_cost_ratio},
                                  {"gain_assumed", o.gain}};
    if (o.gain > 0.0) j["mixture_against_dense"]["pays"] = v.pays;
  }
  j["verdict"] = verdict;
  std::printf("%s\n", j.dump(2).c_str());
}

}  // namespace

int compare(const CompareFlags& flags, const Terminal& terminal) {
  explain::CompareOptions options = options_of(flags);
  const Pair pair = pair_of(flags, options);
  const report::CompareView view{.title = pair.title,
                                 .note = pair.note,
                                 .first = &pair.first,
                                 .second = &pair.second,
                                 .options = &options,
                                 .gain_source = pair.gain_source};
  if (flags.json) {
    print_json(pair, options, report::verdict_sentences(view));
  } else {
    std::printf("%s", report::compare_page(view, terminal.style).c_str());
  }
  return pair.first.found || pair.second.found ? 0 : 1;
}

}  // namespace tessera::cli
