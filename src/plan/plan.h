// Plan: model + recipe + layout + schedule as one value. The simulator predicts it, the engine executes it.
//
//   const Plan plan = make_plan(spec::read_job("job.yaml", {}));
//   write_plan("runs/demo/plan.json", plan);
//
// File: one JSON object {"format": "tessera-plan", "version": 1, "job": {...}, "stages": [...], "schedule":
// [...]}. The job is complete (model inline). Stages (layers and pipeline rank of each) follow from it and
// are there for readers. The schedule stands as its text form, a line an entry, so an edited order of actions
// is a valid plan as long as it can be proven. "planned_for" (optional) names cluster and practice that the
// planner priced it for. Keys that version 1 does not know are refused. Pure functions
// but for the files; thread safe.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "layout/layout.h"
#include "plan/memory.h"
#include "schedule/check.h"
#include "schedule/schedule.h"
#include "spec/cluster.h"
#include "spec/job.h"

namespace tessera::plan {

// What a plan was priced for: facts of the planner, which the engine does not read. Empty: not known.
struct PlannedFor {
  std::optional<spec::ClusterSpec> cluster;
  std::string practice;  // graph::practice_names
  friend bool operator==(const PlannedFor&, const PlannedFor&) = default;
};

struct Plan {
  spec::Job job;
  layout::Layout layout;
  schedule::Schedule schedule;  // lowered and proven
  schedule::CheckReport proof;  // slots of each stage
  PlannedFor planned_for = {};

  // Micro-batches of one replica in one step.
  [[nodiscard]] std::int32_t num_microbatches() const { return schedule.num_microbatches; }
  // The proof follows from the schedule.
  friend bool operator==(const Plan& a, const Plan& b) {
    return a.job == b.job && a.layout == b.layout && a.schedule == b.schedule &&
           a.planned_for == b.planned_for;
  }
};

// Validates the job whole and proves the schedule. Throws Error{config} with every problem.
[[nodiscard]] Plan make_plan(spec::Job job);

[[nodiscard]] std::string to_json(const Plan& plan);
// Throws Error{config} for a file that is no plan, is damaged or contradicts itself, Error{unsupported} for a
// newer version, each with `where` in it and a mend line. from_json(to_json(plan)) == plan.
[[nodiscard]] Plan from_json(std::string_view text, std::string_view where);

void write_plan(const std::filesystem::path& path, const Plan& plan);
[[nodiscard]] Plan read_plan(const std::filesystem::path& path);

// A page for people: model, layout, one line a stage, the schedule and its bubble at equal times of F, I and
// W.
[[nodiscard]] std::string describe(const Plan& plan);

}  // namespace tessera::plan
