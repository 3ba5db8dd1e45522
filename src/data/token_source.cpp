#include "data/token_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "data/llmc_file.h"
#include "data/megatron_file.h"

namespace tessera::data {

TokenSource::TokenSource(Facts facts)
    : name_(std::move(facts.name)),
      num_tokens_(facts.num_tokens),
      num_documents_(facts.num_documents),
      vocab_bound_(facts.vocab_bound) {}

void TokenSource::copy(std::int64_t begin, std::span<std::int32_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  if (begin < 0 || begin > num_tokens_ || count > num_tokens_ - begin) {
    throw Error(ErrorKind::internal,
                fmt::format("tokens {} to {} asked of a stream of {}", begin, begin + count, num_tokens_),
                name_, "this is a defect of Tessera: please report it with the command and the input");
  }
  if (count > 0) do_copy(begin, out);
}

namespace {
std::int64_t bound_of(const std::vector<std::int32_t>& tokens, const std::string& name) {
  std::int64_t bound = 0;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) {
      throw Error(ErrorKind::config, fmt::format("token {} is {}", i, tokens[i]), name,
                  "give ids of 0 and above");
    }
    bound = std::max(bound, std::int64_t{tokens[i]} + 1);
  }
  return bound;
}
}  // namespace

MemoryTokens::MemoryTokens(std::vector<std::int32_t> tokens, std::string name)
    : TokenSource({.name = name,
                   .num_tokens = static_cast<std::int64_t>(tokens.size()),
                   .vocab_bound = bound_of(tokens, name)}),
      tokens_(std::move(tokens)) {}

void MemoryTokens::do_copy(std::int64_t begin, std::span<std::int32_t> out) const {
  std::copy_n(tokens_.begin() + begin, out.size(), out.begin());
}

TokenSlice::TokenSlice(std::shared_ptr<const TokenSource> source, std::int64_t begin, std::int64_t end)
    : TokenSource({.name = fmt::format("{} [{}, {})", source->name(), begin, end),
                   .num_tokens = end - begin,
                   .vocab_bound = source->vocab_bound()}),
      source_(std::move(source)),
      begin_(begin) {
  TESSERA_CHECK(begin >= 0 && begin <= end && end <= source_->num_tokens(), "a slice lies inside its source");
}

void TokenSlice::do_copy(std::int64_t begin, std::span<std::int32_t> out) const {
  source_->copy(begin_ + begin, out);
}

TrainValidation split_train_validation(std::shared_ptr<const TokenSource> source, double fraction) {
  if (!(fraction >= 0.0 && fraction < 1.0)) {
    throw Error(ErrorKind::config, fmt::format("a validation fraction of {}", fraction), source->name(),
                "use a fraction from 0 to below 1, for instance 0.05");
  }
  const std::int64_t total = source->num_tokens();
  const auto held_out = static_cast<std::int64_t>(std::floor(fraction * static_cast<double>(total)));
  const std::int64_t cut = total - std::min(held_out, total);
  return {.train = std::make_shared<TokenSlice>(source, 0, cut),
          .validation = std::make_shared<TokenSlice>(source, cut, total)};
}

namespace {
constexpr const char* kAccepted =
    "give one of: NAME.bin or NAME.idx or NAME (Megatron, both files in one folder), NAME.bin (llm.c, first "
    "word "
    "20240520 or 20240801); text becomes a token file with a tokenizer";

[[noreturn]] void refuse(std::string what, const std::filesystem::path& path) {
  throw Error(ErrorKind::config, std::move(what), path.string(), kAccepted);
}

std::string first_bytes_text(std::span<const std::byte> bytes) {
  std::string text;
  for (std::size_t i = 0; i < std::min<std::size_t>(8, bytes.size()); ++i) {
    text += fmt::format("{}{:02X}", i == 0 ? "" : " ", std::to_integer<int>(bytes[i]));
  }
  return text.empty() ? "nothing" : text;
}
}  // namespace

std::shared_ptr<const TokenSource> open_token_file(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  const auto with = [&](const char* extension) { return fs::path(path).replace_extension(extension); };
  std::error_code ignored;
  const std::string extension = path.extension().string();
  if (extension == ".idx") return std::make_shared<MegatronTokens>(path, with(".bin"));
  if (extension == ".bin" && fs::exists(with(".idx"), ignored)) {
    return std::make_shared<MegatronTokens>(with(".idx"), path);
  }
  if (!fs::exists(path, ignored)) {
    const fs::path index = path.string() + ".idx";
    if (fs::exists(index, ignored)) return std::make_shared<MegatronTokens>(index, path.string() + ".bin");
    refuse("no such token file", path);
  }
  MappedFile file(path);
  if (is_llmc_file(file.bytes())) return std::make_shared<LlmcTokens>(path, std::move(file));
  if (is_megatron_index(file.bytes())) {
    refuse("a Megatron index under a name that does not end in .idx", path);
  }
  if (extension == ".bin") {
    refuse(fmt::format("neither a {} beside it (Megatron) nor an llm.c header: begins with {}",
                       with(".idx").filename().string(), first_bytes_text(file.bytes())),
           path);
  }
  refuse(fmt::format("not a token file: begins with {}", first_bytes_text(file.bytes())), path);
}

}  // namespace tessera::data
