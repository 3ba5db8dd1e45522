// The engine's tensors inside the files of each family: fused, transposed and interleaved forms against the
// meaning of the files, rectangles of any layout, and every misfit of those forms by the file's names.
#include "ckpt/hf_names.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ckpt/support.h"

namespace tessera::ckpt::test {
namespace {

constexpr const char* kFamilies[] = {"llama", "mistral",     "qwen2",       "qwen3",
                                     "gpt2",  "mixtral",     "qwen2_moe",   "qwen3_moe",
                                     "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss"};

std::filesystem::path golden(std::string_view family) {
  return std::filesystem::path(TESSERA_SOURCE_DIR) / "tests" / "golden" / "hf" / family;
}

struct Files {
  explicit Files(std::string_view family)
      : model(spec::read_hf_config(golden(family))),
        file(golden(family) / "model.safetensors"),
        tensors(file.tensors()) {}
  spec::ModelSpec model;
  SafetensorsFile file;
  std::vector<StoredTensor> tensors;
  StoredTensor& at(std::string_view name) {
    return *std::ranges::find_if(tensors, [&](const StoredTensor& t) { return t.name == name; });
  }
  void write(const TempFolder& folder) const { write_safetensors(folder / "model.safetensors", tensors); }
};

TEST(HfNames, OfEveryFamilyHoldEachElementOfTheFilesOnce) {
  for (const char* family : kFamilies) {
    const Files files(family);
    std::size_t masks = 0;
    for (const StoredTensor& t : files.tensors) masks += is_computed(files.model.family, t.name) ? 1 : 0;
    const std::vector<HfTensor> tensors = hf_tensors(files.model);
    EXPECT_EQ(tensors.size() + masks, files.tensors.size()) << family;
    for (const HfTensor& t : tensors) {
      const StoredTensor* stored = files.file.find(t.name);
      ASSERT_NE(stored, nullptr) << t.name;
      EXPECT_EQ(stored->shape, t.shape) << t.name;
      std::vector<std::int32_t> seen(static_cast<std::size_t>(t.num_elements()));
      for (const HfPart& p : t.parts) {
        for (std::int64_t r = 0; r < p.param.global[0]; ++r) {
          for (std::int64_t c = 0; c < p.param.global[1]; ++c)
            ++seen.at(static_cast<std::size_t>(p.view.offset + r * p.view.stride[0] + c * p.view.stride[1]));
        }
      }
      EXPECT_EQ(std::ranges::count(seen, 1), std::ssize(seen)) << t.name;
    }
  }
}

// Element (row, column) of an engine tensor, through the source.
double element_of(const WeightSource& source, const std::string& name, std::int64_t row,
                  std::int64_t column) {
  const std::vector<std::int64_t> shape = source.shape(name);
  const auto dims = static_cast<std::int32_t>(shape.size());
  const Owned one = make_piece(name, dims, {shape[0], dims == 2 ? shape[1] : 1},
                               {.begin = {row, column}, .size = {1, 1}}, tensor::DType::f64);
  source.read(one.piece);
  return one.f64[0];
}

TEST(HfNames, OfGpt2TurnItsMatricesAndCutTheFusedOne) {
  const Files files("gpt2");
  const auto source = open_hf_folder(golden("gpt2"));
  const std::vector<double> fused = to_f64(files.file.at("h.1.attn.c_attn.weight"));  // [32, 3 * 32]
  const std::vector<double> bias = to_f64(files.file.at("h.1.attn.c_attn.bias"));
  const std::vector<double> up = to_f64(files.file.at("h.0.mlp.c_fc.weight"));  // [32, 128]
  const std::string attention = "model.layers.1.self_attn.";
  const char* const parts[] = {"q", "k", "v"};
  for (std::size_t part = 0; part < 3; ++part) {
    const std::string name = attention + parts[part] + "_proj.";
    for (const std::int64_t row : {0, 5, 31}) {
      const auto r = static_cast<std::size_t>(row);
      EXPECT_EQ(element_of(*source, name + "bias", row, 0), bias[32 * part + r]);
      for (const std::int64_t column : {0, 7, 31}) {
        const auto c = static_cast<std::size_t>(column);
        EXPECT_EQ(element_of(*source, name + "weight", row, column), fused[96 * c + 32 * part + r]);
        EXPECT_EQ(element_of(*source, "model.layers.0.mlp.up_proj.weight", 4 * row, column),
                  up[128 * c + 4 * r]);
      }
    }
  }
  EXPECT_EQ(element_of(*source, "model.embed_positions.weight", 3, 4),
            to_f64(files.file.at("wpe.weight"))[3 * 32 + 4]);
  EXPECT_EQ(element_of(*source, "model.norm.bias", 9, 0), to_f64(files.file.at("ln_f.bias"))[9]);
}

TEST(HfNames, OfGptOssTakeGateAndUpFromEverySecondColumn) {
  const Files files("gpt_oss");
  const auto source = open_hf_folder(golden("gpt_oss"));
  const std::vector<double> fused =
      to_f64(files.file.at("model.layers.1.mlp.experts.gate_up_proj"));  // [5, 32, 24]
  const std::vector<double> bias = to_f64(files.file.at("model.layers.1.mlp.experts.gate_up_proj_bias"));
  const std::vector<double> down =
      to_f64(files.file.at("model.layers.1.mlp.experts.down_proj"));  // [5, 12, 32]
  for (std::size_t e = 0; e < 5; ++e) {
    const std::string expert = "model.layers.1.mlp.experts." + std::to_string(e) + ".";
    for (const std::int64_t row : {0, 3, 11}) {
      const auto r = static_cast<std::size_t>(row);
      EXPECT_EQ(element_of(*source, expert + "gate_proj.bias", row, 0), bias[24 * e + 2 * r]);
      EXPECT_EQ(element_of(*source, expert + "up_proj.bias", row, 0), bias[24 * e + 2 * r + 1]);
      for (const std::int64_t column : {0, 17, 31}) {
        const auto c = static_cast<std::size_t>(column);
        EXPECT_EQ(element_of(*source, expert + "gate_proj.weight", row, column),
                  fused[24 * (32 * e + c) + 2 * r]);
        EXPECT_EQ(element_of(*source, expert + "up_proj.weight", row, column),
                  fused[24 * (32 * e + c) + 2 * r + 1]);
        EXPECT_EQ(element_of(*source, expert + "down_proj.weight", column, row), down[32 * (12 * e + r) + c]);
      }
    }
  }
}

// What a rank reads is the same part of what one rank alone reads.
TEST(HfNames, GiveEveryLayoutItsRectangles) {
  const spec::ParallelSpec dense{.tp = 2, .pp = 2};
  const spec::ParallelSpec moe{.tp = 2, .dp = 2, .etp = 2};
  for (const char* family : {"gpt2", "gpt_oss", "deepseek_v3"}) {
    spec::ModelSpec model = spec::read_hf_config(golden(family));
    const auto source = open_hf_folder(golden(family));
    std::map<std::string, Owned> whole;
    for (const layout::ParamSpec& p : model_parameters(model)) {
      Owned o =
          make_piece(p.name, p.num_dims, p.global, {.begin = {0, 0}, .size = p.global}, tensor::DType::f32);
      source->read(o.piece);
      whole.emplace(p.name, std::move(o));
    }
    model.vocab_size += model.vocab_size % 2;  // for the cut alone: these tables are left out below
    const layout::Layout layout =
        layout::make_layout(model, model.moe ? moe : dense, layout::Placement::loop);
    for (std::int32_t r = 0; r < layout.world_size(); ++r) {
      for (const layout::ParamSpec& p : layout::parameters(model, layout, Rank(r))) {
        if (p.layer < 0) continue;
        const Owned part = make_piece(p.name, p.num_dims, p.global, p.slice, tensor::DType::f32);
        source->read(part.piece);
        const Owned& all = whole.at(p.name);
        for (std::int64_t i = 0; i < p.slice.size[0]; ++i) {
          for (std::int64_t j = 0; j < p.slice.size[1]; ++j) {
            const auto at =
                static_cast<std::size_t>((p.slice.begin[0] + i) * p.global[1] + p.slice.begin[1] + j);
            ASSERT_EQ(part.f32[static_cast<std::size_t>(i * p.slice.size[1] + j)], all.f32[at]) << p.name;
          }
        }
      }
    }
  }
}

TEST(HfNames, OfGpt2MayHaveAPrefixAndNoMasks) {
  const TempFolder folder;
  Files files("gpt2");
  std::erase_if(files.tensors, [](const StoredTensor& t) { return t.name.ends_with(".attn.bias"); });
  for (StoredTensor& t : files.tensors) t.name = "transformer." + t.name;
  files.write(folder);
  const auto prefixed = open_hf_folder(folder.path(), files.model);
  const auto plain = open_hf_folder(golden("gpt2"));
  EXPECT_EQ(prefixed->names(), plain->names());
  EXPECT_EQ(element_of(*prefixed, "model.embed_tokens.weight", 3, 1),
            element_of(*plain, "model.embed_tokens.weight", 3, 1));
  files.tensors.push_back(files.at("transformer.wte.weight"));
  files.tensors.back().name = "wte.weight";
  files.write(folder);
  expect_error(ErrorKind::config, {"\"wte.weight\" is there with and without its prefix", "remove one"},
               [&] { (void)open_hf_folder(folder.path(), files.model); });
}

TEST(HfNames, AMaskOfAnotherTypeIsSkippedButNotAForeignBias) {
  const TempFolder folder;
  Files files("gpt2");
  const std::vector<std::byte> ones(static_cast<std::size_t>(files.at("h.0.attn.bias").num_elements()),
                                    std::byte{1});
  StoredTensor& mask = files.at("h.0.attn.bias");
  mask.type = StoredType::boolean;
  mask.bytes = ones;
  files.tensors.push_back({.name = "h.0.attn.masked_bias", .shape = {}, .bytes = std::span(ones).first(4)});
  files.write(folder);
  EXPECT_FALSE(open_hf_folder(folder.path(), files.model)->names().empty());
  files.tensors.back().name = "h.0.mlp.bias";
  files.write(folder);
  expect_error(ErrorKind::config, {"\"h.0.mlp.bias\" is none of this model's"},
               [&] { (void)open_hf_folder(folder.path(), files.model); });
}

TEST(HfNames, FaultsOfFusedTensorsAreNamedOnceAsInTheFile) {
  const TempFolder folder;
  Files files("gpt_oss");
  std::erase_if(files.tensors, [](const StoredTensor& t) {
    return t.name == "model.layers.0.mlp.experts.gate_up_proj_bias";
  });
  StoredTensor& fused = files.at("model.layers.1.mlp.experts.gate_up_proj");
  fused.shape = {5, 24, 32};
  StoredTensor& down = files.at("model.layers.1.mlp.experts.down_proj");
  const std::span<const std::byte> some = down.bytes.first(16);
  down = {.name = "model.layers.1.mlp.experts.down_proj_blocks",
          .type = StoredType::u8,
          .shape = {16},
          .bytes = some};
  files.write(folder);
  try {
    (void)open_hf_folder(folder.path(), files.model);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.problems().size(), 5) << e.what();
    for (const char* what :
         {"tensor \"model.layers.0.mlp.experts.gate_up_proj_bias\" of shape [5, 24] is missing",
          "tensor \"model.layers.1.mlp.experts.gate_up_proj\" has shape [5, 24, 32], config.json gives [5, "
          "32, 24]",
          "tensor \"model.layers.1.mlp.experts.down_proj_blocks\" has shape [16] and dtype U8, config.json "
          "gives [5, "
          "32, 0, 16] and U8",
          "tensor \"model.layers.1.mlp.experts.down_proj_scales\" of shape [5, 32, 0] is missing",
          "has MXFP4 blocks, and 12 is no multiple of 32"})
      EXPECT_THAT(e.what(), ::testing::HasSubstr(what));
  }
}

// Two experts of 64 x 32 in 4 bits: the numbers against the format's table of values.
TEST(HfNames, UnpackMxfp4Experts) {
  constexpr std::array<float, 16> kValues = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                             -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};
  const TempFolder folder;
  Files files("gpt_oss");
  files.model.num_hidden_layers = 1;
  files.model.layer_spans.clear();
  files.model.intermediate_size = 64;
  files.model.moe->num_experts = 2;
  std::map<std::string, std::vector<std::byte>> data;
  files.tensors.clear();
  std::uint64_t seed = 0;
  for (const HfTensor& t : hf_tensors(files.model)) {
    const auto add = [&](const std::string& name, StoredType type, std::vector<std::int64_t> shape) {
      StoredTensor stored{.name = name, .type = type, .shape = std::move(shape)};
      std::vector<std::byte>& bytes = data[name];
      bytes.resize(static_cast<std::size_t>(stored.num_elements() * size_of(type)));
      for (std::byte& b : bytes)
        b = static_cast<std::byte>(type == StoredType::u8 ? uniform_below(256, 5, stream_of(name), seed++)
                                                          : 0);
      stored.bytes = bytes;
      files.tensors.push_back(std::move(stored));
    };
    if (t.shape.size() == 3) {
      add(t.name + "_blocks", StoredType::u8, {2, t.shape[2], t.shape[1] / 32, 16});
      add(t.name + "_scales", StoredType::u8, {2, t.shape[2], t.shape[1] / 32});
      for (std::byte& b : data.at(t.name + "_scales"))
        b = (b & std::byte{15}) | std::byte{120};  // 2^-7 to 2^8
    } else {
      add(t.name, StoredType::f32, t.shape);
    }
  }
  files.write(folder);
  const auto source = open_hf_folder(folder.path(), files.model);
  const auto value = [&](const std::string& name, std::size_t row, std::size_t column, std::size_t in) {
    const std::byte pair = data.at(name + "_blocks")[(row * in + column) / 2];
    const auto half = std::to_integer<std::size_t>(column % 2 == 1 ? pair >> 4 : pair & std::byte{15});
    const auto scale = std::to_integer<int>(data.at(name + "_scales")[(row * in + column) / 32]);
    return kValues[half] * std::pow(2.0, scale - 127);
  };
  const std::string experts = "model.layers.0.mlp.experts";
  for (std::size_t e = 0; e < 2; ++e) {
    const std::string expert = experts + "." + std::to_string(e) + ".";
    for (std::size_t i = 0; i < 64; i += 3) {
      for (std::size_t h = 0; h < 32; ++h) {
        const auto r = static_cast<std::int64_t>(i);
        const auto c = static_cast<std::int64_t>(h);
        const std::size_t row = 128 * e + 2 * i;
        EXPECT_EQ(element_of(*source, expert + "gate_proj.weight", r, c),
                  value(experts + ".gate_up_proj", row, h, 32));
        EXPECT_EQ(element_of(*source, expert + "up_proj.weight", r, c),
                  value(experts + ".gate_up_proj", row + 1, h, 32));
        EXPECT_EQ(element_of(*source, expert + "down_proj.weight", c, r),
                  value(experts + ".down_proj", 32 * e + h, i, 64));
      }
    }
  }
  data.at(experts + ".down_proj_scales")[0] = std::byte{255};
  files.write(folder);
  const auto broken = open_hf_folder(folder.path(), files.model);
  EXPECT_TRUE(std::isnan(element_of(*broken, experts + ".0.down_proj.weight", 0, 0)));
}

TEST(HfNames, LayersOfMtpAreLeftOutOnlyWhenAsked) {
  const TempFolder folder;
  Files files("deepseek_v3");
  files.model.num_nextn_predict_layers = 1;
  const StoredTensor norm = files.at("model.norm.weight");
  for (const char* name : {"model.layers.3.enorm.weight", "model.layers.3.mlp.experts.0.up_proj.weight"})
    files.tensors.push_back({.name = name, .type = norm.type, .shape = norm.shape, .bytes = norm.bytes});
  files.write(folder);
  write_bytes(folder / "config.json", spec::to_hf_config(files.model));
  expect_error(ErrorKind::config,
               {"2 tensors of MTP layers are not used (num_nextn_predict_layers=1)",
                "the first is \"model.layers.3.enorm.weight\"", "left out"},
               [&] { import_hf_folder(folder.path(), folder / "refused"); });
  EXPECT_FALSE(std::filesystem::exists(folder / "refused"));
  std::vector<std::string> unused;
  import_hf_folder(folder.path(), folder / "out", {.mtp = MtpLayers::leave_out, .unused = &unused});
  EXPECT_THAT(unused, ::testing::ElementsAre("model.layers.3.enorm.weight",
                                             "model.layers.3.mlp.experts.0.up_proj.weight"));
  const auto reader = open_latest_checkpoint(folder / "out");
  Problems problems;
  const spec::ModelSpec kept = spec::parse_hf_config(reader->meta().hf_config, "config.json", problems);
  EXPECT_EQ(kept.num_nextn_predict_layers, 0);
  check_weights(*reader, kept);
  files.model.num_nextn_predict_layers = 0;  // then they are foreign
  expect_error(ErrorKind::config, {"tensor \"model.layers.3.enorm.weight\" is none of this model's"},
               [&] { (void)open_hf_folder(folder.path(), files.model, {.mtp = MtpLayers::leave_out}); });
}

// Random bits for every tensor of a deepseek_v3 with two MTP layers, and their copies of embedding and head.
TEST(HfNames, KeptMtpLayersComeThroughACheckpointBitForBit) {
  const TempFolder folder;
  Files files("deepseek_v3");
  files.model.num_nextn_predict_layers = 2;
  std::vector<std::vector<float>> data;
  std::vector<std::string> names;
  for (const HfTensor& t : hf_tensors(files.model)) {
    if (!is_mtp(files.model, t.name)) continue;
    std::vector<float>& values = data.emplace_back(static_cast<std::size_t>(t.num_elements()));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(normal(5, stream_of(t.name), i));
    files.tensors.push_back({.name = t.name,
                             .type = StoredType::f32,
                             .shape = t.shape,
                             .bytes = std::as_bytes(std::span(values))});
    names.push_back(t.name);
  }
  EXPECT_EQ(names.size(),
            2U * (5 + 7 + 1 + 2 + 3 + 12 * 3));  // norms, attention, eh_proj, router, shared, experts
  for (const char* layer : {"model.layers.3.", "model.layers.4."}) {
    for (const auto& [copy, of] : {std::pair{"embed_tokens.weight", "model.embed_tokens.weight"},
                                   std::pair{"shared_head.head.weight", "lm_head.weight"}}) {
      StoredTensor t = files.at(of);
      t.name = std::string(layer) + copy;
      files.tensors.push_back(t);
    }
  }
  files.write(folder);
  write_bytes(folder / "config.json", spec::to_hf_config(files.model));
  import_hf_folder(folder.path(), folder / "out", {.mtp = MtpLayers::keep});
  const auto reader = open_latest_checkpoint(folder / "out");
  Problems problems;
  const spec::ModelSpec kept = spec::parse_hf_config(reader->meta().hf_config, "config.json", problems);
  EXPECT_EQ(kept.num_nextn_predict_layers, 2);
  write_hf_folder(folder / "back", kept, *reader, {});
  const SafetensorsFile back(folder / "back" / "model.safetensors");
  for (std::size_t i = 0; i < names.size(); ++i) {
    const StoredTensor* t = back.find(names[i]);
    ASSERT_NE(t, nullptr) << names[i];
    EXPECT_TRUE(std::ranges::equal(t->bytes, std::as_bytes(std::span(data[i])))) << names[i];
  }
  EXPECT_EQ(back.find("model.layers.3.embed_tokens.weight"), nullptr);
  std::vector<std::byte> other(files.tensors.back().bytes.begin(), files.tensors.back().bytes.end());
  other[0] ^= std::byte{1};
  files.tensors.back().bytes = other;
  const TempFolder changed;
  files.write(changed);
  expect_error(ErrorKind::config,
               {"tensor \"model.layers.4.shared_head.head.weight\" differs from \"lm_head.weight\"",
                "make both equal"},
               [&] { (void)open_hf_folder(changed.path(), files.model, {.mtp = MtpLayers::keep}); });
}

TEST(HfNames, TheRoutingCorrectionComesThroughACheckpoint) {
  const TempFolder folder;
  const Files files("deepseek_v3");
  import_hf_folder(golden("deepseek_v3"), folder / "out");
  const auto reader = open_latest_checkpoint(folder / "out");
  const std::string name = "model.layers.1.mlp.gate.e_score_correction_bias";
  const std::vector<double> want = to_f64(files.file.at(name));
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_EQ(element_of(*reader, name, static_cast<std::int64_t>(i), 0), want[i]);
}

// 16-bit files of fused and transposed forms: the values are those of the bits.
TEST(HfNames, ReadHalfPrecisionThroughEveryForm) {
  for (const char* family : {"gpt2", "gpt_oss"}) {
    const TempFolder folder;
    Files files(family);
    std::vector<std::vector<std::uint16_t>> halves;
    halves.reserve(files.tensors.size());
    for (StoredTensor& t : files.tensors) {
      const std::vector<double> values = to_f64(t);
      std::vector<std::uint16_t>& bits = halves.emplace_back();
      for (const double v : values)
        bits.push_back(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(v)) >> 16));
      t.type = StoredType::bf16;
      t.bytes = std::as_bytes(std::span<const std::uint16_t>(bits));
    }
    files.write(folder);
    const auto wide = open_hf_folder(golden(family));
    const auto half = open_hf_folder(folder.path(), files.model);
    for (const std::string& name : half->names()) {
      const double got = element_of(*half, name, 1, 0);
      const double want = element_of(*wide, name, 1, 0);
      EXPECT_TRUE(std::abs(got - want) <= std::abs(want) / 128.0) << name;
      EXPECT_EQ(std::bit_cast<std::uint32_t>(static_cast<float>(got)) & 0xffffU, 0U) << name;
    }
  }
}

TEST(HfNames, RefuseAModelOfAbsurdlyManyTensors) {
  spec::ModelSpec model = spec::read_hf_config(golden("deepseek_v3"));
  model.num_hidden_layers = 100'000;
  model.moe->num_experts = 1 << 20;
  expect_error(ErrorKind::config, {"100000 layers and 1048576 experts", "config.json that belongs"},
               [&] { (void)open_hf_folder(golden("deepseek_v3"), model); });
}

// Cut or changed anywhere in its header, a file is refused or read whole; nothing else happens.
TEST(HfNames, DamagedFilesOfEveryFormAreRefusedOrRead) {
  for (const char* family : {"gpt2", "gpt_oss", "deepseek_v2"}) {
    const TempFolder folder;
    const Files files(family);
    const std::string bytes = read_bytes(golden(family) / "model.safetensors");
    std::int64_t refused = 0;
    for (std::uint64_t seed = 0; seed < 60; ++seed) {
      std::string broken = bytes;
      const std::uint64_t stream = stream_of(family);
      const std::size_t at = uniform_below(3000, seed, stream, 0);
      if (seed % 3 == 0) {
        broken.resize(uniform_below(broken.size(), seed, stream, 1));
      } else {
        broken[at] = static_cast<char>(uniform_below(256, seed, stream, 2));
      }
      write_bytes(folder / "model.safetensors", broken);
      try {
        const auto source = open_hf_folder(folder.path(), files.model);
        for (const std::string& name : source->names()) (void)element_of(*source, name, 0, 0);
      } catch (const Error& e) {
        ++refused;
        EXPECT_FALSE(e.problems().empty());
      }
    }
    EXPECT_GT(refused, 40) << family;
  }
}

}  // namespace
}  // namespace tessera::ckpt::test
