// Checkpoints that any layout can read. Every tensor is stored as pieces: a rectangle of a global tensor
// under its name in layout.h, so the layout that wrote it does not matter to the one that reads it.
// docs/formats/checkpoint.md has the format.
//
//   CheckpointWriter writer({.folder = "runs/x/checkpoints", .keep = 2, .world_size = 8});
//   writer.stage(rank, meta, pieces);      // every rank; copies and returns: a background thread writes
//   writer.wait();                         // until everything staged is on disk; rethrows its errors
//
//   // One reader for all ranks; null: there is no checkpoint.
//   const auto reader = open_latest_checkpoint("runs/x/checkpoints");
//   reader->read(piece);  // fills piece.data from whatever pieces cover it
//
// A checkpoint is a folder step-00000100/ made aside (.tmp), fsynced, and renamed: it is there whole or not
// at all. A kill at any moment leaves the last complete one readable. Files carry checksums; a truncated,
// changed, foreign or newer file is refused by name.
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "layout/layout.h"
#include "tensor/memory.h"
#include "tensor/tensor.h"

namespace tessera::ckpt {

using tensor::Tensor;

// Part of a global tensor of one or two dims (a vector uses entry 0, entry 1 is 1). data: contiguous,
// slice.size elements, f32 or f64.
struct Piece {
  std::string name;  // weights: ParamSpec::name; AdamW: "optimizer.m." and "optimizer.v." + that name
  std::int32_t num_dims = 2;
  std::array<std::int64_t, 2> global{1, 1};
  layout::Slice slice;
  Tensor data;
};

// Elements [begin, begin + n) of the row-major local tensor `whole` as at most three pieces (part of a row,
// whole rows, part of a row): how a flat ZeRO shard is written in global coordinates. flat holds those n
// elements; whole.data is not looked at.
[[nodiscard]] std::vector<Piece> flat_pieces(const Piece& whole, std::int64_t begin, Tensor flat);

struct Meta {
  std::int64_t step = 0;    // optimiser steps done; the next step to run
  std::int64_t tokens = 0;  // trained on
  std::string job_yaml;     // the job that wrote it
  std::string hf_config;    // config.json of the model
  friend bool operator==(const Meta&, const Meta&) = default;
};

// One writer at a time for a folder.
class CheckpointWriter {
 public:
  struct Options {
    std::filesystem::path folder;  // made when missing
    std::int32_t keep = 2;         // complete checkpoints left in the folder
    std::int32_t world_size = 1;   // ranks that stage each step
    double timeout_seconds =
        300.0;  // how long stage() and wait() wait for ranks that do not stage: Error{comm}
    // Several processes write a checkpoint together, into a folder that all of them see: this one the ranks
    // [first_rank, first_rank + local_ranks). Process 0 waits for the others' parts and renames the folder.
    std::int32_t first_rank = 0;
    std::int32_t local_ranks = 0;  // 0: all of the world
    std::int32_t process = 0, processes = 1;
    std::int64_t first_process_id = 0;  // of process 0, on its host
  };
  explicit CheckpointWriter(Options options);  // Error{io} when the folder cannot be made
  ~CheckpointWriter();  // waits for what all ranks have staged; errors are lost then, so call wait()
  // Copies `pieces` (after waiting for the previous checkpoint of this rank to be written) and returns. When
  // the last rank has staged, writing starts in the background. Thread safe across ranks; all ranks stage the
  // same steps in the same order, with equal meta; their pieces together hold each element of each tensor
  // exactly once (else Error{internal}). A rank that owns nothing stages no pieces. Memory is taken the first
  // time only. An error of the background thread (Error{io}: disk full, folder gone) comes out of the next
  // stage() or wait() of every rank, and nothing more is written; the checkpoints before it remain.
  // Pieces may lie in `memory`, whose queued work is waited for.
  void stage(Rank rank, const Meta& meta, std::span<const Piece> pieces, tensor::Memory& memory);
  void stage(Rank rank, const Meta& meta, std::span<const Piece> pieces) {
    stage(rank, meta, pieces, *tensor::make_host_memory());
  }
  void wait();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Anything that can fill pieces: a Tessera checkpoint or a Hugging Face folder.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Fills piece.data (converting f32 <-> f64, bf16/f16 -> f32, f64). Error{io} naming the tensor when it is
  // missing, has another global shape, or is not covered. Thread safe.
  virtual void read(const Piece& piece) const = 0;
  [[nodiscard]] virtual std::vector<std::string> names() const = 0;  // ascending
  // Global shape. Error{io} when there is no such tensor.
  [[nodiscard]] virtual std::vector<std::int64_t> shape(const std::string& name) const = 0;
};

// Maps the files and verifies all checksums once, in the constructor: make one and share it between ranks.
class CheckpointReader : public WeightSource {
 public:
  explicit CheckpointReader(const std::filesystem::path& step_folder);
  ~CheckpointReader() override;
  [[nodiscard]] const Meta& meta() const;
  [[nodiscard]] const std::filesystem::path& folder() const;  // step-XXXXXXXX
  void read(const Piece& piece) const override;
  [[nodiscard]] std::vector<std::string> names() const override;
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The newest complete checkpoint folder whose checksums hold, or nothing when there is none. Leftovers (.tmp)
// are ignored. A newer but damaged one is skipped; `skipped` gets its file and fault.
[[nodiscard]] std::optional<std::filesystem::path> latest_checkpoint(
    const std::filesystem::path& folder, std::vector<std::string>* skipped = nullptr);
// The same, opened: reads every byte for its checksum once, not twice. Null when there is none.
[[nodiscard]] std::unique_ptr<CheckpointReader> open_latest_checkpoint(
    const std::filesystem::path& folder, std::vector<std::string>* skipped = nullptr);

// Layers of multi-token prediction that a file holds beyond num_hidden_layers. keep: they are bound with the
// rest, and their copies of embedding and head must equal those of the main model. Copies are never written.
enum class MtpLayers : std::uint8_t { refuse, leave_out, keep };
struct HfOptions {
  MtpLayers mtp = MtpLayers::refuse;
  std::vector<std::string>* unused = nullptr;  // gets the names of the tensors that are left out
};

// config.json + model.safetensors (or model.safetensors.index.json with shards), as transformers writes it.
// The source has the engine's names and shapes; fused and transposed tensors of the files (gpt2, gpt_oss) are
// read through ckpt/hf_names.h, MXFP4 experts of gpt_oss are unpacked. Tensors that the model computes itself
// (rotary_emb.inv_freq of old files, masks of gpt2) are left out. Pickles are never read. Error{io}: all
// faults of the index and its shards at once. Error{config}: all tensors that are missing, mis-shaped, of an
// integer type or none of the model's, by the names of the files.
[[nodiscard]] std::unique_ptr<WeightSource> open_hf_folder(const std::filesystem::path& folder,
                                                           const spec::ModelSpec& model,
                                                           const HfOptions& options = {});
[[nodiscard]] std::unique_ptr<WeightSource> open_hf_folder(const std::filesystem::path& folder);
// Refuses missing, extra and mis-shaped tensors by the engine's names against the model's parameter list, all
// at once: Error{config}. Tensors named "optimizer.*" and "moe.*" (state of a run) are not looked at.
void check_weights(const WeightSource& source, const spec::ModelSpec& model);
// Writes config.json and model.safetensors (F32, names and forms of the Hub) from any source; aside, then
// renamed. No optimiser state. config: the config.json that the weights came with, for its token ids.
// Error{io} when the folder is there already.
void write_hf_folder(const std::filesystem::path& folder, const spec::ModelSpec& model,
                     const WeightSource& source, std::string_view config = {});
// Writes a Tessera checkpoint (step 0, F32, no optimiser state) from a Hugging Face folder. When MTP layers
// are not kept, the config.json of the checkpoint has none.
void import_hf_folder(const std::filesystem::path& hf_folder, const std::filesystem::path& checkpoint_folder,
                      const HfOptions& options = {});

}  // namespace tessera::ckpt
