#include "data/added_tokens.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace tessera::data {

namespace {
// A word character as the published encoders take it (Unicode's Alphabetic, marks, decimal digits, connector
// punctuation and the two joiners). Alphabetic is L, Nl and Other_Alphabetic, of which everything but the
// circled, squared and parenthesised letters is a mark.
constexpr std::string_view kWordCharacter =
    "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\u200c\\u200d\\u24b6-\\u24e9"
    "\xF0\x9F\x84\xB0-\xF0\x9F\x85\x89"   // U+1F130 to U+1F149
    "\xF0\x9F\x85\x90-\xF0\x9F\x85\xA9"   // U+1F150 to U+1F169
    "\xF0\x9F\x85\xB0-\xF0\x9F\x86\x89]"  // U+1F170 to U+1F189
    ;

using Range = SplitPattern::Range;

bool continues(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}
// The character that ends before `end`, and the one that begins at `begin`.
Range character_before(std::string_view text, std::size_t end) {
  std::size_t at = end - 1;
  while (at > 0 && continues(text[at])) --at;
  return {at, end};
}
Range character_at(std::string_view text, std::size_t begin) {
  std::size_t at = begin + 1;
  while (at < text.size() && continues(text[at])) ++at;
  return {begin, at};
}
}  // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)),
      word_(SplitPattern::regex(kWordCharacter, "word characters")),
      space_(SplitPattern::regex(R"(\s)", "white space")) {
  std::ranges::sort(tokens_, {}, &AddedToken::content);
  for (const AddedToken& t : tokens_) begins_[static_cast<unsigned char>(t.content.front())] = true;
}

// Sorted by content, the tokens that begin with the first d bytes of the text are neighbours; the shortest
// stands first. Each further byte narrows the range.
const AddedToken* AddedTokens::longest_at(std::string_view text) const {
  const AddedToken* longest = nullptr;
  auto first = tokens_.begin();
  auto last = tokens_.end();
  for (std::size_t d = 0; d < text.size(); ++d) {
    const auto byte = static_cast<unsigned char>(text[d]);
    const auto at_d = [d](const AddedToken& t) {
      return d < t.content.size() ? static_cast<int>(static_cast<unsigned char>(t.content[d])) : -1;
    };
    std::tie(first, last) = [&] {
      const auto range = std::ranges::equal_range(first, last, static_cast<int>(byte), {}, at_d);
      return std::pair(range.begin(), range.end());
    }();
    if (first == last) break;
    if (first->content.size() == d + 1) longest = &*first;
  }
  return longest;
}

bool AddedTokens::stands_alone(std::string_view text, Range found, SplitPattern::Scratch& scratch) const {
  const auto is_word = [&](Range c) {
    return word_.find(text.substr(c.begin, c.end - c.begin), 0, scratch).has_value();
  };
  if (found.begin > 0 && is_word(character_before(text, found.begin))) return false;
  return found.end == text.size() || !is_word(character_at(text, found.end));
}

Range AddedTokens::widen(std::string_view text, Range found, const AddedToken& token,
                         SplitPattern::Scratch& scratch) const {
  const auto is_space = [&](Range c) {
    return space_.find(text.substr(c.begin, c.end - c.begin), 0, scratch).has_value();
  };
  while (token.lstrip && found.begin > 0) {
    const Range before = character_before(text, found.begin);
    if (!is_space(before)) break;
    found.begin = before.begin;
  }
  while (token.rstrip && found.end < text.size()) {
    const Range after = character_at(text, found.end);
    if (!is_space(after)) break;
    found.end = after.end;
  }
  return found;
}

void AddedTokens::split(std::string_view text, SplitPattern::Scratch& scratch, const Sink& sink) const {
  std::size_t done = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    if (!begins_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const AddedToken* token = longest_at(text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    const Range match{at, at + token->content.size()};
    at = match.end;
    if (token->single_word && !stands_alone(text, match, scratch)) continue;
    Range taken = widen(text, match, *token, scratch);
    taken.begin = std::max(taken.begin, done);
    if (taken.begin > done) sink(text.substr(done, taken.begin - done), -1);
    sink(text.substr(taken.begin, taken.end - taken.begin), token->id);
    done = taken.end;
    at = std::max(at, done);
  }
  if (done < text.size()) sink(text.substr(done), -1);
}

}  // namespace tessera::data
