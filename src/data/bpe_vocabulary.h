// Collects the tokens and merges of a vocabulary and checks that they fit together.
#pragma once
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "data/bpe_spec.h"

namespace tessera::data {

// Every member throws Error{config} with the name, the place and the values when something does not fit.
class BpeVocabulary {
 public:
  explicit BpeVocabulary(std::string name) : name_(std::move(name)) {}

  void add_token(std::string_view spelled, std::int64_t id);
  // After all tokens. `rank` is the place in the list, for messages.
  void add_merge(std::string_view left, std::string_view right, std::int64_t rank);
  void add_merge(std::string_view left_blank_right, std::int64_t rank);
  void add_added(AddedToken token);
  [[nodiscard]] std::optional<std::int32_t> id_of(std::string_view spelled) const;
  // Moves everything into `spec`; the vocabulary is empty after it.
  void finish(BpeSpec& spec);

 private:
  [[nodiscard]] std::int32_t known(std::string_view spelled, std::int64_t rank) const;
  void check_merges_once() const;
  std::string name_;
  std::deque<std::string> spelled_;  // where the views below point
  std::unordered_map<std::string_view, std::int32_t> ids_;
  std::unordered_map<std::int32_t, std::string_view> by_id_;
  std::vector<Merge> merges_;
  std::vector<std::int64_t> ranks_;  // of merges_, for messages
  std::vector<AddedToken> added_;
  std::unordered_set<std::int32_t> added_ids_;
  std::int32_t largest_ = -1;
};

}  // namespace tessera::data
