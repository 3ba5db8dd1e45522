// Reads the files of byte-level BPE tokenizers; docs/formats/tokenizer.md says what is understood of them.
// What is damaged, or would change ids in a way that is not understood, is refused by name.
#pragma once
#include <filesystem>
#include <string>
#include <string_view>

#include "data/bpe_spec.h"

namespace tessera::data {

// The text of a tokenizer.json; `name` is for messages. Throws Error{config} with the path in the file.
[[nodiscard]] BpeSpec read_tokenizer_json(std::string_view text, const std::string& name);

// The two files of GPT-2: an object of tokens and ids, and lines "left right" of merges. Words are split as
// GPT-2 does, and <|endoftext|>, where the vocabulary has it, is special. Throws Error{io}, Error{config}.
[[nodiscard]] BpeSpec read_vocab_and_merges(const std::filesystem::path& vocab,
                                            const std::filesystem::path& merges);

// Sets bos_id and eos_id from the files beside a tokenizer: bos_token and eos_token of tokenizer_config.json,
// or, where that says nothing of them, bos_token_id and eos_token_id of config.json when they are one number.
// Throws Error{config} when a file is no JSON or names a token that the tokenizer does not have.
void read_special_ids(const std::filesystem::path& folder, BpeSpec& spec);

}  // namespace tessera::data
