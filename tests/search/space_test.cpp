// Pins as they are typed, and what is said to those that cannot be.
#include "search/space.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graph/block.h"
#include "search/fake_coster.h"

namespace tessera::search {
namespace {

using ::testing::HasSubstr;

TEST(Pins, AreReadAsListsOfValues) {
  Space space;
  Problems problems;
  const std::vector<std::string> pins = {"tp=8",
                                         "pp=8,4,4",
                                         "mbs= 1, 2",
                                         "zero=1",
                                         "schedule=1f1b,zb-h1",
                                         "recompute=none,selective,selective:moe_act+mla_up_proj,full",
                                         "order=tp-cp-ep-pp-dp"};
  apply_pins(pins, space, problems);
  EXPECT_TRUE(problems.empty());
  EXPECT_EQ(space.tp, std::vector<std::int32_t>{8});
  EXPECT_EQ(space.pp, (std::vector<std::int32_t>{4, 8}));
  EXPECT_EQ(space.micro_batch_size, (std::vector<std::int32_t>{1, 2}));
  EXPECT_EQ(space.zero_stages, std::vector<std::int32_t>{1});
  EXPECT_EQ(space.schedules, (std::vector{schedule::Kind::one_f_one_b, schedule::Kind::zb_h1}));
  ASSERT_EQ(space.recompute.size(), 4U);
  EXPECT_EQ(to_text(space.recompute[0]), "none");
  EXPECT_EQ(to_text(space.recompute[1]), "selective:layernorm+moe_act");
  EXPECT_EQ(to_text(space.recompute[2]), "selective:moe_act+mla_up_proj");
  EXPECT_EQ(to_text(space.recompute[3]), "full");
  EXPECT_EQ(space.orders, std::vector{cost::AxisOrder::tp_cp_ep_pp_dp});
}

TEST(Pins, ThatCannotBeReadAreAllReportedWithAMend) {
  const std::vector<std::tuple<std::string, std::string, std::string>> cases = {
      {"tq=8", "there is no axis or choice \"tq\"", "did you mean tp?"},
      {"tp", "tp has no value", "--pin tp=8"},
      {"tp=", "tp has no value", "--pin tp=8"},
      {"tp=two", "\"two\" is not a value of tp", "use whole numbers from 1"},
      {"tp=0", "\"0\" is not a value of tp", "use whole numbers from 1"},
      {"zero=4", "\"4\" is not a value of zero", "from 0 to 3"},
      {"schedule=1f1c", "1f1c", "1f1b"},
      {"recompute=ful", "\"ful\" is not a value of recompute", "did you mean full?"},
      {"recompute=selective:moe_akt", "\"moe_akt\" is not a value of recompute", "did you mean moe_act?"},
      {"order=pp-dp", "\"pp-dp\" is not a value of order", "tp-cp-ep-dp-pp"},
  };
  Space space;
  Problems problems;
  std::vector<std::string> pins;
  for (const auto& [pin, what, mend] : cases) pins.push_back(pin);
  apply_pins(pins, space, problems);
  ASSERT_EQ(problems.list().size(), cases.size());
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto& [pin, what, mend] = cases[i];
    const Problem& p = problems.list()[i];
    EXPECT_THAT(p.what, HasSubstr(what));
    EXPECT_THAT(p.where, HasSubstr("--pin " + pin));
    EXPECT_THAT(p.mend, HasSubstr(mend));
  }
}

TEST(Pins, ThatLeaveNothingToSearchAreAllReported) {
  const cost::Setup setup = small_setup(24);
  Space space;
  space.tp = {5, 7};
  space.ep = {2};
  space.micro_batch_size = {5};
  Problems problems;
  check_space(setup, space, problems);
  ASSERT_EQ(problems.list().size(), 3U);
  EXPECT_EQ(problems.list()[0].what, "tp=5,7 does not divide devices=24");
  EXPECT_EQ(problems.list()[0].mend, "use tp in {1, 2, 3, 4, 6, 8, 12, 24}");
  EXPECT_EQ(problems.list()[1].what, "mbs=5 does not divide global batch size=24");
  EXPECT_EQ(problems.list()[2].what, "ep=2 needs a model with experts, and this one is dense");
  EXPECT_THROW((void)search(setup, space, {}, factory(setup)), Error);
}

TEST(Recompute, OffersOnlyModulesThatTheModelHas) {
  const auto bits_of = [](const spec::ModelSpec& m) {
    std::uint32_t bits = 0;
    for (const RecomputeChoice& c : default_recompute(m, {})) bits |= c.modules;
    return bits;
  };
  const auto has = [](std::uint32_t bits, graph::Module m) {
    return (bits & static_cast<std::uint32_t>(m)) != 0;
  };
  const std::uint32_t dense = bits_of(small_setup(8).model);
  EXPECT_TRUE(has(dense, graph::Module::mlp));
  EXPECT_FALSE(has(dense, graph::Module::moe));
  EXPECT_FALSE(has(dense, graph::Module::mla_up_proj));
  EXPECT_FALSE(has(dense, graph::Module::core_attn));
  spec::ModelSpec moe = small_setup(8, 8).model;
  moe.mla = spec::MlaSpec{};
  EXPECT_TRUE(has(bits_of(moe), graph::Module::moe));
  EXPECT_TRUE(has(bits_of(moe), graph::Module::mla_up_proj));
  EXPECT_FALSE(has(bits_of(moe), graph::Module::shared_experts));
}

TEST(CandidateOrder, PutsSimpleLayoutsFirst) {
  EXPECT_TRUE(compare({.tp = 1, .pp = 8}, {.tp = 2, .pp = 1}) < 0);
  EXPECT_TRUE(compare({.zero_stage = 0}, {.zero_stage = 1}) < 0);
  EXPECT_TRUE(compare({.tp = 2}, {.tp = 2}) == 0);
}

}  // namespace
}  // namespace tessera::search
