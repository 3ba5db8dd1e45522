// Byte-level tokenizers as a caller sees them: the small one of small_tokenizer.h, changed in one place each
// time; folders; what is refused and with which words; and damaged files, which must give an Error and
// nothing else.
#include <thread>

#include "data/bpe_files.h"
#include "data/small_tokenizer.h"
#include "data/support.h"
#include "data/tokenizer.h"

namespace tessera::data {
namespace {
using test::added_token;
using test::expect_error;
using test::Json;
using test::small_tokenizer;
using test::TempFolder;
using test::write_plain;
using Ids = std::vector<std::int32_t>;

Tokenizer from(const Json& json) {
  return Tokenizer::from_bytes(json.dump(), "t.json");
}
Json step(const std::string& regex, const std::string& behavior) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", behavior}, {"invert", false}};
}

TEST(ByteLevel, MergesWithinWordsAndGivesTheTextBack) {
  const Tokenizer t = from(small_tokenizer());
  EXPECT_EQ(t.vocab_size(), 266);
  EXPECT_EQ(t.encode("hello world"), (Ids{259, 260, 'o', 'r', 'l', 'd'}));
  EXPECT_EQ(t.encode("hell   lo"), (Ids{258, 261, ' ', 262}));
  EXPECT_EQ(t.encode(""), Ids{});
  EXPECT_EQ(t.decode({}), "");
  EXPECT_EQ(t.piece(260), "\xC4\xA0w");
  EXPECT_EQ(t.piece(263), "<end>");
  EXPECT_EQ(t.name(), "t.json");
  EXPECT_EQ(t.unk_id(), std::nullopt);
  EXPECT_EQ(t.eos_id(), std::nullopt);
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  for (const std::string& text :
       {all, all + all, std::string("\xE4\xB8"), std::string("hello\xF0\x9F\x99hello")}) {
    EXPECT_EQ(t.decode_bytes(t.encode(text)), text);
  }
  EXPECT_EQ(t.encode("hello\xF0\x9F\x99hello"), (Ids{259, 0xF0, 0x9F, 0x99, 259}));
  EXPECT_EQ(t.decode(Ids{'a', 0xE4, 0xB8}), "a\xEF\xBF\xBD");
  EXPECT_EQ(t.decode(Ids{0xE4, 0xB8, 0x96}), "\xE4\xB8\x96");
}

TEST(ByteLevel, SpecialTokensInTextAreLettersUnlessAskedFor) {
  const Tokenizer t = from(small_tokenizer());
  const std::string text = "hello<end>hello<think><end>>";
  const Ids letters = {'<', 'e', 'n', 'd', '>'};
  Ids plain = {259};
  plain.insert(plain.end(), letters.begin(), letters.end());
  plain.insert(plain.end(), {259, 264});
  plain.insert(plain.end(), letters.begin(), letters.end());
  plain.push_back('>');
  EXPECT_EQ(t.encode(text), plain);
  EXPECT_EQ(t.encode(text, Special::plain), plain);
  EXPECT_EQ(t.encode(text, Special::parse), (Ids{259, 263, 259, 264, 265}));
  EXPECT_EQ(t.decode(plain), text);
  EXPECT_EQ(t.decode(t.encode(text, Special::parse)), "hellohello<think>");
  EXPECT_EQ(t.decode_bytes(t.encode(text, Special::parse)), text);
}

TEST(ByteLevel, MergesMayBePairs) {
  Json json = small_tokenizer();
  for (Json& merge : json["model"]["merges"]) {
    const std::string text = merge;
    const std::size_t blank = text.find(' ');
    merge = Json::array({text.substr(0, blank), text.substr(blank + 1)});
  }
  EXPECT_EQ(from(json).encode("hello world"), from(small_tokenizer()).encode("hello world"));
}

TEST(ByteLevel, WholeWordsComeFirstWhereTheFileSaysSo) {
  Json json = small_tokenizer();
  json["model"]["vocab"]["world"] = 300;  // no merge makes it
  EXPECT_EQ(from(json).encode("world"), (Ids{'w', 'o', 'r', 'l', 'd'}));
  json["model"]["ignore_merges"] = true;
  EXPECT_EQ(from(json).encode("world"), Ids{300});
  EXPECT_EQ(from(json).encode("worlds"), (Ids{'w', 'o', 'r', 'l', 'd', 's'}));
  EXPECT_EQ(from(json).vocab_size(), 301);
  expect_error(ErrorKind::config, {"token 1 is 299, an id that the vocabulary leaves out", "mend: "}, [&] {
    return from(json).decode(Ids{300, 299});
  });
  expect_error(ErrorKind::config, {"token 0 is 301, outside the vocabulary of 301"},
               [&] { return from(json).decode(Ids{301}); });
}

TEST(ByteLevel, StepsOfTheFileAreDone) {
  Json json = small_tokenizer();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_EQ(from(json).encode("world"), from(small_tokenizer()).encode(" world"));
  EXPECT_EQ(from(json).encode(" w"), Ids{260});
  json["pre_tokenizer"]["add_prefix_space"] = false;
  json["pre_tokenizer"]["use_regex"] = false;
  EXPECT_EQ(from(json).encode("a   w"), (Ids{'a', 261, 260}));  // one word
  Json bytes = json["pre_tokenizer"];
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {step("l", "Removed"), bytes}}};
  EXPECT_EQ(from(json).encode("hello"), (Ids{256, 'o'}));
  json["pre_tokenizer"]["pretokenizers"] = {step("l", "MergedWithPrevious"), bytes};
  EXPECT_EQ(from(json).encode("hello"), (Ids{256, 'l', 'l', 'o'}));
  json["pre_tokenizer"]["pretokenizers"] = {{{"type", "Digits"}, {"individual_digits", true}}, bytes};
  json["model"]["vocab"]["11"] = 270;
  json["model"]["merges"].push_back("1 1");
  EXPECT_EQ(from(json).encode("11"), (Ids{'1', '1'}));
  json["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = false;
  EXPECT_EQ(from(json).encode("11a"), (Ids{270, 'a'}));
}

TEST(ByteLevel, NormalisesBetweenTheTwoKindsOfAddedTokens) {
  Json json = small_tokenizer();
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  const std::string composed = "\xC3\xA9", decomposed = "e\xCC\x81";
  json["added_tokens"].push_back(added_token(266, "<" + decomposed + ">", false));
  const Tokenizer raw = from(json);
  EXPECT_EQ(raw.encode(decomposed), (Ids{0xC3, 0xA9}));
  EXPECT_EQ(raw.encode("<" + decomposed + ">"), Ids{266});
  EXPECT_EQ(raw.encode("<" + composed + ">"), (Ids{'<', 0xC3, 0xA9, '>'}));
  json["added_tokens"][3]["normalized"] = true;
  const Tokenizer normalized = from(json);
  EXPECT_EQ(normalized.encode("<" + decomposed + "><" + composed + ">"), (Ids{266, 266}));
}

TEST(ByteLevel, FoldersAndFilesAreRecognised) {
  const TempFolder folder;
  expect_error(ErrorKind::io,
               {"the folder holds no tokenizer", folder.path().string(), "mend: give a folder"},
               [&] { return Tokenizer::load(folder.path()); });
  const Json json = small_tokenizer();
  // GPT-2's two files.
  Json vocab = json["model"]["vocab"];
  vocab["<|endoftext|>"] = 263;
  std::string merges = "#version: 0.2\n";
  for (const Json& m : json["model"]["merges"]) merges += m.get<std::string>() + "\r\n";
  for (const auto& [v, m] : {std::pair("encoder.json", "vocab.bpe"), std::pair("vocab.json", "merges.txt")}) {
    write_plain(folder / v, vocab.dump());
    write_plain(folder / m, merges);
    const Tokenizer two = Tokenizer::load(folder.path());
    EXPECT_EQ(two.name(), (folder / v).string());
    EXPECT_EQ(two.encode("hello world"), from(json).encode("hello world"));
    EXPECT_EQ(two.eos_id(), 263);
    EXPECT_EQ(two.encode("<|endoftext|>", Special::parse), Ids{263});
    EXPECT_EQ(two.encode("<|endoftext|>").size(), 13U);
  }
  expect_error(ErrorKind::config, {"there is no 'model'", "vocab.json", "mend: give a tokenizer.json; for a"},
               [&] { return Tokenizer::load(folder / "vocab.json"); });
  // A sentencepiece model goes before them, a tokenizer.json before that.
  train_tokenizer(std::filesystem::path(TESSERA_SOURCE_DIR) / "tests/data/files/two_pages.txt",
                  folder / "tokenizer.model", {.vocab_size = 600});
  EXPECT_EQ(Tokenizer::load(folder.path()).vocab_size(), 600);
  write_plain(folder / "tokenizer.json", " \n" + json.dump());
  EXPECT_EQ(Tokenizer::load(folder.path()).vocab_size(), 266);
  EXPECT_EQ(Tokenizer::load(folder / "tokenizer.json").name(), (folder / "tokenizer.json").string());
}

TEST(ByteLevel, BosAndEosStandInTheFilesBesideIt) {
  const TempFolder folder;
  write_plain(folder / "tokenizer.json", small_tokenizer().dump());
  EXPECT_EQ(Tokenizer::load(folder.path()).eos_id(), std::nullopt);
  write_plain(folder / "config.json", R"({"bos_token_id": 264, "eos_token_id": [263, 265]})");
  EXPECT_EQ(Tokenizer::load(folder.path()).bos_id(), 264);
  EXPECT_EQ(Tokenizer::load(folder.path()).eos_id(), std::nullopt);  // which of them is not said
  write_plain(folder / "tokenizer_config.json",
              R"({"model_max_length": 1000000000000000019884624838656, "bos_token": null,
                  "eos_token": {"content": "<end>", "lstrip": false}})");
  EXPECT_EQ(Tokenizer::load(folder.path()).bos_id(), std::nullopt);
  EXPECT_EQ(Tokenizer::load(folder.path()).eos_id(), 263);
  write_plain(folder / "tokenizer_config.json", R"({"eos_token": "</s>"})");
  expect_error(ErrorKind::config, {"'</s>' is no token", "tokenizer_config.json: eos_token", "mend: use the"},
               [&] { return Tokenizer::load(folder.path()); });
  write_plain(folder / "tokenizer_config.json", "[1, 2");
  expect_error(ErrorKind::config, {"not a JSON object", "tokenizer_config.json"},
               [&] { return Tokenizer::load(folder.path()); });
}

// Each case changes one place of the small file and says what the message must hold.
struct Refused {
  const char* pointer;
  Json value;
  std::vector<std::string> words;
};

TEST(TokenizerJson, WhatWouldChangeIdsIsRefusedByName) {
  const std::vector<Refused> cases = {
      {"/version", "2.0", {"version '2.0'", "t.json.version"}},
      {"/surprise", 1, {"'surprise' is not understood"}},
      {"/truncation", {{"max_length", 8}}, {"truncation changes the ids", "mend: set it to null"}},
      {"/padding", {{"length", 8}}, {"padding changes the ids"}},
      {"/normalizer", {{"type", "Lowercase"}}, {"normaliser 'Lowercase'", "t.json.normalizer"}},
      {"/normalizer", {{"type", "NFC"}, {"x", 1}}, {"'x' is not understood"}},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", {{{"type", "NFKC"}}}}},
       {"'NFKC'", "normalizers[0]"}},
      {"/pre_tokenizer", nullptr, {"pre_tokenizer has no ByteLevel"}},
      {"/pre_tokenizer", {{"type", "Metaspace"}}, {"pre-tokenizer 'Metaspace'"}},
      {"/pre_tokenizer/trim", true, {"'trim' is not understood"}},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {test::byte_level(), step("a", "Isolated")}}},
       {"'Split' after ByteLevel", "pretokenizers[1]"}},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", {step("a", "Sideways")}}}, {"'Sideways'"}},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {step("\\w+", "Isolated"), test::byte_level()}}},
       {"the pattern has \\w", "t.json.pre_tokenizer.pretokenizers[0]"}},
      {"/decoder", nullptr, {"decoder has no ByteLevel"}},
      {"/decoder", {{"type", "WordPiece"}}, {"decoder 'WordPiece'"}},
      {"/post_processor", {{"type", "Odd"}}, {"post-processor 'Odd'"}},
      {"/model/type", "Unigram", {"model type 'Unigram'", "mend: use the tokenizer.model"}},
      {"/model/dropout", 0.1, {"dropout 0.1 makes ids random"}},
      {"/model/continuing_subword_prefix", "##", {"continuing_subword_prefix '##'"}},
      {"/model/end_of_word_suffix", "</w>", {"end_of_word_suffix '</w>'"}},
      {"/model/byte_fallback", true, {"byte_fallback is sentencepiece's"}},
      {"/model/other", 1, {"'other' is not understood"}},
  };
  for (const Refused& c : cases) {
    Json json = small_tokenizer();
    json[Json::json_pointer(c.pointer)] = c.value;
    expect_error(ErrorKind::config, c.words, [&] { return from(json); });
  }
}

TEST(TokenizerJson, APartThatDoesNotFitIsNamedWithItsPlace) {
  const std::vector<Refused> cases = {
      {"/model/vocab/!", "x", {"this is \"x\", not an id", "t.json.model.vocab['!']"}},
      {"/model/vocab/!", -1, {"token '!' has id -1"}},
      {"/model/vocab/!", 2'000'000'000, {"token '!' has id 2000000000"}},
      {"/model/vocab/!", 2'000'000, {"the largest id is 2000000, but there are only 266 tokens"}},
      {"/model/vocab/!", 34, {"tokens '!' and '\"' have the same id 34"}},
      {"/model/vocab/", 400, {"the token of id 400 is empty"}},
      {"/model/vocab", Json::array(), {"this is [], not an object", "t.json.model.vocab"}},
      {"/model/vocab", Json::object(), {"which is no token", "merges[0]"}},
      {"/model/merges", {{"h", 1}}, {"not an array"}},
      {"/model/merges/1", "he", {"the merge is 'he', not two tokens", "merges[1]"}},
      {"/model/merges/1", "h e e", {"the merge is 'h e e'"}},
      {"/model/merges/1", {"h"}, {"the merge is [\"h\"], not two tokens"}},
      {"/model/merges/1", {"h", 3}, {"this is 3, not a string", "merges[1][1]"}},
      {"/model/merges/1", "q z", {"the merge names 'qz', which is no token", "merges[1]"}},
      {"/model/merges/1", "zzz q", {"the merge names 'zzz'"}},
      {"/model/merges/2",
       "h e",
       {"the merge of 'h' and 'e' stands twice, the first time at [0]", "merges[2]"}},
      {"/added_tokens/1/id", 3, {"and '<think>' have the same id 3"}},
      {"/added_tokens/1/id", 263, {"tokens '<end>' and '<think>' have the same id 263"}},
      {"/added_tokens/1/id", 5'000'000'000, {"id 5000000000 is out of range"}},
      {"/added_tokens/1", added_token(263, "<end>", false), {"'<end>' with id 263 is an added token twice"}},
      {"/added_tokens/1/content", "", {"the added token is empty", "added_tokens[1]"}},
      {"/added_tokens/1/content", "hello", {"'hello' has id 264 here and 259 in the vocabulary"}},
      {"/added_tokens/1/special", 1, {"this is 1, not true or false", "added_tokens[1].special"}},
      {"/added_tokens/1/colour", 1, {"'colour' is not understood"}},
      {"/added_tokens", 7, {"this is 7, not an array"}},
      {"/pre_tokenizer/add_prefix_space", nullptr, {"this is null, not true or false"}},
  };
  for (const Refused& c : cases) {
    Json json = small_tokenizer();
    json[Json::json_pointer(c.pointer)] = c.value;
    expect_error(ErrorKind::config, c.words, [&] { return from(json); });
  }
  Json json = small_tokenizer();
  json["model"]["vocab"].erase("A");
  expect_error(ErrorKind::config, {"no token for byte 0x41", "mend: use a tokenizer"},
               [&] { return from(json); });
  json = small_tokenizer();
  json["model"].erase("merges");
  expect_error(ErrorKind::config, {"there is no 'merges'", "t.json.model"}, [&] { return from(json); });
  std::string twice = small_tokenizer().dump();
  twice.insert(twice.find("\"vocab\":{") + 9, "\"!\":700,");
  expect_error(ErrorKind::config, {"token '!' stands twice, with ids 700 and 33"},
               [&] { return Tokenizer::from_bytes(twice, "t.json"); });
}

// Reads the text; it may be right, or an Error of the user's kind.
int read_or_refuse(const std::string& text) {
  try {
    const Tokenizer t = Tokenizer::from_bytes(text, "t.json");
    EXPECT_EQ(t.encode("").size(), 0U);
    static_cast<void>(t.encode("hello  world's <end> \xFF\xE4\xB8\x96", Special::parse));
    return 0;
  } catch (const Error& error) {
    EXPECT_TRUE(error.kind() == ErrorKind::config || error.kind() == ErrorKind::io) << error.what();
    EXPECT_FALSE(error.problems().front().mend.empty());
    return 1;
  }
}

TEST(TokenizerJson, ATruncatedFileIsRefused) {
  const std::string text = small_tokenizer().dump();
  for (std::size_t size = 1; size < text.size(); ++size) {
    ASSERT_EQ(read_or_refuse(text.substr(0, size)), 1) << size;
  }
}

TEST(TokenizerJson, DamagedBytesGiveAnErrorOrATokenizerButNeverACrash) {
  const std::string text = small_tokenizer().dump();
  const std::string_view pieces[] = {"{",
                                     "}",
                                     "[",
                                     "]",
                                     "\"",
                                     ",",
                                     ":",
                                     "null",
                                     "-1",
                                     "1e99",
                                     "\\u0000",
                                     "\xFF",
                                     "9999999999999999999",
                                     "true",
                                     "\\",
                                     "(?:a|b)+",
                                     "[[",
                                     "\\ud800"};
  std::uint32_t state = 99;
  const auto below = [&](std::size_t n) {
    state = state * 1664525 + 1013904223;
    return static_cast<std::size_t>((state >> 8) % n);
  };
  int refused = 0;
  constexpr int kRounds = 3000;
  for (int round = 0; round < kRounds; ++round) {
    std::string damaged = text;
    for (std::size_t changes = 1 + below(3); changes > 0; --changes) {
      // Half of the damage to the parts beside the vocabulary.
      const std::size_t vocab = damaged.find("\"vocab\"");
      const std::size_t at = below(below(2) == 0 && vocab != std::string::npos ? vocab : damaged.size());
      switch (below(4)) {
        case 0:
          damaged[at] = static_cast<char>(below(256));
          break;
        case 1:
          damaged.erase(at, 1 + below(20));
          break;
        case 2:
          damaged.insert(at, pieces[below(std::size(pieces))]);
          break;
        default:
          damaged.insert(at, damaged.substr(below(damaged.size()), below(60)));
          break;
      }
    }
    refused += read_or_refuse(damaged);
  }
  EXPECT_GT(refused, kRounds / 2);
  EXPECT_LT(refused, kRounds);
}

// Every value of the file in turn is replaced by one of another type.
void replace_everywhere(const Json& whole, const Json& at, const Json::json_pointer& here, int& refused) {
  for (const Json& other :
       {Json(nullptr), Json(-1), Json(1e300), Json("x"), Json::array({1}), Json::object()}) {
    Json changed = whole;
    changed[here] = other;
    refused += read_or_refuse(changed.dump());
  }
  if (!at.is_structured() || at.size() > 50) return;  // the vocabulary as a whole only
  int index = 0;
  for (const auto& [key, value] : at.items()) {
    replace_everywhere(whole, value, at.is_array() ? here / static_cast<std::size_t>(index) : here / key,
                       refused);
    ++index;
  }
}

TEST(TokenizerJson, AValueOfAnotherTypeGivesAnErrorOrATokenizer) {
  const Json whole = small_tokenizer();
  int refused = 0;
  replace_everywhere(whole, whole, Json::json_pointer(""), refused);
  EXPECT_GT(refused, 150);
}

TEST(TokenizerJson, DeepNestingIsRefused) {
  for (const std::size_t depth : {500UL, 5'000UL, 500'000UL}) {
    const std::string deep = std::string(depth, '[') + std::string(depth, ']');
    EXPECT_EQ(read_or_refuse("{\"model\":" + deep + "}"), 1);
    Json json = small_tokenizer();
    json["pre_tokenizer"] = "@";
    std::string text = json.dump();
    text.replace(text.find("\"@\""), 3, deep);
    EXPECT_EQ(read_or_refuse(text), 1);
  }
  Json step = test::byte_level();
  for (int k = 0; k < 100; ++k) step = {{"type", "Sequence"}, {"pretokenizers", {step}}};
  Json json = small_tokenizer();
  json["pre_tokenizer"] = step;
  expect_error(ErrorKind::config, {"pre-tokenizer 'Sequence' is not understood"}, [&] { return from(json); });
}

TEST(VocabAndMerges, DamagedFilesAreRefusedByName) {
  const TempFolder folder;
  const auto read = [&](const std::string& vocab, const std::string& merges) {
    write_plain(folder / "vocab.json", vocab);
    write_plain(folder / "merges.txt", merges);
    return Tokenizer::load(folder.path());
  };
  const std::string vocab = small_tokenizer()["model"]["vocab"].dump();
  EXPECT_EQ(read(vocab, "h e\n\n").encode("he"), Ids{256});
  expect_error(ErrorKind::config, {"not a JSON object", "vocab.json"}, [&] { return read("[", ""); });
  expect_error(ErrorKind::config, {"token 'a' has no number"}, [&] { return read(R"({"a": "b"})", ""); });
  expect_error(ErrorKind::config, {"the merge is 'h'", "merges[0]"}, [&] { return read(vocab, "h\n"); });
  expect_error(ErrorKind::config, {"the merge names 'q1'", "merges[1]"},
               [&] { return read(vocab, "h e\nq1 e"); });
}

TEST(ByteLevel, ThreadsShareOneTokenizer) {
  const Tokenizer t = from(small_tokenizer());
  std::string text;
  for (int k = 0; k < 500; ++k) text += "hello <think> wo" + std::to_string(k) + "\xC3\xA9 ";
  const Ids expected = t.encode(text);
  std::vector<int> same(4, 0);
  {
    std::vector<std::jthread> threads;
    for (std::size_t k = 0; k < same.size(); ++k) {
      threads.emplace_back([&, k] { same[k] = t.encode(text) == expected && t.decode(expected) == text; });
    }
  }
  EXPECT_THAT(same, testing::Each(1));
}

}  // namespace
}  // namespace tessera::data
