#include "cli/place_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <optional>
#include <thread>

#include "base/file.h"
#include "cli/place_report.h"
#include "cost/calibration.h"
#include "place/formats.h"
#include "place/input.h"
#include "place/methods.h"
#include "place/picture.h"
#include "spec/presets.h"
#include "trace/routing_file.h"

namespace tessera::cli {

namespace {

using place::Method;

place::PlaceInput read_input(const PlaceFlags& flags) {
  trace::RoutingReadOptions o{.num_experts = flags.experts, .first_layer = flags.first_layer};
  if (flags.content == "counts") o.content = trace::RoutingContent::counts;
  if (flags.content == "choices") o.content = trace::RoutingContent::choices;
  if (flags.order == "layers") o.order = trace::RoutingOrder::layers_first;
  if (flags.order == "tokens") o.order = trace::RoutingOrder::tokens_first;
  return place::without_prefix(trace::read_routing(flags.stats, o), flags.skip_tokens);
}

place::PlaceInput hold_out(const PlaceFlags& flags, place::PlaceInput& input) {
  if (flags.hold_out.empty()) return {};
  double share = 0.0;
  const char* end = flags.hold_out.data() + flags.hold_out.size();
  const bool number = std::from_chars(flags.hold_out.data(), end, share).ptr == end;
  if (number && flags.hold_out.find('.') != std::string::npos) return place::hold_out_tokens(input, share);
  return place::hold_out_window(input, flags.hold_out);
}

// Bytes of FP8 weights and dispatch with a scale each 128 values, BF16 combine: as DeepEP sends them.
place::Rates rates_of(const PlaceFlags& flags, const place::Machine& machine,
                      const spec::ClusterSpec& cluster) {
  const spec::ModelSpec model = spec::find_model(flags.model);
  if (!model.moe) {
    throw Error(ErrorKind::config, fmt::format("the model {} has no experts", flags.model), "--model",
                "give a mixture-of-experts model, such as deepseek-v3");
  }
  const cost::Calibration device = cost::calibration(cluster.device);
  const auto hidden = static_cast<double>(model.hidden_size);
  const double width = static_cast<double>(
      model.moe->moe_intermediate_size > 0 ? model.moe->moe_intermediate_size : model.intermediate_size);
  const double weights = (model.gated_mlp ? 3.0 : 2.0) * hidden * width;
  const cost::GemmModel& gemm = device.bf16.peak > 0.0 ? device.bf16 : device.f32;
  place::Rates rates;
  rates.seconds_per_choice = 2.0 * weights / (gemm.peak * gemm.efficiency * device.grouped_efficiency);
  rates.bytes_per_copy = hidden * (1.0 + 4.0 / 128.0) + 2.0 * hidden;
  rates.expert_bytes = weights;
  const spec::TierSpec& inner = cluster.tiers.front();
  const spec::TierSpec& outer = cluster.tiers.size() > 1 ? cluster.tiers[1] : inner;
  rates.node_bandwidth = outer.bandwidth.value * machine.gpus_per_node() * device.inter_efficiency;
  rates.gpu_bandwidth = machine.nodes > 1 ? outer.bandwidth.value * device.inter_efficiency
                                          : inner.bandwidth.value * device.intra_efficiency;
  rates.tokens = flags.tokens_per_gpu * machine.gpus;
  rates.steps_between = flags.steps_between;
  return rates;
}

place::Machine machine_of(const PlaceFlags& flags, const spec::ClusterSpec& cluster, std::int32_t experts) {
  place::Machine m{.nodes = flags.nodes > 0 ? flags.nodes : 1};
  m.gpus = m.nodes * (flags.gpus_per_node > 0 ? flags.gpus_per_node : cluster.devices_per_node);
  const std::int32_t fewest = (experts + m.gpus - 1) / std::max(m.gpus, 1);
  const std::int64_t slots =
      static_cast<std::int64_t>(m.gpus) * (flags.slots_per_gpu > 0 ? flags.slots_per_gpu : fewest);
  m.slots = static_cast<std::int32_t>(std::min<std::int64_t>(slots, std::int64_t{place::kMostSlots} + 1));
  return m;
}

void write_files(const PlaceFlags& flags, const place::Placement& p) {
  const auto write = [&](const std::string& path, auto&& text) {
    if (path.empty()) return;
    write_atomically(path, text());
    if (!flags.json) std::printf("written: %s\n", path.c_str());
  };
  write(flags.output, [&] { return place::to_json(p); });
  write(flags.sglang, [&] { return place::to_sglang(p, flags.model_layers); });
  write(flags.vllm, [&] { return place::to_vllm(p); });
  write(flags.vllm_ranks, [&] { return place::to_vllm_ranks(p); });
  write(flags.vllm_ascend, [&] { return place::to_vllm_ascend(p); });
  write(flags.tensorrt_llm, [&] { return place::to_tensorrt_llm(p); });
}

void write_picture(const PlaceFlags& flags, const PlaceReport& r) {
  if (flags.svg.empty()) return;
  place::LoadPicture picture{.layers = r.input.layers};
  const PlaceRow& before =
      r.wish.current != nullptr && r.rows.size() > 1 ? r.rows[r.rows.size() - 2] : r.rows.front();
  picture.before_name = before.name;
  picture.after_name = r.rows.back().name;
  picture.gpus_per_node = r.wish.machine.nodes > 1 ? r.wish.machine.gpus_per_node() : 0;
  const auto relative = [](const PlaceRow& row, std::vector<std::vector<double>>& out) {
    for (const place::LayerCost& cost : row.layers) {
      double sum = 0.0;
      for (const double x : cost.loads) sum += x;
      std::vector<double> loads = cost.loads;
      for (double& x : loads) x *= sum > 0.0 ? static_cast<double>(loads.size()) / sum : 0.0;
      out.push_back(std::move(loads));
    }
  };
  relative(before, picture.before);
  relative(r.rows.back(), picture.after);
  write_atomically(flags.svg, place::to_svg(picture));
  if (!flags.json) std::printf("written: %s\n", flags.svg.c_str());
}

// The placements to compare with, the current one last.
std::vector<std::pair<std::string, place::Placement>> others(const place::PlaceInput& input,
                                                             const place::Wish& wish) {
  std::vector<std::pair<std::string, place::Placement>> list;
  const std::int32_t groups = place::groups_of(wish, input.num_experts);
  for (const Method method :
       {Method::contiguous, Method::random, Method::published, Method::published_global}) {
    if (method == Method::published && (groups % wish.machine.nodes != 0 || wish.machine.nodes == 1))
      continue;
    if (method == wish.method) continue;
    place::Wish plain = wish;
    plain.method = method;
    plain.current = nullptr;
    list.emplace_back(place::name(method), place::place_experts(input, plain).placement);
  }
  if (wish.current != nullptr) list.emplace_back("current", *wish.current);
  return list;
}

}  // namespace

int place(const PlaceFlags& flags, const Terminal& terminal) {
  const Method method = place::method_of(flags.method);
  const spec::ClusterSpec cluster = spec::find_cluster(flags.cluster);
  PlaceReport r{.input = read_input(flags), .model = flags.model, .cluster = cluster.name};
  r.held_out = hold_out(flags, r.input);
  if (flags.windows > 1) place::cut_windows(r.input, flags.windows);
  r.wish = {.machine = machine_of(flags, cluster, r.input.num_experts),
            .method = method,
            .num_groups = flags.groups,
            .cap = flags.cap,
            .robust = flags.robust,
            .one_map = flags.one_map,
            .most_moved = flags.most_moved,
            .choice = flags.cover ? place::ReplicaChoice::cover : place::ReplicaChoice::even,
            .seed = flags.seed,
            .threads = flags.threads > 0 ? flags.threads
                                         : static_cast<std::int32_t>(std::thread::hardware_concurrency()),
            .effort = flags.effort};
  Problems problems;
  place::check_wish(r.input, r.wish, problems);
  problems.throw_if_any();
  r.wish.rates = rates_of(flags, r.wish.machine, cluster);
  std::optional<place::Placement> current;
  if (!flags.current.empty()) {
    current = place::read_placement(
        flags.current,
        {.machine = r.wish.machine, .num_experts = r.input.num_experts, .layers = r.input.layers});
    r.wish.current = &*current;
  }
  auto placements = others(r.input, r.wish);
  place::PlaceResult result = place::place_experts(r.input, r.wish);
  placements.emplace_back(place::name(method), std::move(result.placement));
  r.bounds = std::move(result.bounds);
  r.off_home = result.off_home;
  r.seconds = result.seconds;
  for (const auto& [title, placement] : placements) {
    r.rows.push_back(row_of(placement, title, r.input, r.wish));
    if (r.held_out.num_layers() > 0) r.held_rows.push_back(row_of(placement, title, r.held_out, r.wish));
  }
  if (flags.pareto) r.front = place::pareto_front(r.input, r.wish);
  if (flags.json) {
    print_place_json(r);
  } else {
    print_place(r, flags, terminal.style);
  }
  write_files(flags, placements.back().second);
  write_picture(flags, r);
  return 0;
}

}  // namespace tessera::cli
