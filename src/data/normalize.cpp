#include "data/normalize.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "base/error.h"

namespace tessera::data {

std::optional<std::string> to_nfc(std::string_view text) {
  // U+0300, the first combining mark, begins with 0xCC.
  if (std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0xCC; })) {
    return std::nullopt;
  }
  utf8proc_uint8_t* composed = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
      &composed, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(composed, &std::free);
  if (size < 0) {
    throw Error(ErrorKind::internal,
                fmt::format("cannot normalise {} bytes of text: {}", text.size(), utf8proc_errmsg(size)),
                "the tokenizer's NFC step", "encode the text in smaller parts");
  }
  return std::string(reinterpret_cast<const char*>(composed), static_cast<std::size_t>(size));
}

}  // namespace tessera::data
