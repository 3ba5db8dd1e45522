// Launch files: a plan written as the arguments or configuration that a training framework takes, and such
// files read back. What a framework has no place for is never dropped: it stands in the file in lines of
// Tessera's own ("# tessera: parallel.schedule = "zb-h1""; in JSON under "tessera"), so that reading gives
// the same plan again, and a note says what the framework does instead.
//
//   const Written w = write(Framework::megatron, launch_of(job, practice, {}), {.about = {"predicted ..."}});
//   const Reading r = read(read_text("run.sh"), "run.sh", {.model = &model, .devices = 256});
//
// Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "frameworks/framework.h"
#include "frameworks/launch.h"

namespace tessera::frameworks {

struct WriteOptions {
  std::vector<std::string> about;  // lines of the file's head
};
struct Written {
  std::string text;
  std::vector<std::string> notes;  // also in the file
};
// megatron: a bash script; megatron-bridge: YAML of overrides; torchtitan: TOML; deepspeed: JSON; nemo:
// Python.
[[nodiscard]] Written write(Framework f, const Launch& launch, const WriteOptions& options);

struct Listed {
  std::string name;  // as the file spells it
  std::string value;
  std::int32_t line = 0;
  std::string near;  // of an unknown one: the nearest known
};
struct Reading {
  Framework framework{};
  std::string version;  // of the list of arguments
  Launch launch;
  std::int32_t devices = 0;        // ranks of the layout
  std::vector<Listed> not_priced;  // the framework knows them, and nothing here depends on them
  std::vector<Listed> unknown;     // not in the framework's list
  std::vector<std::string> notes;  // what was taken for something near
  std::vector<Carried> carried;    // from Tessera's own lines
};

struct ReadOptions {
  const spec::ModelSpec* model = nullptr;  // that the file must be of
  // Ranks: asked for (0: nothing asked), and where neither that nor the file says it.
  std::int32_t devices = 0, devices_otherwise = 0;
  std::int64_t sequence_length = 0;  // where the file cannot say it
  std::string practice;              // empty: that of Tessera's own lines, else usual_practice
};

// The argument that sets a switch: "--overlap-grad-reduce"; empty: none does.
[[nodiscard]] std::string_view argument_of(Framework f, std::string_view name_of_switch);

// By its ending and first lines. Error{config} for a file of none of the three that are read.
[[nodiscard]] Framework detect(std::string_view text, std::string_view file);

// A Megatron-LM launch script, torchtitan TOML or DeepSpeed JSON. Error{config} with every problem: syntax,
// values that no line sets, numbers that do not divide, arguments that contradict each other, sizes that are
// not the model's.
[[nodiscard]] Reading read(std::string_view text, std::string_view file, const ReadOptions& options);

}  // namespace tessera::frameworks
