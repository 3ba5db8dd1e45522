#include "data/tokenise.h"

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/megatron_file.h"
#include "data/utf8.h"

namespace tessera::data {

namespace {
// Takes the next document off the front of `rest`.
std::string_view take_document(std::string_view& rest, const std::string& separator) {
  const std::size_t end = separator.empty() ? std::string_view::npos : rest.find(separator);
  const std::string_view document = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + separator.size());
  return document;
}
}  // namespace

TextStatistics tokenise_text_file(const std::filesystem::path& text_path, const Tokenizer& tokenizer,
                                  const std::filesystem::path& prefix, const Tokenising& options) {
  const std::optional<std::int32_t> eos = tokenizer.eos_id();
  if (options.document_end == DocumentEnd::eos && !eos) {
    throw Error(ErrorKind::config, "the tokenizer has no end token to put after a document", tokenizer.name(),
                "use a model with eos_id, put the tokenizer_config.json that names eos_token beside the "
                "tokenizer.json, or tokenise without an end token");
  }
  const MappedFile file(text_path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  check_utf8(text, text_path.string());
  TextStatistics statistics{.num_bytes = static_cast<std::int64_t>(text.size()),
                            .num_characters = count_characters(text)};
  MegatronWriter writer(prefix, megatron_type_for(tokenizer.vocab_size()));
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view document = take_document(rest, options.separator);
    if (document.empty()) continue;
    writer.append(tokenizer.encode(document));
    if (options.document_end == DocumentEnd::eos) writer.append(std::span(&*eos, 1));
    writer.end_document();
  }
  if (writer.num_documents() == 0) {
    throw Error(ErrorKind::config, "no text to tokenise: the file has no document", text_path.string(),
                "give a file with text");
  }
  writer.finish();
  statistics.num_tokens = writer.num_tokens();
  statistics.num_documents = writer.num_documents();
  return statistics;
}

}  // namespace tessera::data
