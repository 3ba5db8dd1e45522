// Hugging Face folders: round trips bit for bit on small published forms, every misfit named at once.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>

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
INSTANTIATE_TEST_SUITE_P(Families, HfFolder,
                         ::testing::Values("llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral",
                                           "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3",
                                           "gpt_oss"),
                         [](const auto& info) { return std::string(info.param); });

// The causal masks of gpt2: of a file, not of the model.
bool is_mask(const StoredTensor& t) {
  return t.name.ends_with(".attn.bias");
}

// Every tensor of the one file is in the other with the same type, shape and bits, and no others.
void expect_same_tensors(const SafetensorsFile& a, const SafetensorsFile& b) {
  EXPECT_EQ(std::ssize(a.tensors()) - std::ranges::count_if(a.tensors(), is_mask), std::ssize(b.tensors()));
  for (const StoredTensor& t : a.tensors()) {
    if (is_mask(t)) continue;
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
  write_hf_folder(folder / "out", model, *reader, reader->meta().hf_config);
  expect_same_tensors(SafetensorsFile(golden(GetParam()) / "model.safetensors"),
                      SafetensorsFile(folder / "out" / "model.safetensors"));
  EXPECT_EQ(spec::read_hf_config(folder / "out"), model);
  const std::string config = read_text(folder / "out" / "config.json");
  EXPECT_THAT(config, ::testing::HasSubstr("\"eos_token_id\": "));
  EXPECT_EQ(config.find("\"pad_token_id\"") == std::string::npos,
            reader->meta().hf_config.find("\"pad_token_id\"") == std::string::npos);
}

// A copy of the golden model as tensors that a test can change before it writes them.
struct Weights {
  explicit Weights(std::string_view family)
      : file(golden(family) / "model.safetensors"), tensors(file.tensors()) {}
  SafetensorsFile file;
  std::vector<StoredTensor> tensors;
  StoredTensor& at(std::string_view name) {
    return *std::find_if(tensors.begin(), tensors.end(),
                         [&](const StoredTensor& t) { return t.name == name; });
  }
  void remove(std::string_view name) {
    std::erase_if(tensors, [&](const StoredTensor& t) { return t.name == name; });
  }
};

void write_index(const std::filesystem::path& folder,
                 const std::vector<std::pair<std::string, std::string>>& map) {
  std::string text = "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {";
  for (std::size_t i = 0; i < map.size(); ++i)
    text += (i == 0 ? "\"" : ", \"") + map[i].first + "\": \"" + map[i].second + "\"";
  write_bytes(folder / "model.safetensors.index.json", text + "}}");
}

TEST_P(HfFolder, IsReadFromShardsAsFromOneFile) {
  const TempFolder folder;
  const Weights whole(GetParam());
  std::array<std::vector<StoredTensor>, 3> shards;
  std::vector<std::pair<std::string, std::string>> map;
  for (std::size_t i = 0; i < whole.tensors.size(); ++i) {
    shards[i % 3].push_back(whole.tensors[i]);
    map.emplace_back(whole.tensors[i].name, "model-" + std::to_string(i % 3) + ".safetensors");
  }
  for (std::size_t i = 0; i < 3; ++i)
    write_safetensors(folder / ("model-" + std::to_string(i) + ".safetensors"), shards[i]);
  write_index(folder.path(), map);
  const spec::ModelSpec model = spec::read_hf_config(golden(GetParam()));
  const auto source = open_hf_folder(folder.path(), model);
  check_weights(*source, model);
  write_hf_folder(folder / "out", model, *source);
  expect_same_tensors(whole.file, SafetensorsFile(folder / "out" / "model.safetensors"));
}

TEST(HfFolderFaults, OfAShardedIndexAreAllNamedAtOnce) {
  const TempFolder folder;
  const Weights w("llama");
  write_safetensors(folder / "model-0.safetensors", std::vector<StoredTensor>{w.tensors[0], w.tensors[1]});
  write_bytes(folder / "model-1.safetensors", "broken");
  write_index(folder.path(), {{w.tensors[0].name, "model-0.safetensors"},
                              {"not.there", "model-0.safetensors"},
                              {"b", "model-1.safetensors"},
                              {"c", "model-2.safetensors"},
                              {"d", "../model-3.safetensors"}});
  expect_error(
      ErrorKind::io,
      {"tensor \"not.there\" is not in this file", "tensor \"" + w.tensors[1].name + "\" is not listed",
       "a file of 6 bytes", "shard \"model-2.safetensors\" with 1 tensors is missing",
       "shard name \"../model-3.safetensors\""},
      [&] { (void)open_hf_folder(folder.path(), {}); });
}

TEST(HfFolderFaults, AFolderWithoutSafetensorsSaysWhatToDo) {
  const TempFolder folder;
  expect_error(ErrorKind::io, {"neither model.safetensors nor", "save_pretrained makes one"},
               [&] { (void)open_hf_folder(folder.path(), {}); });
  write_bytes(folder / "pytorch_model.bin", "pickle");
  expect_error(
      ErrorKind::io,
      {"a pickle (pytorch_model.bin), which can run code", "never read", "save_pretrained makes one"},
      [&] { (void)open_hf_folder(folder.path(), {}); });
  for (const std::string text :
       {"[]", "{}", "{\"weight_map\": 3}", "{\"weight_map\": {\"a\": 3}}", "{\"weight_map\": {"}) {
    write_bytes(folder / "model.safetensors.index.json", text);
    expect_error(ErrorKind::io, {"model.safetensors.index.json"},
                 [&] { (void)open_hf_folder(folder.path(), {}); });
  }
}

TEST(HfFolderFaults, MissingExtraAndMisshapedTensorsAreAllNamedAtOnce) {
  const TempFolder folder;
  Weights w("mixtral");
  w.remove("model.layers.1.self_attn.k_proj.weight");
  w.remove("model.layers.0.block_sparse_moe.experts.3.w2.weight");
  StoredTensor& q = w.at("model.layers.0.self_attn.q_proj.weight");
  q.shape = {q.shape[0] / 2, q.shape[1] * 2};
  w.at("model.norm.weight").shape = {1, 1, 32};
  w.at("lm_head.weight").name = "lm_heads.weight";
  w.tensors.push_back({.name = "extra.bias", .shape = {1}, .bytes = q.bytes.first(4)});
  w.tensors.push_back(
      {.name = "model.layers.0.self_attn.rotary_emb.inv_freq", .shape = {1}, .bytes = q.bytes.first(4)});
  write_safetensors(folder / "model.safetensors", w.tensors);
  const spec::ModelSpec model = spec::read_hf_config(golden("mixtral"));
  try {
    (void)open_hf_folder(folder.path(), model);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    std::vector<std::string> whats;
    for (const Problem& p : e.problems()) whats.push_back(p.what);
    EXPECT_THAT(
        whats,
        ::testing::UnorderedElementsAre(
            "tensor \"model.layers.1.self_attn.k_proj.weight\" of shape [16, 32] is missing",
            "tensor \"model.layers.0.block_sparse_moe.experts.3.w2.weight\" of shape [32, 20] is missing",
            "tensor \"model.layers.0.self_attn.q_proj.weight\" has shape [16, 64], config.json gives [32, "
            "32]",
            "tensor \"model.norm.weight\" has shape [1, 1, 32], config.json gives [32]",
            "tensor \"lm_head.weight\" of shape [101, 32] is missing",
            "tensor \"lm_heads.weight\" is none of this model's",
            "tensor \"extra.bias\" is none of this model's"));
    EXPECT_THAT(e.what(), ::testing::HasSubstr("rename it to \"lm_head.weight\""));
  }
}

TEST(HfFolderFaults, AHeadBesideTiedWeightsAndIntegerWeightsAreRefused) {
  const TempFolder folder;
  Weights w("llama");
  write_safetensors(folder / "model.safetensors", w.tensors);
  spec::ModelSpec model = spec::read_hf_config(golden("llama"));
  model.tie_word_embeddings = true;
  expect_error(ErrorKind::config,
               {"tensor \"lm_head.weight\" is none of this model's", "tie_word_embeddings is true"},
               [&] { (void)open_hf_folder(folder.path(), model); });
  model.tie_word_embeddings = false;
  w.at("lm_head.weight").type = StoredType::i32;
  write_safetensors(folder / "model.safetensors", w.tensors);
  expect_error(ErrorKind::config, {"\"lm_head.weight\" has dtype I32", "quantised"},
               [&] { (void)open_hf_folder(folder.path(), model); });
}

TEST(HfFolder16Bit, IsWidenedExactly) {
  const TempFolder folder;
  Weights w("llama");
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(w.at("model.norm.weight").num_elements()));
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(0x3f80 + 7 * i);
  StoredTensor& norm = w.at("model.norm.weight");
  norm.type = StoredType::bf16;
  norm.bytes = std::as_bytes(std::span<const std::uint16_t>(bits));
  write_safetensors(folder / "model.safetensors", w.tensors);
  std::filesystem::copy(golden("llama") / "config.json", folder / "config.json");
  import_hf_folder(folder.path(), folder / "checkpoints");
  const auto reader = open_latest_checkpoint(folder / "checkpoints");
  const auto n = static_cast<std::int64_t>(bits.size());
  const Owned got =
      make_piece("model.norm.weight", 1, {n, 1}, {.begin = {0, 0}, .size = {n, 1}}, tensor::DType::f32);
  reader->read(got.piece);
  for (std::size_t i = 0; i < bits.size(); ++i)
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got.f32[i]), static_cast<std::uint32_t>(bits[i]) << 16);
}

TEST(HfFolderWriting, NeverTouchesAFolderThatIsThere) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "out");
  write_bytes(folder / "out" / "notes.txt", "mine");
  const auto source = open_hf_folder(golden("llama"));
  expect_error(ErrorKind::io, {"exists already", "give a new folder"},
               [&] { write_hf_folder(folder / "out", spec::read_hf_config(golden("llama")), *source); });
  EXPECT_EQ(read_bytes(folder / "out" / "notes.txt"), "mine");
  std::filesystem::remove(folder / "out" / "notes.txt");
  write_hf_folder(folder / "out/", spec::read_hf_config(golden("llama")),
                  *source);  // empty: there is nothing to lose
  EXPECT_TRUE(std::filesystem::exists(folder / "out" / "model.safetensors"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

}  // namespace
}  // namespace tessera::ckpt::test
