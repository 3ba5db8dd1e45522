// What the command line knows of each command: its flags, its example, what runs. main puts them together.
#pragma once
#include <cstdint>
#include <limits>

#include "cli/calibrate_command.h"
#include "cli/commands.h"
#include "cli/compare_command.h"
#include "cli/framework_files.h"
#include "cli/model_command.h"
#include "cli/place_command.h"
#include "cli/plan_command.h"
#include "cli/profile_command.h"
#include "cli/question.h"
#include "cli/routing_command.h"
#include "cli/size_command.h"

namespace CLI {
class App;
}

namespace tessera::cli {

struct AllFlags {
  TrainFlags train;
  GenerateFlags generate;
  EvaluateFlags evaluate;
  ConvertFlags convert;
  TokenizeFlags tokenize;
  ScheduleFlags schedule;
  ModelFlags model;
  PlanFlags plan;
  SizeFlags size;
  CompareFlags compare;
  EmitFlags emit;
  SimulateFlags simulate;
  ValidateFlags validate;
  CalibrateFlags calibrate;
  RoutingFlags routing;
  ProfileFlags profile;
  PlaceFlags place;
};

inline constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

// A command with the flag that every one has.
CLI::App* add(CLI::App& app, const char* name, const char* what, const char* example, bool& json);

// Where several processes meet over TCP.
void add_rendezvous(CLI::App& c, RendezvousFlags& f);

// What plan, size and compare are asked, but for the model, the cluster and its devices.
void add_question(CLI::App& c, QuestionFlags& f);

// code: the exit code of the command that ran. All arguments outlive the parsing.
void add_training(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code);
void add_planning(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code);
void add_sizing(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code);
void add_experts(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code);
void add_emit(CLI::App& app, AllFlags& all, int& code);  // called of add_planning

}  // namespace tessera::cli
