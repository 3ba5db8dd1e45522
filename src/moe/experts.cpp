#include "moe/experts.h"

namespace tessera::moe {

namespace {

using kernels::Kernels;
using kernels::Write;

bool present(const Param& p) {
  return !p.weight.value_NK.empty();
}

// body(expert, rows) for each expert with rows; rows(x) is its part of x.
template <class Body>
void for_each_expert(const ExpertList& list, Begins begins, Body&& body) {
  TESSERA_CHECK_EQ(begins.size(), list.experts.size() + 1, "one begin an expert and the end");
  for (std::size_t i = 0; i < list.experts.size(); ++i) {
    const std::int64_t count = begins[i + 1] - begins[i];
    if (count == 0) continue;
    body(list.experts[i], [&, i](const Tensor& x) { return x.narrow_rows(begins[i], count); });
  }
}

}  // namespace

void experts_forward(Kernels& k, const ExpertList& list, Begins begins, const ExpertForward& io) {
  for_each_expert(list, begins, [&](const ExpertParams& p, const auto& rows) {
    k.linear(rows(io.gate_up), rows(io.rows_RH), p.gate_up.weight);
    if (present(p.gate_up_bias_Z)) k.add_bias(rows(io.gate_up), p.gate_up_bias_Z.weight.value_NK);
    k.activation(rows(io.h_RI), rows(io.gate_up), list.form.activation);
    k.linear(rows(io.y_RH), rows(io.h_RI), p.down.weight);
    if (present(p.down_bias_H) && list.form.adds_down_bias) {
      k.add_bias(rows(io.y_RH), p.down_bias_H.weight.value_NK);
    }
  });
}

void experts_backward_input(Kernels& k, const ExpertList& list, Begins begins,
                            const ExpertInputGradient& io) {
  for_each_expert(list, begins, [&](const ExpertParams& p, const auto& rows) {
    k.linear_dgrad(rows(io.dh_RI), rows(io.dy_RH), p.down.weight);
    k.activation_backward(rows(io.dgate_up), rows(io.dh_RI), rows(io.gate_up), list.form.activation);
    k.linear_dgrad(rows(io.drows_RH), rows(io.dgate_up), p.gate_up.weight);
  });
}

void experts_backward_weight(Kernels& k, const ExpertList& list, Begins begins,
                             const ExpertWeightGradient& in) {
  for_each_expert(list, begins, [&](const ExpertParams& p, const auto& rows) {
    k.linear_wgrad(p.down.grad, rows(in.dy_RH), rows(in.h_RI));
    k.linear_wgrad(p.gate_up.grad, rows(in.dgate_up), rows(in.rows_RH));
    if (present(p.gate_up_bias_Z)) k.bias_wgrad(p.gate_up_bias_Z.grad, rows(in.dgate_up), Write::accumulate);
    if (present(p.down_bias_H)) k.bias_wgrad(p.down_bias_H.grad, rows(in.dy_RH), Write::accumulate);
  });
}

namespace {

// Adding to zeros copies, in the memory of any device.
void copy_experts(Kernels& k, Tensor to, Begins to_begins, Tensor from, Begins from_begins, Begins counted) {
  TESSERA_CHECK_EQ(to_begins.size(), from_begins.size(), "begins of the same experts");
  k.fill(to.narrow_rows(0, to_begins.back()), 0.0);
  for (std::size_t i = 0; i + 1 < counted.size(); ++i) {
    const std::int64_t count = counted[i + 1] - counted[i];
    if (count > 0) k.accumulate(to.narrow_rows(to_begins[i], count), from.narrow_rows(from_begins[i], count));
  }
}

}  // namespace

void pad_rows(Kernels& k, Tensor padded_RH, Begins padded, Tensor compact_RH, Begins compact) {
  copy_experts(k, padded_RH, padded, compact_RH, compact, compact);
}

void unpad_rows(Kernels& k, Tensor compact_RH, Begins compact, Tensor padded_RH, Begins padded) {
  copy_experts(k, compact_RH, compact, padded_RH, padded, compact);
}

}  // namespace tessera::moe
