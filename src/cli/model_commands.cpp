// convert, tokenize: commands around a trained model.
#include <fmt/format.h>

#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/upcycle.h"
#include "cli/weights.h"
#include "data/tokenise.h"
#include "data/tokenizer.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {
// A config.json may announce MTP layers whose tensors are not there: transformers drops them.
ckpt::MtpLayers mtp_layers_of(const fs::path& folder) {
  std::vector<std::string> there;
  (void)ckpt::open_hf_folder(folder, spec::require_trainable(spec::read_hf_config(folder), folder.string()),
                             {.mtp = ckpt::MtpLayers::leave_out, .unused = &there});
  return there.empty() ? ckpt::MtpLayers::leave_out : ckpt::MtpLayers::keep;
}
}  // namespace

int convert(const ConvertFlags& flags) {
  const fs::path from = flags.from;
  const fs::path to = flags.to;
  if (fs::exists(to)) {
    throw Error(ErrorKind::config, "the folder to write exists already", to.string(),
                "give a new folder, or remove this one first");
  }
  if (!flags.upcycle.empty()) return upcycle(flags);
  const bool hf = is_hf_folder(from);
  if (hf) {
    ckpt::import_hf_folder(from, to, {.mtp = mtp_layers_of(from)});
  } else {
    const Weights loaded = open_weights(from);
    if (to.has_parent_path()) fs::create_directories(to.parent_path());
    spec::ModelSpec model = loaded.model;
    model.num_nextn_predict_layers = loaded.mtp_layers;
    ckpt::write_hf_folder(to, model, *loaded.source, loaded.hf_config);
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
