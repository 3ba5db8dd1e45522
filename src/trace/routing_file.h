// Routing statistics as files (docs/formats/routing.md). Ours is a safetensors file, so that Python, Rust and
// most tools read the counts without any code of ours; the counts of pairs and every token's choices are zstd
// frames inside it, and a digest covers every byte. The reader also takes what inference engines and studies
// write: SGLang's recorder (as JSON or safetensors), TensorRT-LLM's folder of expert statistics, CSV, NPY and
// JSON tables. A file's kind is seen from its bytes, never from its name. Pickles (.pt) are refused.
//
//   write_routing("runs/demo/routing.safetensors", stats);
//   RoutingStats a = read_routing("runs/demo/routing.safetensors");
//   RoutingStats b = read_routing("topk.npy", {.num_experts = 64, .first_layer = 1});
//
// Thread safe. Errors: Error{io} for a file that cannot be read or is damaged, Error{config} for one that is
// well-formed but cannot be routing statistics, Error{unsupported} for pickles and newer versions.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include "trace/routing.h"

namespace tessera::trace {

// What a table without names holds. Files that say it themselves are not touched by this.
enum class RoutingContent : std::uint8_t {
  by_shape,  // NPY: 1 or 2 dims counts, 3 choices; JSON and CSV tables: counts
  counts,    // [E], [L, E] or [windows, L, E]
  choices,   // ids: [T, L], [T, K] or [L, T, K]; see RoutingOrder
};

enum class RoutingOrder : std::uint8_t {
  by_shape,      // 2 dims: tokens first (one choice in each layer); 3 dims: layers first
  layers_first,  // [L, T] or [L, T, K]
  tokens_first,  // [T, L] or [T, L, K]
};

struct RoutingReadOptions {
  RoutingContent content = RoutingContent::by_shape;
  RoutingOrder order = RoutingOrder::by_shape;
  std::int32_t num_experts = 0;  // of a table of choices; 0: the largest id + 1
  std::int32_t first_layer = 0;  // model index of the first layer of a table
};

// Path of a file, or of TensorRT-LLM's folder.
[[nodiscard]] RoutingStats read_routing(const std::filesystem::path& path,
                                        const RoutingReadOptions& options = {});
// Of bytes in memory; `where` stands for the file in messages.
[[nodiscard]] RoutingStats parse_routing(std::span<const std::byte> bytes, std::string_view where,
                                         const RoutingReadOptions& options = {});

// Writes beside the target and renames. Error{internal} on statistics that check_routing refuses.
void write_routing(const std::filesystem::path& path, const RoutingStats& stats);
[[nodiscard]] std::string to_routing_file(const RoutingStats& stats);

}  // namespace tessera::trace
