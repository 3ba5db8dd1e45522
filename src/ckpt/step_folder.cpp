#include "ckpt/step_folder.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "ckpt/index.h"
#include "ckpt/rectangle.h"

namespace tessera::ckpt {

namespace {

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kAside = ".tmp";

std::optional<std::int64_t> number_of(std::string_view digits) {
  std::int64_t value = -1;
  const auto [end, code] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (code != std::errc{} || end != digits.data() + digits.size() || value < 0) return std::nullopt;
  return value;
}

// The step of a folder name, if it is exactly one that a writer gives.
std::optional<std::int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  const std::optional<std::int64_t> step = number_of(name.substr(kPrefix.size()));
  return step && step_folder_name(*step) == name ? step : std::nullopt;
}

// The process that made a folder aside; nothing when the name is none of ours.
std::optional<std::int64_t> process_of(std::string_view name) {
  const std::size_t at = name.rfind(kAside);
  if (at == std::string_view::npos || !step_of(name.substr(0, at))) return std::nullopt;
  return number_of(name.substr(at + kAside.size()));
}

bool is_alive(std::int64_t process) {
  return ::kill(static_cast<pid_t>(process), 0) == 0 || errno != ESRCH;
}

std::vector<std::filesystem::path> entries_of(const std::filesystem::path& folder) {
  std::error_code code;
  std::vector<std::filesystem::path> entries;
  std::filesystem::directory_iterator at(folder, code);
  if (code && code != std::errc::no_such_file_or_directory) {
    throw Error(ErrorKind::io, fmt::format("cannot list the folder: {}", code.message()), folder.string(),
                "check the path and the permissions");
  }
  for (; !code && at != std::filesystem::directory_iterator(); at.increment(code))
    entries.push_back(at->path());
  return entries;
}

}  // namespace

std::string step_folder_name(std::int64_t step) {
  return fmt::format("{}{:08}", kPrefix, step);
}

std::vector<StepFolder> step_folders(const std::filesystem::path& folder) {
  std::vector<StepFolder> found;
  for (const std::filesystem::path& path : entries_of(folder)) {
    const std::optional<std::int64_t> step = step_of(path.filename().string());
    if (step) found.push_back({*step, path});
  }
  std::sort(found.begin(), found.end(),
            [](const StepFolder& a, const StepFolder& b) { return a.step > b.step; });
  return found;
}

void remove_leftovers(const std::filesystem::path& folder) {
  for (const std::filesystem::path& path : entries_of(folder)) {
    const std::optional<std::int64_t> process = process_of(path.filename().string());
    std::error_code ignored;  // tried again by the next writer
    if (process && (*process == ::getpid() || !is_alive(*process)))
      std::filesystem::remove_all(path, ignored);
  }
}

void prune(const std::filesystem::path& folder, std::int64_t newest, std::int32_t keep) {
  std::int32_t kept = 0;
  for (const StepFolder& old : step_folders(folder)) {
    if (old.step > newest || !std::filesystem::exists(old.path / kIndexFile)) continue;
    if (++kept <= keep) continue;
    // Out of sight first: a kill in the middle of removing leaves no half checkpoint under a step's name.
    std::filesystem::path aside = old.path;
    aside += fmt::format("{}{}", kAside, ::getpid());
    std::error_code code;
    std::filesystem::rename(old.path, aside, code);
    if (!code) std::filesystem::remove_all(aside, code);
    if (code) {
      throw Error(ErrorKind::io, fmt::format("cannot remove an old checkpoint: {}", code.message()),
                  old.path.string(), "check the permissions of the checkpoint folder");
    }
  }
}

namespace {

// The pieces of the ranks as an index still without files.
std::vector<IndexedTensor> gather(std::span<const RankPieces> ranks) {
  std::vector<IndexedTensor> tensors;
  std::map<std::string_view, std::size_t> position;
  std::int32_t file = 0;
  for (const RankPieces& rank : ranks) {
    if (rank.pieces.empty()) continue;
    for (const PieceBytes& p : rank.pieces) {
      const auto [at, added] = position.emplace(p.name, tensors.size());
      if (added)
        tensors.push_back({.name = p.name, .type = p.type, .num_dims = p.num_dims, .global = p.global});
      IndexedTensor& tensor = tensors[at->second];
      TESSERA_CHECK(tensor.type == p.type && tensor.num_dims == p.num_dims && tensor.global == p.global,
                    fmt::format("rank {} gives \"{}\" another dtype or global shape than others do",
                                rank.rank.value, p.name));
      tensor.pieces.push_back({.file = file, .slice = p.slice});
    }
    ++file;
  }
  return tensors;
}

void check_whole(std::span<const IndexedTensor> tensors) {
  std::vector<Slice> slices;
  for (const IndexedTensor& tensor : tensors) {
    slices.clear();
    for (const IndexedPiece& piece : tensor.pieces) slices.push_back(piece.slice);
    const std::string fault = cover_fault(tensor.global, slices);
    TESSERA_CHECK(fault.empty(), fmt::format("tensor \"{}\": {}", tensor.name, fault));
  }
}

IndexedFile write_rank_file(const std::filesystem::path& folder, const Meta& meta, const RankPieces& rank) {
  std::vector<StoredTensor> entries;
  for (const PieceBytes& p : rank.pieces) {
    entries.push_back({.name = entry_name(p.name, p.num_dims, p.slice),
                       .type = p.type,
                       .shape = entry_shape(p.num_dims, p.slice),
                       .bytes = {p.data, static_cast<std::size_t>(area(p.slice) * size_of(p.type))}});
  }
  // Wide elements first keep all of them aligned.
  std::stable_sort(entries.begin(), entries.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return size_of(a.type) > size_of(b.type);
  });
  const std::string name = rank_file_name(rank.rank);
  OutputFile file(folder / name);
  file.write(safetensors_header(entries, {{"format", "pt"},
                                          {"tessera_checkpoint", fmt::format("{}", kIndexVersion)},
                                          {"step", fmt::format("{}", meta.step)},
                                          {"rank", fmt::format("{}", rank.rank.value)}}));
  for (const StoredTensor& entry : entries) file.write(entry.bytes);
  file.finish();
  return {.name = name, .bytes = file.bytes_written(), .xxh3_128 = file.xxh3_128()};
}

}  // namespace

void write_step_folder(const std::filesystem::path& folder, const Meta& meta, std::int32_t world_size,
                       std::span<const RankPieces> ranks) {
  Index index{.meta = meta, .world_size = world_size, .tensors = gather(ranks)};
  check_whole(index.tensors);
  OutputFolder step(folder / step_folder_name(meta.step), OutputFolder::IfPresent::replace);
  for (const RankPieces& rank : ranks)
    if (!rank.pieces.empty()) index.files.push_back(write_rank_file(step.aside(), meta, rank));
  OutputFile file(step.aside() / kIndexFile);
  file.write(index_text(index));
  file.finish();
  step.commit();
}

namespace {

std::filesystem::path note_of(const std::filesystem::path& aside, std::int32_t part) {
  return aside / fmt::format("part-{:05}.json", part);
}

// Adds the part of another process.
void merge(Index& index, const Index& part) {
  const auto first = static_cast<std::int32_t>(index.files.size());
  index.files.insert(index.files.end(), part.files.begin(), part.files.end());
  std::map<std::string_view, std::size_t> position;
  for (std::size_t i = 0; i < index.tensors.size(); ++i) position.emplace(index.tensors[i].name, i);
  std::vector<IndexedTensor> added;
  for (const IndexedTensor& t : part.tensors) {
    const auto at = position.find(t.name);
    IndexedTensor* into = nullptr;
    if (at == position.end()) {
      added.push_back(t);
      added.back().pieces.clear();
      into = &added.back();
    } else {
      into = &index.tensors[at->second];
      TESSERA_CHECK(
          into->type == t.type && into->num_dims == t.num_dims && into->global == t.global,
          fmt::format("a process gives \"{}\" another dtype or global shape than others do", t.name));
    }
    for (IndexedPiece piece : t.pieces) {
      piece.file += first;
      into->pieces.push_back(piece);
    }
  }
  index.tensors.insert(index.tensors.end(), added.begin(), added.end());
}

std::string await_note(const std::filesystem::path& path, const Parts& parts) {
  const std::int64_t start = wall_ns();
  while (!std::filesystem::exists(path)) {
    if (static_cast<double>(wall_ns() - start) * 1e-9 > parts.timeout_seconds)
      throw Error(ErrorKind::comm,
                  fmt::format("a process wrote no part of the checkpoint within {} s", parts.timeout_seconds),
                  path.string(),
                  "all processes must see the same checkpoint folder: use a shared file system");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return read_text(path);
}

}  // namespace

void write_step_part(const std::filesystem::path& folder, const Meta& meta, std::int32_t world_size,
                     std::span<const RankPieces> ranks, const Parts& parts) {
  Index index{.meta = meta, .world_size = world_size, .tensors = gather(ranks)};
  const std::filesystem::path path = folder / step_folder_name(meta.step);
  std::filesystem::path aside = path;
  aside += fmt::format("{}{}", kAside, parts.owner);
  std::error_code exists;
  std::filesystem::create_directory(aside, exists);
  for (const RankPieces& rank : ranks)
    if (!rank.pieces.empty()) index.files.push_back(write_rank_file(aside, meta, rank));
  if (parts.part != 0) return write_atomically(note_of(aside, parts.part), index_text(index));
  OutputFolder step(path, OutputFolder::Shared{parts.owner});
  for (std::int32_t p = 1; p < parts.count; ++p) {
    const std::filesystem::path note = note_of(aside, p);
    const Index part = parse_index(await_note(note, parts), note.string(), IndexOf::part);
    TESSERA_CHECK(part.meta == meta, "all processes describe a step alike");
    merge(index, part);
  }
  check_whole(index.tensors);
  for (std::int32_t p = 1; p < parts.count; ++p) std::filesystem::remove(note_of(aside, p));
  OutputFile file(aside / kIndexFile);
  file.write(index_text(index));
  file.finish();
  step.commit();
}

}  // namespace tessera::ckpt
