// Hugging Face folders: round trips bit for bit on small published forms, every misfit named at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "ckpt/checkpoint.h"
#include "ckpt/safetensors.h"
#include "ckpt/support.h"
#include "spec/model.h"

namespace tessera::ckpt::test {
namespace {

std::filesystem::path golden(std::string_view family) {
  return std::filesystem::path(TESSERA_SOURCE_DIR) / "tests" / "golden" / "hf" / family;
}

class HfFolder : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Families, HfFolder, ::testing::Values("llama", "mixtral"),
                         [](const auto& info) { return std::string(info.param); });

// Every tensor of the one file is in the other with the same type, shape and bits, and no others.
void expect_same_tensors(const SafetensorsFile& a, const SafetensorsFile& b) {
  EXPECT_EQ(a.tensors().size(), b.tensors().size());
  for (const StoredTensor& t : a.tensors()) {
    const StoredTensor* other = b.find(t.name);
    ASSERT_NE(other, nullptr) << t.name;
    EXPECT_EQ(other->type, t.type) << t.name;
    EXPECT_EQ(other->shape, t.shape) << t.name;
    EXPECT_TRUE(std::ranges::equal(other->bytes, t.bytes)) << t.name;
  }
}

TEST_P(HfFolder, ComesThroughACheckpointAndBackBitForBit) {
  const TempFolder folder;
  const spec::ModelSpec model = spec::read_hf_config(golden(GetParam()));
  import_hf_folder(golden(GetParam()), folder / "checkpoints");
  const auto reader = open_latest_checkpoint(folder / "checkpoints");
  ASSERT_NE(reader, nullptr);
  EXPECT_EQ(reader->meta().step, 0);
  EXPECT_EQ(reader->meta().hf_config, read_text(golden(GetParam()) / "config.json"));
  write_hf_folder(folder / "out", model, *reader);
  expect_same_tensors(SafetensorsFile(golden(GetParam()) / "model.safetensors"),
                      SafetensorsFile(folder / "out" / "model.safetensors"));
  EXPECT_EQ(spec::read_hf_config(folder / "out"), model);
}

}  // namespace
}  // namespace tessera::ckpt::test
