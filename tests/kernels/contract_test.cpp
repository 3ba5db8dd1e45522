// What the public functions do for every implementation: they refuse wrong shapes, dtypes and indices with an
// error that names the operation and both shapes, and they count FLOPs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using ::testing::HasSubstr;
class Contract : public KernelTest {};
using Args = std::vector<Tensor>;

// One operation with arguments that fit.
enum class Mark { none, integer, any_width, integer_any_width };  // any_width: the last dim is free
struct Argument {
  Shape shape;
  Mark mark = Mark::none;
  [[nodiscard]] bool integer() const { return mark == Mark::integer || mark == Mark::integer_any_width; }
  [[nodiscard]] bool any_width() const { return mark == Mark::any_width || mark == Mark::integer_any_width; }
};
struct Operation {
  std::string name;
  std::vector<Argument> arguments;
  std::function<void(Kernels&, const Args&)> call;
};

constexpr AttentionShape kAttention = {
    .batch = 2, .seq = 3, .heads = 2, .kv_heads = 1, .head_dim = 4, .scale = 1, .v_head_dim = 3, .window = 2};
constexpr RopeShape kRope = {.seq = 3, .heads = 3, .first = 2, .stride = 5, .rotated = 4};
constexpr ColumnGroups kGroups = {.first = 1, .groups = 2, .width = 3};
constexpr GroupNormOptions kGroupNorm = {.eps = 1e-5, .count = 3};
constexpr RouterOptions kRouter = {.top_k = 2, .score = RouterScore::sigmoid, .renormalise = true};
constexpr AdamWOptions kAdamW = {.lr = 1,
                                 .beta1 = 0.5,
                                 .beta2 = 0.5,
                                 .eps = 1,
                                 .weight_decay = 0,
                                 .bias_correction1 = 1,
                                 .bias_correction2 = 1,
                                 .grad_scale = 1};
constexpr Mark kInteger = Mark::integer;

std::vector<Operation> matrix_operations() {
  return {
      {"linear",
       {{{6, 5}}, {{6, 4}}, {{5, 4}}},
       [](Kernels& k, const Args& a) {
         k.linear(a[0], a[1], Weight{a[2], {}});
       }},
      {"linear_dgrad",
       {{{6, 4}}, {{6, 5}}, {{5, 4}}},
       [](Kernels& k, const Args& a) {
         k.linear_dgrad(a[0], a[1], Weight{a[2], {}});
       }},
      {"linear_wgrad",
       {{{5, 4}}, {{6, 5}}, {{6, 4}}},
       [](Kernels& k, const Args& a) { k.linear_wgrad(a[0], a[1], a[2]); }},
      {"rms_norm",
       {{{6, 4}}, {{6}}, {{6, 4}}, {{4}}},
       [](Kernels& k, const Args& a) { k.rms_norm(a[0], a[1], a[2], a[3], 1e-5); }},
      {"rms_norm_apply",
       {{{6, 4}}, {{6, 4}}, {{6}}, {{4}}},
       [](Kernels& k, const Args& a) { k.rms_norm_apply(a[0], a[1], a[2], a[3]); }},
      {"rms_norm_dgrad",
       {{{6, 4}}, {{6, 4}}, {{6, 4}}, {{6}}, {{4}}},
       [](Kernels& k, const Args& a) { k.rms_norm_dgrad(a[0], a[1], a[2], a[3], a[4], Write::overwrite); }},
      {"rms_norm_wgrad",
       {{{4}}, {{6, 4}}, {{6, 4}}, {{6}}},
       [](Kernels& k, const Args& a) { k.rms_norm_wgrad(a[0], a[1], a[2], a[3]); }},
      {"rope",
       {{{6, 16}, Mark::any_width}, {{3, 2}}, {{3, 2}}, {{6}, kInteger}},
       [](Kernels& k, const Args& a) { k.rope(a[0], a[1], a[2], kRope, false, a[3]); }},
      {"attention",
       {{{6, 6}}, {{6, 2}}, {{6, 15}}, {{2}}},
       [](Kernels& k, const Args& a) { k.attention(a[0], a[1], a[2], a[3], kAttention); }},
      {"attention_backward",
       {{{6, 15}}, {{2}}, {{6, 6}}, {{6, 15}}, {{6, 6}}, {{6, 2}}, {{2}}},
       [](Kernels& k, const Args& a) {
         k.attention_backward(a[0], a[1], a[2], a[3], a[4], a[5], a[6], kAttention);
       }},
      {"activation",
       {{{6, 4}}, {{6, 8}}},
       [](Kernels& k, const Args& a) { k.activation(a[0], a[1], {Activation::swiglu}); }},
      {"activation_backward",
       {{{6, 4}}, {{6, 4}}, {{6, 4}}},
       [](Kernels& k, const Args& a) { k.activation_backward(a[0], a[1], a[2], {Activation::gelu}); }},
      {"sigmoid_gate",
       {{{6, 4}}, {{6, 4}}, {{6}}},
       [](Kernels& k, const Args& a) { k.sigmoid_gate(a[0], a[1], a[2]); }},
      {"sigmoid_gate_backward",
       {{{6, 4}}, {{6}}, {{6, 4}}, {{6, 4}}, {{6}}},
       [](Kernels& k, const Args& a) { k.sigmoid_gate_backward(a[0], a[1], a[2], a[3], a[4]); }},
  };
}

// The wide tensors of a call hold the same columns and may be of any width.
std::vector<Operation> column_operations() {
  constexpr Mark kWide = Mark::any_width;
  return {
      {"add_bias", {{{6, 4}}, {{4}}}, [](Kernels& k, const Args& a) { k.add_bias(a[0], a[1]); }},
      {"bias_wgrad",
       {{{4}}, {{6, 4}}},
       [](Kernels& k, const Args& a) { k.bias_wgrad(a[0], a[1], Write::accumulate); }},
      {"layer_norm",
       {{{6, 4}}, {{6}}, {{6}}, {{6, 4}}, {{4}}, {{4}}},
       [](Kernels& k, const Args& a) { k.layer_norm(a[0], a[1], a[2], a[3], a[4], a[5], 1e-5); }},
      {"layer_norm_apply",
       {{{6, 4}}, {{6, 4}}, {{6}}, {{6}}, {{4}}, {{4}}},
       [](Kernels& k, const Args& a) { k.layer_norm_apply(a[0], a[1], a[2], a[3], a[4], a[5]); }},
      {"layer_norm_dgrad",
       {{{6, 4}}, {{6, 4}}, {{6, 4}}, {{6}}, {{6}}, {{4}}},
       [](Kernels& k, const Args& a) {
         k.layer_norm_dgrad(a[0], a[1], a[2], a[3], a[4], a[5], Write::overwrite);
       }},
      {"layer_norm_wgrad",
       {{{4}}, {{4}}, {{6, 4}}, {{6, 4}}, {{6}}, {{6}}},
       [](Kernels& k, const Args& a) { k.layer_norm_wgrad(a[0], a[1], a[2], a[3], a[4], a[5]); }},
      {"group_squares",
       {{{6, 2}}, {{6, 9}, kWide}},
       [](Kernels& k, const Args& a) { k.group_squares(a[0], a[1], kGroups); }},
      {"group_norm",
       {{{6, 7}, kWide}, {{6, 9}, kWide}, {{6, 2}}, {{3}}},
       [](Kernels& k, const Args& a) { k.group_norm(a[0], a[1], a[2], a[3], kGroupNorm, kGroups); }},
      {"group_norm_dots",
       {{{6, 2}}, {{6, 7}, kWide}, {{6, 9}, kWide}, {{3}}},
       [](Kernels& k, const Args& a) { k.group_norm_dots(a[0], a[1], a[2], a[3], kGroups); }},
      {"group_norm_dgrad",
       {{{6, 8}, kWide}, {{6, 7}, kWide}, {{6, 9}, kWide}, {{6, 2}}, {{6, 2}}, {{3}}},
       [](Kernels& k, const Args& a) {
         k.group_norm_dgrad(a[0], a[1], a[2], a[3], a[4], a[5], kGroupNorm, kGroups);
       }},
      {"group_norm_wgrad",
       {{{3}}, {{6, 7}, kWide}, {{6, 9}, kWide}, {{6, 2}}},
       [](Kernels& k, const Args& a) {
         k.group_norm_wgrad(a[0], a[1], a[2], a[3], kGroupNorm, kGroups, Write::overwrite);
       }},
      {"clamp_backward",
       {{{6, 4}, kWide}, {{6, 5}, kWide}},
       [](Kernels& k, const Args& a) { k.clamp_backward(a[0], a[1], 1, 1, 3); }},
  };
}

std::vector<Operation> table_operations() {
  return {
      {"embedding",
       {{{6, 4}}, {{6}, kInteger}, {{5, 4}}},
       [](Kernels& k, const Args& a) { k.embedding(a[0], a[1], a[2], 0); }},
      {"embedding_wgrad",
       {{{5, 4}}, {{6, 4}}, {{6}, kInteger}},
       [](Kernels& k, const Args& a) { k.embedding_wgrad(a[0], a[1], a[2], 0); }},
      {"cross_entropy_stats",
       {{{3, 6}}, {{6, 5}, Mark::any_width}, {{6}, kInteger}},
       [](Kernels& k, const Args& a) { k.cross_entropy_stats(a[0], a[1], a[2], 0); }},
      {"cross_entropy_join",
       {{{6}}, {{6}}, {{2, 3, 6}}, {{6}, kInteger}},
       [](Kernels& k, const Args& a) { k.cross_entropy_join(a[0], a[1], a[2], a[3]); }},
      {"cross_entropy_backward",
       {{{6, 5}, Mark::any_width}, {{6}}, {{6}, kInteger}},
       [](Kernels& k, const Args& a) { k.cross_entropy_backward(a[0], a[1], a[2], 0, 1); }},
      {"router",
       {{{6, 4}}, {{6}}, {{6, 2}, kInteger}, {{6, 2}}, {{6, 4}}, {{4}}},
       [](Kernels& k, const Args& a) { k.router(a[0], a[1], a[2], a[3], a[4], a[5], kRouter); }},
      {"router_backward",
       {{{6, 4}},
        {{6, 2}},
        {{6, 4}},
        {{6}},
        {{6, 2}, kInteger},
        {{6, 2}},
        {{3, 4}},
        {{6}, kInteger},
        {{6, 4}}},
       [](Kernels& k, const Args& a) {
         k.router_backward(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], 0.1, kRouter, a[8]);
       }},
      {"gather_rows",
       {{{7, 4}}, {{6, 4}}, {{7}, kInteger}},
       [](Kernels& k, const Args& a) { k.gather_rows(a[0], a[1], a[2]); }},
      {"combine",
       {{{6, 4}}, {{6, 4}}, {{9, 4}}, {{6, 2}, kInteger}, {{6, 2}}},
       [](Kernels& k, const Args& a) { k.combine(a[0], a[1], a[2], a[3], a[4]); }},
      {"combine_backward",
       {{{9, 4}}, {{6, 2}}, {{6, 4}}, {{9, 4}}, {{6, 2}, kInteger}, {{6, 2}}},
       [](Kernels& k, const Args& a) { k.combine_backward(a[0], a[1], a[2], a[3], a[4], a[5]); }},
      {"sum_rows",
       {{{6, 4}}, {{9, 4}}, {{6, 2}, Mark::integer_any_width}},
       [](Kernels& k, const Args& a) { k.sum_rows(a[0], a[1], a[2], Write::overwrite); }},
      {"add", {{{6, 4}}, {{6, 4}}, {{6, 4}}}, [](Kernels& k, const Args& a) { k.add(a[0], a[1], a[2]); }},
      {"accumulate", {{{6, 4}}, {{6, 4}}}, [](Kernels& k, const Args& a) { k.accumulate(a[0], a[1]); }},
      {"adamw",
       {{{9}}, {{9}}, {{9}}, {{9}}},
       [](Kernels& k, const Args& a) { k.adamw(a[0], a[1], a[2], a[3], kAdamW); }},
  };
}

std::vector<Operation> operations() {
  std::vector<Operation> out = matrix_operations();
  for (Operation& o : column_operations()) out.push_back(std::move(o));
  for (Operation& o : table_operations()) out.push_back(std::move(o));
  return out;
}

// The last dim one larger; a dim more.
Shape widened(const Shape& s) {
  if (s.num_dims() == 1) return {s[0] + 1};
  if (s.num_dims() == 2) return {s[0], s[1] + 1};
  return {s[0], s[1], s[2] + 1};
}
Shape deeper(const Shape& s) {
  if (s.num_dims() == 1) return {1, s[0]};
  if (s.num_dims() == 2) return {1, s[0], s[1]};
  return {1, s[0], s[1], s[2]};
}
Owned argument(DType dtype, const Shape& shape, bool integer) {
  return integer ? zeros(dtype, shape) : random(dtype, shape, 1);
}

// The error of a call, as kind and text.
std::string internal_error(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.kind() == ErrorKind::internal ? e.what() : "another kind: " + std::string(e.what());
  }
  return "no error";
}
std::size_t num_shapes(const std::string& text) {
  return static_cast<std::size_t>(std::count(text.begin(), text.end(), '['));
}

TEST_P(Contract, EveryArgumentIsCheckedForShapeAndDtype) {
  enum class Fault { none, wider, deeper, dtype, no_memory };
  for (const Operation& op : operations()) {
    for (std::size_t bad = 0; bad < op.arguments.size(); ++bad) {
      for (const Fault fault : {Fault::none, Fault::wider, Fault::deeper, Fault::dtype, Fault::no_memory}) {
        std::vector<Owned> owned;
        for (std::size_t i = 0; i < op.arguments.size(); ++i) {
          const Argument& a = op.arguments[i];
          const Fault f = i == bad ? fault : Fault::none;
          const DType other = a.integer() ? DType::i64 : dtype_ == DType::f32 ? DType::f64 : DType::f32;
          const DType dtype = f == Fault::dtype ? other : a.integer() ? DType::i32 : dtype_;
          const Shape shape = f == Fault::wider    ? widened(a.shape)
                              : f == Fault::deeper ? deeper(a.shape)
                                                   : a.shape;
          owned.push_back(argument(dtype, shape, a.integer()));
        }
        Args args(owned.begin(), owned.end());
        const bool may_be_absent = (op.name == "combine" && bad == 1) ||
                                   (op.name == "router_backward" && bad == 6) ||
                                   (op.name == "rope" && bad == 3) || (op.name == "attention" && bad == 3) ||
                                   (op.name == "router" && bad == 5);
        if (fault == Fault::no_memory) args[bad] = Tensor(nullptr, args[bad].dtype(), args[bad].shape());
        SCOPED_TRACE(fmt::format("{} argument {} fault {}", op.name, bad, static_cast<int>(fault)));
        const std::string text = internal_error([&] { op.call(*kernels_, args); });
        const bool fits = fault == Fault::wider && op.arguments[bad].any_width();
        if (fault == Fault::none || fits) {
          EXPECT_EQ(text, "no error");
        } else if (fault == Fault::no_memory) {
          EXPECT_THAT(text, HasSubstr(may_be_absent ? "no error" : "has no memory"));
        } else {
          EXPECT_THAT(text, HasSubstr(op.name + ": "));
          EXPECT_THAT(text, HasSubstr("kernels: " + op.name));
          EXPECT_THAT(text, HasSubstr("expected "));
          EXPECT_THAT(text, HasSubstr("report it with the job"));
          EXPECT_GE(num_shapes(text), fault == Fault::deeper ? 1 : 2) << text;
        }
      }
    }
  }
}

TEST_P(Contract, TheErrorNamesBothShapes) {
  const Owned x = random(dtype_, {6, 4}, 1), w = random(dtype_, {5, 3}, 2), y(dtype_, {6, 5});
  const std::string text = internal_error([&] { kernels_->linear(y, x, Weight{w, {}}); });
  const std::string dtype(tensor::name(dtype_));
  EXPECT_THAT(text, HasSubstr("linear: x is " + dtype + " [6, 4], expected " + dtype + " [6, 3] with w " +
                              dtype + " [5, 3]"));
}

TEST_P(Contract, IndicesOutsideTheirTensorAreRefused) {
  if (kernels_->memory()->device() != tensor::Device::cpu)
    GTEST_SKIP() << "a GPU's queue may still write what the host would look at";
  const Owned src = random(dtype_, {6, 4}, 1), dst(dtype_, {2, 4});
  const Owned index = test::tensor_of(DType::i32, {2}, {5, 6});
  EXPECT_THAT(internal_error([&] { kernels_->gather_rows(dst, src, index); }),
              HasSubstr("gather_rows: index i32 [2] holds 6 at 1, expected values in [0, 6)"));
  const Owned pos = test::tensor_of(DType::i32, {2, 1}, {-1, 6});
  EXPECT_THAT(internal_error([&] { kernels_->sum_rows(dst, src, pos, Write::overwrite); }),
              HasSubstr("holds 6 at 1"));
}

TEST_P(Contract, ImpossibleOptionsAreRefusedWithTheirNumbers) {
  const Owned x = random(dtype_, {6, 20}, 1);
  AttentionShape shape = kAttention;
  shape.kv_heads = 3;
  EXPECT_THAT(internal_error([&] { kernels_->attention(x, x, x, shape); }),
              HasSubstr("kv_heads=3 does not divide heads=2"));
  shape = kAttention;
  shape.head_dim = 5;
  EXPECT_THAT(internal_error([&] { kernels_->rope(x, x, x, shape, false); }), HasSubstr("rotated=5 is odd"));
  shape.window = -1;
  EXPECT_THAT(internal_error([&] { kernels_->attention(x, x, x, shape); }), HasSubstr("window=-1"));
  RopeShape rope = kRope;
  rope.stride = 3;
  EXPECT_THAT(internal_error([&] { kernels_->rope(x, x, x, rope, false); }),
              HasSubstr("stride=3 is below rotated=4"));
  rope = {.seq = 7, .heads = 1, .first = 0, .stride = 40, .rotated = 40};
  const Owned wide = random(dtype_, {6, 40}, 2), table = random(dtype_, {6, 20}, 3);
  EXPECT_THAT(internal_error([&] { kernels_->rope(wide, table, table, rope, false); }),
              HasSubstr("[6, 20] has too few rows for seq=7"));
  const Owned position = test::tensor_of(DType::i32, {6}, {0, 1, 2, 3, 4, 6});
  EXPECT_THAT(internal_error([&] { kernels_->rope(wide, table, table, rope, false, position); }),
              HasSubstr("positions i32 [6] holds 6 at 5, expected values in [0, 6)"));
  EXPECT_THAT(internal_error([&] {
                kernels_->group_squares(x, x, {18, 1, 3});
              }),
              HasSubstr("columns [18, 21) are not inside x"));
  EXPECT_THAT(internal_error([&] { kernels_->clamp(x, 1, -1, 3); }), HasSubstr("columns [-1, 2)"));
  EXPECT_THAT(internal_error([&] { kernels_->activation(x, x, {Activation::clamped_swiglu}); }),
              HasSubstr("limit=0 of clamped_swiglu"));
  RouterOptions options = kRouter;
  options.top_k = 21;
  EXPECT_THAT(internal_error([&] { kernels_->router(x, x, x, x, x, options); }), HasSubstr("top_k=21"));
  options = {.top_k = 2, .score = RouterScore::sigmoid, .renormalise = true, .n_group = 3};
  EXPECT_THAT(internal_error([&] { kernels_->router(x, x, x, x, x, options); }),
              HasSubstr("n_group=3 does not divide 20 experts"));
  options.n_group = 4;
  options.topk_group = 5;
  EXPECT_THAT(internal_error([&] { kernels_->router(x, x, x, x, x, options); }),
              HasSubstr("topk_group=5 is not in 1 .. 4"));
  options.topk_group = 2;
  options.top_k = 11;
  EXPECT_THAT(internal_error([&] { kernels_->router(x, x, x, x, x, options); }),
              HasSubstr("top_k=11 is above the 10 experts of 2 groups"));
}

TEST_P(Contract, PackedCopyOfAnotherSizeIsRefused) {
  const Owned w = random(dtype_, {5, 4}, 1);
  const Owned packed(DType::u8, {kernels_->packed_bytes(dtype_, 5, 4).value + 1});
  Weight weight{w, packed};
  EXPECT_THAT(internal_error([&] { kernels_->pack(weight); }), HasSubstr("pack: packed is u8"));
}

TEST_P(Contract, FlopsOfGemmsAndOfTheKeptPairsOfAttention) {
  std::int64_t pairs = 0;
  for (std::int64_t i = 0; i < kAttention.seq; ++i) pairs += std::min(i + 1, kAttention.window);
  const std::int64_t gemm = 2 * 6 * 5 * 4;
  // Scores and values, 2 FLOPs a multiply-add each.
  const std::int64_t attention = 2 * (4 + 3) * kAttention.batch * kAttention.heads * pairs;
  for (const Operation& op : operations()) {
    std::vector<Owned> owned;
    for (const Argument& a : op.arguments) {
      owned.push_back(argument(a.integer() ? DType::i32 : dtype_, a.shape, a.integer()));
    }
    kernels_->reset_flops();
    op.call(*kernels_, Args(owned.begin(), owned.end()));
    const bool linear = op.name.rfind("linear", 0) == 0;
    const std::int64_t want = linear                            ? gemm
                              : op.name == "attention"          ? attention
                              : op.name == "attention_backward" ? 2 * attention
                                                                : 0;
    EXPECT_EQ(kernels_->flops().value, want) << op.name;
    op.call(*kernels_, Args(owned.begin(), owned.end()));
    EXPECT_EQ(kernels_->flops().value, 2 * want) << op.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, Contract, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
