#include "frameworks/framework.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/text.h"

namespace tessera::frameworks {

std::span<const std::pair<std::string_view, std::string_view>> argument_lists();  // of lists/

namespace {

struct Entry {
  Framework framework;
  std::string_view name, title, practice;
};
constexpr std::array<Entry, 5> kAll = {
    {{Framework::megatron, "megatron", "Megatron-LM", "megatron-bridge-2026"},
     {Framework::megatron_bridge, "megatron-bridge", "Megatron-Bridge", "megatron-bridge-2026"},
     {Framework::torchtitan, "torchtitan", "torchtitan", "fsdp2-compile"},
     {Framework::deepspeed, "deepspeed", "DeepSpeed", "deepspeed-zero3"},
     {Framework::nemo, "nemo", "NeMo", "megatron-core"}}};

const Entry& entry(Framework f) {
  return kAll[static_cast<std::size_t>(f)];
}

}  // namespace

std::string_view name(Framework f) {
  return entry(f).name;
}

std::string_view title(Framework f) {
  return entry(f).title;
}

const std::vector<std::string>& framework_names() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const Entry& e : kAll) names.emplace_back(e.name);
    return names;
  }();
  return kNames;
}

Framework parse_framework(std::string_view word, std::string_view where) {
  for (const Entry& e : kAll) {
    if (word == e.name) return e.framework;
  }
  const std::string near = nearest(word, framework_names());
  throw Error(
      ErrorKind::config, "there is no framework \"" + std::string(word) + "\"", std::string(where),
      (near.empty() ? "" : "did you mean " + near + "? ") + "use one of " + join(framework_names(), ", "));
}

bool ArgumentList::has(std::string_view argument) const {
  if (std::ranges::binary_search(names, argument)) return true;
  return std::ranges::any_of(names, [&](const std::string& n) {
    return n.ends_with(".*") && argument.starts_with(std::string_view(n).substr(0, n.size() - 1));
  });
}

ArgumentList argument_list(Framework f) {
  ArgumentList list;
  for (const auto& [file, text] : argument_lists()) {
    if (file != name(f)) continue;
    for (const std::string& line : split(text, '\n')) {
      constexpr std::string_view kVersion = "# version: ";
      if (line.starts_with(kVersion)) list.version = line.substr(kVersion.size());
      if (line.starts_with("#")) continue;
      for (const std::string& word : split(line, ' ')) {
        if (!word.empty()) list.names.push_back(word);
      }
    }
  }
  TESSERA_CHECK(!list.names.empty(), "every framework has a list of arguments");
  std::ranges::sort(list.names);
  return list;
}

std::string_view usual_practice(Framework f) {
  return entry(f).practice;
}

std::vector<std::string> usual_pins(Framework f) {
  switch (f) {
    case Framework::megatron:
    case Framework::megatron_bridge:
    case Framework::nemo:
      return {"schedule=1f1b,interleaved", "zero=0,1"};
    case Framework::torchtitan:
      return {"schedule=1f1b,interleaved,zb-v", "zero=0,2,3", "recompute=none,full", "order=tp-cp-ep-dp-pp"};
    case Framework::deepspeed:
      return {"schedule=1f1b", "recompute=none,full", "etp=1", "order=tp-cp-ep-dp-pp"};
  }
  return {};
}

}  // namespace tessera::frameworks
