#include "data/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <thread>

#include "data/support.h"
#include "data/tokenise.h"

namespace tessera::data {
namespace {
using test::all_tokens;
using test::expect_error;
using test::TempFolder;
using test::write_plain;

std::filesystem::path prose() {
  return std::filesystem::path(TESSERA_SOURCE_DIR) / "tests/data/files/two_pages.txt";
}

// One model of 600 ids for all tests.
class TokenizerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const TempFolder folder;
    train_tokenizer(prose(), folder / "m.model", {.vocab_size = 600});
    model_ = read_text(folder / "m.model");
  }
  static Tokenizer tokenizer() { return Tokenizer::from_bytes(model_, "m.model"); }
  static inline std::string model_;
};

TEST_F(TokenizerTest, TrainingGivesTheSameBytesEachTime) {
  const TempFolder folder;
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  train_tokenizer(prose(), folder / "again.model", {.vocab_size = 600});
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_TRUE(read_text(folder / "again.model") == model_);
}

TEST_F(TokenizerTest, HasTheIdsItPromises) {
  const Tokenizer t = tokenizer();
  EXPECT_EQ(t.vocab_size(), 600);
  EXPECT_EQ(t.unk_id(), 0);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.piece(3), "<0x00>");
  EXPECT_EQ(t.piece(258), "<0xFF>");
  EXPECT_EQ(t.name(), "m.model");
}

TEST_F(TokenizerTest, EveryTextSurvivesTheRoundTrip) {
  const Tokenizer t = tokenizer();
  std::string ascii;
  for (char c = 1; c > 0; ++c) ascii += c;
  const std::string texts[] = {
      "",
      "It is a truth universally acknowledged",
      " leading, trailing and  double   spaces  ",
      "\n\n two\nlines \n",
      "tabs\tand\r\nreturns",
      ascii,
      "caf\xC3\xA9 na\xC3\xAFve \xC2\xA3 5",
      "\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E \xD0\xBF\xD1\x80\xD0\xB8\xD0\xB2\xD0\xB5\xD1\x82",
      "\xF0\x9F\x99\x82 e\xCC\x81 \xEF\xAC\x81 \xEF\xBC\xA1 \xC2\xA0 \xE3\x80\x80 \xEF\xBB\xBF",
      read_text(prose())};
  for (const std::string& text : texts) {
    const std::vector<std::int32_t> ids = t.encode(text);
    EXPECT_EQ(t.decode(ids), text);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), t.unk_id()), 0) << text;
  }
  EXPECT_LT(t.encode(read_text(prose())).size(), read_text(prose()).size() / 2);
}

TEST_F(TokenizerTest, EncodingByWordsGivesTheTokensOfTheWholeText) {
  sentencepiece::SentencePieceProcessor whole;
  ASSERT_TRUE(whole.LoadFromSerializedProto(model_).ok());
  const std::string text = read_text(prose());
  const std::string texts[] = {
      text, "a  b\n\n  c\n d \n", "\n", " ", "x\xE2\x96\x81 y \xE2\x96\x81z", "1812 (7)  \xC3\xA9\n"};
  for (const std::string& s : texts)
    EXPECT_EQ(tokenizer().encode(s), whole.EncodeAsIds(s)) << s.substr(0, 40);
}

// A model of another make: prefix space, spaces and letters normalised, no byte fallback. It must not be cut
// by words.
TEST_F(TokenizerTest, AForeignModelGivesWhatSentencepieceGives) {
  for (const char* type : {"bpe", "unigram"}) {
    std::string model;
    const std::unordered_map<std::string, std::string> options = {
        {"input", prose().string()}, {"model_type", type}, {"vocab_size", "300"}, {"minloglevel", "3"}};
    ASSERT_TRUE(sentencepiece::SentencePieceTrainer::Train(options, nullptr, &model).ok());
    sentencepiece::SentencePieceProcessor whole;
    ASSERT_TRUE(whole.LoadFromSerializedProto(model).ok());
    const Tokenizer t = Tokenizer::from_bytes(model, "foreign");
    for (const std::string& s :
         {read_text(prose()), std::string("  a  b\nc "), std::string("\xEF\xAC\x81\n\xE6\x97\xA5\n")}) {
      EXPECT_EQ(t.encode(s), whole.EncodeAsIds(s)) << type;
    }
  }
}

TEST_F(TokenizerTest, InvalidTextIsRefusedWithItsByte) {
  const Tokenizer t = tokenizer();
  expect_error(ErrorKind::config, {"byte 0xE9 at offset 3", "line 1", "mend: convert the text to UTF-8"},
               [&] { return t.encode("caf\xE9 x"); });
}

TEST_F(TokenizerTest, AnIdOutsideTheVocabularyIsRefused) {
  const Tokenizer t = tokenizer();
  expect_error(ErrorKind::config,
               {"token 1 is 600, outside the vocabulary of 600", "m.model", "mend: use the tokenizer"}, [&] {
                 static_cast<void>(t.decode(std::vector<std::int32_t>{5, 600}));
               });
  expect_error(ErrorKind::config, {"token 0 is -1"}, [&] { return t.decode(std::vector<std::int32_t>{-1}); });
  EXPECT_EQ(t.decode(std::vector<std::int32_t>{1, 2}), "");
}

TEST_F(TokenizerTest, AWrongOrMissingModelIsNamed) {
  const TempFolder folder;
  expect_error(ErrorKind::io, {"cannot open", "absent.model", "mend: check the path"},
               [&] { return Tokenizer::load(folder / "absent.model"); });
  write_plain(folder / "text.model", read_text(prose()));
  testing::internal::CaptureStderr();
  expect_error(ErrorKind::io, {"not a sentencepiece model", "text.model", "mend: give a .model file"},
               [&] { return Tokenizer::load(folder / "text.model"); });
  write_plain(folder / "empty.model", "");
  expect_error(ErrorKind::io, {"the file is empty", "empty.model"},
               [&] { return Tokenizer::load(folder / "empty.model"); });
  for (std::size_t size = 1; size < model_.size(); size += 97) {
    try {
      static_cast<void>(Tokenizer::from_bytes(std::string_view(model_).substr(0, size), "cut").encode("a b"));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::io) << size << ": " << error.what();
    }
  }
  testing::internal::GetCapturedStderr();
}

TEST_F(TokenizerTest, TrainingNamesAVocabularyThatDoesNotSuitTheText) {
  const TempFolder folder;
  testing::internal::CaptureStderr();
  for (const std::int32_t size : {-5, 0, 1, 100, 259, 5'000'000}) {
    expect_error(
        ErrorKind::config,
        {"cannot train a tokenizer of " + std::to_string(size), "two_pages.txt", "mend: choose a vocabulary"},
        [&] { train_tokenizer(prose(), folder / "x.model", {.vocab_size = size}); });
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_FALSE(std::filesystem::exists(folder / "x.model"));
}

TEST_F(TokenizerTest, TrainingRefusesAnEmptyOrForeignText) {
  const TempFolder folder;
  for (const char* text : {"", "\n\n\f\n"}) {
    write_plain(folder / "t.txt", text);
    expect_error(ErrorKind::config, {"no text to train", "t.txt"},
                 [&] { train_tokenizer(folder / "t.txt", folder / "m", {}); });
  }
  write_plain(folder / "t.txt", "ab\ncd\xFF");
  expect_error(ErrorKind::config, {"byte 0xFF at offset 5", "t.txt, line 2"},
               [&] { train_tokenizer(folder / "t.txt", folder / "m", {}); });
}

TEST_F(TokenizerTest, TrainsOnLinesLongerThanSentencepieceTakes) {
  const TempFolder folder;
  std::string text = read_text(prose());
  std::replace(text.begin(), text.end(), '\n', ' ');
  std::replace(text.begin(), text.end(), '\f', ' ');
  write_plain(folder / "one_line.txt", text + std::string(10'000, 'w'));
  train_tokenizer(folder / "one_line.txt", folder / "m.model", {.vocab_size = 600});
  EXPECT_LT(Tokenizer::load(folder / "m.model").encode(text).size(), text.size() / 2);
}

TEST_F(TokenizerTest, ThreadsShareOneTokenizer) {
  const Tokenizer t = tokenizer();
  const std::string text = read_text(prose());
  const std::vector<std::int32_t> expected = t.encode(text);
  std::vector<int> same(4, 0);
  {
    std::vector<std::jthread> threads;
    for (std::size_t k = 0; k < same.size(); ++k) {
      threads.emplace_back([&, k] { same[k] = t.encode(text) == expected && t.decode(expected) == text; });
    }
  }
  EXPECT_THAT(same, testing::Each(1));
}

TEST_F(TokenizerTest, ATextFileBecomesDocumentsWithAnEndToken) {
  const TempFolder folder;
  const Tokenizer t = tokenizer();
  const TextStatistics s = tokenise_text_file(prose(), t, folder / "out", {});
  const std::string text = read_text(prose());
  const std::size_t cut = text.find('\f');
  std::vector<std::int32_t> expected = t.encode(text.substr(0, cut));
  expected.push_back(2);
  for (const std::int32_t id : t.encode(text.substr(cut + 1))) expected.push_back(id);
  expected.push_back(2);
  const auto source = open_token_file(folder / "out");
  EXPECT_EQ(all_tokens(*source), expected);
  EXPECT_EQ(source->num_documents(), 2);
  EXPECT_EQ(s.num_documents, 2);
  EXPECT_EQ(s.num_tokens, source->num_tokens());
  EXPECT_EQ(s.num_bytes, static_cast<std::int64_t>(text.size()));
  EXPECT_NEAR(s.bytes_per_token(), static_cast<double>(text.size()) / expected.size(), 1e-12);
}

TEST_F(TokenizerTest, SeparatorsAndEndTokensAreOptions) {
  const TempFolder folder;
  const Tokenizer t = tokenizer();
  write_plain(folder / "t.txt", "===one======two===\xC3\xA9===");
  TextStatistics s = tokenise_text_file(folder / "t.txt", t, folder / "a",
                                        {.separator = "===", .document_end = DocumentEnd::none});
  EXPECT_EQ(s.num_documents, 3);
  EXPECT_EQ(s.num_characters, 22);
  EXPECT_EQ(s.num_bytes, 23);
  EXPECT_EQ(t.decode(all_tokens(*open_token_file(folder / "a"))), "onetwo\xC3\xA9");
  s = tokenise_text_file(folder / "t.txt", t, folder / "a",
                         {.separator = "", .document_end = DocumentEnd::none});
  EXPECT_EQ(s.num_documents, 1);
  EXPECT_EQ(t.decode(all_tokens(*open_token_file(folder / "a"))), read_text(folder / "t.txt"));
}

TEST_F(TokenizerTest, AFailedTokenisingLeavesTheOldFiles) {
  const TempFolder folder;
  const Tokenizer t = tokenizer();
  write_plain(folder / "t.txt", "good");
  static_cast<void>(tokenise_text_file(folder / "t.txt", t, folder / "a", {}));
  write_plain(folder / "t.txt", "bad \xC0\x80");
  expect_error(ErrorKind::config, {"byte 0xC0 at offset 4", "t.txt"},
               [&] { return tokenise_text_file(folder / "t.txt", t, folder / "a", {}); });
  write_plain(folder / "t.txt", "\f\f");
  expect_error(ErrorKind::config, {"no text to tokenise"},
               [&] { return tokenise_text_file(folder / "t.txt", t, folder / "a", {}); });
  EXPECT_EQ(t.decode(all_tokens(*open_token_file(folder / "a"))), "good");
}

}  // namespace
}  // namespace tessera::data
