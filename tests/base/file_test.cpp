// Files: what is written is what is read, a reader never meets half a file, and failures name path and mend.
#include "base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

#include "base/error.h"

namespace tessera {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "tessera-file-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  int num_files() const {
    int n = 0;
    for (const auto& entry : fs::directory_iterator(folder_)) n += entry.is_regular_file();
    return n;
  }

  fs::path folder_;
};

template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    return e.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST_F(FileTest, ReadsBackExactlyWhatWasWritten) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{65536}, std::size_t{200'001}}) {
    std::string content(size, 'x');
    if (size > 0) content[size / 2] = '\0';
    write_atomically(folder_ / "file", content);
    EXPECT_TRUE(read_text(folder_ / "file") == content) << size;
  }
  EXPECT_EQ(num_files(), 1) << "nothing is left beside the target";
}

TEST_F(FileTest, AReaderSeesTheOldOrTheNewFileNeverAMixture) {
  const fs::path path = folder_ / "file";
  const std::string old_content(300'000, 'a');
  const std::string new_content(200'000, 'b');
  write_atomically(path, old_content);
  std::atomic<bool> done{false};
  std::atomic<int> mixtures{0};
  std::atomic<int> reads{0};
  std::jthread reader([&] {
    while (!done) {
      const std::string seen = read_text(path);
      if (seen != old_content && seen != new_content) ++mixtures;
      ++reads;
    }
  });
  for (int i = 0; i < 30; ++i) write_atomically(path, i % 2 == 0 ? new_content : old_content);
  while (reads == 0) std::this_thread::yield();
  done = true;
  reader.join();
  EXPECT_EQ(mixtures, 0);
}

TEST_F(FileTest, WritingWithoutAFolderNameMeansTheCurrentFolder) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  EXPECT_NO_THROW(write_atomically("plain", "x"));
  fs::current_path(before);
  EXPECT_EQ(read_text(folder_ / "plain"), "x");
}

TEST_F(FileTest, AFailedWriteLeavesTheOldFileAndNothingBesideIt) {
  fs::create_directory(folder_ / "target");  // a rename of a file over a folder fails
  const std::string text = message_of([&] { write_atomically(folder_ / "target", "x"); });
  EXPECT_THAT(text, HasSubstr("cannot rename to"));
  EXPECT_TRUE(fs::is_directory(folder_ / "target"));
  EXPECT_EQ(num_files(), 0);
}

TEST_F(FileTest, AMissingFileIsNamedWithItsMend) {
  const std::string path = (folder_ / "absent").string();
  for (const std::string& text :
       {message_of([&] { (void)read_text(path); }), message_of([&] { const MappedFile file(path); }),
        message_of([&] { fsync_path(path); })}) {
    EXPECT_THAT(text, HasSubstr("No such file or directory"));
    EXPECT_THAT(text, HasSubstr("where: " + path));
    EXPECT_THAT(text, HasSubstr("mend: check the path"));
  }
}

TEST_F(FileTest, WritingIntoAMissingFolderIsAnError) {
  const std::string text = message_of([&] { write_atomically(folder_ / "absent" / "file", "x"); });
  EXPECT_THAT(text, HasSubstr("cannot create"));
  EXPECT_THAT(text, HasSubstr("absent"));
}

TEST_F(FileTest, ReadingAFolderIsAnError) {
  EXPECT_THAT(message_of([&] { (void)read_text(folder_); }), HasSubstr("Is a directory"));
  EXPECT_THAT(message_of([&] { const MappedFile file(folder_); }),
              HasSubstr("mend: give the path of a file"));
}

TEST_F(FileTest, AMappedFileShowsTheBytesAndMoves) {
  write_atomically(folder_ / "file", "hello");
  MappedFile first(folder_ / "file");
  ASSERT_EQ(first.bytes().size(), 5U);
  EXPECT_EQ(std::memcmp(first.bytes().data(), "hello", 5), 0);
  MappedFile second = std::move(first);
  EXPECT_EQ(second.bytes().size(), 5U);
  write_atomically(folder_ / "other", "bye");
  second = MappedFile(folder_ / "other");
  ASSERT_EQ(second.bytes().size(), 3U);
  EXPECT_EQ(std::memcmp(second.bytes().data(), "bye", 3), 0);
}

TEST_F(FileTest, AMappedFileOutlivesTheReplacementOfItsName) {
  write_atomically(folder_ / "file", "old");
  const MappedFile file(folder_ / "file");
  write_atomically(folder_ / "file", "new");
  EXPECT_EQ(std::memcmp(file.bytes().data(), "old", 3), 0);
}

TEST_F(FileTest, AnEmptyFileMapsToNoBytes) {
  write_atomically(folder_ / "empty", "");
  EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());
}

}  // namespace
}  // namespace tessera
