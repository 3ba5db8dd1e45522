// Decoder: one rank of a model that reads and writes text with a cache of keys and values. The layers are
// those of training, run on rows that are single tokens: every token costs one row, whatever came before it.
//
//   Decoder decoder(options, rank, communicators, weights);
//   decoder.prefill({{.id = 17, .slot = 0, .position = 0}, {.id = 4, .slot = 0, .position = 1}}, 2);
//   Tensor logits = decoder.decode({{.id = 9, .slot = 0, .position = 2}}, 1);   // of position 3
//
// A prompt runs in chunks of many rows without the head, its last token as the first row of decode. A row
// sees the rows of its slot at lower positions, of this call or earlier ones; rows of one call may belong to
// different slots and stand in any order. A row's result does not depend on what runs beside it, nor on the
// chunks.
//
// Row counts are padded up to the next of a few widths, each with layers of its own over the same weights and
// the same memory. A padded row repeats the last row, so it reads no expert that nobody asked for. All ranks
// of the world make the same calls with the same `most`; ranks of one tp group with the same rows; a rank
// without rows helps the others' experts.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "exec/forward_model.h"
#include "nn/kv_cache.h"

namespace tessera::exec {

struct DecoderOptions {
  ForwardOptions forward;
  std::int32_t slots = 1;    // sequences of one replica at once
  std::int64_t chunk = 256;  // most rows of one call of prefill
};

struct DecodeRow {
  std::int32_t id = 0;        // token
  std::int32_t slot = 0;      // [0, slots)
  std::int32_t position = 0;  // of the token in its sequence, below the context
};

class Decoder {
 public:
  // Collective. Error{config} as check_forward.
  Decoder(const DecoderOptions& options, Rank rank, const CommFactory& factory,
          const ckpt::WeightSource& weights);

  // Rows that one call should run of so many waiting ones: few padded rows, few calls.
  [[nodiscard]] std::int64_t prefill_rows(std::int64_t waiting) const;
  // Puts rows into the cache. most: the largest number of rows on any rank, at most chunk.
  void prefill(std::span<const DecodeRow> rows, std::int64_t most);
  // The same, and the logits of the next token of each row [rows, vocabulary], whole on every rank of a tp
  // group; valid until the next call. most: at most slots.
  [[nodiscard]] Tensor decode(std::span<const DecodeRow> rows, std::int64_t most);

  [[nodiscard]] ForwardModel& model() { return model_; }
  [[nodiscard]] const ForwardModel& model() const { return model_; }
  [[nodiscard]] const nn::KvCache& cache() const { return *cache_; }

 private:
  struct Rung {
    std::int64_t rows = 0;
    std::unique_ptr<Stage> stage;
  };
  ArenaSize build(Arena& arena);
  ArenaSize build_ladder(Arena& arena, std::vector<Rung>& ladder, std::int64_t most,
                         ForwardModel::Parts parts);
  [[nodiscard]] nn::KvCache::Options cache_options() const;
  Rung& rung(std::vector<Rung>& ladder, std::int64_t most) const;
  void run(Rung& rung, std::span<const DecodeRow> rows);
  Tensor gather_logits(Tensor local, std::int64_t rows);

  DecoderOptions options_;
  ForwardModel model_;
  std::vector<Rung> prefill_, decode_;  // ascending
  std::unique_ptr<nn::KvCache> cache_;
  Tensor ids_, targets_, slots_, positions_;  // i32 of the widest call
  Tensor gathered_, logits_;                  // with tp
};

}  // namespace tessera::exec
