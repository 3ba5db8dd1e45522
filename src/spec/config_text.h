// The text of a config.json beyond the model itself.
#pragma once
#include <string>
#include <string_view>

#include "spec/model.h"

namespace tessera::spec {

// to_hf_config with the token ids (bos, eos, pad) of `beside`, the text of a config.json; "": none.
// Error{config} when that is no JSON.
[[nodiscard]] std::string to_hf_config(const ModelSpec& m, std::string_view beside);

}  // namespace tessera::spec
