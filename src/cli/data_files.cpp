#include "cli/data_files.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/file.h"
#include "base/text.h"
#include "cli/weights.h"
#include "data/statistics.h"
#include "data/tokenise.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

// A file and its state, for the note of what a made file was made from.
std::string identity(const char* what, const fs::path& file) {
  return fmt::format("{} {}, {} bytes, changed {}\n", what, file.string(), fs::file_size(file),
                     fs::last_write_time(file).time_since_epoch().count());
}

// Runs `make` unless `made` is there and was made from `source`, which stands in a note beside it.
template <class Make>
void make_once(const fs::path& made, const std::string& source, const Make& make) {
  const fs::path note = fs::path(made).concat(".from");
  if (fs::exists(made) && fs::exists(note) && read_text(note) == source) return;
  fs::remove(note);
  make();
  write_atomically(note, source);
}

void check_there(const char* key, const fs::path& file, const char* what) {
  if (fs::is_regular_file(file)) return;
  throw Error(ErrorKind::config, fmt::format("there is no such {}", what),
              fmt::format("{}: {}", key, file.string()),
              "give the path of a file (relative to the current folder)");
}

// Trains the tokenizer where the job names none, and tokenises the text, unless both are there already.
std::shared_ptr<const data::TokenSource> tokenise(const spec::Job& job, PreparedData& out) {
  const fs::path text = job.data.text;
  const fs::path folder = job.output.folder.empty() ? text.parent_path() : fs::path(job.output.folder);
  out.tokenizer_path = job.data.tokenizer;
  if (out.tokenizer_path.empty()) {
    const std::int64_t vocab = job.data.vocab_size > 0 ? job.data.vocab_size : job.model.vocab_size;
    out.tokenizer_path = (folder / "tokenizer.model").string();
    make_once(out.tokenizer_path, fmt::format("{}vocab_size {}\n", identity("text", text), vocab), [&] {
      data::train_tokenizer(text, out.tokenizer_path, {.vocab_size = static_cast<std::int32_t>(vocab)});
    });
  }
  out.tokenizer = load_tokenizer(out.tokenizer_path, "data.tokenizer", job.model.vocab_size);
  const fs::path prefix = folder / "tokens";
  const fs::path index = fs::path(prefix).concat(".idx");
  make_once(index, identity("text", text) + identity("tokenizer", out.tokenizer->name()),
            [&] { (void)data::tokenise_text_file(text, *out.tokenizer, prefix, {}); });
  return data::open_token_file(index);
}

}  // namespace

void check_data(const spec::Job& job) {
  const spec::DataSpec& d = job.data;
  if (d.train.empty() && d.text.empty()) {
    throw Error(ErrorKind::config, "the job names no data to train on", "data",
                "give data.text (UTF-8 text) or data.train (a token file)");
  }
  if (!d.text.empty()) check_there("data.text", d.text, "text file");
  if (!d.train.empty()) check_there("data.train", d.train, "token file");
  if (!d.tokenizer.empty()) (void)load_tokenizer(d.tokenizer, "data.tokenizer", job.model.vocab_size);
}

PreparedData prepare_data(const spec::Job& job) {
  PreparedData out;
  std::shared_ptr<const data::TokenSource> all;
  if (!job.data.text.empty()) {
    all = tokenise(job, out);
  } else {
    all = data::open_token_file(job.data.train);
    if (!job.data.tokenizer.empty()) {
      out.tokenizer = load_tokenizer(job.data.tokenizer, "data.tokenizer", job.model.vocab_size);
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
