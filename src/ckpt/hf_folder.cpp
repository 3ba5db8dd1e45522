// Hugging Face folders: reading, checking against the model, writing, importing.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/text.h"
#include "ckpt/checkpoint.h"
#include "ckpt/json.h"
#include "ckpt/rectangle.h"
#include "ckpt/safetensors.h"
#include "ckpt/step_folder.h"
#include "ckpt/weight_table.h"
#include "spec/model.h"
#include "tensor/arena.h"

namespace tessera::ckpt {

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr const char* kConfigFile = "config.json";
constexpr const char* kMend = "download the folder again, or save it again with save_pretrained";

// Buffers that old checkpoints contain and that models compute themselves.
bool is_computed(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq");
}

class HfFolder final : public WeightSource {
 public:
  explicit HfFolder(const std::filesystem::path& folder) : folder_(folder) {
    table_.set_where(folder.string());
    Problems problems;
    if (std::filesystem::exists(folder / kSingleFile)) {
      add_file(folder / kSingleFile, nullptr, problems);
    } else if (std::filesystem::exists(folder / kIndexFile)) {
      add_shards(problems);
    } else {
      problems.add(fmt::format("neither {} nor {} is there", kSingleFile, kIndexFile), folder.string(),
                   "give a folder with safetensors weights; save_pretrained makes one from older formats");
    }
    problems.throw_if_any(ErrorKind::io);
  }

  void read(const Piece& piece) const override { table_.read(piece); }
  [[nodiscard]] std::vector<std::string> names() const override { return table_.names(); }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override {
    const auto at = odd_shapes_.find(name);
    return at == odd_shapes_.end() ? table_.shape(name) : at->second;
  }

 private:
  using Placed = std::map<std::string, std::set<std::string>>;  // file -> tensors that the index puts there

  void add_shards(Problems& problems) {
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
      } else {
        add_file(folder_ / file, &tensors, problems);
      }
    }
  }

  // listed: the tensors that the index expects there; nullptr without an index.
  void add_file(const std::filesystem::path& path, const std::set<std::string>* listed, Problems& problems) {
    try {
      files_.emplace_back(path);
    } catch (const Error& e) {
      for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
      return;
    }
    const SafetensorsFile& file = files_.back();
    if (listed != nullptr) {
      for (const std::string& tensor : *listed) {
        if (file.find(tensor) == nullptr)
          problems.add(fmt::format("tensor \"{}\" is not in this file, as the index says", tensor),
                       path.string(), kMend);
      }
    }
    for (const StoredTensor& tensor : file.tensors()) {
      if (is_computed(tensor.name)) continue;
      if (listed != nullptr && !listed->contains(tensor.name)) {
        problems.add(fmt::format("tensor \"{}\" is not listed for this file in the index", tensor.name),
                     path.string(), kMend);
        continue;
      }
      add(tensor, path, problems);
    }
  }

  void add(const StoredTensor& tensor, const std::filesystem::path& path, Problems& problems) {
    if (tensor.type != StoredType::f64 && tensor.type != StoredType::f32 && tensor.type != StoredType::bf16 &&
        tensor.type != StoredType::f16) {
      problems.add(fmt::format("tensor \"{}\" has dtype {}", tensor.name, name(tensor.type)), path.string(),
                   "use weights in F32, BF16, F16 or F64; quantised models are not read");
      return;
    }
    StoredWeight weight{.type = tensor.type};
    weight.num_dims = tensor.shape.size() == 1 ? 1 : 2;
    const bool odd = tensor.shape.empty() || tensor.shape.size() > 2 || tensor.num_elements() == 0;
    if (odd) {
      odd_shapes_.emplace(tensor.name, tensor.shape);  // no tensor of a model: named by check_hf_folder
      weight.global = {0, 0};
    } else {
      std::copy(tensor.shape.begin(), tensor.shape.end(), weight.global.begin());
      weight.pieces.push_back(
          {.slice = {.begin = {0, 0}, .size = weight.global}, .data = tensor.bytes.data()});
    }
    table_.add(tensor.name, std::move(weight));
  }

  std::filesystem::path folder_;
  std::vector<SafetensorsFile> files_;
  WeightTable table_;
  std::map<std::string, std::vector<std::int64_t>> odd_shapes_;
};

// What the whole model consists of: the parameters of one rank alone.
std::vector<layout::ParamSpec> parameters_of(const spec::ModelSpec& model) {
  spec::require_trainable(model, "config.json");  // the layout knows the parameters of these models only
  const layout::Layout alone = layout::make_layout(model, spec::ParallelSpec{}, layout::Placement::loop);
  std::vector<layout::ParamSpec> params = layout::parameters(model, alone, Rank(0));
  std::erase_if(params, [](const layout::ParamSpec& p) { return p.tied_copy; });
  return params;
}

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

std::unique_ptr<WeightSource> open_hf_folder(const std::filesystem::path& folder) {
  return std::make_unique<HfFolder>(folder);
}

void check_hf_folder(const WeightSource& source, const spec::ModelSpec& model) {
  Problems problems;
  const std::string where = fmt::format("weights against config.json ({})", spec::name(model.family));
  const std::vector<std::string> names = source.names();
  const std::set<std::string> present(names.begin(), names.end());
  std::set<std::string> expected;
  for (const layout::ParamSpec& param : parameters_of(model)) {
    expected.insert(param.name);
    if (!present.contains(param.name)) {
      problems.add(
          fmt::format("tensor \"{}\" of shape [{}] is missing", param.name, fmt::join(shape_of(param), ", ")),
          where, "use the config.json that belongs to these weights");
    } else if (const std::vector<std::int64_t> shape = source.shape(param.name); shape != shape_of(param)) {
      problems.add(fmt::format("tensor \"{}\" has shape [{}], config.json gives [{}]", param.name,
                               fmt::join(shape, ", "), fmt::join(shape_of(param), ", ")),
                   where, "use the config.json that belongs to these weights");
    }
  }
  const std::vector<std::string> known(expected.begin(), expected.end());
  for (const std::string& extra : names) {
    if (expected.contains(extra) || extra.starts_with("optimizer.")) continue;
    std::string mend = "remove it, or use the config.json that belongs to these weights";
    if (extra == "lm_head.weight" && model.tie_word_embeddings) {
      mend = "tie_word_embeddings is true: set it to false, or remove the tensor";
    } else if (const std::string near = nearest(extra, known); !near.empty() && !present.contains(near)) {
      mend = fmt::format("rename it to \"{}\", if that is what it is", near);
    }
    problems.add(fmt::format("tensor \"{}\" is none of this model's", extra), where, std::move(mend));
  }
  problems.throw_if_any();
}

void write_hf_folder(const std::filesystem::path& folder, const spec::ModelSpec& model,
                     const WeightSource& source) {
  check_hf_folder(source, model);
  const std::vector<layout::ParamSpec> params = parameters_of(model);
  std::vector<StoredTensor> entries;
  std::int64_t largest = 0;
  for (const layout::ParamSpec& param : params) {
    entries.push_back({.name = param.name, .type = StoredType::f32, .shape = shape_of(param)});
    largest = std::max(largest, entries.back().num_elements() * size_of(StoredType::f32));
  }
  OutputFolder aside(folder, OutputFolder::IfPresent::refuse);
  OutputFile config(aside.aside() / kConfigFile);
  config.write(spec::to_hf_config(model));
  config.finish();
  OutputFile weights(aside.aside() / kSingleFile);
  weights.write(safetensors_header(entries, {{"format", "pt"}}));  // without it transformers refuses the file
  const tensor::Buffer buffer{Bytes(largest)};
  for (const layout::ParamSpec& param : params) {
    const Piece piece = whole_piece(param, buffer.data());
    source.read(piece);
    weights.write(
        std::span<const std::byte>(buffer.data(), static_cast<std::size_t>(piece.data.bytes().value)));
  }
  weights.finish();
  aside.commit();
}

void import_hf_folder(const std::filesystem::path& hf_folder,
                      const std::filesystem::path& checkpoint_folder) {
  const std::filesystem::path config = hf_folder / kConfigFile;
  const spec::ModelSpec model = spec::require_trainable(spec::read_hf_config(config), config.string());
  const std::unique_ptr<WeightSource> source = open_hf_folder(hf_folder);
  check_hf_folder(*source, model);
  const std::vector<layout::ParamSpec> params = parameters_of(model);
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
  const Meta meta{.hf_config = read_text(hf_folder / kConfigFile)};
  write_step_folder(checkpoint_folder, meta, 1, std::span<const RankPieces>(&rank, 1));
}

}  // namespace tessera::ckpt
