#include "graph/dispatch_form.h"

#include <cstdint>

#include "spec/model.h"

namespace tessera::graph {

spec::DispatchForm dispatch_form(const spec::Job& job) {
  using spec::DispatchForm;
  const std::int64_t P = job.parallel.ep;
  if (!job.model.moe || P == 1) return DispatchForm::all_to_all;
  if (job.train.moe.dispatch != DispatchForm::automatic) return job.train.moe.dispatch;
  if (nodes_of_ep(job.parallel) > 1) return DispatchForm::hierarchical;
  const std::int64_t t = job.train.micro_batch_size * job.train.sequence_length / job.parallel.tp;
  const std::int64_t K = job.model.moe->num_experts_per_tok;
  const bool experts_choose = job.train.moe.router == spec::RouterChoice::expert_choice;
  const std::int64_t listed =
      experts_choose ? job.model.moe->num_experts : K;  // choices of a token, kept or not
  const std::int64_t b = spec::element_bytes(job.train.precision);
  const std::int64_t row = job.model.hidden_size * b;
  const std::int64_t sent =
      4 * t * K * (P - 1) * row + 4 * P * (P - 1) * job.model.moe->num_experts;  // times P
  const std::int64_t gathered = P * (P - 1) * (4 * t * row + t * listed * (4 + 2 * b));
  return gathered < sent ? DispatchForm::all_gather : DispatchForm::all_to_all;
}

std::int32_t nodes_of_ep(const spec::ParallelSpec& p) {
  const std::int32_t group = p.ep * p.etp;
  return p.ranks_per_node > 0 && group > p.ranks_per_node ? group / p.ranks_per_node : 1;
}

std::int32_t dispatch_nodes(const spec::Job& job) {
  return dispatch_form(job) == spec::DispatchForm::hierarchical ? nodes_of_ep(job.parallel) : 1;
}

}  // namespace tessera::graph
