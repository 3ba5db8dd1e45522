// CheckpointReader and the search for the latest checkpoint.
#include <fmt/format.h>

#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "ckpt/checkpoint.h"
#include "ckpt/digest.h"
#include "ckpt/index.h"
#include "ckpt/json.h"
#include "ckpt/rectangle.h"
#include "ckpt/step_folder.h"
#include "ckpt/weight_table.h"

namespace tessera::ckpt {

namespace {

constexpr const char* kMend = "use an earlier checkpoint, or restore this folder from a copy";

// A rank file whose bytes are those that were written.
SafetensorsFile open_checked(const std::filesystem::path& folder, const IndexedFile& listed) {
  const std::filesystem::path path = folder / listed.name;
  const Origin origin{.where = path.string(), .mend = kMend};
  if (!std::filesystem::is_regular_file(path)) origin.refuse("the file is missing; the index lists it");
  MappedFile map(path);
  const auto bytes = static_cast<std::int64_t>(map.bytes().size());
  if (bytes != listed.bytes)
    origin.refuse(fmt::format("the file has {} bytes, {} were written", bytes, listed.bytes));
  if (const std::string digest = digest_of(map.bytes()); digest != listed.xxh3_128) {
    origin.refuse(
        fmt::format("the file has changed: its checksum is {}, {} was written", digest, listed.xxh3_128));
  }
  return {path, std::move(map)};
}

}  // namespace

struct CheckpointReader::State {
  std::filesystem::path folder;
  Meta meta;
  std::vector<SafetensorsFile> files;
  WeightTable table;
};

CheckpointReader::CheckpointReader(const std::filesystem::path& step_folder)
    : state_(std::make_unique<State>()) {
  const std::filesystem::path index_path = step_folder / kIndexFile;
  if (!std::filesystem::is_regular_file(index_path))
    Origin{.where = index_path.string(), .mend = kMend}.refuse("the file is missing: no whole checkpoint");
  const MappedFile map(index_path);
  const std::string_view text(reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size());
  Index index = parse_index(text, index_path.string());
  for (const IndexedFile& file : index.files) state_->files.push_back(open_checked(step_folder, file));
  for (const IndexedTensor& tensor : index.tensors) {
    StoredWeight weight{.num_dims = tensor.num_dims, .global = tensor.global, .type = tensor.type};
    for (const IndexedPiece& piece : tensor.pieces) {
      const SafetensorsFile& file = state_->files[static_cast<std::size_t>(piece.file)];
      const StoredTensor& entry = file.at(entry_name(tensor.name, tensor.num_dims, piece.slice));
      if (entry.type != tensor.type || entry.shape != entry_shape(tensor.num_dims, piece.slice)) {
        throw Error(ErrorKind::io,
                    fmt::format("entry \"{}\" has dtype {} and shape [{}], the index says otherwise",
                                entry.name, name(entry.type), fmt::join(entry.shape, ", ")),
                    file.path().string(), kMend);
      }
      weight.pieces.push_back({.slice = piece.slice, .data = entry.bytes.data()});
    }
    state_->table.add(tensor.name, std::move(weight));
  }
  state_->table.set_where(step_folder.string());
  state_->folder = step_folder;
  state_->meta = std::move(index.meta);
}

CheckpointReader::~CheckpointReader() = default;

const Meta& CheckpointReader::meta() const {
  return state_->meta;
}
const std::filesystem::path& CheckpointReader::folder() const {
  return state_->folder;
}
void CheckpointReader::read(const Piece& piece) const {
  state_->table.read(piece);
}
std::vector<std::string> CheckpointReader::names() const {
  return state_->table.names();
}
std::vector<std::int64_t> CheckpointReader::shape(const std::string& name) const {
  return state_->table.shape(name);
}

std::unique_ptr<CheckpointReader> open_latest_checkpoint(const std::filesystem::path& folder,
                                                         std::vector<std::string>* skipped) {
  for (const StepFolder& step : step_folders(folder)) {
    try {
      return std::make_unique<CheckpointReader>(step.path);
    } catch (const Error& e) {
      const Problem& p = e.problems().front();
      if (skipped != nullptr) skipped->push_back(fmt::format("{}: {}", p.where, p.what));
    }
  }
  return nullptr;
}

std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& folder,
                                                       std::vector<std::string>* skipped) {
  const std::unique_ptr<CheckpointReader> reader = open_latest_checkpoint(folder, skipped);
  if (reader == nullptr) return std::nullopt;
  return reader->folder();
}

}  // namespace tessera::ckpt
