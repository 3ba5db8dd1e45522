// A cost model made up for tests: quick, uneven, with ties, valid and invalid corners.
#pragma once
#include <memory>
#include <string>

#include "search/search.h"

namespace tessera::search {

inline cost::Setup small_setup(std::int32_t devices, std::int32_t experts = 0) {
  cost::Setup s;
  s.model.num_hidden_layers = 12;
  s.model.hidden_size = 96;
  s.model.intermediate_size = 48;
  s.model.num_attention_heads = 12;
  s.model.num_key_value_heads = 12;
  if (experts > 0) s.model.moe = spec::MoeSpec{.num_experts = experts, .num_experts_per_tok = 2};
  s.cluster.num_devices = devices;
  s.cluster.memory = Bytes(1000);
  s.calibration.memory = Bytes(1000);
  s.calibration.usable_memory = Bytes(900);
  s.work = {.global_batch_size = 24, .sequence_length = 2048};
  return s;
}

class FakeCoster : public Coster {
 public:
  explicit FakeCoster(const cost::Setup& setup) : setup_(setup) {}

  std::string why_invalid(const cost::Candidate& c) override {
    const spec::ModelSpec& m = setup_.model;
    if (m.num_attention_heads % c.tp != 0) return "tp does not divide the heads";
    if (c.cp > 3) return "cp is more than 3";
    if (c.pp * c.vpp > m.num_hidden_layers) return "more stages than layers";
    if (c.micro_batch_size > 8) return "micro-batch is more than 8";
    if (c.schedule == schedule::Kind::interleaved && microbatches(c) % c.pp != 0) return "uneven groups";
    return "";
  }
  cost::MemoryCost memory(const cost::Candidate& c) override {
    cost::MemoryCost m;
    const double kept = c.recompute == spec::Recompute::none   ? 1.0
                        : c.recompute == spec::Recompute::full ? 0.1
                                                               : 0.6;
    const double shared = 1.0 / (1.0 + c.zero_stage * 0.3 * (c.dp > 1 ? 1 : 0));
    m.parts[0] = 1500.0 / (c.tp * c.pp) * shared;
    m.parts[3] = 400.0 * kept * c.micro_batch_size / (c.tp * c.cp) * (c.vpp > 1 ? 1.2 : 1.0);
    return m;
  }
  double lower_bound(const cost::Candidate& c) override { return compute(c); }
  double lowest_bound(const cost::Candidate& c) override {
    cost::Candidate plain = c;
    plain.recompute = spec::Recompute::none;
    return compute(plain);
  }
  cost::StepCost predict(const cost::Candidate& c) override {
    cost::StepCost s;
    const auto part = [&](cost::Part p) -> double& { return s.parts[static_cast<std::size_t>(p)]; };
    part(cost::Part::ideal) = compute(c);
    part(cost::Part::bubble) = compute(c) * (c.pp - 1) / static_cast<double>(microbatches(c) * c.vpp);
    // Few values: ties.
    part(cost::Part::tp) = (c.tp - 1) * (c.tp > 8 ? 4.0 : 0.5) + 0.25 * ((c.tp * 7 + c.ep * 3) % 4);
    part(cost::Part::dp) = (c.dp > 1 ? 1.0 : 0.0) * (c.zero_stage == 3 ? 3.0 : 1.0);
    part(cost::Part::pp) = c.order == cost::AxisOrder::tp_cp_ep_dp_pp ? 0.0 : 0.5 * (c.dp % 3);
    part(cost::Part::ep) = 0.5 * (c.ep - 1) * ((c.ep + c.pp) % 3) + 0.125 * c.etp;
    s.memory = memory(c);
    return s;
  }

 private:
  [[nodiscard]] std::int64_t microbatches(const cost::Candidate& c) const {
    return setup_.work.global_batch_size / (c.dp * c.micro_batch_size);
  }
  [[nodiscard]] double compute(const cost::Candidate& c) const {
    const double again = c.recompute == spec::Recompute::none   ? 1.0
                         : c.recompute == spec::Recompute::full ? 1.33
                                                                : 1.1;
    return 2000.0 / c.world_size() * again * (1.0 + 0.25 / c.micro_batch_size);
  }
  cost::Setup setup_;
};

template <class C = FakeCoster>
CosterFactory factory(const cost::Setup& setup) {
  return [setup] { return std::make_unique<C>(setup); };
}

}  // namespace tessera::search
