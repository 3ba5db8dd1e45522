// Trained weights as the commands take them: a checkpoint, a folder of checkpoints (its newest) or a Hugging
// Face folder.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "data/tokenizer.h"
#include "spec/model.h"

namespace tessera::cli {

struct Weights {
  spec::ModelSpec model;
  std::shared_ptr<const ckpt::WeightSource> source;
  std::string hf_config;        // the config.json that came with them
  std::int32_t mtp_layers = 0;  // that the source holds beside the model
  std::int64_t context = 0;     // tokens it was trained with; unknown: its positions, at most 1024
};

// A Hugging Face folder has a config.json, a checkpoint an index.json.
[[nodiscard]] bool is_hf_folder(const std::filesystem::path& path);

// "3 tensors of MTP layers are not used (num_nextn_predict_layers=1)"
[[nodiscard]] std::string mtp_note(const spec::ModelSpec& model, const std::vector<std::string>& unused);

// Checks every tensor's name and shape. Throws Error{config} when there is nothing to open. Damaged
// checkpoints that it passed over are told on standard error, MTP layers of a Hugging Face folder that are
// left out as well. The model has none of them, kept or not: only training uses them.
[[nodiscard]] Weights open_weights(const std::filesystem::path& path,
                                   ckpt::MtpLayers mtp = ckpt::MtpLayers::leave_out);

// The keys that two models differ in, "rope_theta is 10000.0, not 500000.0". Keys without influence on a
// trained model (balancing coefficient, initial range, most positions) are not compared.
[[nodiscard]] std::vector<std::string> differences(const spec::ModelSpec& have, const spec::ModelSpec& want);

// Throws Error{config} when the file is missing or its ids do not fit the model.
[[nodiscard]] data::Tokenizer load_tokenizer(const std::filesystem::path& path, const std::string& where,
                                             std::int64_t vocab_size);

// "warning: ..." on standard error.
void warn(const std::string& text);
void warn_skipped(const std::vector<std::string>& skipped);

}  // namespace tessera::cli
