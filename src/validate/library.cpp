#include "validate/library.h"

#include "spec/presets.h"

namespace tessera::validate {

Library shipped_library() {
  Library out;
  for (const std::string& name : cost::calibration_names()) {
    out.calibrations.emplace(name, cost::calibration(name));
  }
  for (const spec::PresetInfo& p : spec::cluster_presets()) {
    out.clusters.emplace(p.name, spec::cluster_preset(p.name));
  }
  for (const spec::PresetInfo& p : spec::model_presets())
    out.models.emplace(p.name, spec::model_preset(p.name));
  return out;
}

}  // namespace tessera::validate
