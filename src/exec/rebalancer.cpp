#include "exec/rebalancer.h"

#include <algorithm>
#include <numeric>

#include "base/clock.h"
#include "base/error.h"

namespace tessera::exec {

double fullest_rank(const std::vector<std::int64_t>& chosen, const std::vector<std::int32_t>& slots,
                    std::int32_t ep) {
  const auto per_rank = std::ssize(slots) / ep;
  std::vector<double> rows(static_cast<std::size_t>(ep));
  for (std::int64_t s = 0; s < std::ssize(slots); ++s) {
    const auto expert = static_cast<std::size_t>(slots[static_cast<std::size_t>(s)]);
    rows[static_cast<std::size_t>(s / per_rank)] += static_cast<double>(chosen[expert]);
  }
  const double sum = std::accumulate(rows.begin(), rows.end(), 0.0);
  return sum > 0.0 ? *std::ranges::max_element(rows) * ep / sum : 1.0;
}

Rebalancer::Rebalancer(const plan::Plan& plan, const Rebalancing& rebalancing)
    : rebalancing_(rebalancing),
      ep_(plan.job.parallel.ep),
      planned_(plan.job.parallel.expert_slots),
      slots_(planned_) {
  if (rebalancing_.every <= 0) return;
  TESSERA_CHECK(!planned_.empty(), "the plan names the slots of experts that move");
  load_.layers = spec::moe_layers(plan.job.model);
  load_.chosen.assign(load_.layers.size(),
                      std::vector<std::int64_t>(static_cast<std::size_t>(plan.job.model.moe->num_experts)));
}

std::vector<std::vector<std::int32_t>> Rebalancer::by_layer(const std::vector<std::int32_t>& slots) const {
  std::vector<std::vector<std::int32_t>> maps;
  auto first = slots.begin();
  for (const auto& chosen : load_.chosen) {
    maps.emplace_back(first, first + std::ssize(chosen));
    first += std::ssize(chosen);
  }
  return maps;
}

void Rebalancer::add(const StepResult& result) {
  for (const LayerRouting& r : result.routing) {
    const auto l = static_cast<std::size_t>(std::ranges::find(load_.layers, r.layer) - load_.layers.begin());
    for (std::size_t e = 0; e < r.chosen.size(); ++e) load_.chosen.at(l)[e] += r.chosen[e];
  }
}

std::vector<std::int32_t> Rebalancer::ask(RankEngine& engine) const {
  std::vector<std::int32_t> slots = slots_;
  if (engine.rank().value == 0) {
    std::size_t at = 0;
    for (const auto& map : rebalancing_.place(load_)) {
      for (const std::int32_t expert : map) slots.at(at++) = expert;
    }
    TESSERA_CHECK_EQ(at, slots.size(), "a slot for every expert of every layer");
  }
  engine.comms().world->broadcast({slots.data(), tensor::DType::i32, {std::ssize(slots)}}, 0);
  return slots;
}

std::int64_t Rebalancer::move(RankEngine& engine, const std::vector<std::int32_t>& slots) {
  const std::int64_t moved = engine.place_experts(slots);
  slots_ = slots;
  return moved;
}

std::optional<ExpertMove> Rebalancer::after_step(RankEngine& engine, std::int64_t steps_done) {
  if (rebalancing_.every <= 0) return std::nullopt;
  add(engine.last_result());
  if (steps_done % rebalancing_.every != 0) return std::nullopt;
  const std::int64_t start = wall_ns();
  load_.slots = by_layer(slots_);
  const std::vector<std::int32_t> next = ask(engine);
  ExpertMove event;
  const std::vector<std::vector<std::int32_t>> maps = by_layer(next);
  for (std::size_t l = 0; l < maps.size(); ++l) {
    event.layers += maps[l] == load_.slots[l] ? 0 : 1;
    const double before = fullest_rank(load_.chosen[l], load_.slots[l], ep_);
    event.fullest_before = std::max(event.fullest_before, before);
    event.fullest_after = std::max(event.fullest_after, fullest_rank(load_.chosen[l], maps[l], ep_));
  }
  for (auto& layer : load_.chosen) std::ranges::fill(layer, 0);
  if (event.layers == 0) return std::nullopt;
  event.slots = move(engine, next);
  event.time = Seconds(static_cast<double>(wall_ns() - start) * 1e-9);
  return event;
}

std::vector<double> Rebalancer::state() const {
  return rebalancing_.every > 0 ? std::vector<double>(slots_.begin(), slots_.end()) : std::vector<double>{};
}

void Rebalancer::restore(RankEngine& engine, std::span<const double> state) {
  if (rebalancing_.every <= 0) return;
  for (auto& layer : load_.chosen) std::ranges::fill(layer, 0);
  std::vector<std::int32_t> slots = planned_;
  if (state.size() == slots.size())
    std::ranges::transform(state, slots.begin(), [](double e) { return static_cast<std::int32_t>(e); });
  if (slots != slots_) (void)move(engine, slots);
}

}  // namespace tessera::exec
