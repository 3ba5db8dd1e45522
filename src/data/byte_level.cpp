// Byte-level BPE: added tokens, normalisation, words, byte pairs.
#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "data/added_tokens.h"
#include "data/byte_alphabet.h"
#include "data/byte_pairs.h"
#include "data/normalize.h"
#include "data/pretokenizer.h"
#include "data/tokenizer_impl.h"
#include "data/utf8.h"

namespace tessera::data {

namespace {

// The added tokens of one way to read a text: those of the text as given and those of the normalised text.
struct AddedPair {
  AddedTokens raw;
  AddedTokens normalized;
};

AddedPair added_of(const BpeSpec& spec, Special special) {
  std::vector<AddedToken> raw;
  std::vector<AddedToken> normalized;
  for (AddedToken t : spec.added) {
    if (t.special && special == Special::plain) continue;
    if (t.normalized && spec.normalization == Normalization::nfc) {
      if (auto content = to_nfc(t.content)) t.content = std::move(*content);
    }
    (t.normalized ? normalized : raw).push_back(std::move(t));
  }
  return {AddedTokens(std::move(raw)), AddedTokens(std::move(normalized))};
}

// The tokens of words that have come before in this text.
class KnownWords {
 public:
  // Appends the word's tokens and returns true, or returns false.
  bool copy(std::string_view word, std::vector<std::int32_t>& out) const {
    const auto at = known_.find(word);
    if (at == known_.end()) return false;
    const auto from = ids_.begin() + at->second.first;
    out.insert(out.end(), from, from + at->second.second);
    return true;
  }
  // The limits keep the memory small on texts of any size; a longer word hardly comes again.
  void add(std::string_view word, std::span<const std::int32_t> ids) {
    constexpr std::size_t kLongest = 64;
    constexpr std::size_t kMost = 100'000;
    if (word.size() > kLongest) return;
    if (known_.size() == kMost) clear();
    known_.emplace(word,
                   std::pair(static_cast<std::int64_t>(ids_.size()), static_cast<std::int64_t>(ids.size())));
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  }
  void clear() {
    known_.clear();
    ids_.clear();
  }

 private:
  std::unordered_map<std::string_view, std::pair<std::int64_t, std::int64_t>> known_;  // begin, count
  std::vector<std::int32_t> ids_;
};

class ByteLevel final : public TokenizerImpl {
 public:
  explicit ByteLevel(BpeSpec spec);
  std::vector<std::int32_t> encode(std::string_view text, Special special) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  std::string decode_bytes(std::span<const std::int32_t> ids) const override;
  std::int32_t vocab_size() const override { return static_cast<std::int32_t>(bytes_.size()); }
  std::optional<std::int32_t> bos_id() const override { return bos_; }
  std::optional<std::int32_t> eos_id() const override { return eos_; }
  std::optional<std::int32_t> unk_id() const override { return std::nullopt; }
  std::string piece(std::int32_t id) const override;

 private:
  struct Work;  // of one encode
  enum class Kind : std::uint8_t { none, bytes, added, special };
  void encode_characters(std::string_view text, const AddedPair& added, Work& work) const;
  void encode_words(std::string_view text, Work& work) const;
  void encode_word(std::string_view word, Work& work) const;
  enum class SpecialTokens : std::uint8_t { dropped, spelled };
  std::string join(std::span<const std::int32_t> ids, SpecialTokens special) const;

  std::vector<std::string> bytes_;  // by id: what the token stands for
  std::vector<Kind> kinds_;
  AddedPair plain_;
  AddedPair parse_;
  Normalization normalization_;
  Pretokenizer pretokenizer_;
  std::optional<BytePairs> pairs_;
  std::optional<std::int32_t> bos_;
  std::optional<std::int32_t> eos_;
};

struct ByteLevel::Work {
  std::vector<std::int32_t> ids;
  KnownWords known;
  Pretokenizer::Scratch words;
  SplitPattern::Scratch added;
  BytePairs::Scratch pairs;
};

ByteLevel::ByteLevel(BpeSpec spec)
    : TokenizerImpl(spec.name),
      kinds_(spec.tokens.size(), Kind::none),
      plain_(added_of(spec, Special::plain)),
      parse_(added_of(spec, Special::parse)),
      normalization_(spec.normalization),
      pretokenizer_(spec.steps),
      bos_(spec.bos_id),
      eos_(spec.eos_id) {
  const ByteAlphabet alphabet;
  std::vector<std::string> mergeable(spec.tokens.size());  // empty: no text gives it
  bytes_.resize(spec.tokens.size());
  for (std::size_t id = 0; id < spec.tokens.size(); ++id) {
    if (spec.tokens[id].empty()) continue;
    if (auto bytes = alphabet.read(spec.tokens[id])) mergeable[id] = std::move(*bytes);
    bytes_[id] = mergeable[id].empty() ? spec.tokens[id] : mergeable[id];
    kinds_[id] = Kind::bytes;
  }
  for (const AddedToken& t : spec.added) {
    const auto id = static_cast<std::size_t>(t.id);
    bytes_[id] = t.content;
    kinds_[id] = t.special ? Kind::special : Kind::added;
  }
  pairs_.emplace(spec, mergeable);
}

std::vector<std::int32_t> ByteLevel::encode(std::string_view text, Special special) const {
  const AddedPair& added = special == Special::parse ? parse_ : plain_;
  Work work;
  while (!text.empty()) {
    const auto bad = first_invalid_utf8(text);
    const std::size_t good = bad ? static_cast<std::size_t>(*bad) : text.size();
    encode_characters(text.substr(0, good), added, work);
    text.remove_prefix(good);
    const auto broken = static_cast<std::size_t>(invalid_utf8_prefix(text));
    if (broken > 0) encode_word(text.substr(0, broken), work);
    text.remove_prefix(broken);
  }
  return std::move(work.ids);
}

void ByteLevel::encode_characters(std::string_view text, const AddedPair& added, Work& work) const {
  const auto by_id = [&](std::int32_t id) { work.ids.push_back(id); };
  added.raw.split(text, work.added, [&](std::string_view part, std::int32_t part_id) {
    if (part_id >= 0) return by_id(part_id);
    std::optional<std::string> normal;
    if (normalization_ == Normalization::nfc) normal = to_nfc(part);
    if (normal) work.known.clear();  // its keys would outlive the normalised text
    added.normalized.split(normal ? std::string_view(*normal) : part, work.added,
                           [&](std::string_view words, std::int32_t id) {
                             if (id >= 0) return by_id(id);
                             encode_words(words, work);
                           });
    if (normal) work.known.clear();
  });
}

void ByteLevel::encode_words(std::string_view text, Work& work) const {
  pretokenizer_.split(text, work.words, [&](std::string_view word) { encode_word(word, work); });
}

void ByteLevel::encode_word(std::string_view word, Work& work) const {
  if (work.known.copy(word, work.ids)) return;
  const std::size_t begin = work.ids.size();
  pairs_->encode(word, work.pairs, work.ids);
  work.known.add(word, std::span<const std::int32_t>(work.ids).subspan(begin));
}

std::string ByteLevel::join(std::span<const std::int32_t> ids, SpecialTokens special) const {
  std::string out;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto id = static_cast<std::size_t>(ids[i]);
    if (kinds_[id] == Kind::none) {
      throw Error(ErrorKind::config,
                  fmt::format("token {} is {}, an id that the vocabulary leaves out", i, ids[i]), name(),
                  "use the tokenizer that made the tokens");
    }
    if (kinds_[id] != Kind::special || special == SpecialTokens::spelled) out += bytes_[id];
  }
  return out;
}

std::string ByteLevel::decode(std::span<const std::int32_t> ids) const {
  return replace_invalid_utf8(join(ids, SpecialTokens::dropped));
}

std::string ByteLevel::decode_bytes(std::span<const std::int32_t> ids) const {
  return join(ids, SpecialTokens::spelled);
}

std::string ByteLevel::piece(std::int32_t id) const {
  const auto at = static_cast<std::size_t>(id);
  return kinds_[at] == Kind::bytes ? ByteAlphabet().spell(bytes_[at]) : bytes_[at];
}

}  // namespace

std::unique_ptr<const TokenizerImpl> make_byte_level(BpeSpec spec) {
  return std::make_unique<ByteLevel>(std::move(spec));
}

}  // namespace tessera::data
