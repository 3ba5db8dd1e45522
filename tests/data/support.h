// Helpers of the data tests: a folder that goes away, bytes by hand, what an Error must say.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "data/token_source.h"

namespace tessera::data::test {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "tessera_data_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

template <class T>
void put(std::string& bytes, T value) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  bytes.append(raw, sizeof(T));
}

// Without the fsyncs of the product's writer: loops over damaged files write thousands.
inline void write_plain(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << bytes;
  out.close();
  ASSERT_TRUE(out.good()) << path;
}

// Runs `f`, which must throw an Error of the kind whose text holds all the words.
inline void expect_error(ErrorKind kind, const std::vector<std::string>& words,
                         const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    for (const std::string& word : words) EXPECT_THAT(error.what(), testing::HasSubstr(word));
    for (const Problem& problem : error.problems()) {
      EXPECT_FALSE(problem.what.empty());
      EXPECT_FALSE(problem.where.empty()) << error.what();
      EXPECT_FALSE(problem.mend.empty()) << error.what();
    }
    return;
  }
  ADD_FAILURE() << "no Error thrown; expected one with: " << testing::PrintToString(words);
}

inline std::vector<std::int32_t> all_tokens(const TokenSource& source) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(source.num_tokens()));
  source.copy(0, tokens);
  return tokens;
}

}  // namespace tessera::data::test
