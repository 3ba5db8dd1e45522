// The plan file. JSON stays in this file.
#include "base/file.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "graph/practice.h"
#include "plan/plan.h"
#include "schedule/text.h"

namespace tessera::plan {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "tessera-plan";
constexpr std::int64_t kVersion = 1;
constexpr const char* kMakeNew = "make it again with tessera from its job file";

Json stages_json(const layout::Layout& layout) {
  Json stages = Json::array();
  for (std::size_t s = 0; s < layout.stages.size(); ++s) {
    const layout::StageCut& cut = layout.stages[s];
    stages.push_back({{"first_layer", cut.first_layer},
                      {"num_layers", cut.num_layers},
                      {"embedding", cut.has_embedding},
                      {"head", cut.has_head},
                      {"pp_rank", layout.stage_rank[s]}});
  }
  return stages;
}

[[noreturn]] void refuse(std::string what, std::string_view where, std::string mend = kMakeNew) {
  throw Error(ErrorKind::config, std::move(what), std::string(where), std::move(mend));
}

Json parse_header(std::string_view text, std::string_view where) {
  Json root;
  try {
    root = Json::parse(text);
  } catch (const Json::exception&) {
    refuse("the text is not JSON, so it is no plan, or it is cut off", where);
  }
  if (!root.is_object() || !root.contains("format") || root["format"] != kFormat) {
    refuse(fmt::format("this JSON is not a plan (\"format\" is not \"{}\")", kFormat), where,
           "give a plan.json that tessera wrote");
  }
  if (!root.contains("version") || !root["version"].is_number_integer()) {
    refuse("the plan has no version", where);
  }
  const auto version = root["version"].get<std::int64_t>();
  if (version > kVersion) {
    throw Error(ErrorKind::unsupported,
                fmt::format("the plan has version {}, this build reads versions up to {}", version, kVersion),
                std::string(where), "use the Tessera that wrote it, or a newer one");
  }
  if (version < 1) refuse(fmt::format("the plan has version {}", version), where);
  const std::vector<std::string> known = {"format", "version", "job", "stages", "schedule", "planned_for"};
  for (const auto& [key, value] : root.items()) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const std::string near = nearest(key, known);
    refuse(fmt::format("unknown key \"{}\"", key), where,
           near.empty() ? "remove it" : fmt::format("did you mean {}?", near));
  }
  return root;
}

schedule::Schedule parse_lists(const Json& root, std::string_view where) {
  if (!root.contains("schedule") || !root["schedule"].is_array()) refuse("the plan has no schedule", where);
  std::string text;
  for (const Json& line : root["schedule"]) {
    if (!line.is_string()) refuse("a line of the schedule is not a text", where);
    text += line.get<std::string>() + "\n";
  }
  return schedule::lower(schedule::from_text(text, fmt::format("{}: schedule", where)));
}

PlannedFor parse_planned_for(const Json& root, std::string_view where) {
  PlannedFor out;
  if (!root.contains("planned_for")) return out;
  const std::string place = fmt::format("{}: planned_for", where);
  const Json& given = root["planned_for"];
  if (!given.is_object()) refuse("planned_for is not an object", place);
  for (const auto& [key, value] : given.items()) {
    if (key != "cluster" && key != "practice")
      refuse(fmt::format("unknown key \"{}\"", key), place, "remove it");
    if (!value.is_string()) refuse(fmt::format("{} is not a text", key), place);
  }
  if (given.contains("practice")) out.practice = graph::practice(given["practice"].get<std::string>()).name;
  if (given.contains("cluster")) {
    Problems problems;
    out.cluster = spec::parse_cluster(given["cluster"].get<std::string>(), place + ".cluster", problems);
    problems.throw_if_any();
  }
  return out;
}

// What the file says twice must agree.
void check_agreement(const Plan& made, const schedule::Schedule& lists, const Json& root,
                     std::string_view where) {
  const schedule::Schedule& s = made.schedule;
  if (lists.kind != s.kind || lists.pp != s.pp || lists.vpp != s.vpp ||
      lists.num_microbatches != s.num_microbatches || lists.placement != s.placement) {
    refuse(
        fmt::format("the schedule is {} with pp={} vpp={} m={}, the job asks for {} with pp={} vpp={} m={}",
                    schedule::name(lists.kind), lists.pp, lists.vpp, lists.num_microbatches,
                    schedule::name(s.kind), s.pp, s.vpp, s.num_microbatches),
        fmt::format("{}: schedule", where));
  }
  if (!root.contains("stages") || root["stages"] != stages_json(made.layout)) {
    refuse("the stages are not those of the job", fmt::format("{}: stages", where));
  }
}

}  // namespace

std::string to_json(const Plan& plan) {
  Json lines = Json::array();
  for (const std::string& line : split(schedule::to_text(plan.schedule), '\n')) {
    if (!line.empty()) lines.push_back(line);
  }
  Json root = {{"format", kFormat},
               {"version", kVersion},
               {"job", Json::parse(spec::to_json(plan.job))},
               {"stages", stages_json(plan.layout)},
               {"schedule", std::move(lines)}};
  Json planned_for = Json::object();
  if (!plan.planned_for.practice.empty()) planned_for["practice"] = plan.planned_for.practice;
  if (plan.planned_for.cluster) planned_for["cluster"] = spec::to_yaml(*plan.planned_for.cluster);
  if (!planned_for.empty()) root["planned_for"] = std::move(planned_for);
  return root.dump(1) + "\n";
}

Plan from_json(std::string_view text, std::string_view where) {
  const Json root = parse_header(text, where);
  if (!root.contains("job") || !root["job"].is_object()) refuse("the plan has no job", where);
  Plan plan = make_plan(spec::parse_job(root["job"].dump(1), ".", fmt::format("{}: job", where), {}));
  schedule::Schedule lists = parse_lists(root, where);
  check_agreement(plan, lists, root, where);
  plan.proof = schedule::checked(lists);
  plan.schedule = std::move(lists);
  plan.planned_for = parse_planned_for(root, where);
  return plan;
}

void write_plan(const std::filesystem::path& path, const Plan& plan) {
  write_atomically(path, to_json(plan));
}

Plan read_plan(const std::filesystem::path& path) {
  return from_json(read_text(path), path.string());
}

}  // namespace tessera::plan
