// tokenizer.json: which keys there are and what they mean is the format of Hugging Face's tokenizers.
#include <fmt/format.h>
#include <simdjson.h>

#include <initializer_list>

#include "base/error.h"
#include "data/bpe_files.h"
#include "data/bpe_vocabulary.h"
#include "data/gpt2_pattern.h"

namespace tessera::data {

namespace {
namespace dom = simdjson::dom;

// A value of the file with its path in it.
struct Node {
  dom::element value;
  std::string where;
};

constexpr const char* kMend =
    "use the tokenizer.model of the same model, or a tokenizer.json of byte-level BPE as GPT-2, Llama 3, "
    "Qwen "
    "and DeepSeek have it";

[[noreturn]] void refuse(const Node& node, std::string what, const char* mend = kMend) {
  throw Error(ErrorKind::config, std::move(what), node.where, mend);
}

std::string text_of(const Node& node) {
  std::string text = simdjson::minify(node.value);
  constexpr std::size_t kMost = 60;
  return text.size() > kMost ? text.substr(0, kMost) + "..." : text;
}

template <class T>
T as(const Node& node, std::string_view kind) {
  T value{};
  if (node.value.get(value) != simdjson::SUCCESS) {
    refuse(node, fmt::format("this is {}, not {}", text_of(node), kind),
           "get the file again from its source");
  }
  return value;
}
dom::object object(const Node& node) {
  return as<dom::object>(node, "an object");
}
dom::array array(const Node& node) {
  return as<dom::array>(node, "an array");
}
std::string_view string(const Node& node) {
  return as<std::string_view>(node, "a string");
}

std::optional<Node> find(const Node& node, std::string_view key) {
  dom::element value;
  if (object(node).at_key(key).get(value) != simdjson::SUCCESS) return std::nullopt;
  return Node{value, fmt::format("{}.{}", node.where, key)};
}
Node need(const Node& node, std::string_view key) {
  if (auto found = find(node, key)) return *found;
  refuse(node, fmt::format("there is no '{}'", key), "get the file again from its source");
}
// None where the key is missing or null.
std::optional<Node> given(const Node& node, std::string_view key) {
  auto found = find(node, key);
  return found && !found->value.is_null() ? found : std::nullopt;
}
bool flag(const Node& node, std::string_view key) {
  return as<bool>(need(node, key), "true or false");
}

// A key that is not known here may change ids.
void only_keys(const Node& node, std::initializer_list<std::string_view> known) {
  for (const auto& field : object(node)) {
    if (std::ranges::find(known, field.key) == known.end()) {
      refuse(node, fmt::format("'{}' is not understood", field.key));
    }
  }
}

// The parts of a thing that is null, one part, or {"type": "Sequence", KEY: [parts]}.
std::vector<Node> parts_of(const Node& node, std::string_view key) {
  if (node.value.is_null()) return {};
  if (string(need(node, "type")) != "Sequence") return {node};
  only_keys(node, {"type", key});
  std::vector<Node> parts;
  const Node list = need(node, key);
  for (const dom::element part : array(list)) {
    parts.push_back({part, fmt::format("{}[{}]", list.where, parts.size())});
  }
  return parts;
}

Normalization read_normalizer(const Node& root) {
  const auto node = given(root, "normalizer");
  if (!node) return Normalization::none;
  Normalization out = Normalization::none;
  for (const Node& part : parts_of(*node, "normalizers")) {
    const std::string_view type = string(need(part, "type"));
    if (type != "NFC") refuse(part, fmt::format("normaliser '{}' is not understood", type));
    only_keys(part, {"type"});
    out = Normalization::nfc;
  }
  return out;
}

SplitBehavior read_behavior(const Node& node) {
  const std::string_view name = string(node);
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  refuse(node, fmt::format("behaviour '{}' is not understood", name));
}

PreStep read_split(const Node& part) {
  only_keys(part, {"type", "pattern", "behavior", "invert"});
  PreStep step{.where = part.where};
  const Node pattern = need(part, "pattern");
  only_keys(pattern, {"Regex", "String"});
  const auto regex = find(pattern, "Regex");
  step.kind = regex ? PreStep::Kind::regex : PreStep::Kind::literal;
  step.pattern = string(regex ? *regex : need(pattern, "String"));
  step.behavior = read_behavior(need(part, "behavior"));
  step.invert = flag(part, "invert");
  return step;
}

void read_byte_level(const Node& part, std::vector<PreStep>& steps) {
  only_keys(part, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  if (flag(part, "add_prefix_space")) {
    steps.push_back({.kind = PreStep::Kind::prefix_space, .where = part.where});
  }
  if (!find(part, "use_regex") || flag(part, "use_regex")) {
    steps.push_back({.pattern = std::string(kGpt2Pattern), .where = part.where});
  }
}

std::vector<PreStep> read_steps(const Node& root) {
  const auto node = given(root, "pre_tokenizer");
  std::vector<PreStep> steps;
  bool in_bytes = false;
  for (const Node& part : node ? parts_of(*node, "pretokenizers") : std::vector<Node>{}) {
    const std::string_view type = string(need(part, "type"));
    if (in_bytes) refuse(part, fmt::format("'{}' after ByteLevel is not understood", type));
    if (type == "Split") {
      steps.push_back(read_split(part));
    } else if (type == "Digits") {
      only_keys(part, {"type", "individual_digits"});
      steps.push_back(
          {.pattern = flag(part, "individual_digits") ? R"(\p{N})" : R"(\p{N}+)", .where = part.where});
    } else if (type == "ByteLevel") {
      read_byte_level(part, steps);
      in_bytes = true;
    } else {
      refuse(part, fmt::format("pre-tokenizer '{}' is not understood", type));
    }
  }
  if (!in_bytes) {
    refuse(root, "pre_tokenizer has no ByteLevel: this is no byte-level tokenizer");
  }
  return steps;
}

void check_decoder(const Node& root) {
  const auto node = given(root, "decoder");
  bool has_bytes = false;
  for (const Node& part : node ? parts_of(*node, "decoders") : std::vector<Node>{}) {
    const std::string_view type = string(need(part, "type"));
    if (type != "ByteLevel") refuse(part, fmt::format("decoder '{}' is not understood", type));
    has_bytes = true;
  }
  if (!has_bytes) refuse(root, "decoder has no ByteLevel: this is no byte-level tokenizer");
}

// What encode and decode do not do: cutting, filling and the tokens around a text. The last is known but left
// to the caller; the others would change the ids of every text.
void check_around(const Node& root) {
  for (const char* key : {"truncation", "padding"}) {
    if (const auto node = given(root, key)) {
      refuse(*node, fmt::format("{} changes the ids of a text and is not done here", key),
             "set it to null in the file");
    }
  }
  const auto post = given(root, "post_processor");
  for (const Node& part : post ? parts_of(*post, "processors") : std::vector<Node>{}) {
    const std::string_view type = string(need(part, "type"));
    if (type != "ByteLevel" && type != "TemplateProcessing" && type != "RobertaProcessing" &&
        type != "BertProcessing") {
      refuse(part, fmt::format("post-processor '{}' is not understood", type));
    }
  }
}

void check_model_options(const Node& model) {
  only_keys(model, {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                    "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (const auto type = find(model, "type"); type && string(*type) != "BPE") {
    refuse(*type, fmt::format("model type '{}' is not understood, only BPE", string(*type)));
  }
  if (const auto dropout = given(model, "dropout"); dropout && as<double>(*dropout, "a number") != 0) {
    refuse(*dropout, fmt::format("dropout {} makes ids random", text_of(*dropout)),
           "set it to null in the file");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const auto affix = given(model, key);
    if (affix && !string(*affix).empty()) {
      refuse(*affix, fmt::format("{} '{}' is not understood", key, string(*affix)));
    }
  }
  if (given(model, "byte_fallback") && flag(model, "byte_fallback")) {
    refuse(model, "byte_fallback is sentencepiece's way to write bytes, not byte-level BPE");
  }
}

void read_model(const Node& model, BpeVocabulary& vocabulary) {
  const Node vocab = need(model, "vocab");
  for (const auto& [token, value] : object(vocab)) {
    const Node id{value, fmt::format("{}['{}']", vocab.where, token)};
    vocabulary.add_token(token, as<std::int64_t>(id, "an id"));
  }
  const Node merges = need(model, "merges");
  std::int64_t rank = 0;
  for (const dom::element element : array(merges)) {
    std::string_view text;
    dom::array pair;
    if (element.get(text) == simdjson::SUCCESS) {
      // Files made from a merges.txt may begin with its first line.
      if (rank > 0 || !text.starts_with("#version")) vocabulary.add_merge(text, rank);
    } else if (element.get(pair) == simdjson::SUCCESS && pair.size() == 2) {
      const Node left{pair.at(0), fmt::format("{}[{}][0]", merges.where, rank)};
      const Node right{pair.at(1), fmt::format("{}[{}][1]", merges.where, rank)};
      vocabulary.add_merge(string(left), string(right), rank);
    } else {
      const Node merge{element, fmt::format("{}[{}]", merges.where, rank)};
      refuse(merge, fmt::format("the merge is {}, not two tokens", text_of(merge)),
             "get the file again from its source");
    }
    ++rank;
  }
}

void read_added(const Node& root, BpeVocabulary& vocabulary) {
  const auto list = given(root, "added_tokens");
  if (!list) return;
  std::int64_t index = 0;
  for (const dom::element element : array(*list)) {
    const Node node{element, fmt::format("{}[{}]", list->where, index++)};
    only_keys(node, {"id", "content", "special", "normalized", "single_word", "lstrip", "rstrip"});
    const Node id = need(node, "id");
    const auto number = as<std::int64_t>(id, "an id");
    if (number < 0 || number > std::numeric_limits<std::int32_t>::max()) {
      refuse(id, fmt::format("id {} is out of range", number), "get the file again from its source");
    }
    vocabulary.add_added({.id = static_cast<std::int32_t>(number),
                          .content = std::string(string(need(node, "content"))),
                          .special = flag(node, "special"),
                          .normalized = flag(node, "normalized"),
                          .single_word = flag(node, "single_word"),
                          .lstrip = flag(node, "lstrip"),
                          .rstrip = flag(node, "rstrip")});
  }
}

BpeSpec read_root(const Node& root, const std::string& name) {
  if (!find(root, "model")) {
    refuse(root, "there is no 'model': this is no tokenizer.json",
           "give a tokenizer.json; for a vocabulary with merges in a file of their own give the folder");
  }
  only_keys(root, {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                   "post_processor", "decoder", "model"});
  if (const auto version = find(root, "version"); version && string(*version) != "1.0") {
    refuse(*version, fmt::format("version '{}' is not understood, only 1.0", string(*version)));
  }
  const Node model = need(root, "model");
  check_model_options(model);
  check_around(root);
  check_decoder(root);
  BpeSpec spec{.name = name};
  spec.normalization = read_normalizer(root);
  spec.steps = read_steps(root);
  if (given(model, "ignore_merges")) spec.whole_words_first = flag(model, "ignore_merges");
  BpeVocabulary vocabulary(name);
  read_model(model, vocabulary);
  read_added(root, vocabulary);
  vocabulary.finish(spec);
  return spec;
}
}  // namespace

BpeSpec read_tokenizer_json(std::string_view text, const std::string& name) {
  dom::parser parser;
  dom::element root;
  const auto error = parser.parse(text.data(), text.size()).get(root);
  if (error != simdjson::SUCCESS) {
    throw Error(ErrorKind::config, fmt::format("not JSON: {}", simdjson::error_message(error)), name,
                "get the file again from its source");
  }
  try {
    return read_root({root, name}, name);
  } catch (const simdjson::simdjson_error& e) {
    throw Error(ErrorKind::config, fmt::format("cannot read the JSON: {}", e.what()), name,
                "get the file again from its source");
  }
}

}  // namespace tessera::data
