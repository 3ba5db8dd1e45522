#include "data/byte_pairs.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "base/error.h"

namespace tessera::data {

namespace {
constexpr std::int32_t kNoMerge = std::numeric_limits<std::int32_t>::max();
// Up to here looking at all ranks for the smallest beats a heap.
constexpr std::size_t kShort = 40;

std::size_t hash_of(std::int64_t pair) {
  const auto mixed = static_cast<std::uint64_t>(pair) * 0x9E3779B97F4A7C15ULL;
  return static_cast<std::size_t>(mixed ^ (mixed >> 29));
}

std::int64_t pair_of(std::int32_t left, std::int32_t right) {
  return (static_cast<std::int64_t>(left) << 32) | right;
}

// Smallest rank, then leftmost, at the front of a std:: heap.
bool comes_later(const BytePairs::Candidate& a, const BytePairs::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
}
}  // namespace

BytePairs::BytePairs(const BpeSpec& spec, const std::vector<std::string>& bytes_of) : byte_id_(256, -1) {
  for (std::size_t id = 0; id < bytes_of.size(); ++id) {
    const std::string& bytes = bytes_of[id];
    if (bytes.size() == 1) byte_id_[static_cast<unsigned char>(bytes[0])] = static_cast<std::int32_t>(id);
    if (spec.whole_words_first && !bytes.empty()) whole_.emplace(bytes, static_cast<std::int32_t>(id));
  }
  for (std::size_t byte = 0; byte < byte_id_.size(); ++byte) {
    if (byte_id_[byte] >= 0) continue;
    throw Error(
        ErrorKind::config,
        fmt::format("the vocabulary has no token for byte 0x{:02X}: texts with it cannot be encoded", byte),
        spec.name + ": model.vocab", "use a tokenizer whose vocabulary holds all 256 bytes");
  }
  slots_.resize(std::bit_ceil(std::max<std::size_t>(16, 2 * spec.merges.size())));
  std::int32_t rank = 0;
  for (const Merge& m : spec.merges) {
    insert({.pair = pair_of(m.left, m.right), .rank = rank++});
    results_.push_back(m.result);
  }
}

void BytePairs::insert(Slot slot) {
  std::size_t at = hash_of(slot.pair) & (slots_.size() - 1);
  while (slots_[at].pair >= 0) at = (at + 1) & (slots_.size() - 1);
  slots_[at] = slot;
}

std::int32_t BytePairs::rank_of(std::int32_t left, std::int32_t right) const {
  const std::int64_t pair = pair_of(left, right);
  std::size_t at = hash_of(pair) & (slots_.size() - 1);
  while (slots_[at].pair != pair) {
    if (slots_[at].pair < 0) return kNoMerge;
    at = (at + 1) & (slots_.size() - 1);
  }
  return slots_[at].rank;
}

void BytePairs::encode(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const {
  TESSERA_CHECK(word.size() <= static_cast<std::size_t>(kNoMerge), "a word of less than 2 GiB");
  if (!whole_.empty()) {
    const auto at = whole_.find(std::string(word));
    if (at != whole_.end()) {
      out.push_back(at->second);
      return;
    }
  }
  if (word.size() <= kShort) {
    encode_short(word, scratch, out);
  } else {
    encode_long(word, scratch, out);
  }
}

// `out` grows by the word's bytes, which shrink in place.
void BytePairs::encode_short(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const {
  const std::size_t begin = out.size();
  for (const char c : word) out.push_back(byte_id_[static_cast<unsigned char>(c)]);
  std::vector<std::int32_t>& ranks = scratch.ranks;  // of each token with the next
  ranks.clear();
  for (std::size_t i = begin; i + 1 < out.size(); ++i) ranks.push_back(rank_of(out[i], out[i + 1]));
  while (!ranks.empty()) {
    const auto best = std::ranges::min_element(ranks);  // the first of equals
    if (*best == kNoMerge) break;
    const auto k = best - ranks.begin();
    const auto left = out.begin() + static_cast<std::ptrdiff_t>(begin) + k;
    *left = results_[static_cast<std::size_t>(*best)];
    out.erase(left + 1);
    ranks.erase(best);
    if (k > 0) ranks[static_cast<std::size_t>(k - 1)] = rank_of(*(left - 1), *left);
    if (static_cast<std::size_t>(k) < ranks.size()) {
      ranks[static_cast<std::size_t>(k)] = rank_of(*left, *(left + 1));
    }
  }
}

// A linked list of symbols and a heap of merges; merges of symbols that have changed since are passed over.
void BytePairs::encode_long(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const {
  std::vector<Symbol>& symbols = scratch.symbols;
  std::vector<Candidate>& heap = scratch.heap;
  const auto symbol = [&](std::int32_t at) -> Symbol& { return symbols[static_cast<std::size_t>(at)]; };
  const auto rank_at = [&](std::int32_t at) {
    const Symbol& left = symbol(at);
    return left.after < 0 ? kNoMerge : rank_of(left.id, symbol(left.after).id);
  };
  symbols.clear();
  heap.clear();
  for (const char c : word) {
    const auto at = static_cast<std::int32_t>(symbols.size());
    symbols.push_back({byte_id_[static_cast<unsigned char>(c)], at - 1, at + 1});
  }
  symbols.back().after = -1;
  for (std::int32_t at = 0; symbol(at).after >= 0; ++at) {
    if (const std::int32_t rank = rank_at(at); rank != kNoMerge) heap.push_back({rank, at});
  }
  std::ranges::make_heap(heap, comes_later);
  const auto consider = [&](std::int32_t at) {
    const std::int32_t rank = rank_at(at);
    if (rank == kNoMerge) return;
    heap.push_back({rank, at});
    std::ranges::push_heap(heap, comes_later);
  };
  while (!heap.empty()) {
    std::ranges::pop_heap(heap, comes_later);
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbol(best.left);
    if (left.id < 0 || rank_at(best.left) != best.rank) continue;
    Symbol& right = symbol(left.after);
    left.id = results_[static_cast<std::size_t>(best.rank)];
    left.after = right.after;
    right.id = -1;
    if (left.after >= 0) symbol(left.after).before = best.left;
    consider(best.left);
    if (left.before >= 0) consider(left.before);
  }
  for (std::int32_t at = 0; at >= 0; at = symbol(at).after) out.push_back(symbol(at).id);
}

}  // namespace tessera::data
