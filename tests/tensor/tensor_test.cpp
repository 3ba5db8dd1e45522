// Shapes, dtypes and views. Errors must carry both numbers.
#include "tensor/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

namespace tessera::tensor {
namespace {

using ::testing::HasSubstr;

std::string internal_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.kind() == ErrorKind::internal ? e.what() : "another kind";
  }
  return "no error";
}

TEST(DType, SizesAndNamesOfAll) {
  const std::array<std::pair<DType, std::pair<std::int64_t, const char*>>, 6> all = {
      {{DType::f64, {8, "f64"}},
       {DType::f32, {4, "f32"}},
       {DType::bf16, {2, "bf16"}},
       {DType::i64, {8, "i64"}},
       {DType::i32, {4, "i32"}},
       {DType::u8, {1, "u8"}}}};
  for (const auto& [dtype, expected] : all) {
    EXPECT_EQ(size_of(dtype), expected.first);
    EXPECT_EQ(name(dtype), expected.second);
  }
}

TEST(Shape, CountsElementsAndReadsDimsFromBothEnds) {
  const Shape s = {4, 128, 3};
  EXPECT_EQ(s.num_dims(), 3);
  EXPECT_EQ(s.num_elements(), 4 * 128 * 3);
  EXPECT_EQ(s[0], 4);
  EXPECT_EQ(s[2], 3);
  EXPECT_EQ(s[-1], 3);
  EXPECT_EQ(s[-3], 4);
  EXPECT_EQ(s.text(), "[4, 128, 3]");
}

TEST(Shape, ScalarHasNoDimsAndOneElement) {
  const Shape s;
  EXPECT_EQ(s.num_dims(), 0);
  EXPECT_EQ(s.num_elements(), 1);
  EXPECT_EQ(s.text(), "[]");
}

TEST(Shape, CountsBeyondThirtyTwoBits) {
  EXPECT_EQ((Shape{131'072, 65'536}).num_elements(), 8'589'934'592);
}

TEST(Shape, EqualityComparesDimsAndTheirNumber) {
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{6}), (Shape{6, 1}));
  EXPECT_NE((Shape{0}), (Shape{0, 0}));
}

TEST(Shape, RefusesFiveDimsNegativeDimsAndIndicesOutside) {
  EXPECT_THAT(internal_error([] { (void)Shape{1, 2, 3, 4, 5}; }), HasSubstr("at most four dims"));
  EXPECT_THAT(internal_error([] { (void)Shape{2, -1}; }), HasSubstr("not negative"));
  EXPECT_THAT(internal_error([] { (void)(Shape{2, 3})[2]; }), HasSubstr("out of range"));
  EXPECT_THAT(internal_error([] { (void)(Shape{2, 3})[-3]; }), HasSubstr("out of range"));
  EXPECT_THAT(internal_error([] { (void)Shape()[0]; }), HasSubstr("out of range"));
}

class Views : public ::testing::Test {
 protected:
  Views() : data_(24) { std::iota(data_.begin(), data_.end(), 0.0F); }
  std::vector<float> data_;
  Tensor x_ = {data_.data(), DType::f32, {4, 3, 2}};
};

TEST_F(Views, RowsAreIndicesOfTheFirstDim) {
  EXPECT_EQ(x_.rows(), 4);
  EXPECT_EQ(x_.row_elements(), 6);
  EXPECT_EQ(x_.num_elements(), 24);
  EXPECT_EQ(x_.bytes(), Bytes(96));
  EXPECT_EQ(x_.dim(-1), 2);
  EXPECT_EQ(x_.device(), Device::cpu);
}

TEST_F(Views, NarrowRowsSharesTheMemory) {
  const Tensor part = x_.narrow_rows(1, 2);
  EXPECT_EQ(part.shape(), (Shape{2, 3, 2}));
  EXPECT_EQ(part.as<float>(), data_.data() + 6);
  part.as<float>()[0] = -1;
  EXPECT_EQ(data_[6], -1);
}

TEST_F(Views, NarrowRowsWorksForEveryNumberOfDims) {
  for (const Shape& shape : {Shape{4}, Shape{4, 2}, Shape{4, 3, 2}, Shape{4, 3, 2, 1}}) {
    const Tensor whole = {data_.data(), DType::f32, shape};
    const Tensor part = whole.narrow_rows(3, 1);
    EXPECT_EQ(part.shape().num_dims(), shape.num_dims());
    EXPECT_EQ(part.rows(), 1);
    EXPECT_EQ(part.row_elements(), whole.row_elements());
    EXPECT_EQ(part.as<float>(), data_.data() + 3 * whole.row_elements());
  }
}

TEST_F(Views, NoRowsCanBeTakenAnywhereUpToTheEnd) {
  EXPECT_EQ(x_.narrow_rows(4, 0).num_elements(), 0);
  EXPECT_TRUE(x_.narrow_rows(4, 0).empty());
  EXPECT_THAT(internal_error([&] { (void)x_.narrow_rows(5, 0); }), HasSubstr("narrow_rows out of range"));
  EXPECT_THAT(internal_error([&] { (void)x_.narrow_rows(3, 2); }), HasSubstr("narrow_rows out of range"));
  EXPECT_THAT(internal_error([&] { (void)x_.narrow_rows(-1, 1); }), HasSubstr("narrow_rows out of range"));
  EXPECT_THAT(internal_error([&] { (void)x_.narrow_rows(1, -1); }), HasSubstr("narrow_rows out of range"));
}

TEST_F(Views, ReshapedKeepsTheElementsAndTheirOrder) {
  const Tensor y = x_.reshaped({8, 3});
  EXPECT_EQ(y.raw(), x_.raw());
  EXPECT_EQ(y.shape(), (Shape{8, 3}));
  EXPECT_EQ(x_.flat().shape(), Shape{24});
}

TEST_F(Views, ReshapedToAnotherNumberOfElementsNamesBoth) {
  const std::string text = internal_error([&] { (void)x_.reshaped({5, 5}); });
  EXPECT_THAT(text, HasSubstr("25"));
  EXPECT_THAT(text, HasSubstr("24"));
  EXPECT_THAT(text, HasSubstr("reshaped keeps the number of elements"));
}

TEST_F(Views, ReadingAnotherDtypeIsRefused) {
  EXPECT_THAT(internal_error([&] { (void)x_.as<double>(); }), HasSubstr("another dtype"));
  EXPECT_THAT(internal_error([&] { (void)x_.as<std::int32_t>(); }), HasSubstr("another dtype"));
  EXPECT_EQ(x_.span<float>().size(), 24U);
}

TEST(TensorOfACountingArena, KeepsNullThroughViews) {
  const Tensor x(nullptr, DType::f64, {4, 8});
  EXPECT_TRUE(x.empty());
  EXPECT_EQ(x.narrow_rows(2, 2).raw(), nullptr);
  EXPECT_EQ(x.flat().raw(), nullptr);
  EXPECT_EQ(x.bytes(), Bytes(256));
}

TEST(EmptyTensor, IsEmptyAndAScalarIsNot) {
  double value = 3;
  EXPECT_TRUE(Tensor().empty());
  const Tensor scalar(&value, DType::f64, Shape());
  EXPECT_FALSE(scalar.empty());
  EXPECT_EQ(scalar.span<double>()[0], 3);
  EXPECT_THAT(internal_error([&] { (void)scalar.row_elements(); }), HasSubstr("a scalar has no rows"));
}

}  // namespace
}  // namespace tessera::tensor
