#include "cost/routing_load.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <optional>
#include <system_error>
#include <utility>

#include "base/file.h"
#include "base/random.h"
#include "base/text.h"
#include "trace/routing_file.h"

namespace tessera::cost {

namespace {

constexpr std::int64_t kMostTokens = 2048;   // of a layer
constexpr double kLoadRange = 0.8 * 4096.0;  // largest / smallest load of the power law
constexpr std::int32_t kShuffles = 256;
constexpr std::int64_t kMaxExperts = 65536;
constexpr std::uint64_t kSeed = 1;
constexpr std::uint64_t kStream = stream_of("expert assignment");

std::optional<double> number(std::string_view text) {
  double v = 0.0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (code != std::errc{} || end != text.data() + text.size() || !std::isfinite(v)) return std::nullopt;
  return v;
}

RoutingLoad power_law(std::string_view text) {
  const std::optional<double> alpha = number(text.substr(text.find(':') + 1));
  if (!alpha || !(*alpha > 0.0 && *alpha <= 10.0)) {
    throw Error(ErrorKind::config, fmt::format("\"{}\" has no exponent between 0 and 10", text), "routing",
                "write for example power:1.2");
  }
  return {.kind = LoadKind::power_law, .alpha = *alpha, .histogram = {}};
}

RoutingLoad read_histogram(const std::string& path) {
  RoutingLoad load{.kind = LoadKind::histogram};
  const std::string text = read_text(path);
  constexpr std::string_view kBetween = " \t\r\n,;";
  std::int32_t line = 1;
  double sum = 0.0;
  std::size_t at = 0;
  while (true) {
    const std::size_t begin = std::min(text.find_first_not_of(kBetween, at), text.size());
    line += static_cast<std::int32_t>(std::count(text.begin() + static_cast<std::ptrdiff_t>(at),
                                                 text.begin() + static_cast<std::ptrdiff_t>(begin), '\n'));
    if (begin == text.size()) break;
    at = std::min(text.find_first_of(kBetween, begin), text.size());
    const std::string word = text.substr(begin, at - begin);
    const std::optional<double> count = number(word);
    const std::string where = fmt::format("{}:{}", path, line);
    if (!count || *count < 0.0) {
      throw Error(ErrorKind::config, fmt::format("\"{}\" is not a count of 0 or more", word.substr(0, 40)),
                  where, "write one number an expert: the tokens that chose it");
    }
    if (std::ssize(load.histogram) == kMaxExperts) {
      throw Error(ErrorKind::config, fmt::format("more than {} counts", kMaxExperts), where,
                  "write one number an expert, of one layer");
    }
    load.histogram.push_back(*count);
    sum += *count;
  }
  if (!(sum > 0.0 && std::isfinite(sum))) {
    throw Error(ErrorKind::config, fmt::format("{} counts with the sum {}", load.histogram.size(), sum), path,
                "write one number an expert: the tokens that chose it");
  }
  for (double& share : load.histogram) share /= sum;
  return load;
}

// A list of numbers, as against a routing file of any kind.
bool is_list(const std::string& path) {
  if (!std::filesystem::is_regular_file(path)) return false;
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  if (text.substr(0, 8).find('\0') != std::string_view::npos) return false;
  const std::size_t first = text.find_first_not_of(" \t\r\n,;");
  return first == std::string_view::npos ||
         std::string_view("0123456789+-.").find(text[first]) != std::string_view::npos;
}

// Evenly picked.
std::vector<std::int16_t> some_tokens(std::span<const std::int16_t> all, std::int32_t top_k) {
  const std::int64_t tokens = std::ssize(all) / top_k, some = std::min(tokens, kMostTokens);
  std::vector<std::int16_t> out;
  for (std::int64_t i = 0; i < some; ++i) {
    const auto first = all.begin() + i * tokens / some * top_k;
    out.insert(out.end(), first, first + top_k);
  }
  return out;
}

RoutingLoad read_statistics(const std::string& path) {
  const trace::RoutingStats stats = trace::read_routing(path);
  RoutingLoad load{.kind = LoadKind::histogram, .histogram = {}, .num_layers = 0};
  for (std::int32_t l = 0; l < stats.num_layers(); ++l) {
    const std::span<const std::int64_t> chosen = stats.chosen_of(l);
    double sum = 0.0;
    for (const std::int64_t n : chosen) sum += static_cast<double>(n);
    if (!(sum > 0.0)) continue;
    for (const std::int64_t n : chosen) load.histogram.push_back(static_cast<double>(n) / sum);
    ++load.num_layers;
    load.layers.push_back(stats.layers[static_cast<std::size_t>(l)]);
    if (!stats.choices.empty()) load.tokens.push_back(some_tokens(stats.choices_of(l), stats.top_k));
  }
  load.top_k = stats.top_k;
  if (load.num_layers == 0) {
    throw Error(ErrorKind::config, "no layer of the routing file has a choice", path,
                "give the statistics of a run that routed tokens");
  }
  return load;
}

// Scales `loads` to the mean 1 with none above `largest` >= 1.
void normalise(std::vector<double>& loads, double largest) {
  const auto n = static_cast<double>(loads.size());
  double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  for (double& v : loads) v *= n / sum;
  // Each round fixes at least one more expert at the largest load.
  while (*std::max_element(loads.begin(), loads.end()) > largest * (1.0 + 1e-12)) {
    double fixed = 0.0;
    double rest = 0.0;
    for (double& v : loads) {
      v = std::min(v, largest);
      (v == largest ? fixed : rest) += v;
    }
    if (!(rest > 0.0)) return;
    for (double& v : loads)
      if (v != largest) v *= (n - fixed) / rest;
  }
}

double largest_group(const std::vector<double>& rows, std::int32_t ep) {
  const std::ptrdiff_t each = std::ssize(rows) / ep;
  double largest = 0.0;
  for (auto at = rows.begin(); at != rows.end(); at += each)
    largest = std::max(largest, std::accumulate(at, at + each, 0.0));
  return largest / static_cast<double>(each);
}

// Mean of largest_group over random orders (Fisher-Yates).
double expected_largest_group(std::vector<double> rows, std::int32_t ep) {
  const std::ptrdiff_t n = std::ssize(rows);
  if (ep == 1 || ep == n) return largest_group(rows, ep);
  double sum = 0.0;
  std::uint64_t block = 0;
  for (std::int32_t shuffle = 0; shuffle < kShuffles; ++shuffle) {
    std::array<std::uint32_t, 4> words{};
    for (std::ptrdiff_t i = n - 1; i > 0; --i) {
      const auto word = static_cast<std::size_t>((n - 1 - i) % 4);
      if (word == 0) words = philox(kSeed, kStream, block++);
      const std::int64_t j = (static_cast<std::int64_t>(words[word]) * (i + 1)) >> 32;
      std::swap(rows[static_cast<std::size_t>(i)], rows[static_cast<std::size_t>(j)]);
    }
    sum += largest_group(rows, ep);
  }
  return sum / kShuffles;
}

}  // namespace

RoutingLoad parse_routing_load(std::string_view text) {
  const std::string word(trim(text));
  if (word == "balanced") return {};
  if (word.starts_with("power:")) return power_law(word);
  std::error_code none;
  if (std::filesystem::exists(word, none))
    return is_list(word) ? read_histogram(word) : read_statistics(word);
  throw Error(
      ErrorKind::config,
      fmt::format("\"{}\" is neither balanced, power:ALPHA nor a file of counts", word.substr(0, 200)),
      "routing", "write balanced, power:1.2, or the path of a file with one count an expert");
}

std::string to_text(const RoutingLoad& load) {
  switch (load.kind) {
    case LoadKind::balanced:
      return "balanced";
    case LoadKind::power_law:
      return fmt::format("power:{}", load.alpha);
    case LoadKind::histogram:
      return fmt::format("histogram of {} experts", std::ssize(load.histogram) / load.num_layers) +
             (load.num_layers > 1 ? fmt::format(" in {} layers", load.num_layers) : "") +
             (load.expert_of_slot.empty() ? "" : ", placed");
  }
  return "";
}

std::vector<double> expert_loads(const RoutingLoad& load, std::int32_t num_experts, std::int32_t top_k,
                                 std::int32_t layer) {
  TESSERA_CHECK(num_experts >= 1 && top_k >= 1 && top_k <= num_experts, "top_k is between 1 and num_experts");
  std::vector<double> loads(static_cast<std::size_t>(num_experts), 1.0);
  switch (load.kind) {
    case LoadKind::balanced:
      return loads;
    case LoadKind::power_law: {
      const double p = 1.0 - load.alpha;
      for (std::int32_t i = 0; i < num_experts; ++i) {
        const double u = (i + 0.5) / num_experts;
        const double x = std::abs(p) < 1e-9 ? std::pow(kLoadRange, u)
                                            : std::pow((std::pow(kLoadRange, p) - 1.0) * u + 1.0, 1.0 / p);
        loads[static_cast<std::size_t>(i)] = x;
      }
      break;
    }
    case LoadKind::histogram:
      if (std::ssize(load.histogram) != std::int64_t{num_experts} * load.num_layers) {
        throw Error(ErrorKind::config,
                    fmt::format("the histogram has {} experts, the model {}",
                                std::ssize(load.histogram) / load.num_layers, num_experts),
                    "routing", fmt::format("give {} counts, one an expert", num_experts));
      }
      loads.assign(load.histogram.begin() + std::ptrdiff_t{layer} * num_experts,
                   load.histogram.begin() + (std::ptrdiff_t{layer} + 1) * num_experts);
      break;
  }
  // Measured shares are kept as they are.
  const double bound = static_cast<double>(num_experts) / top_k;
  normalise(loads, load.kind == LoadKind::power_law ? bound : static_cast<double>(num_experts));
  return loads;
}

RoutingLoad placed(const RoutingLoad& load, std::int32_t num_experts,
                   const std::map<std::int32_t, std::vector<std::int32_t>>& maps) {
  if (load.kind == LoadKind::power_law) {
    throw Error(ErrorKind::config, "a power law does not say which experts are hot: it has no placement",
                "routing", "give --routing a file of counts or of routing beside --placement");
  }
  RoutingLoad out = load;
  out.kind = LoadKind::histogram;
  if (load.layers.empty()) {  // one list for all layers, or none
    const std::vector<double> shares = expert_loads(load, num_experts, 1);
    out.histogram.clear();
    out.num_layers = static_cast<std::int32_t>(maps.size());
    for (const auto& [layer, map] : maps) {
      out.layers.push_back(layer);
      for (const double share : shares) out.histogram.push_back(share / num_experts);
    }
  }
  Problems problems;
  for (const std::int32_t layer : out.layers) {
    const auto found = maps.find(layer);
    if (found == maps.end()) {
      problems.add(fmt::format("the routing has layer {}, the placement has not", layer), "placement",
                   "give the placement and the routing of one model");
      continue;
    }
    out.expert_of_slot.push_back(found->second);
  }
  problems.throw_if_any();
  return out;
}

namespace {

bool is_placed(const RoutingLoad& load, std::int32_t ep) {
  return !load.expert_of_slot.empty() && std::ssize(load.expert_of_slot.front()) % ep == 0;
}

// Rows of each slot relative to the mean slot: replicas share evenly.
std::vector<double> slot_rows(const std::vector<double>& rows,
                              const std::vector<std::int32_t>& expert_of_slot) {
  std::vector<double> replicas(rows.size(), 0.0), out;
  for (const std::int32_t e : expert_of_slot) replicas[static_cast<std::size_t>(e)] += 1.0;
  const double scale = static_cast<double>(expert_of_slot.size()) / static_cast<double>(rows.size());
  for (const std::int32_t e : expert_of_slot) {
    const auto i = static_cast<std::size_t>(e);
    out.push_back(rows[i] / replicas[i] * scale);
  }
  return out;
}

// LoadFigures::parts: replicas of an expert take turns, token by token.
std::map<std::int32_t, double> measured_parts(const RoutingLoad& load, std::int32_t num_experts,
                                              std::int32_t ep, std::int32_t layer) {
  std::vector<std::vector<std::int64_t>> slots(static_cast<std::size_t>(num_experts));
  std::int64_t num_slots = num_experts;
  if (is_placed(load, ep)) {
    const std::vector<std::int32_t>& map = load.expert_of_slot[static_cast<std::size_t>(layer)];
    num_slots = std::ssize(map);
    for (std::int64_t s = 0; s < num_slots; ++s)
      slots[static_cast<std::size_t>(map[static_cast<std::size_t>(s)])].push_back(s);
  } else {
    for (std::int64_t e = 0; e < num_experts; ++e) slots[static_cast<std::size_t>(e)].push_back(e);
  }
  const std::vector<std::int16_t>& tokens = load.tokens[static_cast<std::size_t>(layer)];
  const std::int64_t count = std::ssize(tokens) / load.top_k;
  std::map<std::int32_t, double> parts;
  for (std::int32_t n = 1; n <= ep && count > 0; ++n) {
    if (ep % n != 0) continue;
    std::vector<std::int64_t> seen(static_cast<std::size_t>(n), -1);
    std::int64_t sum = 0;
    for (std::int64_t i = 0; i < count * load.top_k; ++i) {
      const std::int16_t e = tokens[static_cast<std::size_t>(i)];
      if (e < 0) continue;
      const std::vector<std::int64_t>& of = slots[static_cast<std::size_t>(e)];
      const std::int64_t t = i / load.top_k, slot = of[static_cast<std::size_t>(t % std::ssize(of))];
      std::int64_t& last = seen[static_cast<std::size_t>(slot * n / num_slots)];
      sum += last == t ? 0 : 1;
      last = t;
    }
    parts[n] = static_cast<double>(sum) / static_cast<double>(count);
  }
  return parts;
}

LoadFigures figures_of_layer(const RoutingLoad& load, std::int32_t num_experts, std::int32_t top_k,
                             std::int32_t ep, double capacity_factor, std::int32_t layer) {
  std::vector<double> rows = expert_loads(load, num_experts, top_k, layer);
  LoadFigures f;
  if (capacity_factor > 0.0) {
    for (double& r : rows) {
      f.dropped += std::max(0.0, r - capacity_factor) / num_experts;
      r = std::min(r, capacity_factor);
    }
  }
  f.busiest_expert = *std::max_element(rows.begin(), rows.end());
  if (!load.tokens.empty()) f.parts = measured_parts(load, num_experts, ep, layer);
  if (is_placed(load, ep)) rows = slot_rows(rows, load.expert_of_slot[static_cast<std::size_t>(layer)]);
  f.slowest_rank = load.kind == LoadKind::power_law ? expected_largest_group(std::move(rows), ep)
                                                    : largest_group(rows, ep);
  return f;
}

}  // namespace

LoadFigures load_figures(const RoutingLoad& load, std::int32_t num_experts, std::int32_t top_k,
                         std::int32_t ep, double capacity_factor) {
  TESSERA_CHECK(ep >= 1, "ep is at least 1");
  TESSERA_CHECK_EQ(num_experts % ep, 0, "ep divides the experts");
  if (load.kind == LoadKind::balanced) {
    const double kept = capacity_factor > 0.0 ? std::min(1.0, capacity_factor) : 1.0;
    return {.slowest_rank = kept, .busiest_expert = kept, .dropped = 1.0 - kept};
  }
  LoadFigures mean{.slowest_rank = 0.0, .busiest_expert = 0.0, .dropped = 0.0};
  for (std::int32_t l = 0; l < load.num_layers; ++l) {
    const LoadFigures f = figures_of_layer(load, num_experts, top_k, ep, capacity_factor, l);
    mean.slowest_rank += f.slowest_rank / load.num_layers;
    mean.busiest_expert += f.busiest_expert / load.num_layers;
    mean.dropped += f.dropped / load.num_layers;
    for (const auto& [n, parts] : f.parts) mean.parts[n] += parts / load.num_layers;
  }
  // Nothing dropped: the fullest has at least the mean, whatever the rounding of shares says.
  if (capacity_factor <= 0.0) mean.slowest_rank = std::max(1.0, mean.slowest_rank);
  return mean;
}

}  // namespace tessera::cost
