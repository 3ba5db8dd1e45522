// Readers of other programs' routing files: each makes a table of counts or of choices, which become
// RoutingStats by the same checks. Inside of this room. Pure, thread safe.
//
// Shapes as in routing.h; W windows (forward passes, domains, intervals).
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trace/routing.h"
#include "trace/routing_container.h"
#include "trace/routing_file.h"

namespace tessera::trace {

inline constexpr const char* kMendForeign = "docs/formats/routing.md lists the files that can be read";

[[noreturn]] void refuse(std::string what, std::string_view where, std::string mend = kMendForeign);

// Numbers with a shape of up to 4 dims, as JSON, NPY and safetensors give them.
struct Table {
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> values;
};

// chosen: [L, E] or [W, L, E], or [E] of one layer. names: of the windows, or empty. Layers and windows
// without a choice are left out: recorders keep rows for dense layers and for passes that never came.
struct CountTable {
  std::string source;
  Table chosen;
  std::vector<std::string> names;
  std::vector<std::int32_t> layers;  // empty: from options.first_layer on
  std::int32_t top_k = 0;
};
[[nodiscard]] RoutingStats stats_of(CountTable table, const RoutingReadOptions& options,
                                    std::string_view where);

// Choices, appended record by record; below 0: none. Columns and layers without a choice are left out.
class ChoiceTable {
 public:
  // [L, T, K] or, in `order`, [T, L, K]. A 2-dim table is one choice a layer ([T, L] or [L, T]). L and K must
  // be those of the first record.
  void add(const Table& ids, RoutingOrder order, std::string_view where);
  [[nodiscard]] bool empty() const { return layers_.empty(); }
  [[nodiscard]] std::int64_t num_layers() const { return static_cast<std::int64_t>(layers_.size()); }
  // physical_to_logical [L, P]: ids become those of the model's experts.
  void to_logical(const Table& physical_to_logical, std::string_view where);
  // layers: model index of each layer, or empty: from options.first_layer on. num_experts 0: from options.
  struct Facts {
    std::string source;
    std::vector<std::int32_t> layers;
    std::int32_t num_experts = 0;
    std::vector<std::int64_t> sequence_lengths;
  };
  [[nodiscard]] RoutingStats stats(Facts facts, const RoutingReadOptions& options,
                                   std::string_view where) const;

 private:
  std::int64_t top_k_ = 0;
  std::vector<std::vector<std::int32_t>> layers_;  // each [T, K]
};

// [L, P] or more of them one after another, of physical experts: [.., L, E] of the model's experts, E = the
// largest of the map + 1. The shape stays [L, E].
[[nodiscard]] Table logical_counts(const Table& physical, const Table& physical_to_logical,
                                   std::string_view where);

// A table without names, by options.content and shape; content_of_3: what 3 dims are by default.
[[nodiscard]] RoutingStats stats_of_table(const Table& table, std::string source, RoutingContent content_of_3,
                                          const RoutingReadOptions& options, std::string_view where);

[[nodiscard]] RoutingStats read_json(std::string_view text, std::string_view where,
                                     const RoutingReadOptions& options);
[[nodiscard]] RoutingStats read_npy(std::span<const std::byte> bytes, std::string_view where,
                                    const RoutingReadOptions& options);
[[nodiscard]] RoutingStats read_csv(std::string_view text, std::string_view where,
                                    const RoutingReadOptions& options);
[[nodiscard]] RoutingStats read_engine_container(const Container& container, std::string_view where,
                                                 const RoutingReadOptions& options);
[[nodiscard]] RoutingStats read_engine_folder(const std::filesystem::path& folder,
                                              const RoutingReadOptions& options);

}  // namespace tessera::trace
