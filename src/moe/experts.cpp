#include "moe/experts.h"

namespace tessera::moe {

namespace {

// body(expert, rows) for each expert with rows; rows(x) is its part of x.
template <class Body>
void for_each_expert(ExpertList experts, Begins begins, Body&& body) {
  TESSERA_CHECK_EQ(begins.size(), experts.size() + 1, "one begin an expert and the end");
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const std::int64_t count = begins[i + 1] - begins[i];
    if (count == 0) continue;
    body(experts[i], [&, i](const Tensor& x) { return x.narrow_rows(begins[i], count); });
  }
}

}  // namespace

void experts_forward(kernels::Kernels& k, ExpertList experts, Begins begins, const ExpertForward& io) {
  for_each_expert(experts, begins, [&](const ExpertParams& p, const auto& rows) {
    k.linear(rows(io.gate_up), rows(io.rows_RH), p.gate_up.weight);
    k.swiglu(rows(io.h_RI), rows(io.gate_up));
    k.linear(rows(io.y_RH), rows(io.h_RI), p.down.weight);
  });
}

void experts_backward_input(kernels::Kernels& k, ExpertList experts, Begins begins,
                            const ExpertInputGradient& io) {
  for_each_expert(experts, begins, [&](const ExpertParams& p, const auto& rows) {
    k.linear_dgrad(rows(io.dh_RI), rows(io.dy_RH), p.down.weight);
    k.swiglu_backward(rows(io.dgate_up), rows(io.dh_RI), rows(io.gate_up));
    k.linear_dgrad(rows(io.drows_RH), rows(io.dgate_up), p.gate_up.weight);
  });
}

void experts_backward_weight(kernels::Kernels& k, ExpertList experts, Begins begins,
                             const ExpertWeightGradient& in) {
  for_each_expert(experts, begins, [&](const ExpertParams& p, const auto& rows) {
    k.linear_wgrad(p.down.grad, rows(in.dy_RH), rows(in.h_RI));
    k.linear_wgrad(p.gate_up.grad, rows(in.dgate_up), rows(in.rows_RH));
  });
}

}  // namespace tessera::moe
