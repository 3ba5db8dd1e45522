// Which form of dispatch a job runs: by its own word, else by the bytes that the graph counts.
#include "graph/dispatch_form.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "graph/graph.h"

namespace tessera::graph {
namespace {

using spec::DispatchForm;

spec::Job job(std::int32_t experts, std::int32_t top_k, std::int32_t ep) {
  spec::Job j;
  j.model = {.family = spec::Family::mixtral,
             .num_hidden_layers = 2,
             .hidden_size = 64,
             .intermediate_size = 48,
             .num_attention_heads = 8,
             .num_key_value_heads = 4,
             .head_dim = 8,
             .vocab_size = 96,
             .max_position_embeddings = 64};
  j.model.moe = spec::MoeSpec{.num_experts = experts, .num_experts_per_tok = top_k};
  j.train.steps = 1;
  j.train.sequence_length = 64;
  j.train.global_batch_size = ep;
  j.train.micro_batch_size = 1;
  j.parallel.dp = ep;
  j.parallel.ep = ep;
  return j;
}

std::int64_t bytes_over_ep(spec::Job j, DispatchForm form) {
  j.train.moe.dispatch = form;
  std::int64_t sum = 0;
  for (std::int32_t r = 0; r < j.parallel.world_size(); ++r) {
    sum += build(j, layout::make_layout(j.model, j.parallel, layout::Placement::loop), Rank(r))
               .bytes_sent(Axis::ep)
               .value;
  }
  return sum;
}

TEST(DispatchForm, AutomaticTakesWhatSendsFewerBytes) {
  for (const std::int32_t ep : {2, 4, 8}) {
    for (const std::int32_t top_k : {1, 2, 3, 4, 8, 16}) {
      SCOPED_TRACE(fmt::format("ep {} top-{}", ep, top_k));
      const spec::Job j = job(16, top_k, ep);
      const std::int64_t sent = bytes_over_ep(j, DispatchForm::all_to_all);
      const std::int64_t gathered = bytes_over_ep(j, DispatchForm::all_gather);
      const DispatchForm form = dispatch_form(j);
      EXPECT_EQ(form, gathered < sent ? DispatchForm::all_gather : DispatchForm::all_to_all);
      EXPECT_EQ(form == DispatchForm::all_gather, top_k > ep) << "the rule of thumb";
      EXPECT_EQ(bytes_over_ep(j, DispatchForm::automatic), std::min(sent, gathered));
    }
  }
}

TEST(DispatchForm, TheWordOfTheJobCounts) {
  spec::Job j = job(16, 8, 2);
  for (const DispatchForm form : {DispatchForm::all_to_all, DispatchForm::all_gather}) {
    j.train.moe.dispatch = form;
    EXPECT_EQ(dispatch_form(j), form);
  }
  j.parallel.dp = j.parallel.ep = 1;
  EXPECT_EQ(dispatch_form(j), DispatchForm::all_to_all) << "nothing travels";
  j.train.moe.dispatch = DispatchForm::automatic;
  j.model.moe.reset();
  EXPECT_EQ(dispatch_form(j), DispatchForm::all_to_all) << "no experts";
}

// Of a layer and a micro-batch: choices and weights once, rows and sums twice, weight gradients once.
TEST(DispatchForm, AllGatherSendsItsClosedForm) {
  for (const std::int32_t ep : {2, 4}) {
    const spec::Job j = job(16, 4, ep);
    const std::int64_t t = 64, K = 4, H = 64, b = 4;
    EXPECT_EQ(bytes_over_ep(j, DispatchForm::all_gather),
              2 * ep * (ep - 1) * (4 * t * H * b + t * K * (4 + 2 * b)));
  }
}

}  // namespace
}  // namespace tessera::graph
