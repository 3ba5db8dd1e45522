// One line of a runs file as typed data. Columns are named in validation/README.md; only `id`, `model` and
// `gpu` must be there, an absent or empty cell is an absent value. Pure.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "validate/csv.h"

namespace tessera::validate {

enum class Quality : std::uint8_t { a, b, c };  // clean; something derived or special; incomplete or doubtful
[[nodiscard]] std::string_view name(Quality quality);

enum class Status : std::uint8_t {
  ok,
  out_of_memory,
  missing,  // no value printed: out of memory or a crash, the source does not say
  other,    // a crash with another cause
};
[[nodiscard]] std::string_view name(Status status);

// What a published peak of memory is. gib: of 2^30 bytes, else of 1e9.
enum class MemoryKind : std::uint8_t { unknown, allocated, reserved, process };
[[nodiscard]] std::string_view name(MemoryKind kind);

struct Row {
  std::int32_t line = 0;  // of the file
  std::string id, source, date, model, gpu, precision, sp, zero, recompute, overlap_notes, flops_convention,
      framework, task, memory_text, notes;
  std::optional<double> params_total;
  std::optional<std::int64_t> layers, hidden, ffn_hidden, heads, kv_heads, vocab, experts, topk,
      moe_ffn_hidden, seq_len, gpus, gpus_per_node, gbs, mbs, tp, pp, vpp, cp, ep, etp, dp;
  std::optional<double> tokens_per_s_per_gpu, tflops_per_gpu, mfu, step_time_s, derived_step_time_s,
      memory_gb;
  Quality quality = Quality::b;  // of a file without the column
  bool core = false;
  Status status = Status::ok;

  // The letters that the id begins with: what stands for a source ("mpt" of mpt-0123).
  [[nodiscard]] std::string prefix() const;
  // All of its texts in small letters, for words to be looked for in.
  [[nodiscard]] std::string words() const;
};

// Every fault with line and column name.
[[nodiscard]] std::vector<Row> parse_rows(const CsvTable& table, std::string_view where, Problems& problems);
[[nodiscard]] std::vector<Row> parse_rows(std::string_view csv, std::string_view where, Problems& problems);

// "layers as printed: 30" in the notes of a row whose column is empty; absent when it is no number.
[[nodiscard]] std::optional<std::int64_t> printed(const Row& row, std::string_view column);

[[nodiscard]] std::string to_lower(std::string_view text);
// Any of the words, in a text of small letters.
[[nodiscard]] bool has(std::string_view text, std::initializer_list<std::string_view> words);
// The first number after `before` ("microbatches 48" -> 48).
[[nodiscard]] std::optional<double> number_after(std::string_view text, std::string_view before);

}  // namespace tessera::validate
