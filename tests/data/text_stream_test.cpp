// Text that comes out token by token is the text of all tokens at once, in whole characters.
#include "data/text_stream.h"

#include <gtest/gtest.h>

#include <fstream>
#include <memory>

namespace tessera::data {
namespace {

class TextStreamTest : public ::testing::Test {
 protected:
  TextStreamTest() {
    const std::string text = ::testing::TempDir() + "text_stream.txt",
                      model = ::testing::TempDir() + "text_stream.model";
    std::ofstream(text) << "the cat sat on the mat and the dog sat on the cat\n the mat\n";
    train_tokenizer(text, model, {.vocab_size = 290});
    tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(model));
  }
  // Pieces of what follows the prompt.
  [[nodiscard]] std::vector<std::string> pieces(const std::string& prompt, const std::string& rest) const {
    TextStream stream(*tokenizer_, tokenizer_->encode(prompt));
    std::vector<std::string> out;
    for (const std::int32_t id : tokenizer_->encode(rest)) out.push_back(stream.add(id));
    out.push_back(stream.finish());
    return out;
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(TextStreamTest, PiecesTogetherAreTheText) {
  const std::string rest =
      " sat on the mat \xC3\xA9\xE2\x82\xAC \xF0\x9F\x98\x80\xF0\x9F\x98\x80 and  the  dog, sat on the cat "
      "sat on a mat";
  for (const std::string prompt : {"the cat", "x", "\xF0\x9F\x98\x80"}) {
    std::string all;
    for (const std::string& p : pieces(prompt, rest)) all += p;
    EXPECT_EQ(all, rest) << prompt;
  }
}

TEST_F(TextStreamTest, ACharacterOfSeveralTokensComesOutWhole) {
  const std::vector<std::string> p = pieces("the", "\xF0\x9F\x98\x80");
  ASSERT_GE(p.size(), 5U) << "four bytes, four tokens";
  std::vector<std::string> some;
  for (const std::string& s : p) {
    if (!s.empty()) some.push_back(s);
  }
  EXPECT_EQ(some, std::vector<std::string>{"\xF0\x9F\x98\x80"});
}

TEST_F(TextStreamTest, WhatNeverBecomesACharacterComesOutAtTheEnd) {
  TextStream stream(*tokenizer_, tokenizer_->encode("the"));
  const std::vector<std::int32_t> ids = tokenizer_->encode("\xF0\x9F\x98\x80");
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(stream.add(ids[i]), "");
  EXPECT_NE(stream.finish().find("\xEF\xBF\xBD"), std::string::npos);
}

TEST_F(TextStreamTest, EndOfTextTokensGiveNothing) {
  TextStream stream(*tokenizer_, tokenizer_->encode("the"));
  EXPECT_EQ(stream.add(*tokenizer_->eos_id()), "");
  EXPECT_EQ(stream.finish(), "");
}

}  // namespace
}  // namespace tessera::data
