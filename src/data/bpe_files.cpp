#include "data/bpe_files.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "data/bpe_vocabulary.h"
#include "data/gpt2_pattern.h"

namespace tessera::data {

namespace fs = std::filesystem;
namespace dom = simdjson::dom;

namespace {
constexpr const char* kAgain = "get the file again from its source";

dom::object parse_object(dom::parser& parser, const std::string& text, const fs::path& path) {
  dom::object object;
  if (parser.parse(text).get(object) != simdjson::SUCCESS) {
    throw Error(ErrorKind::config, "not a JSON object", path.string(), kAgain);
  }
  return object;
}

void read_vocab(const fs::path& path, BpeVocabulary& vocabulary) {
  dom::parser parser;
  const std::string text = read_text(path);
  for (const auto& [token, value] : parse_object(parser, text, path)) {
    std::int64_t id = 0;
    if (value.get(id) != simdjson::SUCCESS) {
      throw Error(ErrorKind::config, fmt::format("token '{}' has no number as its id", token), path.string(),
                  kAgain);
    }
    vocabulary.add_token(token, id);
  }
}

void read_merges(const fs::path& path, BpeVocabulary& vocabulary) {
  const std::string text = read_text(path);
  std::string_view rest = text;
  for (std::int64_t rank = 0; !rest.empty(); ++rank) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty() && !line.starts_with("#version")) vocabulary.add_merge(line, rank);
  }
}
}  // namespace

BpeSpec read_vocab_and_merges(const fs::path& vocab, const fs::path& merges) {
  BpeVocabulary vocabulary(vocab.string());
  read_vocab(vocab, vocabulary);
  read_merges(merges, vocabulary);
  constexpr const char* kEnd = "<|endoftext|>";
  const auto end = vocabulary.id_of(kEnd);
  if (end) vocabulary.add_added({.id = *end, .content = kEnd, .special = true});
  BpeSpec spec{.name = vocab.string()};
  vocabulary.finish(spec);
  spec.steps.push_back({.pattern = std::string(kGpt2Pattern), .where = "the pattern of GPT-2"});
  spec.bos_id = end;
  spec.eos_id = end;
  return spec;
}

}  // namespace tessera::data
