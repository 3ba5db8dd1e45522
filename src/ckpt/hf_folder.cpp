// Hugging Face folders: reading, checking against the model, writing, importing.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/text.h"
#include "ckpt/checkpoint.h"
#include "ckpt/hf_names.h"
#include "ckpt/json.h"
#include "ckpt/mxfp4.h"
#include "ckpt/rectangle.h"
#include "ckpt/safetensors.h"
#include "ckpt/step_folder.h"
#include "spec/config_text.h"
#include "spec/model.h"
#include "tensor/arena.h"

namespace tessera::ckpt {

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kConfigFile = "config.json";
constexpr const char* kOther = "use the config.json that belongs to these weights";
constexpr const char* kMend = "download the folder again, or save it again with save_pretrained";

// A model of more tensors than this is a broken config.json.
constexpr std::int64_t kMaxTensors = 20'000'000;

// The safetensors files of a folder and the tensors in them.
class HfFiles {
 public:
  struct Entry {
    const StoredTensor* tensor = nullptr;
    std::filesystem::path file;
  };

  // All faults of the index and its shards at once: Error{io}.
  explicit HfFiles(const std::filesystem::path& folder) : folder_(folder) {
    Problems problems;
    if (std::filesystem::exists(folder / kSingleFile)) {
      open(folder / kSingleFile, problems);
    } else if (std::filesystem::exists(folder / kIndexFile)) {
      open_shards(problems);
    } else {
      refuse_without_safetensors(problems);
    }
    problems.throw_if_any(ErrorKind::io);
    for (std::size_t i = 0; i < files_.size(); ++i) {
      for (const StoredTensor& t : files_[i]->tensors())
        entries_.emplace(t.name, Entry{.tensor = &t, .file = files_[i]->path()});
    }
  }

  [[nodiscard]] const std::filesystem::path& folder() const { return folder_; }
  [[nodiscard]] const std::map<std::string, Entry>& entries() const { return entries_; }

 private:
  using Placed = std::map<std::string, std::set<std::string>>;  // file -> tensors that the index puts there

  void refuse_without_safetensors(Problems& problems) const {
    const bool pickle = std::filesystem::exists(folder_ / "pytorch_model.bin") ||
                        std::filesystem::exists(folder_ / "pytorch_model.bin.index.json");
    problems.add(pickle ? "the weights are a pickle (pytorch_model.bin), which can run code when it is "
                          "loaded: it is never read"
                        : fmt::format("neither {} nor {} is there", kSingleFile, kIndexFile),
                 folder_.string(),
                 "give a folder with safetensors weights; save_pretrained makes one from older formats");
  }

  void open_shards(Problems& problems) {
    const std::filesystem::path path = folder_ / kIndexFile;
    const Origin origin{.where = path.string(), .mend = kMend};
    const Json root = parse_json(read_text(path), origin);
    require_map(root, "the index", origin);
    const Json& map = member(root, "weight_map", origin);
    require_map(map, "weight_map", origin);
    Placed placed;
    for (std::size_t i = 0; i < map.keys.size(); ++i)
      placed[string_of(map.items[i], fmt::format("the file of \"{}\"", map.keys[i]), origin)].insert(
          map.keys[i]);
    for (const auto& [file, tensors] : placed) {
      if (file.find('/') != std::string::npos || !file.ends_with(".safetensors")) {
        problems.add(fmt::format("shard name \"{}\" is not a safetensors file of the folder", file),
                     path.string(), kMend);
      } else if (!std::filesystem::exists(folder_ / file)) {
        problems.add(fmt::format("shard \"{}\" with {} tensors is missing", file, tensors.size()),
                     path.string(), "download that file too");
      } else if (open(folder_ / file, problems)) {
        compare(*files_.back(), tensors, problems);
      }
    }
  }

  bool open(const std::filesystem::path& path, Problems& problems) {
    try {
      files_.push_back(std::make_unique<SafetensorsFile>(path));
      return true;
    } catch (const Error& e) {
      for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
      return false;
    }
  }

  // With the tensors that the index expects there.
  static void compare(const SafetensorsFile& file, const std::set<std::string>& listed, Problems& problems) {
    for (const std::string& tensor : listed) {
      if (file.find(tensor) == nullptr)
        problems.add(fmt::format("tensor \"{}\" is not in this file, as the index says", tensor),
                     file.path().string(), kMend);
    }
    for (const StoredTensor& tensor : file.tensors()) {
      if (!listed.contains(tensor.name))
        problems.add(fmt::format("tensor \"{}\" is not listed for this file in the index", tensor.name),
                     file.path().string(), kMend);
    }
  }

  std::filesystem::path folder_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;  // stable: entries point into them
  std::map<std::string, Entry> entries_;
};

constexpr std::string_view kTable = "model.embed_tokens.weight";

spec::ModelSpec without_mtp(spec::ModelSpec model) {
  model.num_nextn_predict_layers = 0;
  return model;
}

bool is_float(StoredType type) {
  return type == StoredType::f64 || type == StoredType::f32 || type == StoredType::bf16 ||
         type == StoredType::f16;
}

// An engine tensor in a mapped file.
struct BoundTensor {
  std::int32_t num_dims = 2;
  std::array<std::int64_t, 2> global{1, 1};
  HfView view;
  StoredType type = StoredType::f32;
  const std::byte* data = nullptr;
  Mxfp4Matrix mxfp4;  // with blocks: read from there
};

// Compares a folder's tensors with those of the model, and binds the engine's names to them.
class Binder {
 public:
  Binder(const HfFiles& files, const spec::ModelSpec& model, const HfOptions& options)
      : files_(files), model_(model), options_(options) {}

  [[nodiscard]] std::map<std::string, BoundTensor> bind() {
    check_size();
    sort_entries();
    std::map<std::string, BoundTensor> bound;
    std::set<std::string, std::less<>> expected;
    for (const HfTensor& t : hf_tensors(options_.mtp == MtpLayers::keep ? model_ : without_mtp(model_))) {
      if (is_packed(t)) {
        expected.insert({t.name + kBlocks, t.name + kScales});
        bind_packed(t, bound);
        continue;
      }
      expected.insert(t.name);
      if (const HfFiles::Entry* entry = found(t); entry != nullptr) bind_parts(t, *entry->tensor, bound);
    }
    refuse_extra(expected);
    refuse_mtp();
    check_copies();
    problems_.throw_if_any();
    return bound;
  }

 private:
  static constexpr const char* kBlocks = "_blocks";
  static constexpr const char* kScales = "_scales";

  void check_size() const {
    const std::int64_t experts = model_.moe ? model_.moe->num_experts : 0;
    if (std::int64_t{model_.num_hidden_layers} * (20 + 6 * experts) <= kMaxTensors) return;
    throw Error(ErrorKind::config,
                fmt::format("a model of {} layers and {} experts in each has more than {} tensors",
                            model_.num_hidden_layers, experts, kMaxTensors),
                where(), "give the config.json that belongs to these weights");
  }

  // Entries by their names on the Hub; what models compute themselves and MTP layers apart.
  void sort_entries() {
    for (const auto& [name, entry] : files_.entries()) {
      if (is_computed(model_.family, name)) continue;
      if (is_mtp(model_, name) && options_.mtp != MtpLayers::keep) {
        mtp_.push_back(name);
      } else if (const std::string_view of = mtp_copy_of(model_, name); !of.empty()) {
        copies_.emplace_back(&entry, of);
      } else if (!present_.emplace(without_prefix(model_.family, name), &entry).second) {
        problems_.add(fmt::format("tensor \"{}\" is there with and without its prefix", name),
                      entry.file.string(), "remove one of the two");
      }
    }
    if (options_.unused != nullptr) *options_.unused = mtp_;
  }

  // Null after a problem.
  const HfFiles::Entry* found(const HfTensor& t) {
    const auto at = present_.find(t.name);
    if (at == present_.end()) {
      problems_.add(fmt::format("tensor \"{}\" of shape [{}] is missing", t.name, fmt::join(t.shape, ", ")),
                    where(), kOther);
      return nullptr;
    }
    const StoredTensor& stored = *at->second->tensor;
    if (stored.shape != t.shape) {
      problems_.add(fmt::format("tensor \"{}\" has shape [{}], config.json gives [{}]", t.name,
                                fmt::join(stored.shape, ", "), fmt::join(t.shape, ", ")),
                    where(), kOther);
    } else if (!is_float(stored.type)) {
      problems_.add(fmt::format("tensor \"{}\" has dtype {}", t.name, name(stored.type)),
                    at->second->file.string(),
                    "use weights in F32, BF16, F16 or F64; quantised models are not read");
    } else {
      return at->second;
    }
    return nullptr;
  }

  // Experts of gpt_oss as published: [E, in, out] in the table, [E, out, in] in 4 bits in the file.
  [[nodiscard]] bool is_packed(const HfTensor& t) const {
    return model_.family == spec::Family::gpt_oss && t.shape.size() == 3 && !present_.contains(t.name) &&
           (present_.contains(t.name + kBlocks) || present_.contains(t.name + kScales));
  }

  void bind_packed(const HfTensor& t, std::map<std::string, BoundTensor>& bound) {
    const std::int64_t experts = t.shape[0];
    const std::int64_t in = t.shape[1];
    const std::int64_t out = t.shape[2];
    const std::int64_t groups = in / kMxfp4Group;
    const StoredTensor* blocks = packed_part(t.name + kBlocks, {experts, out, groups, kMxfp4GroupBytes});
    const StoredTensor* scales = packed_part(t.name + kScales, {experts, out, groups});
    if (in % kMxfp4Group != 0) {
      problems_.add(
          fmt::format("tensor \"{}\" has MXFP4 blocks, and {} is no multiple of {}", t.name, in, kMxfp4Group),
          where(), kOther);
    } else if (blocks != nullptr && scales != nullptr) {
      for (const HfPart& part : t.parts) {
        const std::int64_t before = std::int64_t{part.param.expert} * in * out;
        BoundTensor b{.num_dims = 2, .global = part.param.global};
        b.mxfp4 = {.blocks = blocks->bytes.data(),
                   .scales = scales->bytes.data(),
                   .in = in,
                   .first = std::int64_t{part.param.expert} * out + part.view.offset - before,
                   .step = part.view.stride[0]};
        bound.emplace(part.param.name, b);
      }
    }
  }

  // Null after a problem.
  const StoredTensor* packed_part(const std::string& name, const std::vector<std::int64_t>& shape) {
    const auto at = present_.find(name);
    if (at == present_.end()) {
      problems_.add(fmt::format("tensor \"{}\" of shape [{}] is missing", name, fmt::join(shape, ", ")),
                    where(), kOther);
      return nullptr;
    }
    const StoredTensor& t = *at->second->tensor;
    if (t.type == StoredType::u8 && t.shape == shape) return &t;
    problems_.add(fmt::format("tensor \"{}\" has shape [{}] and dtype {}, config.json gives [{}] and U8",
                              name, fmt::join(t.shape, ", "), ckpt::name(t.type), fmt::join(shape, ", ")),
                  where(), kOther);
    return nullptr;
  }

  static void bind_parts(const HfTensor& t, const StoredTensor& stored,
                         std::map<std::string, BoundTensor>& bound) {
    for (const HfPart& part : t.parts) {
      bound.emplace(part.param.name, BoundTensor{.num_dims = part.param.num_dims,
                                                 .global = part.param.global,
                                                 .view = part.view,
                                                 .type = stored.type,
                                                 .data = stored.bytes.data()});
    }
  }

  void refuse_extra(const std::set<std::string, std::less<>>& expected) {
    const std::vector<std::string> known(expected.begin(), expected.end());
    for (const auto& [extra, entry] : present_) {
      if (expected.contains(extra)) continue;
      std::string mend = "remove it, or use the config.json that belongs to these weights";
      if (extra == "lm_head.weight" && model_.tie_word_embeddings) {
        mend = "tie_word_embeddings is true: set it to false, or remove the tensor";
      } else if (const std::string near = nearest(extra, known); !near.empty() && !present_.contains(near)) {
        mend = fmt::format("rename it to \"{}\", if that is what it is", near);
      }
      problems_.add(fmt::format("tensor \"{}\" is none of this model's", extra), where(), std::move(mend));
    }
  }

  // The files of MTP layers repeat the embedding and the head.
  void check_copies() {
    for (const auto& [copy, of] : copies_) {
      const bool head = of != kTable && !model_.tie_word_embeddings;
      const auto at = present_.find(head ? of : kTable);
      if (at == present_.end()) continue;  // reported as missing
      const StoredTensor& a = *copy->tensor;
      const StoredTensor& b = *at->second->tensor;
      if (a.type == b.type && a.shape == b.shape && std::ranges::equal(a.bytes, b.bytes)) continue;
      problems_.add(fmt::format("tensor \"{}\" differs from \"{}\", which MTP layers share", a.name, b.name),
                    copy->file.string(), "make both equal, or ask for the MTP layers to be left out");
    }
  }

  void refuse_mtp() {
    if (mtp_.empty() || options_.mtp == MtpLayers::leave_out) return;
    problems_.add(
        fmt::format("{} tensors of MTP layers are not used (num_nextn_predict_layers={}): the first "
                    "is \"{}\"",
                    mtp_.size(), model_.num_nextn_predict_layers, mtp_.front()),
        where(), "ask for them to be left out, as tessera convert does, or remove them");
  }

  [[nodiscard]] std::string where() const {
    return fmt::format("weights in {} against config.json ({})", files_.folder().string(),
                       spec::name(model_.family));
  }

  const HfFiles& files_;
  const spec::ModelSpec& model_;
  const HfOptions& options_;
  std::map<std::string, const HfFiles::Entry*, std::less<>> present_;
  std::vector<std::string> mtp_;
  std::vector<std::pair<const HfFiles::Entry*, std::string_view>> copies_;  // and what they must equal
  Problems problems_;
};

class HfFolder final : public WeightSource {
 public:
  HfFolder(const std::filesystem::path& folder, const spec::ModelSpec& model, const HfOptions& options)
      : files_(folder), bound_(Binder(files_, model, options).bind()) {}

  void read(const Piece& piece) const override {
    const BoundTensor& t = at(piece.name);
    if (t.num_dims != piece.num_dims || t.global != piece.global) {
      throw Error(ErrorKind::io,
                  fmt::format("tensor \"{}\" has shape [{}], [{}] is wanted", piece.name,
                              fmt::join(t.global.begin(), t.global.begin() + t.num_dims, ", "),
                              fmt::join(piece.global.begin(), piece.global.begin() + piece.num_dims, ", ")),
                  files_.folder().string(), "use the config.json that belongs to these weights");
    }
    TESSERA_CHECK_EQ(piece.data.num_elements(), area(piece.slice), piece.name);
    const std::optional<Slice> inside = intersection(piece.slice, {.begin = {0, 0}, .size = t.global});
    TESSERA_CHECK(inside && *inside == piece.slice,
                  fmt::format("{} is part of tensor \"{}\"", text(piece.slice), piece.name));
    if (t.mxfp4.blocks != nullptr) return gather(t.mxfp4, piece.slice, piece.data);
    gather(t.view, t.type, t.data, piece.slice, piece.data);
  }
  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> list;
    for (const auto& [name, tensor] : bound_) list.push_back(name);
    return list;
  }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override {
    const BoundTensor& t = at(name);
    return {t.global.begin(), t.global.begin() + t.num_dims};
  }

 private:
  [[nodiscard]] const BoundTensor& at(const std::string& name) const {
    const auto found = bound_.find(name);
    if (found != bound_.end()) return found->second;
    throw Error(ErrorKind::io, fmt::format("no tensor \"{}\" among {}", name, bound_.size()),
                files_.folder().string(),
                name.starts_with("optimizer.")
                    ? "start with a fresh optimizer state: imported weights have none"
                    : "use the config.json that belongs to these weights");
  }
  HfFiles files_;
  std::map<std::string, BoundTensor> bound_;
};

std::vector<std::int64_t> shape_of(const layout::ParamSpec& param) {
  return {param.global.begin(), param.global.begin() + param.num_dims};
}

Piece whole_piece(const layout::ParamSpec& param, std::byte* data) {
  Piece piece{.name = param.name, .num_dims = param.num_dims, .global = param.global};
  piece.slice.size = param.global;
  piece.data = Tensor(data, tensor::DType::f32, {param.global[0], param.global[1]});
  return piece;
}

}  // namespace

std::unique_ptr<WeightSource> open_hf_folder(const std::filesystem::path& folder,
                                             const spec::ModelSpec& model, const HfOptions& options) {
  return std::make_unique<HfFolder>(folder, model, options);
}

std::unique_ptr<WeightSource> open_hf_folder(const std::filesystem::path& folder) {
  return open_hf_folder(folder, spec::read_hf_config(folder));
}

void check_weights(const WeightSource& source, const spec::ModelSpec& model) {
  Problems problems;
  const std::string where = fmt::format("weights against config.json ({})", spec::name(model.family));
  const std::vector<std::string> names = source.names();
  const std::set<std::string> present(names.begin(), names.end());
  std::set<std::string> expected;
  for (const layout::ParamSpec& param : model_parameters(model)) {
    expected.insert(param.name);
    if (!present.contains(param.name)) {
      problems.add(
          fmt::format("tensor \"{}\" of shape [{}] is missing", param.name, fmt::join(shape_of(param), ", ")),
          where, kOther);
    } else if (const std::vector<std::int64_t> shape = source.shape(param.name); shape != shape_of(param)) {
      problems.add(fmt::format("tensor \"{}\" has shape [{}], config.json gives [{}]", param.name,
                               fmt::join(shape, ", "), fmt::join(shape_of(param), ", ")),
                   where, kOther);
    }
  }
  for (const std::string& extra : names) {
    if (expected.contains(extra) || extra.starts_with("optimizer.") || extra.starts_with("moe.") ||
        extra.starts_with("run."))
      continue;
    problems.add(fmt::format("tensor \"{}\" is none of this model's", extra), where, kOther);
  }
  problems.throw_if_any();
}

namespace {
// Other programs would leave the bias out and choose other experts, silently.
void refuse_own_bias(const spec::ModelSpec& model, const std::filesystem::path& folder) {
  if (!model.moe || !model.moe->score_correction_bias || model.family == spec::Family::deepseek_v3) return;
  throw Error(
      ErrorKind::config,
      fmt::format("the model chooses experts with a correction bias, which {} does not have at Hugging Face",
                  spec::name(model.family)),
      folder.string(), "keep Tessera's checkpoint, or train with moe.balancing: loss");
}
}  // namespace

void write_hf_folder(const std::filesystem::path& folder, const spec::ModelSpec& model,
                     const WeightSource& source, std::string_view config) {
  refuse_own_bias(model, folder);
  check_weights(source, model);
  const std::vector<HfTensor> tensors = hf_tensors(model);
  std::vector<StoredTensor> entries;
  std::int64_t largest = 0;
  std::int64_t largest_part = 0;
  for (const HfTensor& t : tensors) {
    entries.push_back({.name = t.name, .type = StoredType::f32, .shape = t.shape});
    largest = std::max(largest, t.num_elements() * size_of(StoredType::f32));
    for (const HfPart& p : t.parts)
      largest_part = std::max(largest_part, p.param.num_elements() * size_of(StoredType::f32));
  }
  OutputFolder aside(folder, OutputFolder::IfPresent::refuse);
  OutputFile config_file(aside.aside() / kConfigFile);
  config_file.write(spec::to_hf_config(model, config));
  config_file.finish();
  OutputFile weights(aside.aside() / kSingleFile);
  weights.write(safetensors_header(entries, {{"format", "pt"}}));  // without it transformers refuses the file
  const tensor::Buffer whole{Bytes(largest)};
  const tensor::Buffer part{Bytes(largest_part)};
  for (const HfTensor& t : tensors) {
    for (const HfPart& p : t.parts) {
      const Piece piece = whole_piece(p.param, part.data());
      source.read(piece);
      scatter(p.view, p.param.global, piece.data.as<float>(), reinterpret_cast<float*>(whole.data()));
    }
    weights.write(std::span<const std::byte>(
        whole.data(), static_cast<std::size_t>(t.num_elements() * size_of(StoredType::f32))));
  }
  weights.finish();
  aside.commit();
}

void import_hf_folder(const std::filesystem::path& hf_folder, const std::filesystem::path& checkpoint_folder,
                      const HfOptions& options) {
  const std::filesystem::path config = hf_folder / kConfigFile;
  spec::ModelSpec model = spec::require_trainable(spec::read_hf_config(config), config.string());
  std::vector<std::string> unused;
  const HfOptions noting{.mtp = options.mtp, .unused = &unused};
  const std::unique_ptr<WeightSource> source = open_hf_folder(hf_folder, model, noting);
  if (options.unused != nullptr) *options.unused = unused;
  const bool leaves_out = options.mtp != MtpLayers::keep && model.num_nextn_predict_layers > 0;
  if (leaves_out) model = without_mtp(model);
  const std::vector<layout::ParamSpec> params = model_parameters(model);
  std::int64_t bytes = 0;
  for (const layout::ParamSpec& param : params) bytes += param.num_elements() * size_of(StoredType::f32);
  const tensor::Buffer buffer{Bytes(bytes)};
  RankPieces rank{.rank = Rank(0)};
  std::byte* at = buffer.data();
  for (const layout::ParamSpec& param : params) {
    const Piece piece = whole_piece(param, at);
    source->read(piece);
    rank.pieces.push_back({.name = param.name,
                           .num_dims = param.num_dims,
                           .global = param.global,
                           .slice = piece.slice,
                           .type = StoredType::f32,
                           .data = at});
    at += piece.data.bytes().value;
  }
  std::error_code code;
  std::filesystem::create_directories(checkpoint_folder, code);
  if (code) {
    throw Error(ErrorKind::io, fmt::format("cannot create the checkpoint folder: {}", code.message()),
                checkpoint_folder.string(), "give a folder that can be written");
  }
  remove_leftovers(checkpoint_folder);
  Meta meta{.hf_config = read_text(config)};
  // The checkpoint is of the model without them.
  if (leaves_out) meta.hf_config = spec::to_hf_config(model, meta.hf_config);
  write_step_folder(checkpoint_folder, meta, 1, std::span<const RankPieces>(&rank, 1));
}

}  // namespace tessera::ckpt
