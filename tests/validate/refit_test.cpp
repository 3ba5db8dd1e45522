// Constants fitted to a few measured steps: known ones are found again; what the rows do not show is said.
#include "validate/refit.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "spec/presets.h"

namespace tessera::validate {
namespace {

using ::testing::HasSubstr;

cost::Setup setup_of(const char* model, std::int32_t devices, std::int64_t batch, std::int64_t sequence) {
  cost::Setup s;
  s.model = spec::model_preset(model);
  s.cluster = spec::with_devices(spec::cluster_preset("dgx-h100"), devices);
  s.calibration = cost::calibration("h100-sxm");
  s.practice = graph::practice("megatron-core");
  s.work = {.global_batch_size = batch, .sequence_length = sequence};
  return s;
}

// Steps as a machine with `truth` would run them, one run a layout that loads another part of the machine.
std::vector<Observation> measured(const cost::Calibration& truth) {
  struct Run {
    const char* model;
    std::int32_t devices;
    std::int64_t batch, sequence;
    cost::Candidate c;
  };
  const std::vector<Run> runs = {
      {"llama-3-70b", 64, 128, 8192, {.tp = 8, .dp = 2, .pp = 4}},
      {"llama-3-70b", 64, 128, 8192, {.tp = 4, .dp = 4, .pp = 4}},
      {"llama-3-8b", 8, 64, 8192, {.tp = 2, .dp = 4}},
      {"llama-3-8b", 64, 64, 4096, {.dp = 64, .zero_stage = 3}},
      {"llama-3.2-1b", 64, 64, 2048, {.dp = 64}},
      {"llama-3.2-1b", 8, 64, 1024, {.tp = 8}},
      {"llama-3.2-1b", 8, 32, 1024, {.tp = 8}},
      {"llama-3-70b", 64, 128, 8192, {.tp = 16, .dp = 1, .pp = 4}},
      {"llama-3-8b", 16, 16, 8192, {.tp = 4, .cp = 2, .dp = 2}},
  };
  const Predictor predictor = step_model();
  std::vector<Observation> out;
  for (const Run& r : runs) {
    Observation o{.name = fmt::format("{} on {}: {}", r.model, r.devices, out.size()),
                  .setup = setup_of(r.model, r.devices, r.batch, r.sequence),
                  .candidate = r.c};
    cost::Setup actual = o.setup;
    actual.calibration = truth;
    o.seconds = predictor(actual, o.candidate).cost->seconds();
    out.push_back(std::move(o));
  }
  return out;
}

const Coefficient& coefficient(const Refit& r, std::string_view name) {
  return *std::ranges::find_if(r.coefficients, [&](const Coefficient& c) { return c.constant.name == name; });
}

TEST(Refit, KnownCoefficientsAreFoundAgain) {
  cost::Calibration truth = cost::calibration("h100-sxm");
  truth.sustained = 0.68;
  truth.sustained_network = 0.6;
  truth.launch = Seconds(50e-6);
  const RefitOptions options{.names = {"sustained", "sustained_network", "launch"}};
  const Refit r = refit(measured(truth), step_model(), options);
  EXPECT_EQ(coefficient(r, "sustained").state, CoefficientState::fitted);
  EXPECT_NEAR(coefficient(r, "sustained").value, 0.68, 0.005);
  EXPECT_NEAR(coefficient(r, "sustained_network").value, 0.6, 0.02);
  EXPECT_NEAR(coefficient(r, "launch").value, 50e-6, 2e-6);
  EXPECT_LT(mean_error(r.residuals, &Residual::fitted), 0.003);
  EXPECT_GT(mean_error(r.residuals, &Residual::shipped), 0.04);
  for (const Residual& one : r.residuals) {
    ASSERT_TRUE(one.left_out.has_value());
    EXPECT_NEAR(*one.left_out / one.measured, 1.0, 0.06) << one.name;
  }
}

TEST(Refit, ManyCoefficientsPredictWhatWasLeftOutBetterThanTheShippedOnes) {
  cost::Calibration truth = cost::calibration("h100-sxm");
  truth.sustained = 0.68;
  truth.sustained_network = 0.6;
  const Refit r = refit(measured(truth), step_model(), {});
  double left_out = 0;
  for (const Residual& one : r.residuals) left_out += std::abs(std::log(*one.left_out / one.measured));
  EXPECT_LT(left_out / static_cast<double>(r.residuals.size()), mean_error(r.residuals, &Residual::shipped));
}

TEST(Refit, OneRunIdentifiesOneScale) {
  cost::Calibration truth = cost::calibration("h100-sxm");
  truth.sustained = 0.7;
  const std::vector<Observation> all = measured(truth);
  const Refit r = refit(std::span(all).first(1), step_model(), {});
  std::int32_t fitted = 0;
  for (const Coefficient& c : r.coefficients) {
    fitted += c.state == CoefficientState::fitted;
    if (c.state != CoefficientState::fitted) {
      EXPECT_EQ(c.value, c.shipped) << c.constant.name;
    }
  }
  EXPECT_EQ(fitted, 1);
  EXPECT_NEAR(coefficient(r, "sustained").value, 0.7, 0.002);
  EXPECT_EQ(coefficient(r, "sustained_memory").state, CoefficientState::alike);
  EXPECT_EQ(coefficient(r, "sustained_memory").alike_as, "sustained");
  EXPECT_EQ(coefficient(r, "sustained_low").state, CoefficientState::no_effect) << "no product of 8 bits";
  EXPECT_FALSE(r.residuals.at(0).left_out.has_value());
}

TEST(Refit, EqualRunsTellNoMoreThanOne) {
  const std::vector<Observation> all = measured(cost::calibration("h100-sxm"));
  const Refit r = refit(std::vector<Observation>(5, all.front()), step_model(), {});
  EXPECT_EQ(std::ranges::count(r.coefficients, CoefficientState::fitted, &Coefficient::state), 1);
  EXPECT_NEAR(coefficient(r, "sustained").value, coefficient(r, "sustained").shipped, 1e-6);
}

TEST(Refit, ValuesStayInsideOfTheirBoundsAndSaySo) {
  std::vector<Observation> all = measured(cost::calibration("h100-sxm"));
  all.front().seconds *= 10.0;
  const Refit r = refit(std::span(all).first(1), step_model(), {.names = {"sustained"}});
  EXPECT_TRUE(coefficient(r, "sustained").at_bound);
  EXPECT_DOUBLE_EQ(coefficient(r, "sustained").value, coefficient(r, "sustained").constant.low);
}

TEST(Refit, OneRowFarOffDoesNotMoveTheOthers) {
  cost::Calibration truth = cost::calibration("h100-sxm");
  truth.sustained = 0.68;
  std::vector<Observation> all = measured(truth);
  all[1].seconds *= 2.0;
  const Refit r = refit(all, step_model(), {.names = {"sustained"}});
  EXPECT_NEAR(coefficient(r, "sustained").value, 0.68, 0.03);
}

TEST(Refit, GivesTheSameOnAnyNumberOfThreads) {
  cost::Calibration truth = cost::calibration("h100-sxm");
  truth.sustained = 0.7;
  const std::vector<Observation> all = measured(truth);
  const Refit one = refit(std::span(all).first(3), step_model(), {.threads = 1});
  const Refit two = refit(std::span(all).first(3), step_model(), {.threads = 2});
  for (std::size_t i = 0; i < one.coefficients.size(); ++i)
    EXPECT_EQ(one.coefficients[i].value, two.coefficients[i].value);
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(one.residuals[i].left_out, two.residuals[i].left_out);
}

TEST(Refit, ManyRowsAreLeftOutInTwentyFoldsAndMoreAreSentToValidate) {
  cost::Calibration truth = cost::calibration("h100-sxm");
  truth.sustained = 0.7;
  const std::vector<Observation> few = measured(truth);
  std::vector<Observation> many(45, few[2]);
  for (std::size_t i = 0; i < many.size(); i += 2) many[i] = few[4];
  const Refit r = refit(many, step_model(), {.names = {"sustained"}, .threads = 2});
  for (const Residual& one : r.residuals) EXPECT_NEAR(one.left_out.value_or(0.0) / one.measured, 1.0, 0.005);
  many.resize(201, few[0]);
  try {
    (void)refit(many, step_model(), {});
    FAIL() << "201 rows";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("201 measured steps, at most 200"));
  }
}

TEST(Refit, RefusesNothingTwoAcceleratorsAndNoTime) {
  EXPECT_THROW((void)refit({}, step_model(), {}), Error);
  std::vector<Observation> all = measured(cost::calibration("h100-sxm"));
  all[1].setup.calibration = cost::calibration("b200-sxm");
  try {
    (void)refit(all, step_model(), {});
    FAIL() << "two accelerators in one fit";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("h100-sxm and on b200-sxm"));
  }
  all[1] = all[0];
  all[1].seconds = 0.0;
  EXPECT_THROW((void)refit(all, step_model(), {}), Error);
}

}  // namespace
}  // namespace tessera::validate
