// Framework: the training software that plans are written for and launch files are read of, and what it is
// known to accept. The names stand in lists/, one file a framework, with version and source of each list.
// Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::frameworks {

enum class Framework : std::uint8_t { megatron, megatron_bridge, torchtitan, deepspeed, nemo };
[[nodiscard]] std::string_view name(Framework f);   // megatron, megatron-bridge, torchtitan, deepspeed, nemo
[[nodiscard]] std::string_view title(Framework f);  // Megatron-LM, ...
[[nodiscard]] const std::vector<std::string>& framework_names();
// Error{config} with the nearest name; `where` is the flag.
[[nodiscard]] Framework parse_framework(std::string_view word, std::string_view where);

struct ArgumentList {
  std::string version;             // "commit 000c4ac24f61 (...)"
  std::vector<std::string> names;  // sorted; "optimizer.params.*" stands for all below
  [[nodiscard]] bool has(std::string_view argument) const;
};
[[nodiscard]] ArgumentList argument_list(Framework f);

// graph::practice that prices it, where nobody says another.
[[nodiscard]] std::string_view usual_practice(Framework f);
// What keeps a search to layouts that the framework runs: "schedule=1f1b,interleaved".
[[nodiscard]] std::vector<std::string> usual_pins(Framework f);

}  // namespace tessera::frameworks
