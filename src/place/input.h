// What a placement is made from: loads of every layer, the windows they come from, and each token's choices
// where the statistics hold them. Pure, thread safe.
//
//   PlaceInput input = input_of(trace::read_routing("routing.safetensors"));
//   PlaceInput test = hold_out_tokens(input, 0.5);   // input keeps the first half
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "trace/routing.h"

namespace tessera::place {

struct LayerInput {
  std::vector<double> load;                  // [E] choices
  std::vector<std::vector<double>> windows;  // [W] of [E]; empty: none known
  std::vector<std::int16_t> tokens;          // [T, K], -1: no choice; empty: not known
  friend bool operator==(const LayerInput&, const LayerInput&) = default;
};

struct PlaceInput {
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;                 // 0: not known
  std::vector<std::int32_t> layers;       // [L] index in the model
  std::vector<std::string> window_names;  // [W], may be empty text
  std::vector<LayerInput> data;           // [L]
  [[nodiscard]] std::int32_t num_layers() const { return static_cast<std::int32_t>(layers.size()); }
  [[nodiscard]] bool has_tokens() const { return !data.empty() && !data.front().tokens.empty(); }
};

[[nodiscard]] PlaceInput input_of(const trace::RoutingStats& stats);

// Leaves out the first `skip` tokens of every sequence: a template that all of them begin with.
// Error{config} without choices or sequence lengths.
[[nodiscard]] PlaceInput without_prefix(const trace::RoutingStats& stats, std::int32_t skip);

// Takes the last `share` of the tokens away and returns them. Error{config} where the statistics hold no
// tokens or nothing would be left on one side.
[[nodiscard]] PlaceInput hold_out_tokens(PlaceInput& input, double share);
// Takes one window away, by name or number, and returns it: what is left is the sum of the others.
// Error{config} that lists the windows when there is none of that name or no other is left.
[[nodiscard]] PlaceInput hold_out_window(PlaceInput& input, std::string_view window);

// Where there are no windows but tokens: `parts` of equal length, in their order.
void cut_windows(PlaceInput& input, std::int32_t parts);

// The loads that a search looks at: the windows that hold a choice, or the whole as one.
[[nodiscard]] std::vector<std::vector<double>> windows_of(const LayerInput& layer);

}  // namespace tessera::place
