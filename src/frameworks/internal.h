// What the files of this room share: settings to write, and how each framework is read and written. Inside of
// this room.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "frameworks/arguments.h"
#include "frameworks/files.h"
#include "frameworks/framework.h"
#include "frameworks/launch.h"

namespace tessera::frameworks {

enum class ValueKind : std::uint8_t { flag, boolean, number, text, list, lists };  // lists: words with commas
struct Setting {
  std::string section;  // "MODEL", "PARALLEL": an array of the script; empty in configurations
  std::string name;     // of the argument, as in the list of the framework
  ValueKind kind = ValueKind::flag;
  std::vector<std::string> values;  // list: any number; flag: none; else one
};
struct Settings {
  std::vector<Setting> list;
  std::vector<std::string> notes;  // of the model: what the framework cannot be told
  void flag(std::string section, std::string name) {
    list.push_back({std::move(section), std::move(name), ValueKind::flag, {}});
  }
  void boolean(std::string section, std::string name, bool v) {
    list.push_back({std::move(section), std::move(name), ValueKind::boolean, {v ? "true" : "false"}});
  }
  void number(std::string section, std::string name, std::int64_t v) {
    list.push_back({std::move(section), std::move(name), ValueKind::number, {std::to_string(v)}});
  }
  void real(std::string section, std::string name, double v);  // shortest text that reads back
  void text(std::string section, std::string name, std::string v) {
    list.push_back({std::move(section), std::move(name), ValueKind::text, {std::move(v)}});
  }
  void words(std::string section, std::string name, std::vector<std::string> v) {
    list.push_back({std::move(section), std::move(name), ValueKind::list, std::move(v)});
  }
};

// How arguments become a launch. `into` comes with the model, the practice to start from and the number of
// devices in parallel.dp, 0 where the file itself must say it.
struct Interpretation {
  Launch launch;
  std::int32_t devices = 0;
  Problems problems;
  std::vector<std::string> notes;
};

[[nodiscard]] Settings megatron_settings(const Launch& l);
void megatron_model(const Launch& l, Settings& out);  // part of the former
void interpret_megatron(Arguments& args, Interpretation& in);
void check_megatron_model(Arguments& args, Interpretation& in);  // part of the former
// Megatron-LM's arguments as fields of the two that stand on the same library; one without a place becomes a
// note.
[[nodiscard]] Settings as_fields(const Settings& megatron, Framework f);

[[nodiscard]] Settings torchtitan_settings(const Launch& l);
void interpret_torchtitan(Arguments& args, Interpretation& in);
// torchtitan's own names of a model; empty: it has none.
[[nodiscard]] std::pair<std::string, std::string> torchtitan_model(const spec::ModelSpec& m);

[[nodiscard]] Settings deepspeed_settings(const Launch& l);
void interpret_deepspeed(Arguments& args, Interpretation& in);

// dp from the devices, and the batch; problems where something does not divide, by the names of the
// arguments.
struct BatchNames {
  std::string_view tp, micro_batch, global_batch;
};
struct Batch {
  std::int64_t micro = 0, global = 0;  // global 0: one micro-batch of each replica
};
void complete_batch(Arguments& args, const BatchNames& names, const Batch& batch, Interpretation& in);
// That a number of the model is what the file says.
void check_dimension(Arguments& args, std::string_view name, std::int64_t of_model, Interpretation& in);

// Why a key has no place in the framework, and what to do; keys with the same text are told together.
[[nodiscard]] std::string why_carried(Framework f, const Carried& c, const Launch& l);

}  // namespace tessera::frameworks
