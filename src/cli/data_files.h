// From what a job names as data to what the trainer takes: text is tokenised once into the output folder,
// token files are opened.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "data/token_source.h"
#include "data/tokenizer.h"
#include "spec/job.h"

namespace tessera::cli {

struct PreparedData {
  std::shared_ptr<const data::TokenSource> train, validation;  // validation: null without a fraction
  std::optional<data::Tokenizer> tokenizer;
  std::string tokenizer_path;
  double unigram_entropy = 0.0;  // of the training split, nats per token
  std::string description;       // one line for people
};

// Tokenises (and trains a tokenizer) when the files are missing or older than the text. Throws Error when a
// token lies outside the model's vocabulary.
[[nodiscard]] PreparedData prepare_data(const spec::Job& job);

}  // namespace tessera::cli
