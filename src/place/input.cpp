#include "place/input.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/text.h"
#include "place/index.h"

namespace tessera::place {
namespace {

constexpr const char* kWhere = "routing statistics";

std::vector<double> count_tokens(const std::vector<std::int16_t>& tokens, std::int32_t num_experts) {
  std::vector<double> load(size_of(num_experts), 0.0);
  for (const std::int16_t e : tokens) {
    if (e >= 0) at(load, e) += 1.0;
  }
  return load;
}

void require_tokens(const PlaceInput& input, std::string_view for_what) {
  if (input.has_tokens()) return;
  throw Error(ErrorKind::config,
              fmt::format("the statistics hold no choices of tokens, {} needs them", for_what), kWhere,
              "record every token's choices (tessera train --dump-routing-tokens N, SGLang per_token)");
}

double sum_of(const std::vector<double>& load) {
  return std::accumulate(load.begin(), load.end(), 0.0);
}

}  // namespace

PlaceInput input_of(const trace::RoutingStats& stats) {
  PlaceInput input{.num_experts = stats.num_experts, .top_k = stats.top_k, .layers = stats.layers};
  for (const trace::RoutingWindow& window : stats.windows) input.window_names.push_back(window.name);
  for (std::int32_t l = 0; l < stats.num_layers(); ++l) {
    LayerInput layer;
    const auto chosen = stats.chosen_of(l);
    layer.load.assign(chosen.begin(), chosen.end());
    for (const trace::RoutingWindow& window : stats.windows) {
      const auto first = window.chosen.begin() + static_cast<std::ptrdiff_t>(l) * stats.num_experts;
      layer.windows.emplace_back(first, first + stats.num_experts);
    }
    if (!stats.choices.empty()) {
      const auto choices = stats.choices_of(l);
      layer.tokens.assign(choices.begin(), choices.end());
    }
    input.data.push_back(std::move(layer));
  }
  return input;
}

PlaceInput without_prefix(const trace::RoutingStats& stats, std::int32_t skip) {
  PlaceInput input = input_of(stats);
  if (skip == 0) return input;
  require_tokens(input, "leaving out a template");
  if (stats.sequence_lengths.empty()) {
    throw Error(ErrorKind::config, "the statistics do not say where sequences begin", kWhere,
                "convert them with their sequence lengths, or leave the template in");
  }
  for (LayerInput& layer : input.data) {
    std::vector<std::int16_t> kept;
    auto first = layer.tokens.begin();
    for (const std::int64_t length : stats.sequence_lengths) {
      const auto begin = first + std::min<std::int64_t>(skip, length) * input.top_k;
      first += length * input.top_k;
      kept.insert(kept.end(), begin, first);
    }
    layer.tokens = std::move(kept);
    layer.load = count_tokens(layer.tokens, input.num_experts);
  }
  if (!input.has_tokens()) {
    throw Error(ErrorKind::config, fmt::format("no sequence is longer than {} tokens", skip), kWhere,
                "leave out fewer tokens");
  }
  return input;
}

PlaceInput hold_out_tokens(PlaceInput& input, double share) {
  require_tokens(input, "holding out tokens");
  const std::int64_t tokens = std::ssize(input.data.front().tokens) / input.top_k;
  const std::int64_t kept =
      tokens - static_cast<std::int64_t>(std::llround(share * static_cast<double>(tokens)));
  if (kept < 1 || kept >= tokens) {
    throw Error(ErrorKind::config,
                fmt::format("holding out {} of {} tokens leaves one side empty", share, tokens), kWhere,
                "hold out a share between 0 and 1, such as 0.5");
  }
  PlaceInput out = input;
  out.window_names.clear();
  input.window_names.clear();
  for (std::int32_t l = 0; l < input.num_layers(); ++l) {
    LayerInput& train = at(input.data, l);
    LayerInput& test = at(out.data, l);
    train.tokens.resize(size_of(kept * input.top_k));
    test.tokens.erase(test.tokens.begin(), test.tokens.begin() + kept * input.top_k);
    for (LayerInput* side : {&train, &test}) {
      side->load = count_tokens(side->tokens, input.num_experts);
      side->windows.clear();
    }
  }
  return out;
}

PlaceInput hold_out_window(PlaceInput& input, std::string_view window) {
  const auto windows = count(input.window_names);
  std::vector<std::string> known;
  std::int32_t found = -1;
  for (std::int32_t w = 0; w < windows; ++w) {
    const std::string& name = at(input.window_names, w);
    known.push_back(name.empty() ? std::to_string(w) : name);
    if (window == name || window == std::to_string(w)) found = w;
  }
  if (found < 0 || windows < 2) {
    throw Error(ErrorKind::config,
                found < 0 ? fmt::format("there is no load window \"{}\"", window)
                          : fmt::format("\"{}\" is the only load window", window),
                kWhere,
                known.empty() ? "the file has no windows: hold out a share of the tokens, such as 0.5"
                              : fmt::format("the windows are {}", join(known, ", ")));
  }
  PlaceInput out = input;
  out.window_names = {at(input.window_names, found)};
  input.window_names.erase(input.window_names.begin() + found);
  for (std::int32_t l = 0; l < input.num_layers(); ++l) {
    LayerInput& train = at(input.data, l);
    LayerInput& test = at(out.data, l);
    test.load = at(train.windows, found);
    train.windows.erase(train.windows.begin() + found);
    std::fill(train.load.begin(), train.load.end(), 0.0);
    for (const std::vector<double>& other : train.windows) {
      for (std::int32_t e = 0; e < input.num_experts; ++e) at(train.load, e) += at(other, e);
    }
    test.windows.clear();
    test.tokens.clear();  // nobody says which tokens were the window's
    train.tokens.clear();
  }
  return out;
}

void cut_windows(PlaceInput& input, std::int32_t parts) {
  if (!input.window_names.empty() || !input.has_tokens() || parts < 2) return;
  const std::int64_t tokens = std::ssize(input.data.front().tokens) / input.top_k;
  parts = static_cast<std::int32_t>(std::min<std::int64_t>(parts, tokens));
  for (std::int32_t w = 0; w < parts; ++w) {
    input.window_names.push_back(fmt::format("part {} of {}", w + 1, parts));
    const std::int64_t begin = tokens * w / parts * input.top_k, end = tokens * (w + 1) / parts * input.top_k;
    for (LayerInput& layer : input.data) {
      layer.windows.push_back(
          count_tokens({layer.tokens.begin() + begin, layer.tokens.begin() + end}, input.num_experts));
    }
  }
}

std::vector<std::vector<double>> windows_of(const LayerInput& layer) {
  std::vector<std::vector<double>> windows;
  for (const std::vector<double>& window : layer.windows) {
    if (sum_of(window) > 0.0) windows.push_back(window);
  }
  if (windows.empty()) windows.push_back(layer.load);
  return windows;
}

}  // namespace tessera::place
