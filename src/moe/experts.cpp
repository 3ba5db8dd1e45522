#include "moe/experts.h"

namespace tessera::moe {

using kernels::Kernels;

void experts_forward(Kernels& k, const ExpertList& list, Tensor begin_e1, const ExpertForward& io) {
  const ExpertTable& p = list.experts;
  k.experts_linear(io.gate_up, io.rows_RH, p.gate_up, begin_e1);
  if (!p.gate_up_bias.empty()) k.experts_add_bias(io.gate_up, p.gate_up_bias, begin_e1);
  k.activation(io.h_RI, io.gate_up, list.form.activation);
  k.experts_linear(io.y_RH, io.h_RI, p.down, begin_e1);
  if (!p.down_bias.empty() && list.form.adds_down_bias) k.experts_add_bias(io.y_RH, p.down_bias, begin_e1);
}

void experts_backward_input(Kernels& k, const ExpertList& list, Tensor begin_e1,
                            const ExpertInputGradient& io) {
  k.experts_linear_dgrad(io.dh_RI, io.dy_RH, list.experts.down, begin_e1);
  k.activation_backward(io.dgate_up, io.dh_RI, io.gate_up, list.form.activation);
  k.experts_linear_dgrad(io.drows_RH, io.dgate_up, list.experts.gate_up, begin_e1);
}

void experts_backward_weight(Kernels& k, const ExpertList& list, Tensor begin_e1,
                             const ExpertWeightGradient& in) {
  const ExpertTable& p = list.experts;
  k.experts_linear_wgrad(p.down_grad, in.dy_RH, in.h_RI, begin_e1);
  k.experts_linear_wgrad(p.gate_up_grad, in.dgate_up, in.rows_RH, begin_e1);
  if (!p.gate_up_bias.empty()) k.experts_bias_wgrad(p.gate_up_bias_grad, in.dgate_up, begin_e1);
  if (!p.down_bias.empty()) k.experts_bias_wgrad(p.down_bias_grad, in.dy_RH, begin_e1);
}

namespace {

// Adding to zeros copies, in the memory of any device.
void copy_experts(Kernels& k, Tensor to, Tensor to_e1, Tensor from, Tensor from_e1, Tensor counted_e1) {
  TESSERA_CHECK_EQ(to_e1.num_elements(), from_e1.num_elements(), "begins of the same experts");
  const std::int32_t* to_begin = to_e1.as<std::int32_t>();
  const std::int32_t* from_begin = from_e1.as<std::int32_t>();
  const std::int32_t* counted = counted_e1.as<std::int32_t>();
  const std::int64_t experts = to_e1.num_elements() - 1;
  k.fill(to.narrow_rows(0, to_begin[experts]), 0.0);
  for (std::int64_t i = 0; i < experts; ++i) {
    const std::int64_t count = counted[i + 1] - counted[i];
    if (count > 0) k.accumulate(to.narrow_rows(to_begin[i], count), from.narrow_rows(from_begin[i], count));
  }
}

}  // namespace

void pad_rows(Kernels& k, Tensor padded_RH, Tensor padded_e1, Tensor compact_RH, Tensor compact_e1) {
  copy_experts(k, padded_RH, padded_e1, compact_RH, compact_e1, compact_e1);
}

void unpad_rows(Kernels& k, Tensor compact_RH, Tensor compact_e1, Tensor padded_RH, Tensor padded_e1) {
  copy_experts(k, compact_RH, compact_e1, padded_RH, padded_e1, compact_e1);
}

}  // namespace tessera::moe
