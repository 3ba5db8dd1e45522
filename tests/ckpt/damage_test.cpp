// Damaged, foreign and hostile checkpoints: truncated at every byte, a bit flipped in every byte, an index
// that lies. Always an Error that names the file, never a crash, never other values.
#include <gtest/gtest.h>

#include <algorithm>

#include "ckpt/checkpoint.h"
#include "ckpt/index.h"
#include "ckpt/support.h"

namespace tessera::ckpt::test {
namespace {

class Damage : public ::testing::Test {
 protected:
  Damage() {
    CheckpointWriter writer({.folder = folder_.path(), .world_size = 2});
    stage_small(writer, 7);
    writer.wait();
    for (const auto& entry : std::filesystem::directory_iterator(step()))
      good_.emplace_back(entry.path(), read_bytes(entry.path()));
    std::sort(good_.begin(), good_.end());
  }
  [[nodiscard]] std::filesystem::path step() const { return folder_ / "step-00000007"; }
  [[nodiscard]] std::string index_body() const {
    const std::string& text = good_.front().second;
    return text.substr(text.find('\n') + 1);
  }

  // The checkpoint with a fault in `path` must be refused naming that file, and not be the latest any more.
  void expect_refused(const std::filesystem::path& path, const std::string& what) {
    try {
      const CheckpointReader reader(step());
      ADD_FAILURE() << path << " " << what << " was accepted";
    } catch (const Error& e) {
      ASSERT_TRUE(e.kind() == ErrorKind::io || e.kind() == ErrorKind::unsupported) << e.what();
      ASSERT_THAT(e.problems().front().where, ::testing::HasSubstr(path.string())) << what;
      ASSERT_FALSE(e.problems().front().mend.empty());
    }
  }

  // An index with a true checksum whose body has `from` replaced by `to`.
  void expect_index_refused(const std::string& from, const std::string& to,
                            const std::vector<std::string>& words) {
    std::string body = index_body();
    const std::size_t at = body.find(from);
    ASSERT_NE(at, std::string::npos) << from << " is not in\n" << body;
    write_bytes(step() / kIndexFile, seal_index(body.replace(at, from.size(), to)));
    expect_error(ErrorKind::io, words, [&] { const CheckpointReader reader(step()); });
  }

  TempFolder folder_;
  std::vector<std::pair<std::filesystem::path, std::string>> good_;  // index.json first
};

TEST_F(Damage, TruncationAtEveryByteIsRefusedByName) {
  ASSERT_EQ(good_.size(), 3);
  for (const auto& [path, bytes] : good_) {
    for (std::size_t n = 0; n < bytes.size(); ++n) {
      write_bytes(path, bytes.substr(0, n));
      expect_refused(path, "cut to " + std::to_string(n) + " bytes");
    }
    write_bytes(path, bytes + '\0');
    expect_refused(path, "with a byte more");
    write_bytes(path, bytes);
  }
  EXPECT_EQ(num_wrong_small(CheckpointReader(step()), 7), 0) << "the undamaged files are good";
}

TEST_F(Damage, ABitFlippedInAnyByteIsRefusedByName) {
  for (const auto& [path, bytes] : good_) {
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      std::string flipped = bytes;
      const auto bit = uniform_below(8, 3, stream_of(path.filename().string()), i);
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      write_bytes(path, flipped);
      expect_refused(path, "with bit " + std::to_string(bit) + " of byte " + std::to_string(i) + " flipped");
    }
    write_bytes(path, bytes);
  }
}

TEST_F(Damage, AMissingFileIsRefusedByName) {
  for (const auto& [path, bytes] : good_) {
    std::filesystem::remove(path);
    expect_refused(path, "removed");
    write_bytes(path, bytes);
  }
}

TEST_F(Damage, ForeignAndNewerIndicesSayWhatTheyAre) {
  const auto open = [&] { const CheckpointReader reader(step()); };
  for (const std::string text :
       {"{\"weight_map\": {}}", "not json at all", "{\"tessera_checkpoint\": \"x\"}\n"}) {
    write_bytes(step() / kIndexFile, text);
    expect_error(ErrorKind::io, {"not a checkpoint's index", "index.json", "use an earlier checkpoint"},
                 open);
  }
  write_bytes(step() / kIndexFile, "{\"tessera_checkpoint\": 2, \"anything\": []}");
  expect_error(ErrorKind::unsupported,
               {"checkpoint of version 2; this program reads version 1", "newer Tessera"}, open);
}

TEST_F(Damage, AnIndexThatLiesIsRefusedWithTheFault) {
  const std::string file = "\"file\": \"rank-000.safetensors\", \"begin\": [0, 0], \"size\": [6, 2]";
  const std::string listed = "{\"name\": \"rank-000.safetensors\", \"bytes\": ";
  // Out of the folder, or to what is not a rank's file.
  for (const std::string name :
       {"../rank-000.safetensors", "/etc/passwd", "rank-0000.safetensors", "rank-.safetensors",
        "rank-safetensors", "rank--01.safetensors", "rank-000.safetensors/.."}) {
    expect_index_refused("{\"name\": \"rank-000.safetensors\"", "{\"name\": \"" + name + "\"",
                         {"file name \"" + name + "\" is not of the form rank-000.safetensors"});
  }
  expect_index_refused("\"rank-001.safetensors\"", "\"rank-000.safetensors\"", {"listed twice"});
  expect_index_refused(listed, listed + "1", {"bytes, 1"});
  expect_index_refused(listed, listed + "-", {"is not an integer of 0 or more"});
  expect_index_refused(file, "\"file\": \"rank-002.safetensors\", \"begin\": [0, 0], \"size\": [6, 2]",
                       {"\"rank-002.safetensors\", which is not listed"});
  // Rectangles.
  expect_index_refused(file, "\"file\": \"rank-000.safetensors\", \"begin\": [0, 1], \"size\": [6, 2]",
                       {"overlap"});
  expect_index_refused(file, "\"file\": \"rank-000.safetensors\", \"begin\": [0, 0], \"size\": [6, 1]",
                       {"hold 18 of 24 elements"});
  expect_index_refused(
      file, "\"file\": \"rank-000.safetensors\", \"begin\": [9223372036854775807, 0], \"size\": [6, 2]",
      {"outside global shape [6, 4]"});
  expect_index_refused(file, "\"file\": \"rank-000.safetensors\", \"begin\": [0], \"size\": [6]", {"dims"});
  expect_index_refused(file, "\"file\": \"rank-000.safetensors\", \"begin\": [0, 0], \"size\": [6, 1e3]",
                       {"not an integer"});
  for (const std::string shape :
       {"[4611686018427387904, 4]", "[9223372036854775807, 9223372036854775807]", "[0, 4]"})
    expect_index_refused("\"shape\": [6, 4]", "\"shape\": " + shape,
                         {"tensor \"layer.weight\"", "empty or too large"});
  expect_index_refused("\"shape\": [6, 4]", "\"shape\": [6, 4, 1]", {"has 3 numbers"});
  expect_index_refused("\"shape\": [6, 4]", "\"shape\": [99999999999999999999, 4]", {"not an integer"});
  expect_index_refused("\"shape\": [6, 4]", "\"shape\": [6000000, 4]", {"hold 24 of 24000000 elements"});
  // What does not fit the files.
  expect_index_refused("\"dtype\": \"F32\"", "\"dtype\": \"F64\"",
                       {"entry \"layer.weight#0,0\" has dtype F32"});
  expect_index_refused("\"dtype\": \"F32\"", "\"dtype\": \"I64\"", {"dtype \"I64\", not F32 or F64"});
  expect_index_refused("\"layer.weight\"", "\"other.weight\"", {"no tensor \"other.weight#0,0\""});
  expect_index_refused("\"layer.weight\"", "\"norm.weight\"", {"listed twice"});
  // The document.
  expect_index_refused("\"step\": 7", "\"step\": -7", {"step is not an integer of 0 or more"});
  expect_index_refused("\"step\": 7", "\"stop\": 7", {"lacks the key \"step\""});
  expect_index_refused("\"step\": 7", "\"step\": 7, \"step\": 8", {"\"step\" is given twice"});
  expect_index_refused("\"world_size\": 2", "\"world_size\": 99999999999", {"world_size is 99999999999"});
  expect_index_refused("\"step\": 7", "\"step\": " + std::string(100, '['), {"nested deeper than 16"});
  expect_index_refused("\"step\": 7", "\"step\": }", {"not valid JSON at byte"});
}

// Beyond the checksum: whatever bytes an index has, parsing it ends in an index or an Error.
TEST_F(Damage, AMutatedIndexWithATrueChecksumNeverCrashes) {
  const std::string body = index_body();
  const std::vector<std::string> tokens = {
      "9223372036854775807", "-1", "0", "[", "]", "{", "}", "\"", ",", "1e9", "null"};
  int accepted = 0;
  int refused = 0;
  for (std::uint64_t round = 0; round < 6000; ++round) {
    std::string text = body;
    std::uint64_t n = 0;
    const auto draw = [&](std::uint64_t below) {
      return uniform_below(below, round, stream_of("mutate"), n++);
    };
    for (std::uint64_t edits = 1 + draw(3); edits > 0; --edits) {
      const std::size_t at = draw(text.size());
      switch (draw(4)) {
        case 0:
          text[at] = static_cast<char>(draw(256));
          break;
        case 1:
          text.erase(at, 1 + draw(20));
          break;
        case 2:
          text.insert(at, tokens[draw(tokens.size())]);
          break;
        default:
          text.insert(at, text.substr(draw(text.size()), draw(60)));
          break;
      }
    }
    try {
      (void)parse_index(seal_index(text), "index.json");
      ++accepted;
    } catch (const Error& e) {
      ASSERT_EQ(e.problems().front().where, "index.json");
      ++refused;
    }
  }
  EXPECT_GT(refused, 3000);
  EXPECT_GT(accepted, 30);  // some edits change a digest or a text only
}

}  // namespace
}  // namespace tessera::ckpt::test
