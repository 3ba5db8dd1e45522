// The inside of StepModel: inside of this room.
#pragma once
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "cost/layer_table.h"
#include "cost/pipeline_time.h"
#include "cost/reduction.h"
#include "cost/step.h"

namespace tessera::cost {

// What a LayerTable depends on. pp and order only matter to expert groups that are cut in two.
struct TableKey {
  std::int32_t tp, cp, ep, etp, micro_batch_size, split_pp;
  std::uint32_t modules;
  spec::Recompute recompute;
  bool sequence_parallel, pipelined;
  friend bool operator==(const TableKey&, const TableKey&) = default;
};
struct TableHash {
  std::size_t operator()(const TableKey& k) const;
};

struct StepModel::Impl {
  Setup setup;
  LayerClasses classes;
  double flops_per_token, flops_per_token_full;
  double peak;
  std::unordered_map<TableKey, LayerTable, TableHash> tables, size_tables;
  mutable std::unordered_map<std::int32_t, StageSplit> splits;  // by stages
  std::unordered_map<std::int32_t, LoadFigures> loads;          // by ep
  std::vector<PipelineRank> ranks;                              // scratch of predict

  explicit Impl(Setup s);

  // Each valid until the next call of the same name.
  const LayerTable& table(const Candidate& c);
  const LayerTable& sizes(const Candidate& c);  // size_table
  const LoadFigures& load_of(const Candidate& c);
  [[nodiscard]] const StageSplit& split_of(const Candidate& c) const;
  // Stage v of pipeline rank r.
  [[nodiscard]] static std::int32_t stage_of(const Candidate& c, std::int32_t r, std::int32_t v);

  // Calls f(block, count) for each kind of block of a stage with layers [first, end).
  template <class F>
  void for_blocks(const LayerTable& t, std::int32_t first, std::int32_t end, bool is_first, bool is_last,
                  F&& f) const {
    if (is_first) f(t.embedding, 1.0);
    for (std::int32_t i = 0; i < classes.size(); ++i) {
      const std::int32_t n = classes.count(i, first, end);
      if (n > 0) f(t.layers[static_cast<std::size_t>(i)], static_cast<double>(n));
    }
    if (!is_last) return;
    if (setup.model.num_nextn_predict_layers > 0)
      f(t.mtp, static_cast<double>(setup.model.num_nextn_predict_layers));
    f(t.head, 1.0);
  }
  template <class F>
  void for_blocks(const LayerTable& t, const StageSplit& split, std::int32_t stage, F&& f) const {
    for_blocks(t, split.first(stage), split.first(stage + 1), stage == 0, stage == split.num_stages() - 1, f);
  }

  [[nodiscard]] PipelineRank rank_seconds(const LayerTable& t, const StageSplit& split, const Candidate& c,
                                          std::int32_t r) const;
  [[nodiscard]] RankHolding rank_holding(const LayerTable& t, const StageSplit& split, const Candidate& c,
                                         std::int32_t r) const;
  [[nodiscard]] Bytes message_bytes(const Candidate& c) const;
  [[nodiscard]] double message_seconds(const Candidate& c) const;
  [[nodiscard]] bool messages_hidden(const Candidate& c) const;
  [[nodiscard]] double jitter_share(const Candidate& c) const;
  [[nodiscard]] MemoryCost memory_of(const LayerTable& t, const StageSplit& split, const Candidate& c) const;
  StepCost predict(const Candidate& c);

 private:
  PassCost all_blocks(const LayerTable& t, double& attention_ideal) const;
  void finish(StepCost& out, const LayerTable& t, const StageSplit& split, const Candidate& c,
              double attention_ideal) const;
};

}  // namespace tessera::cost
