// Central differences on a whole layer of one rank: input and every parameter against forward passes.
#pragma once
#include "support/gradient_check.h"
#include "support/layer_rig.h"

namespace tessera::test {

enum class CheckInput : std::uint8_t { yes, no };

inline void expect_gradients(const LayerProblem& problem, CheckInput input = CheckInput::yes,
                             const GradientCheck& options = {}) {
  RankGroups groups({}, 0, nullptr);
  LayerRig rig(problem, groups.place);
  (void)rig.forward();
  rig.backward(PassOrder::split);
  const auto loss = [&] { return rig.forward(); };
  for (std::int32_t i = 0; i < rig.slots() && input == CheckInput::yes; ++i) {
    const Owned dx = copy_of(rig.dx(i));
    EXPECT_TRUE(gradient_matches("x of micro-batch " + std::to_string(i), rig.x(i), dx, loss, options));
  }
  for (std::size_t p = 0; p < rig.params().count(); ++p) {
    const Tensor value = rig.params().value(p);
    EXPECT_TRUE(gradient_matches(rig.params().name(p), value, rig.params().grad(p), loss, options));
  }
}

}  // namespace tessera::test
