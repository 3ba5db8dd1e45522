// TextStream: text out of token ids that come one at a time. A token may hold part of a character, or its
// text may depend on the one before it (the space of a first word): only what later tokens cannot change
// comes out.
//
//   TextStream stream(tokenizer, prompt);          // the new text begins behind the prompt
//   for (id : ids) print(stream.add(id));
//   print(stream.finish());                        // bytes that formed no character, as U+FFFD
//
// All pieces together are decode(prompt + ids) without its beginning decode(prompt).
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace tessera::data {

class TextStream {
 public:
  // tokenizer outlives the stream. Of the prompt the last few tokens are kept.
  TextStream(const Tokenizer& tokenizer, std::span<const std::int32_t> prompt);
  [[nodiscard]] std::string add(std::int32_t id);
  [[nodiscard]] std::string finish();

 private:
  [[nodiscard]] std::string emit(bool all);
  const Tokenizer& tokenizer_;
  std::vector<std::int32_t> ids_;  // the last ones that gave text, and those that wait
  std::size_t given_ = 0;          // ids whose text is out
};

}  // namespace tessera::data
