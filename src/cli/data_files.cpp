#include "cli/data_files.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/text.h"
#include "data/statistics.h"
#include "data/tokenise.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

bool older(const fs::path& file, const fs::path& than) {
  return !fs::exists(file) || fs::last_write_time(file) < fs::last_write_time(than);
}

// Trains the tokenizer where the job names none, and tokenises the text, unless both are there already.
std::shared_ptr<const data::TokenSource> tokenise(const spec::Job& job, PreparedData& out) {
  const fs::path text = job.data.text;
  if (!fs::exists(text)) {
    throw Error(ErrorKind::config, "the text file does not exist", "data.text: " + text.string(),
                "give the path of a UTF-8 text file (relative to the current folder)");
  }
  const fs::path folder = job.output.folder.empty() ? text.parent_path() : fs::path(job.output.folder);
  fs::create_directories(folder);
  out.tokenizer_path = job.data.tokenizer;
  if (out.tokenizer_path.empty()) {
    const std::int64_t vocab = job.data.vocab_size > 0 ? job.data.vocab_size : job.model.vocab_size;
    out.tokenizer_path = (folder / "tokenizer.model").string();
    if (older(out.tokenizer_path, text)) {
      data::train_tokenizer(text, out.tokenizer_path, {.vocab_size = static_cast<std::int32_t>(vocab)});
    }
  }
  out.tokenizer = data::Tokenizer::load(out.tokenizer_path);
  const fs::path prefix = folder / "tokens";
  const fs::path index = fs::path(prefix).concat(".idx");
  if (older(index, text) || older(index, out.tokenizer_path)) {
    (void)data::tokenise_text_file(text, *out.tokenizer, prefix, {});
  }
  return data::open_token_file(index);
}

}  // namespace

PreparedData prepare_data(const spec::Job& job) {
  PreparedData out;
  std::shared_ptr<const data::TokenSource> all;
  if (!job.data.text.empty()) {
    all = tokenise(job, out);
  } else {
    all = data::open_token_file(job.data.train);
    if (!job.data.tokenizer.empty()) {
      out.tokenizer = data::Tokenizer::load(job.data.tokenizer);
      out.tokenizer_path = job.data.tokenizer;
    }
  }
  (void)data::count_tokens(*all, job.model.vocab_size);  // refuses ids outside of the vocabulary
  if (job.data.validation_fraction > 0.0) {
    data::TrainValidation split = data::split_train_validation(all, job.data.validation_fraction);
    out.train = std::move(split.train);
    out.validation = std::move(split.validation);
  } else {
    out.train = all;
  }
  out.unigram_entropy = data::unigram_entropy(*out.train, job.model.vocab_size);
  out.description = fmt::format(
      "{} tokens to train on ({} documents in the file), unigram entropy {:.3f} nats",
      human_count(static_cast<double>(out.train->num_tokens())), all->num_documents(), out.unigram_entropy);
  return out;
}

}  // namespace tessera::cli
