// A text file to a Megatron pair of token files.
//
//   const TextStatistics s = tokenise_text_file("austen.txt", tokenizer, "austen", {});   // austen.bin,
//   austen.idx
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

#include "data/statistics.h"
#include "data/tokenizer.h"

namespace tessera::data {

enum class DocumentEnd : std::uint8_t {
  eos,  // the model's end token after each document
  none,
};

struct Tokenising {
  std::string separator = "\f";  // what parts two documents and is dropped; empty: the file is one document
  DocumentEnd document_end = DocumentEnd::eos;
};

// Writes prefix.bin and prefix.idx (u16, or i32 from 65,500 ids on); both appear when complete. Empty
// documents are left out. Throws Error{config} when the text is not UTF-8 (with the byte offset), holds no
// document, or when an end token is asked of a model that has none.
TextStatistics tokenise_text_file(const std::filesystem::path& text_path, const Tokenizer& tokenizer,
                                  const std::filesystem::path& prefix, const Tokenising& options);

}  // namespace tessera::data
