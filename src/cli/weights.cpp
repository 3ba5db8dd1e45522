#include "cli/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "spec/job.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

constexpr std::int64_t kLongestContext = 1024;

std::unique_ptr<ckpt::CheckpointReader> open_checkpoint(const fs::path& path) {
  if (fs::exists(path / "index.json")) return std::make_unique<ckpt::CheckpointReader>(path);
  std::vector<std::string> skipped;
  auto newest = ckpt::open_latest_checkpoint(path, &skipped);
  warn_skipped(skipped);
  if (newest) {
    if (!skipped.empty()) warn("used instead: " + newest->folder().string());
    return newest;
  }
  if (!skipped.empty()) {
    throw Error(ErrorKind::io, fmt::format("all {} checkpoints of the folder are damaged", skipped.size()),
                path.string(), "restore one from a copy");
  }
  throw Error(
      ErrorKind::config, "the folder holds no complete checkpoint and no config.json", path.string(),
      "give a checkpoint folder (step-...), the folder of a run's checkpoints, or a Hugging Face folder");
}

}  // namespace

std::string mtp_note(const spec::ModelSpec& model, const std::vector<std::string>& unused) {
  return fmt::format("{} tensors of MTP layers are not used (num_nextn_predict_layers={})", unused.size(),
                     model.num_nextn_predict_layers);
}

bool is_hf_folder(const fs::path& path) {
  return fs::exists(path / "config.json");
}

Weights open_weights(const fs::path& path, ckpt::MtpLayers mtp) {
  if (!fs::is_directory(path)) {
    throw Error(ErrorKind::config,
                fs::exists(path) ? "this is a file, not a folder" : "there is no such folder", path.string(),
                "give a checkpoint folder or a Hugging Face folder");
  }
  Weights w;
  if (is_hf_folder(path)) {
    w.model = spec::require_trainable(spec::read_hf_config(path), path.string());
    std::vector<std::string> unused;
    w.hf_config = read_text(path / "config.json");
    w.source = ckpt::open_hf_folder(path, w.model, {.mtp = mtp, .unused = &unused});
    if (!unused.empty()) warn(mtp_note(w.model, unused));
  } else {
    auto reader = open_checkpoint(path);
    Problems problems;
    w.model = spec::parse_hf_config(reader->meta().hf_config, reader->folder().string(), problems);
    problems.throw_if_any();
    if (!reader->meta().job_yaml.empty()) {  // empty: made from a Hugging Face folder
      const std::string where = reader->folder().string();
      w.context = spec::parse_job(reader->meta().job_yaml, path, where, {}).train.sequence_length;
    }
    ckpt::check_weights(*reader, w.model);
    w.hf_config = reader->meta().hf_config;
    w.source = std::move(reader);
  }
  if (mtp == ckpt::MtpLayers::keep || !is_hf_folder(path)) w.mtp_layers = w.model.num_nextn_predict_layers;
  w.model.num_nextn_predict_layers = 0;
  if (w.context == 0) w.context = std::min(w.model.max_position_embeddings, kLongestContext);
  return w;
}

std::vector<std::string> differences(const spec::ModelSpec& have, const spec::ModelSpec& want) {
  constexpr std::array<std::string_view, 5> kNoInfluence = {
      "router_aux_loss_coef", "initializer_range", "max_position_embeddings", "architectures", "torch_dtype"};
  const auto a = nlohmann::ordered_json::parse(spec::to_hf_config(have));
  const auto b = nlohmann::ordered_json::parse(spec::to_hf_config(want));
  const auto text = [](const auto& j, const std::string& key) {
    return j.contains(key) ? j[key].dump() : std::string("not there");
  };
  std::vector<std::string> out;
  const auto compare = [&](const std::string& key) {
    if (std::ranges::find(kNoInfluence, key) != kNoInfluence.end()) return;
    if (text(a, key) != text(b, key)) {
      out.push_back(fmt::format("{} is {}, not {}", key, text(a, key), text(b, key)));
    }
  };
  for (const auto& [key, value] : b.items()) compare(key);
  for (const auto& [key, value] : a.items()) {
    if (!b.contains(key)) compare(key);
  }
  return out;
}

data::Tokenizer load_tokenizer(const fs::path& path, const std::string& where, std::int64_t vocab_size) {
  if (!fs::exists(path)) {
    throw Error(ErrorKind::config, "there is no such tokenizer", where + ": " + path.string(),
                "give a sentencepiece .model, a tokenizer.json, or a folder with one; `tessera tokenize "
                "--vocab-size` makes a .model");
  }
  data::Tokenizer tokenizer = data::Tokenizer::load(path);
  if (tokenizer.vocab_size() > vocab_size) {
    throw Error(
        ErrorKind::config,
        fmt::format("the tokenizer has {} ids but the model only {}", tokenizer.vocab_size(), vocab_size),
        where + ": " + path.string(), "use the tokenizer that belongs to the model, or a larger vocab_size");
  }
  return tokenizer;
}

void warn(const std::string& text) {
  std::fprintf(stderr, "warning: %s\n", text.c_str());
}

void warn_skipped(const std::vector<std::string>& skipped) {
  for (const std::string& s : skipped) warn("skipped a damaged checkpoint: " + s);
}

}  // namespace tessera::cli
