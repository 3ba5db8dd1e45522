// What a run must keep to go on exactly: weights, AdamW moments, and the routing frequencies of the last step
// where the balancing loss looks back at them. In global coordinates, so any layout can read it.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "ckpt/checkpoint.h"
#include "exec/rank_engine.h"

namespace tessera::exec {

enum class StateParts : std::uint8_t { weights, weights_and_optimizer };

// The pieces this rank writes so that the world writes each element once. They view the engine's memory:
// valid until it changes.
[[nodiscard]] std::vector<ckpt::Piece> owned_pieces(RankEngine& engine);

// Fills the weights (and moments) of this rank from any source, then packs. Errors name the tensor.
void load_state(RankEngine& engine, const ckpt::WeightSource& source, StateParts parts);

// Numbers of the run beside them (not of a layout), a vector in f64; `values` outlives the piece.
inline constexpr std::string_view kDivergenceState = "run.divergence";
inline constexpr std::string_view kExpertSlots = "moe.expert_slots";  // where experts are, if they move
[[nodiscard]] ckpt::Piece numbers_piece(std::string_view name, std::vector<double>& values);
[[nodiscard]] std::vector<double> load_numbers(const ckpt::WeightSource& source,
                                               std::string_view name);  // or none

}  // namespace tessera::exec
