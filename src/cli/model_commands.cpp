// generate, convert, tokenize: commands around a trained model.
#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "ckpt/checkpoint.h"
#include "cli/commands.h"
#include "data/tokenise.h"
#include "data/tokenizer.h"
#include "exec/generator.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

// A Hugging Face folder has a config.json, a checkpoint an index.json; a folder of checkpoints gives its
// newest.
bool is_hf_folder(const fs::path& p) {
  return fs::exists(p / "config.json");
}

fs::path checkpoint_in(const fs::path& p) {
  if (!fs::is_directory(p)) {
    throw Error(ErrorKind::config, "there is no such folder", p.string(),
                "give a checkpoint folder or a Hugging Face folder");
  }
  if (fs::exists(p / "index.json")) return p;
  if (const auto newest = ckpt::latest_checkpoint(p)) return *newest;
  throw Error(
      ErrorKind::config, "the folder holds no complete checkpoint and no config.json", p.string(),
      "give a checkpoint folder (step-...), the folder of a run's checkpoints, or a Hugging Face folder");
}

struct Loaded {
  spec::ModelSpec model;
  std::unique_ptr<ckpt::WeightSource> source;
  std::int64_t context = 0;
};

Loaded load(const fs::path& path) {
  Loaded l;
  if (is_hf_folder(path)) {
    l.model = spec::read_hf_config(path);
    l.source = ckpt::open_hf_folder(path);
    ckpt::check_hf_folder(*l.source, l.model);
    l.context = std::min<std::int64_t>(l.model.max_position_embeddings, 1024);
    return l;
  }
  auto reader = std::make_unique<ckpt::CheckpointReader>(checkpoint_in(path));
  Problems problems;
  l.model = spec::parse_hf_config(reader->meta().hf_config, path.string(), problems);
  problems.throw_if_any();
  // A checkpoint that convert made knows no job.
  const std::string& job = reader->meta().job_yaml;
  l.context = job.empty() ? std::min<std::int64_t>(l.model.max_position_embeddings, 1024)
                          : spec::parse_job(job, path, path.string(), {}).train.sequence_length;
  l.source = std::move(reader);
  return l;
}

}  // namespace

int generate(const GenerateFlags& flags) {
  const data::Tokenizer tokenizer = data::Tokenizer::load(flags.tokenizer);
  const Loaded loaded = load(flags.checkpoint);
  if (tokenizer.vocab_size() > loaded.model.vocab_size) {
    throw Error(ErrorKind::config,
                fmt::format("the tokenizer has {} ids but the model only {}", tokenizer.vocab_size(),
                            loaded.model.vocab_size),
                flags.tokenizer, "give the tokenizer the model was trained with");
  }
  const std::vector<std::int32_t> prompt = tokenizer.encode(flags.prompt);
  if (prompt.empty()) {
    throw Error(ErrorKind::config, "the prompt holds no token", "--prompt", "give some text to continue");
  }
  exec::Generator generator(loaded.model, *loaded.source, flags.context > 0 ? flags.context : loaded.context);
  const auto tokens = generator.generate(prompt,
                                         {.max_new_tokens = flags.max_new_tokens,
                                          .temperature = flags.temperature,
                                          .top_k = flags.top_k,
                                          .seed = flags.seed},
                                         tokenizer.eos_id().value_or(-1));
  const std::string text = tokenizer.decode(tokens);
  if (flags.json) {
    const nlohmann::ordered_json j = {{"prompt", flags.prompt}, {"text", text}, {"tokens", tokens}};
    std::printf("%s\n", j.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
  } else {
    std::printf("%s%s\n", flags.prompt.c_str(), text.c_str());
  }
  return 0;
}

int convert(const ConvertFlags& flags) {
  const fs::path from = flags.from;
  const fs::path to = flags.to;
  if (fs::exists(to)) {
    throw Error(ErrorKind::config, "the folder to write exists already", to.string(),
                "give a new folder, or remove this one first");
  }
  const bool hf = is_hf_folder(from);
  if (hf) {
    ckpt::import_hf_folder(from, to);
  } else {
    const Loaded loaded = load(from);
    ckpt::write_hf_folder(to, loaded.model, *loaded.source);
  }
  const char* what = hf ? "Tessera checkpoint" : "Hugging Face folder";
  if (flags.json) {
    const nlohmann::ordered_json j = {{"wrote", what}, {"folder", to.string()}};
    std::printf("%s\n", j.dump().c_str());
  } else {
    std::printf("wrote a %s: %s\n", what, to.c_str());
  }
  return 0;
}

int tokenize(const TokenizeFlags& flags) {
  if (flags.vocab_size > 0) {
    data::train_tokenizer(flags.text, flags.tokenizer,
                          {.vocab_size = static_cast<std::int32_t>(flags.vocab_size)});
  }
  const data::Tokenizer tokenizer = data::Tokenizer::load(flags.tokenizer);
  const data::TextStatistics s = data::tokenise_text_file(flags.text, tokenizer, flags.output, {});
  if (flags.json) {
    const nlohmann::ordered_json j = {{"bytes", s.num_bytes},
                                      {"characters", s.num_characters},
                                      {"tokens", s.num_tokens},
                                      {"documents", s.num_documents},
                                      {"bytes_per_token", s.bytes_per_token()}};
    std::printf("%s\n", j.dump().c_str());
  } else {
    std::printf("%s in %lld documents -> %lld tokens (%.2f bytes a token): %s.bin, %s.idx\n",
                human(Bytes(s.num_bytes)).c_str(), static_cast<long long>(s.num_documents),
                static_cast<long long>(s.num_tokens), s.bytes_per_token(), flags.output.c_str(),
                flags.output.c_str());
  }
  return 0;
}

}  // namespace tessera::cli
