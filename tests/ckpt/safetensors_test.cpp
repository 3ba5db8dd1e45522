// safetensors files: what is written is read again, types and conversions, every kind of broken header.
#include "ckpt/safetensors.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "ckpt/support.h"

namespace tessera::ckpt::test {
namespace {

template <class T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

// A file made by hand.
std::string file_of(const std::string& header, std::size_t data_bytes) {
  const std::uint64_t n = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &n, 8);
  return out + header + std::string(data_bytes, '\1');
}

TEST(Safetensors, WhatIsWrittenIsReadAgain) {
  const TempFolder folder;
  const std::vector<double> wide = {1.5, -2.25, 3.0};
  const std::vector<std::int64_t> numbers = {-1, 1LL << 40};
  const std::vector<float> scalar = {0.5F};
  const std::vector<StoredTensor> tensors = {
      {.name = "a \"quoted\" name", .type = StoredType::f64, .shape = {3}, .bytes = bytes_of(wide)},
      {.name = "ids", .type = StoredType::i64, .shape = {1, 2}, .bytes = bytes_of(numbers)},
      {.name = "scalar", .type = StoredType::f32, .shape = {}, .bytes = bytes_of(scalar)},
      {.name = "empty", .type = StoredType::f32, .shape = {0, 7}, .bytes = {}},
  };
  write_safetensors(folder / "x.safetensors", tensors, {{"format", "pt"}});
  const SafetensorsFile file(folder / "x.safetensors");
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}}));
  ASSERT_EQ(file.tensors().size(), 4);
  EXPECT_EQ(to_f64(file.at("a \"quoted\" name")), wide);
  EXPECT_EQ(to_i64(file.at("ids")), numbers);
  EXPECT_THAT(file.at("ids").shape, ::testing::ElementsAre(1, 2));
  EXPECT_EQ(to_f64(file.at("scalar")), std::vector<double>{0.5});
  EXPECT_EQ(file.at("empty").num_elements(), 0);
  EXPECT_EQ(file.find("nothing"), nullptr);
  expect_error(ErrorKind::io, {"no tensor \"scalr\" among 4", "x.safetensors", "did you mean \"scalar\"?"},
               [&] { (void)file.at("scalr"); });
  expect_error(ErrorKind::unsupported, {"I64 asked for as floats"}, [&] { (void)to_f64(file.at("ids")); });
  expect_error(ErrorKind::unsupported, {"F32 asked for as integers"},
               [&] { (void)to_i64(file.at("scalar")); });
}

TEST(Safetensors, TheGoldenFilesAreRead) {
  for (const std::string family : {"llama", "mixtral"}) {
    const SafetensorsFile file(std::filesystem::path(TESSERA_SOURCE_DIR) / "tests/golden/hf" / family /
                               "expected.safetensors");
    EXPECT_EQ(file.at("logits").type, StoredType::f64);
    EXPECT_EQ(file.at("logits").shape.size(), 3);
    const std::vector<std::int64_t> ids = to_i64(file.at("input_ids"));
    EXPECT_GE(*std::min_element(ids.begin(), ids.end()), 4);
    EXPECT_NEAR(to_f64(file.at("loss")).at(0), std::log(101.0), 2.0);
  }
}

TEST(Safetensors, TheDataBeginAtACacheLine) {
  for (std::size_t length = 1; length < 80; ++length) {
    const std::vector<StoredTensor> tensors = {{.name = std::string(length, 'x'), .shape = {1}}};
    EXPECT_EQ(safetensors_header(tensors, {}).size() % 64, 0);
  }
}

// Every one of the 65,536 half-precision numbers against arithmetic on its fields.
TEST(Safetensors, HalfPrecisionIsWidenedExactly) {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  std::vector<float> f16(bits.size()), bf16(bits.size());
  const auto* from = reinterpret_cast<const std::byte*>(bits.data());
  convert(StoredType::f16, from, tensor::DType::f32, reinterpret_cast<std::byte*>(f16.data()), 65536);
  convert(StoredType::bf16, from, tensor::DType::f32, reinterpret_cast<std::byte*>(bf16.data()), 65536);
  for (std::uint32_t i = 0; i < 65536; ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(bf16[i]), i << 16);
    const int exponent = static_cast<int>(i >> 10 & 31);
    const double fraction = (i & 1023) / 1024.0;
    const double sign = i >> 15 != 0 ? -1 : 1;
    if (exponent == 31) {
      ASSERT_EQ(std::isnan(f16[i]), fraction != 0);
      ASSERT_EQ(std::isinf(f16[i]), fraction == 0);
    } else {
      const double want =
          sign * (exponent == 0 ? std::ldexp(fraction, -14) : std::ldexp(1 + fraction, exponent - 15));
      ASSERT_EQ(f16[i], want) << i;
    }
    ASSERT_EQ(std::signbit(f16[i]), sign < 0);
  }
}

TEST(Safetensors, ABrokenHeaderIsRefusedWithItsFault) {
  const TempFolder folder;
  const std::string entry = "\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]";
  struct Case {
    std::string bytes;
    std::string word;
  };
  const std::string huge = std::string("\xff\xff\xff\xff\xff\xff\xff\x7f") + "{}";
  const std::vector<Case> cases = {
      {"", "a file of 0 bytes"},
      {"abc", "a file of 3 bytes"},
      {huge, "the header should have 9223372036854775807 bytes, in a file of 10"},
      {file_of("{", 0), "not valid JSON at byte"},
      {file_of("[]", 0), "the header is not a JSON object"},
      {file_of("{}", 5), "use 0 of 5 bytes"},
      {file_of("{\"a\":3}", 0), "tensor \"a\" is not a JSON object"},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8), "lacks the key \"data_offsets\""},
      {file_of("{\"a\":{" + entry + ",\"more\":1}}", 8), "unknown key \"more\""},
      {file_of("{\"a\":{" + entry + "}}", 7), "data_offsets [0, 8] in 7 bytes"},
      {file_of("{\"a\":{" + entry + "}}", 9), "use 8 of 9 bytes"},
      {file_of("{\"a\":{" + entry + "},\"b\":{" + entry + "}}", 8), "overlap or leave a gap"},
      {file_of("{\"a\":{" + entry + "},\"a\":{" + entry + "}}", 8), "\"a\" is given twice"},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12), "begins at byte 4"},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8),
       "shape [3] and dtype F32 has 8"},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8),
       "not an integer of 0 or more"},
      {file_of("{\"a\":{\"dtype\":\"C64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8), "dtype \"C64\""},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0),
       "has 0 bytes of data"},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8), "data_offsets [8, 0]"},
      {file_of("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8,9]}}", 8),
       "data_offsets [0, 8, 9]"},
      {file_of("{\"__metadata__\":{\"a\":1}}", 0), "a value of __metadata__ is not a string"},
  };
  for (const Case& c : cases) {
    write_bytes(folder / "x.safetensors", c.bytes);
    expect_error(ErrorKind::io, {c.word, "x.safetensors", "give an undamaged safetensors file"},
                 [&] { const SafetensorsFile file(folder / "x.safetensors"); });
  }
  write_bytes(folder / "x.safetensors",
              file_of("{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[8],\"data_offsets\":[0,8]}}", 8));
  expect_error(ErrorKind::io, {"dtype \"F8_E4M3\"", "quantised weights are not read", "bf16"},
               [&] { const SafetensorsFile file(folder / "x.safetensors"); });
}

TEST(Safetensors, AHeaderOfManySmallValuesIsRefusedBeforeItFillsTheMemory) {
  const TempFolder folder;
  std::string header = "{\"a\":[";
  for (int i = 0; i < 2'100'000; ++i) header += "0,";
  write_bytes(folder / "x.safetensors", file_of(header + "0]}", 0));
  expect_error(ErrorKind::io, {"more than 2000000 JSON values"},
               [&] { const SafetensorsFile file(folder / "x.safetensors"); });
}

TEST(Safetensors, AMutatedHeaderNeverCrashes) {
  const TempFolder folder;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const std::vector<StoredTensor> tensors = {
      {.name = "first", .shape = {2, 2}, .bytes = bytes_of(values).first(16)},
      {.name = "second", .shape = {2}, .bytes = bytes_of(values).subspan(16)}};
  write_safetensors(folder / "x.safetensors", tensors, {{"format", "pt"}});
  const std::string good = read_bytes(folder / "x.safetensors");
  int refused = 0;
  for (std::uint64_t i = 0; i < 8 * (good.size() - 24); ++i) {  // every bit of length and header
    std::string bad = good;
    bad[i / 8] = static_cast<char>(bad[i / 8] ^ (1 << i % 8));
    write_bytes(folder / "x.safetensors", bad);
    try {
      const SafetensorsFile file(folder / "x.safetensors");
      for (const StoredTensor& t : file.tensors())
        ASSERT_EQ(static_cast<std::int64_t>(t.bytes.size()), t.num_elements() * size_of(t.type));
    } catch (const Error& e) {
      ASSERT_THAT(e.what(), ::testing::HasSubstr("x.safetensors"));
      ++refused;
    }
  }
  EXPECT_GT(refused, 500);
}

}  // namespace
}  // namespace tessera::ckpt::test
