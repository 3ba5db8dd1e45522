#include "data/bpe_vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace tessera::data {

namespace {
constexpr std::int64_t kLargestId = 16'777'215;

Error bad(std::string what, std::string where, std::string mend = "get the file again from its source") {
  return {ErrorKind::config, std::move(what), std::move(where), std::move(mend)};
}
}  // namespace

void BpeVocabulary::add_token(std::string_view spelled, std::int64_t id) {
  const std::string where = name_ + ": vocab";
  if (spelled.empty()) throw bad(fmt::format("the token of id {} is empty", id), where);
  if (id < 0 || id > kLargestId) {
    throw bad(fmt::format("token '{}' has id {}, outside 0 to {}", spelled, id, kLargestId), where);
  }
  const auto small = static_cast<std::int32_t>(id);
  const auto [at, is_new] = ids_.emplace(spelled_.emplace_back(spelled), small);
  if (!is_new) {
    throw bad(fmt::format("token '{}' stands twice, with ids {} and {}", spelled, at->second, id), where);
  }
  const auto [other, is_free] = by_id_.emplace(small, at->first);
  if (!is_free) {
    throw bad(fmt::format("tokens '{}' and '{}' have the same id {}", other->second, spelled, id), where);
  }
  largest_ = std::max(largest_, small);
}

std::optional<std::int32_t> BpeVocabulary::id_of(std::string_view spelled) const {
  const auto at = ids_.find(spelled);
  return at == ids_.end() ? std::nullopt : std::optional(at->second);
}

std::int32_t BpeVocabulary::known(std::string_view spelled, std::int64_t rank) const {
  if (const auto id = id_of(spelled)) return *id;
  throw bad(fmt::format("the merge names '{}', which is no token", spelled),
            fmt::format("{}: merges[{}]", name_, rank));
}

void BpeVocabulary::add_merge(std::string_view left, std::string_view right, std::int64_t rank) {
  const std::int32_t a = known(left, rank);
  const std::int32_t b = known(right, rank);
  const std::int32_t result = known(std::string(left).append(right), rank);
  ranks_.push_back(rank);
  merges_.push_back({a, b, result});
}

void BpeVocabulary::add_merge(std::string_view left_blank_right, std::int64_t rank) {
  const std::size_t blank = left_blank_right.find(' ');
  if (blank == std::string_view::npos || left_blank_right.find(' ', blank + 1) != std::string_view::npos) {
    throw bad(fmt::format("the merge is '{}', not two tokens with a space between", left_blank_right),
              fmt::format("{}: merges[{}]", name_, rank));
  }
  add_merge(left_blank_right.substr(0, blank), left_blank_right.substr(blank + 1), rank);
}

void BpeVocabulary::add_added(AddedToken token) {
  const std::string where = fmt::format("{}: added_tokens[{}]", name_, added_.size());
  if (token.content.empty()) throw bad("the added token is empty", where);
  const auto id = id_of(token.content);
  if (id && *id != token.id) {
    throw bad(fmt::format("'{}' has id {} here and {} in the vocabulary", token.content, token.id, *id),
              where);
  }
  if (!id) add_token(token.content, token.id);
  if (!added_ids_.insert(token.id).second) {
    throw bad(fmt::format("'{}' with id {} is an added token twice", token.content, token.id), where);
  }
  added_.push_back(std::move(token));
}

void BpeVocabulary::check_merges_once() const {
  std::vector<std::size_t> order(merges_.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto pair = [&](std::size_t i) { return std::pair(merges_[i].left, merges_[i].right); };
  std::ranges::sort(
      order, [&](std::size_t a, std::size_t b) { return std::pair(pair(a), a) < std::pair(pair(b), b); });
  const auto twice = std::ranges::adjacent_find(order, {}, pair);
  if (twice == order.end()) return;
  const Merge& m = merges_[*twice];
  throw bad(fmt::format("the merge of '{}' and '{}' stands twice, the first time at [{}]", by_id_.at(m.left),
                        by_id_.at(m.right), ranks_[*twice]),
            fmt::format("{}: merges[{}]", name_, ranks_[*(twice + 1)]));
}

void BpeVocabulary::finish(BpeSpec& spec) {
  check_merges_once();
  // Ids may be left out, but a table by id must not be many times the size of the file.
  const auto count = static_cast<std::int64_t>(ids_.size());
  if (largest_ > 4 * count + 65'536) {
    throw bad(fmt::format("the largest id is {}, but there are only {} tokens", largest_, count),
              name_ + ": vocab");
  }
  spec.tokens.resize(static_cast<std::size_t>(largest_ + 1));
  for (const auto& [id, spelled] : by_id_) spec.tokens[static_cast<std::size_t>(id)] = spelled;
  spec.merges = std::exchange(merges_, {});
  spec.added = std::exchange(added_, {});
  *this = BpeVocabulary(name_);
}

}  // namespace tessera::data
