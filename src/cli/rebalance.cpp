#include "cli/rebalance.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/text.h"
#include "place/methods.h"

namespace tessera::cli {

namespace {

constexpr double kLeastGain = 0.02;  // of the rows of the fullest rank

std::vector<std::vector<std::int32_t>> place_again(const place::Machine& machine, double most_moved,
                                                   const exec::RoutedLoad& load) {
  place::PlaceInput input{.num_experts = machine.slots, .layers = load.layers};
  place::Placement current{
      .machine = machine, .num_experts = machine.slots, .layers = load.layers, .maps = load.slots};
  for (const std::vector<std::int64_t>& chosen : load.chosen)
    input.data.push_back({.load = {chosen.begin(), chosen.end()}});
  std::vector<std::vector<std::int32_t>> maps = place::place_experts(input, {.machine = machine,
                                                                             .method = place::Method::balance,
                                                                             .current = &current,
                                                                             .most_moved = most_moved})
                                                    .placement.maps;
  for (std::size_t l = 0; l < maps.size(); ++l) {
    const double before = exec::fullest_rank(load.chosen[l], load.slots[l], machine.gpus);
    const double after = exec::fullest_rank(load.chosen[l], maps[l], machine.gpus);
    if (!(after < (1.0 - kLeastGain) * before)) maps[l] = load.slots[l];
  }
  return maps;
}

}  // namespace

void prepare_rebalancing(spec::Job& job, const TrainFlags& flags) {
  if (flags.rebalance == 0) {
    if (flags.most_moved < 1.0)
      throw Error(ErrorKind::config, "nothing moves", "--most-moved",
                  "give the steps between two moves: --rebalance 100");
    return;
  }
  const std::string where = fmt::format("--rebalance {}", flags.rebalance);
  if (!job.model.moe)
    throw Error(ErrorKind::config, "the model has no experts to move", where, "leave the flag out");
  if (job.parallel.ep == 1)
    throw Error(ErrorKind::config, "parallel.ep is 1: every rank has all experts, nothing can move", where,
                "leave the flag out, or set parallel.ep");
  std::vector<std::int32_t>& slots = job.parallel.expert_slots;
  const std::size_t layers = spec::moe_layers(job.model).size();
  const auto experts = static_cast<std::size_t>(job.model.moe->num_experts);
  if (!slots.empty()) return;
  slots.resize(layers * experts);
  for (std::size_t i = 0; i < slots.size(); ++i) slots[i] = static_cast<std::int32_t>(i % experts);
}

exec::Rebalancing rebalancing_of(const spec::Job& job, const TrainFlags& flags) {
  if (flags.rebalance == 0) return {};
  const place::Machine machine{.nodes = 1, .gpus = job.parallel.ep, .slots = job.model.moe->num_experts};
  return {.every = flags.rebalance,
          .place = [machine, most = flags.most_moved](const exec::RoutedLoad& load) {
            return place_again(machine, most, load);
          }};
}

std::string describe(const exec::ExpertMove& m) {
  return fmt::format(
      "{} expert{} of {} layer{} went to another rank in {:.2g} s; the fullest rank had {:.2f} "
      "times the mean, with them there it would have had {:.2f}",
      m.slots, m.slots == 1 ? "" : "s", m.layers, m.layers == 1 ? "" : "s", m.time.value, m.fullest_before,
      m.fullest_after);
}

std::string describe(const std::vector<exec::ExpertMove>& moves) {
  if (moves.empty()) return "";
  std::int64_t slots = 0;
  double seconds = 0.0;
  for (const exec::ExpertMove& m : moves) {
    slots += m.slots;
    seconds += m.time.value;
  }
  return fmt::format("Experts moved {} ({} to another rank, {:.2g} s in all). The last time: {}.",
                     moves.size() == 1 ? "once" : fmt::format("{} times", moves.size()), slots, seconds,
                     describe(moves.back()));
}

}  // namespace tessera::cli
