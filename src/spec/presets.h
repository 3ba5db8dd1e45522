// Shipped models and clusters, by name. Built into the program: no files are needed at run time.
//   model_preset("llama3-70b"), cluster_preset("dgx-h100")
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "spec/cluster.h"
#include "spec/model.h"

namespace tessera::spec {

struct PresetInfo {
  std::string name;     // llama3-70b
  std::string summary;  // one line: parameters, source of the numbers
};
[[nodiscard]] std::vector<PresetInfo> model_presets();    // sorted by name
[[nodiscard]] std::vector<PresetInfo> cluster_presets();  // sorted by name

// Error{config} with the nearest known names for an unknown one.
[[nodiscard]] ModelSpec model_preset(std::string_view name);
[[nodiscard]] ClusterSpec cluster_preset(std::string_view name);

// A preset's name, or the path of a config.json (or its folder) / of a cluster YAML. Error{config} naming
// both readings when it is neither.
[[nodiscard]] ModelSpec find_model(const std::string& name_or_path);
[[nodiscard]] ClusterSpec find_cluster(const std::string& name_or_path);

}  // namespace tessera::spec
