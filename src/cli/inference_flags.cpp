#include "cli/inference_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "cli/train_device.h"

namespace tessera::cli {

namespace fs = std::filesystem;

spec::ParallelSpec parallel_of(const RankFlags& f, Problems& problems) {
  constexpr std::int32_t kMost = 1024;  // threads of one machine
  const std::array<std::pair<const char*, std::int32_t>, 4> degrees = {
      {{"--tp", f.tp}, {"--ep", f.ep}, {"--etp", f.etp}, {"--dp", f.dp == 0 ? 1 : f.dp}}};
  bool good = true;
  for (const auto& [flag, value] : degrees) {
    if (value >= 1 && value <= kMost) continue;
    problems.add(fmt::format("{} ranks", value), flag, fmt::format("use a number from 1 to {}", kMost));
    good = false;
  }
  spec::ParallelSpec p;
  if (!good) return p;
  p.tp = f.tp;
  p.ep = f.ep;
  p.etp = f.etp;
  p.dp = f.dp > 0 ? f.dp : std::max(1, f.ep * f.etp / f.tp);
  return p;
}

InferenceDevice device_of(const RankFlags& f) {
  const bool gpu = f.device == "cuda";
  InferenceDevice d;
  if (f.precision == "f64") d.dtype = tensor::DType::f64;
  if (f.precision == "bf16" || (f.precision.empty() && gpu)) d.dtype = tensor::DType::bf16;
  if (d.dtype == tensor::DType::bf16 && !gpu) {
    throw Error(ErrorKind::config, "bf16 is computed on GPUs alone", "--precision",
                "use f32 or f64, or --device cuda");
  }
  if (gpu) d.compute = open_device(f.device, d.dtype, {}).compute;
  return d;
}

void check_folder(const std::string& checkpoint, Problems& problems) {
  if (fs::is_directory(checkpoint)) return;
  problems.add(fs::exists(checkpoint) ? "this is a file, not a folder" : "there is no such folder",
               checkpoint, "give a checkpoint folder or a Hugging Face folder");
}

data::Tokenizer tokenizer_of(const std::string& flag, const std::string& checkpoint, const Weights& weights) {
  const std::int64_t vocab = weights.model.vocab_size;
  if (!flag.empty()) return load_tokenizer(flag, "--tokenizer", vocab);
  for (const char* file : {"tokenizer.json", "tokenizer.model", "vocab.json", "encoder.json"}) {
    if (fs::exists(fs::path(checkpoint) / file)) return load_tokenizer(checkpoint, "checkpoint", vocab);
  }
  throw Error(ErrorKind::config, "the folder holds no tokenizer", checkpoint,
              "give one with --tokenizer: a sentencepiece .model, a tokenizer.json or a folder with one");
}

namespace {

std::string flag_of(const std::string& where) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 10> kFlags = {
      {{"parallel.tp", "--tp"},
       {"parallel.etp", "--etp"},
       {"parallel.ep", "--ep"},
       {"parallel.dp", "--dp"},
       {"train.sequence_length", "--context"},
       {"placement", "--placement"},
       {"generation: batch", "--batch"},
       {"generation: chunk", "--chunk"},
       {"scoring: batch", "--batch"},
       {"scoring: stride", "--stride"}}};
  for (const auto& [place, flag] : kFlags) {
    if (where.ends_with(place)) return std::string(flag);
  }
  return where;
}

}  // namespace

void in_terms_of_flags(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    std::vector<Problem> problems = e.problems();
    for (Problem& p : problems) p.where = flag_of(p.where);
    throw Error(e.kind(), std::move(problems));
  }
}

}  // namespace tessera::cli
