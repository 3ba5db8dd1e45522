// Checkpoint folders on disk: making one aside and renaming it, finding, pruning, clearing what a killed
// writer left. One writer per folder at a time; any number of readers.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/checkpoint.h"
#include "ckpt/digest.h"
#include "ckpt/safetensors.h"

namespace tessera::ckpt {

// A file that is made: written in order, hashed on the way, fsynced by finish(). Error{io} with the path.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void finish();
  [[nodiscard]] std::int64_t bytes_written() const { return bytes_written_; }
  [[nodiscard]] std::string xxh3_128() const { return digest_.hex(); }

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  std::int64_t bytes_written_ = 0;
  Digest digest_;
};

// A folder that is made aside under <path>.tmp<process id>; commit() makes it appear whole under its name.
// Without commit() it is removed again. Error{io}.
class OutputFolder {
 public:
  // A folder with content that is there already is refused (in the constructor, too), or exchanged in one
  // step.
  enum class IfPresent : std::uint8_t { refuse, replace };
  OutputFolder(const std::filesystem::path& path, IfPresent if_present);
  // One whose folder aside is made already, or will be, by processes that write into it together.
  struct Shared {
    std::int64_t owner = 0;  // the process that commits
  };
  OutputFolder(const std::filesystem::path& path, Shared shared);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  [[nodiscard]] const std::filesystem::path& aside() const { return aside_; }
  void commit();

 private:
  [[noreturn]] void refuse() const;
  std::filesystem::path path_, aside_;
  IfPresent if_present_;
  bool committed_ = false;
};

// One piece as bytes.
struct PieceBytes {
  std::string name;
  std::int32_t num_dims = 2;
  std::array<std::int64_t, 2> global{1, 1};
  layout::Slice slice;
  StoredType type = StoredType::f32;
  const std::byte* data = nullptr;
};
struct RankPieces {
  Rank rank;
  std::vector<PieceBytes> pieces;
};

struct StepFolder {
  std::int64_t step = 0;
  std::filesystem::path path;
};

[[nodiscard]] std::string step_folder_name(std::int64_t step);  // "step-00000100"
// Folders with a step's name, newest first; whole or damaged. A missing folder has none.
[[nodiscard]] std::vector<StepFolder> step_folders(const std::filesystem::path& folder);

// Removes what a writer that is no more left aside.
void remove_leftovers(const std::filesystem::path& folder);
// Removes complete steps before `newest` until `keep` of them are left, it included. Never later ones.
void prune(const std::filesystem::path& folder, std::int64_t newest, std::int32_t keep);

// Writes and renames step-XXXXXXXX. Error{internal} when the pieces do not cover every tensor exactly once.
void write_step_folder(const std::filesystem::path& folder, const Meta& meta, std::int32_t world_size,
                       std::span<const RankPieces> ranks);

// The same by several processes that share the folder: each writes the files of its ranks and a note of them;
// the owner waits for all notes, at most so long after its own, then checks, writes the index and renames.
struct Parts {
  std::int32_t part = 0;  // of this process; 0 is the owner
  std::int32_t count = 1;
  std::int64_t owner = 0;  // its process id
  double timeout_seconds = 300.0;
};
void write_step_part(const std::filesystem::path& folder, const Meta& meta, std::int32_t world_size,
                     std::span<const RankPieces> ranks, const Parts& parts);

}  // namespace tessera::ckpt
