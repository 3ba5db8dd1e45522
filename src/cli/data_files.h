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

// Throws Error{config} when the job names no data, or a file that is not there or does not fit the model.
// Writes nothing.
void check_data(const spec::Job& job);

// Tokenises (and trains a tokenizer) into the output folder, which exists; what is there already from the
// same text, tokenizer and vocabulary size is used again (a note FILE.from beside it tells). Throws Error
// when a token lies outside the model's vocabulary.
[[nodiscard]] PreparedData prepare_data(const spec::Job& job);

}  // namespace tessera::cli
