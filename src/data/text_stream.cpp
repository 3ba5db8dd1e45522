#include "data/text_stream.h"

#include <algorithm>
#include <string_view>

namespace tessera::data {

namespace {
constexpr std::size_t kKept = 8;                           // ids before the new text that it may depend on
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt)
    : tokenizer_(tokenizer) {
  const std::size_t kept = std::min(kKept, prompt.size());
  ids_.assign(prompt.end() - static_cast<std::ptrdiff_t>(kept), prompt.end());
  given_ = ids_.size();
}

std::string TextStream::add(std::int32_t id) {
  ids_.push_back(id);
  return emit(false);
}

std::string TextStream::finish() {
  return emit(true);
}

std::string TextStream::emit(bool all) {
  const std::span<const std::int32_t> ids = ids_;
  const std::string before = tokenizer_.decode(ids.first(given_));
  const std::string now = tokenizer_.decode(ids);
  if (now.size() <= before.size()) return "";
  if (!all && std::string_view(now).ends_with(kReplacement)) return "";  // perhaps half a character
  std::string text = now.substr(before.size());
  // What is out serves as the beginning of the next text, which only needs the last few ids.
  if (ids_.size() > 2 * kKept) ids_.erase(ids_.begin(), ids_.end() - static_cast<std::ptrdiff_t>(kKept));
  given_ = ids_.size();
  return text;
}

}  // namespace tessera::data
