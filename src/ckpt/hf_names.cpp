#include "ckpt/hf_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <span>
#include <utility>

#include "base/error.h"

namespace tessera::ckpt {

namespace {

using layout::ParamSpec;

// same: as the engine has it. turned: [in, out * parts], part `part` of its columns; interleaved: part `part`
// is every parts-th column. Turned and interleaved tensors of experts have the expert as first dim. A bias is
// such a tensor without the dim `in`.
enum class Form : std::uint8_t { same, turned, interleaved };

struct Rule {
  std::string_view engine;  // after "model.layers.L." (of an expert: "mlp.experts.E."), else whole
  std::string_view file;    // after the family's prefix of a layer, else whole
  Form form = Form::same;
  std::int32_t part = 0;
  std::int32_t parts = 1;
};

constexpr Rule kGpt2[] = {
    {"model.embed_tokens.weight", "wte.weight"},
    {"model.embed_positions.weight", "wpe.weight"},
    {"model.norm.weight", "ln_f.weight"},
    {"model.norm.bias", "ln_f.bias"},
    {"lm_head.weight", "lm_head.weight"},
    {"input_layernorm.weight", "ln_1.weight"},
    {"input_layernorm.bias", "ln_1.bias"},
    {"self_attn.q_proj.weight", "attn.c_attn.weight", Form::turned, 0, 3},
    {"self_attn.k_proj.weight", "attn.c_attn.weight", Form::turned, 1, 3},
    {"self_attn.v_proj.weight", "attn.c_attn.weight", Form::turned, 2, 3},
    {"self_attn.q_proj.bias", "attn.c_attn.bias", Form::turned, 0, 3},
    {"self_attn.k_proj.bias", "attn.c_attn.bias", Form::turned, 1, 3},
    {"self_attn.v_proj.bias", "attn.c_attn.bias", Form::turned, 2, 3},
    {"self_attn.o_proj.weight", "attn.c_proj.weight", Form::turned},
    {"self_attn.o_proj.bias", "attn.c_proj.bias"},
    {"post_attention_layernorm.weight", "ln_2.weight"},
    {"post_attention_layernorm.bias", "ln_2.bias"},
    {"mlp.up_proj.weight", "mlp.c_fc.weight", Form::turned},
    {"mlp.up_proj.bias", "mlp.c_fc.bias"},
    {"mlp.down_proj.weight", "mlp.c_proj.weight", Form::turned},
    {"mlp.down_proj.bias", "mlp.c_proj.bias"},
};

// Of experts; everything else has the engine's name.
constexpr Rule kGptOssExpert[] = {
    {"gate_proj.weight", "mlp.experts.gate_up_proj", Form::interleaved, 0, 2},
    {"up_proj.weight", "mlp.experts.gate_up_proj", Form::interleaved, 1, 2},
    {"gate_proj.bias", "mlp.experts.gate_up_proj_bias", Form::interleaved, 0, 2},
    {"up_proj.bias", "mlp.experts.gate_up_proj_bias", Form::interleaved, 1, 2},
    {"down_proj.weight", "mlp.experts.down_proj", Form::turned},
    {"down_proj.bias", "mlp.experts.down_proj_bias", Form::turned},
};

// "model.layers.3.mlp.up_proj.weight": layer 3 and "mlp.up_proj.weight"; "lm_head.weight": itself.
std::string_view in_layer(const ParamSpec& p) {
  std::string_view name = p.name;
  if (p.layer >= 0) name.remove_prefix(fmt::formatted_size("model.layers.{}.", p.layer));
  if (p.expert >= 0) name.remove_prefix(name.find('.', name.find("experts.") + 8) + 1);
  return name;
}

const Rule& rule_of(std::span<const Rule> rules, std::string_view engine) {
  const auto at = std::ranges::find_if(rules, [&](const Rule& r) { return r.engine == engine; });
  TESSERA_CHECK(at != rules.end(), fmt::format("no rule for \"{}\" in the files of its family", engine));
  return *at;
}

HfTensor same(const ParamSpec& p, std::string name) {
  return {.name = std::move(name),
          .shape = {p.global.begin(), p.global.begin() + p.num_dims},
          .parts = {{.param = p, .view = {.offset = 0, .stride = {p.global[1], 1}}}}};
}

// The file's tensor of one parameter, with that part alone. experts: 0 when the tensor has no such dim.
HfTensor placed(const ParamSpec& p, const Rule& rule, std::string name, std::int64_t experts) {
  if (rule.form == Form::same) return same(p, std::move(name));
  const std::int64_t out = p.global[0];
  const std::int64_t in = p.num_dims == 2 ? p.global[1] : 1;
  const std::int64_t columns = out * rule.parts;
  const bool interleaved = rule.form == Form::interleaved;
  HfTensor t{.name = std::move(name)};
  if (experts > 0) t.shape.push_back(experts);
  if (p.num_dims == 2) t.shape.push_back(in);
  t.shape.push_back(columns);
  const std::int64_t first = interleaved ? rule.part : rule.part * out;
  t.parts.push_back({.param = p,
                     .view = {.offset = std::max(p.expert, 0) * in * columns + first,
                              .stride = {interleaved ? rule.parts : 1, columns}}});
  return t;
}

HfTensor tensor_of(const spec::ModelSpec& model, const ParamSpec& p) {
  if (model.family == spec::Family::gpt2) {
    const Rule& rule = rule_of(kGpt2, in_layer(p));
    return placed(p, rule, p.layer < 0 ? std::string(rule.file) : fmt::format("h.{}.{}", p.layer, rule.file),
                  0);
  }
  if (model.family == spec::Family::gpt_oss && p.expert >= 0) {
    const Rule& rule = rule_of(kGptOssExpert, in_layer(p));
    return placed(p, rule, fmt::format("model.layers.{}.{}", p.layer, rule.file), model.moe->num_experts);
  }
  return same(p, p.name);
}

// The number after `prefix` and before the next '.', and what follows; -1 when there is none.
std::pair<std::int64_t, std::string_view> numbered(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return {-1, {}};
  name.remove_prefix(prefix.size());
  std::int64_t number = -1;
  const auto [end, code] = std::from_chars(name.data(), name.data() + name.size(), number);
  const auto digits = static_cast<std::size_t>(end - name.data());
  if (code != std::errc{} || number < 0 || digits == name.size() || name[digits] != '.') return {-1, {}};
  return {number, name.substr(digits + 1)};
}

}  // namespace

std::int64_t HfTensor::num_elements() const {
  std::int64_t n = 1;
  for (const std::int64_t dim : shape) n *= dim;
  return n;
}

std::vector<ParamSpec> model_parameters(const spec::ModelSpec& model) {
  spec::require_trainable(model, "config.json");  // the layout knows the parameters of these models only
  const layout::Layout alone = layout::make_layout(model, spec::ParallelSpec{}, layout::Placement::loop);
  std::vector<ParamSpec> params = layout::parameters(model, alone, Rank(0));
  std::erase_if(params, [](const ParamSpec& p) { return p.tied_copy; });
  return params;
}

std::vector<HfTensor> hf_tensors(const spec::ModelSpec& model) {
  std::vector<HfTensor> tensors;
  std::map<std::string, std::size_t, std::less<>> position;
  for (const ParamSpec& p : model_parameters(model)) {
    HfTensor t = tensor_of(model, p);
    const auto [at, added] = position.emplace(t.name, tensors.size());
    if (added) {
      tensors.push_back(std::move(t));
    } else {
      tensors[at->second].parts.push_back(std::move(t.parts.front()));
    }
  }
  return tensors;
}

std::string_view without_prefix(spec::Family family, std::string_view name) {
  constexpr std::string_view kPrefix = "transformer.";
  if (family == spec::Family::gpt2 && name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  return name;
}

bool is_computed(spec::Family family, std::string_view name) {
  if (family != spec::Family::gpt2) return name.ends_with(".rotary_emb.inv_freq");
  const auto [layer, rest] = numbered(without_prefix(family, name), "h.");
  return layer >= 0 && (rest == "attn.bias" || rest == "attn.masked_bias");
}

bool is_mtp(const spec::ModelSpec& model, std::string_view name) {
  const auto [layer, rest] = numbered(name, "model.layers.");
  return layer >= model.num_hidden_layers &&
         layer < std::int64_t{model.num_hidden_layers} + model.num_nextn_predict_layers;
}

std::string_view mtp_copy_of(const spec::ModelSpec& model, std::string_view name) {
  if (!is_mtp(model, name)) return {};
  if (name.ends_with(".shared_head.head.weight")) return "lm_head.weight";
  if (name.ends_with(".embed_tokens.weight")) return "model.embed_tokens.weight";
  return {};
}

void gather(const HfView& view, StoredType type, const std::byte* from, const layout::Slice& wanted,
            const Tensor& to) {
  auto* out = static_cast<std::byte*>(to.raw());
  const std::int64_t element = size_of(type);
  const std::int64_t out_element = tensor::size_of(to.dtype());
  const std::int64_t columns = wanted.size[1];
  constexpr std::int64_t kChunk = 512;
  std::array<std::byte, kChunk * 8> chunk;
  for (std::int64_t r = 0; r < wanted.size[0]; ++r) {
    const std::byte* row = from + element * (view.offset + (wanted.begin[0] + r) * view.stride[0] +
                                             wanted.begin[1] * view.stride[1]);
    if (view.stride[1] == 1 || columns == 1) {
      convert(type, row, to.dtype(), out, columns);
      out += columns * out_element;
      continue;
    }
    for (std::int64_t begin = 0; begin < columns; begin += kChunk) {
      const std::int64_t n = std::min(kChunk, columns - begin);
      for (std::int64_t c = 0; c < n; ++c) {
        std::memcpy(chunk.data() + c * element, row + element * (begin + c) * view.stride[1],
                    static_cast<std::size_t>(element));
      }
      convert(type, chunk.data(), to.dtype(), out, n);
      out += n * out_element;
    }
  }
}

void scatter(const HfView& view, std::array<std::int64_t, 2> shape, const float* from, float* to) {
  for (std::int64_t r = 0; r < shape[0]; ++r) {
    float* row = to + view.offset + r * view.stride[0];
    for (std::int64_t c = 0; c < shape[1]; ++c) row[c * view.stride[1]] = *from++;
  }
}

}  // namespace tessera::ckpt
