#include "cli/model_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cost/memory.h"
#include "cost/roofline.h"
#include "report/model_view.h"
#include "spec/presets.h"

namespace tessera::cli {
namespace {

using Json = nlohmann::ordered_json;
using spec::Precision;

Precision parse_precision(const std::string& word, const cost::Calibration& device) {
  constexpr std::array<Precision, 8> kAll = {Precision::bf16,      Precision::fp16,  Precision::fp8,
                                             Precision::fp8_block, Precision::mxfp8, Precision::nvfp4,
                                             Precision::f32,       Precision::f64};
  std::vector<std::string> words;
  for (const Precision p : kAll) {
    const cost::GemmModel& products = cost::gemm_model(device, p);
    const bool there =
        products.peak > 0.0 && (p == Precision::bf16 || p == Precision::fp16 || &products != &device.bf16);
    if (there) words.emplace_back(spec::name(p));
    if (there && word == words.back()) return p;
  }
  throw Error(ErrorKind::config, fmt::format("{} has no precision \"{}\"", device.name, word), "--precision",
              "use one of " + join(words, ", "));
}

// One device that holds the whole model, one sequence.
cost::Setup setup_of(const ModelFlags& flags) {
  cost::Setup setup;
  setup.model = spec::find_model(flags.model);
  setup.calibration =
      flags.calibration.empty() ? cost::calibration(flags.device) : cost::read_calibration(flags.calibration);
  setup.cluster = {.name = "one device",
                   .device = setup.calibration.name,
                   .num_devices = 1,
                   .devices_per_node = 1,
                   .memory = setup.calibration.memory,
                   .tiers = {{.name = "device", .size = 1}}};
  setup.practice = graph::practice(flags.practice);
  constexpr std::int64_t kDefaultSequence = 4096;
  const std::int64_t longest = setup.model.max_position_embeddings;
  const std::int64_t asked = flags.sequence_length;
  if (longest > 0 && asked > longest) {
    throw Error(ErrorKind::config,
                fmt::format("{} tokens are more than the model's {} positions", asked, longest), "--seq",
                fmt::format("use --seq from 1 to {}", longest));
  }
  setup.work = {.global_batch_size = 1,
                .sequence_length = asked > 0     ? asked
                                   : longest > 0 ? std::min(kDefaultSequence, longest)
                                                 : kDefaultSequence,
                .precision = parse_precision(flags.precision, setup.calibration)};
  return setup;
}

std::string to_json(const report::ModelView& view) {
  const cost::Setup& s = *view.setup;
  Json j = {{"model", view.model},
            {"parameters", spec::num_parameters(s.model)},
            {"active_parameters", spec::num_active_parameters(s.model)},
            {"mtp_parameters", spec::num_mtp_parameters(s.model)},
            {"device", s.calibration.name},
            {"precision", spec::name(s.work.precision)},
            {"practice", s.practice.name},
            {"sequence_length", s.work.sequence_length}};
  for (std::int32_t p = 0; p < cost::kNumMemoryParts; ++p) {
    const auto part = static_cast<cost::MemoryPart>(p);
    if (part != cost::MemoryPart::buffers) j[std::string(cost::name(part)) + "_bytes"] = view.memory[part];
  }
  j["activations_recomputed_bytes"] = view.memory_recomputed[cost::MemoryPart::activations];
  j["ridge_flops_per_byte"] = view.roofline->ridge();
  j["passes"] = Json::array();
  for (const cost::RooflinePass& pass : view.roofline->passes) {
    Json ops = Json::array();
    for (const cost::RooflineOp& op : pass.ops) {
      ops.push_back({{"name", op.name},
                     {"flops", op.flops},
                     {"bytes", op.bytes},
                     {"seconds", op.seconds},
                     {"bound", cost::name(op.bound)}});
    }
    j["passes"].push_back({{"tokens", pass.tokens},
                           {"compute_bound_share", pass.share(cost::Bound::compute)},
                           {"operators", std::move(ops)}});
  }
  return j.dump(2);
}

}  // namespace

int model(const ModelFlags& flags, const Terminal& terminal) {
  const cost::Setup setup = setup_of(flags);
  const cost::Roofline roofline =
      cost::roofline({.model = setup.model,
                      .calibration = setup.calibration,
                      .practice = setup.practice,
                      .precision = setup.work.precision,
                      .tokens = flags.operators ? flags.tokens : std::vector<std::int64_t>{},
                      .sequence_length = setup.work.sequence_length});
  const report::ModelView view{
      .model = std::filesystem::path(flags.model).filename().string(),
      .setup = &setup,
      .memory = cost::peak_memory(setup, {}),
      .memory_recomputed = cost::peak_memory(setup, {.recompute = spec::Recompute::full}),
      .roofline = &roofline};
  if (flags.json) {
    std::printf("%s\n", to_json(view).c_str());
  } else {
    std::printf("%s", report::model_page(view, terminal.style).c_str());
  }
  return 0;
}

}  // namespace tessera::cli
