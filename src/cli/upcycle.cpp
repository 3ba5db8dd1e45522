#include "cli/upcycle.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/text.h"
#include "cli/weights.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

template <class T>
bool parse_number(std::string_view text, T& out) {
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, out);
  return result.ec == std::errc() && result.ptr == end;
}

bool set_key(ckpt::UpcycleOptions& o, const std::string& key, std::string_view value) {
  if (key == "experts") return parse_number(value, o.num_experts);
  if (key == "top_k") return parse_number(value, o.top_k);
  if (key == "noise") return parse_number(value, o.noise);
  return parse_number(value, o.seed);
}

}  // namespace

ckpt::UpcycleOptions parse_upcycle(std::string_view text) {
  static const std::vector<std::string> kKeys = {"experts", "top_k", "noise", "seed"};
  ckpt::UpcycleOptions o;
  Problems problems;
  std::vector<std::string> seen;
  for (const std::string& part : split(text, ',')) {
    const std::size_t equals = part.find('=');
    const std::string key = part.substr(0, equals);
    const bool known = std::ranges::find(kKeys, key) != kKeys.end();
    if (equals == std::string::npos || !known) {
      const std::string near = nearest(key, kKeys);
      problems.add(fmt::format("\"{}\" is not one of {}", part, join(kKeys, "=, ") + "="), "--upcycle",
                   near.empty() ? "write for example experts=8,top_k=2" : "did you mean " + near + "=?");
    } else if (std::ranges::find(seen, key) != seen.end()) {
      problems.add(fmt::format("{} is given twice", key), "--upcycle", "keep one of them");
    } else if (!set_key(o, key, part.substr(equals + 1))) {
      problems.add(fmt::format("{} is not a number", part), "--upcycle",
                   "write for example experts=8,top_k=2");
    }
    seen.push_back(key);
  }
  problems.throw_if_any();
  return o;
}

int upcycle(const ConvertFlags& flags) {
  const ckpt::UpcycleOptions options = parse_upcycle(flags.upcycle);
  const fs::path to = flags.to;
  const Weights dense = open_weights(flags.from);
  const spec::ModelSpec moe = ckpt::upcycled_model(dense.model, options, flags.from);
  const auto source = ckpt::upcycle(dense.model, *dense.source, moe, options);
  if (to.has_parent_path()) fs::create_directories(to.parent_path());
  ckpt::write_hf_folder(to, moe, *source, dense.hf_config);
  const std::int64_t parameters = spec::num_parameters(moe);
  const std::int64_t active = spec::num_active_parameters(moe);
  if (flags.json) {
    const nlohmann::ordered_json j = {{"wrote", "Hugging Face folder"},
                                      {"folder", to.string()},
                                      {"model_type", spec::name(moe.family)},
                                      {"parameters", parameters},
                                      {"active_parameters", active}};
    std::printf("%s\n", j.dump().c_str());
  } else {
    std::printf(
        "wrote a Hugging Face folder: %s\n%s with %d experts, %d a token: %lld parameters, %lld of them "
        "for a token\n",
        to.c_str(), std::string(spec::name(moe.family)).c_str(), options.num_experts, options.top_k,
        static_cast<long long>(parameters), static_cast<long long>(active));
  }
  return 0;
}

}  // namespace tessera::cli
