// generate, eval, convert, tokenize: commands around a trained model.
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numbers>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/weights.h"
#include "comm/communicator.h"
#include "data/token_source.h"
#include "data/tokenise.h"
#include "data/tokenizer.h"
#include "exec/generator.h"
#include "exec/rank_engine.h"
#include "exec/run_state.h"
#include "exec/token_batches.h"
#include "kernels/kernels.h"
#include "plan/plan.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

std::int64_t context_of(std::int64_t asked, const Weights& w) {
  if (asked > w.model.max_position_embeddings) {
    throw Error(ErrorKind::config,
                fmt::format("a context of {} tokens is longer than the model's {} positions", asked,
                            w.model.max_position_embeddings),
                "--context", fmt::format("use up to {}, or 0", w.model.max_position_embeddings));
  }
  return asked > 0 ? asked : w.context;
}

}  // namespace

int generate(const GenerateFlags& flags) {
  if (!(flags.temperature >= 0.0)) {
    throw Error(ErrorKind::config,
                fmt::format("temperature {} is not a number of 0 or more", flags.temperature),
                "--temperature", "use 0 for the likeliest token, about 0.8 for variety");
  }
  const Weights loaded = open_weights(flags.checkpoint);
  const data::Tokenizer tokenizer = load_tokenizer(flags.tokenizer, "--tokenizer", loaded.model.vocab_size);
  const std::int64_t context = context_of(flags.context, loaded);
  const std::vector<std::int32_t> prompt = tokenizer.encode(flags.prompt);
  if (prompt.empty()) {
    throw Error(ErrorKind::config, "the prompt holds no token", "--prompt", "give some text to continue");
  }
  exec::Generator generator(loaded.model, *loaded.source, context);
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

namespace {

// The ids of a text as training saw them: documents end with a form feed, each gets the end token.
std::vector<std::int32_t> ids_of(const std::string& path, const std::string& text,
                                 const data::Tokenizer& tokenizer) {
  std::vector<std::int32_t> ids;
  std::int64_t number = 0;
  for (const std::string& document : split(text, '\f')) {
    ++number;
    if (document.empty()) continue;
    std::vector<std::int32_t> part;
    try {
      part = tokenizer.encode(document);
    } catch (const Error& e) {  // it knows the text, not where that came from
      const Problem& p = e.problems().front();
      throw Error(e.kind(), p.what, fmt::format("{}, document {}: {}", path, number, p.where), p.mend);
    }
    ids.insert(ids.end(), part.begin(), part.end());
    if (const auto eos = tokenizer.eos_id()) ids.push_back(*eos);
  }
  return ids;
}

// Mean loss of one rank that holds the whole model.
double mean_loss(const Weights& w, const exec::TokenBatches& batches, std::int64_t context) {
  spec::Job job;
  job.model = w.model;
  job.train.steps = 1;
  job.train.sequence_length = context;
  job.train.global_batch_size = 1;
  job.train.micro_batch_size = 1;
  const plan::Plan plan = plan::make_plan(job);
  exec::RankEngine engine({.plan = &plan,
                           .data = &batches,
                           .rank = Rank(0),
                           .kernels = kernels::make_cpu(),
                           .communicators = [](std::span<const Rank>, std::string_view label) {
                             return comm::make_self(label);
                           }});
  exec::load_state(engine, *w.source, exec::StateParts::weights);
  return engine.evaluate(batches, 0, batches.num_sequences());
}

}  // namespace

int evaluate(const EvaluateFlags& flags) {
  const Weights w = open_weights(flags.checkpoint);
  const data::Tokenizer tokenizer = load_tokenizer(flags.tokenizer, "--tokenizer", w.model.vocab_size);
  const std::int64_t context = context_of(flags.context, w);
  if (!fs::is_regular_file(flags.text)) {
    throw Error(ErrorKind::config, "there is no such text file", flags.text,
                "give the path of a UTF-8 text file");
  }
  const std::string text = read_text(flags.text);
  const auto tokens = std::make_shared<data::MemoryTokens>(ids_of(flags.text, text, tokenizer), flags.text);
  const exec::TokenBatches batches(tokens, context, 1);
  const double nats = mean_loss(w, batches, context);
  const auto all = static_cast<double>(tokens->num_tokens());
  const double bits_per_byte = nats / std::numbers::ln2 * all / static_cast<double>(text.size());
  const std::int64_t scored = batches.num_sequences() * context;
  if (flags.json) {
    const nlohmann::ordered_json j = {{"nats_per_token", nats},
                                      {"perplexity", std::exp(nats)},
                                      {"bits_per_byte", bits_per_byte},
                                      {"tokens", scored},
                                      {"context", context}};
    std::printf("%s\n", j.dump().c_str());
  } else {
    std::printf(
        "loss            %.4f  nats per token\n"
        "perplexity      %.2f\n"
        "bits per byte   %.4f  of the text, whatever the tokenizer\n"
        "scored          %lld tokens in pieces of %lld; each piece begins without a past\n",
        nats, std::exp(nats), bits_per_byte, static_cast<long long>(scored), static_cast<long long>(context));
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
  std::vector<std::string> unused;
  std::string note;
  if (hf) {
    ckpt::import_hf_folder(from, to, {.mtp = ckpt::MtpLayers::leave_out, .unused = &unused});
    if (!unused.empty()) note = mtp_note(spec::read_hf_config(from), unused);
  } else {
    const Weights loaded = open_weights(from);
    if (to.has_parent_path()) fs::create_directories(to.parent_path());
    ckpt::write_hf_folder(to, loaded.model, *loaded.source, loaded.hf_config);
  }
  const char* what = hf ? "Tessera checkpoint" : "Hugging Face folder";
  if (flags.json) {
    nlohmann::ordered_json j = {{"wrote", what}, {"folder", to.string()}};
    if (!unused.empty()) j["unused"] = unused;
    std::printf("%s\n", j.dump().c_str());
  } else {
    std::printf("wrote a %s: %s\n", what, to.c_str());
    if (!note.empty()) std::printf("%s\n", note.c_str());
  }
  return 0;
}

int tokenize(const TokenizeFlags& flags) {
  if (!fs::is_regular_file(flags.text)) {
    throw Error(ErrorKind::config, "there is no such text file", flags.text,
                "give the path of a UTF-8 text file");
  }
  if (flags.vocab_size > 0) {
    data::train_tokenizer(flags.text, flags.tokenizer,
                          {.vocab_size = static_cast<std::int32_t>(flags.vocab_size)});
  }
  const data::Tokenizer tokenizer =
      load_tokenizer(flags.tokenizer, "--tokenizer", std::numeric_limits<std::int32_t>::max());
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
