#include "ckpt/upcycle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "ckpt/hf_names.h"

namespace tessera::ckpt {

using layout::ParamKind;
using layout::ParamSpec;

namespace {

void check_dense(const spec::ModelSpec& d, const UpcycleOptions& o, const std::string& where,
                 Problems& problems) {
  using spec::Family;
  const bool known = d.family == Family::llama || d.family == Family::mistral || d.family == Family::qwen2 ||
                     d.family == Family::qwen3;
  if (!known) {
    problems.add(fmt::format("a model of model_type={} cannot be upcycled", spec::name(d.family)), where,
                 "use a llama, mistral, qwen2 or qwen3 model");
  }
  const bool plain = d.family == Family::llama || d.family == Family::mistral;
  if (plain && (d.attention_qkv_bias || d.attention_out_bias || d.mlp_bias)) {
    problems.add("mixtral has no biases, and this model has (attention_bias or mlp_bias)", where,
                 "use a model without biases");
  }
  const bool windows = std::ranges::any_of(
      d.layer_spans, [](spec::AttentionSpan span) { return span != spec::AttentionSpan::full; });
  if (known && d.family != Family::mistral && windows) {
    problems.add(fmt::format("the mixture of {} has no sliding window, and this model has sliding_window={}",
                             spec::name(d.family), d.sliding_window),
                 where, "use a model with use_sliding_window: false");
  }
  constexpr std::int32_t kMost = 1 << 16;
  if (o.num_experts < 2 || o.num_experts > kMost) {
    problems.add(fmt::format("experts={} is not between 2 and {}", o.num_experts, kMost), "--upcycle",
                 "use for example experts=8");
  }
  if (o.top_k < 1 || o.top_k > o.num_experts) {
    problems.add(fmt::format("top_k={} is not between 1 and experts={}", o.top_k, o.num_experts), "--upcycle",
                 "use for example top_k=2");
  }
  if (!(o.noise >= 0.0) || std::isinf(o.noise)) {
    problems.add(fmt::format("noise={} is not a number of 0 or more", o.noise), "--upcycle",
                 "use 0, or for example noise=0.01");
  }
}

spec::Family mixture_of(spec::Family dense) {
  if (dense == spec::Family::qwen2) return spec::Family::qwen2_moe;
  if (dense == spec::Family::qwen3) return spec::Family::qwen3_moe;
  return spec::Family::mixtral;
}

// The kind of the dense matrix that a matrix of the mixture starts from.
ParamKind dense_kind(ParamKind kind) {
  if (kind == ParamKind::expert_gate || kind == ParamKind::shared_gate) return ParamKind::gate;
  if (kind == ParamKind::expert_up || kind == ParamKind::shared_up) return ParamKind::up;
  if (kind == ParamKind::expert_down) return ParamKind::down;
  return kind;
}

struct Origin {
  std::string name;        // of the dense model; empty: none
  double deviation = 0.0;  // of the normal values that are added
  ParamSpec param;
};

class UpcycledSource : public WeightSource {
 public:
  UpcycledSource(const WeightSource& dense, std::map<std::string, Origin> origins, std::uint64_t seed)
      : dense_(dense), origins_(std::move(origins)), seed_(seed) {}

  void read(const Piece& piece) const override {
    const Origin& from = at(piece.name);
    if (from.name.empty()) {
      for (std::int64_t i = 0; i < piece.data.num_elements(); ++i) set(piece.data, i, 0.0);
    } else {
      Piece dense = piece;
      dense.name = from.name;
      dense_.read(dense);
    }
    if (from.deviation > 0.0) add_noise(piece, from.deviation);
  }
  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> out;
    for (const auto& [name, origin] : origins_) out.push_back(name);
    return out;
  }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override {
    const ParamSpec& p = at(name).param;
    if (p.num_dims == 1) return {p.global[0]};
    return {p.global[0], p.global[1]};
  }

 private:
  [[nodiscard]] const Origin& at(const std::string& name) const {
    const auto found = origins_.find(name);
    if (found != origins_.end()) return found->second;
    throw Error(ErrorKind::io, fmt::format("there is no tensor {}", name), "an upcycled model",
                "check that the model is the one that the weights were made for");
  }
  static double get(const Tensor& t, std::int64_t i) {
    return t.dtype() == tensor::DType::f64 ? t.as<double>()[i] : static_cast<double>(t.as<float>()[i]);
  }
  static void set(const Tensor& t, std::int64_t i, double value) {
    if (t.dtype() == tensor::DType::f64) {
      t.as<double>()[i] = value;
    } else {
      t.as<float>()[i] = static_cast<float>(value);
    }
  }
  void add_noise(const Piece& piece, double deviation) const {
    const std::uint64_t stream = stream_of("upcycle." + piece.name);
    const layout::Slice& s = piece.slice;
    std::int64_t i = 0;
    for (std::int64_t r = s.begin[0]; r < s.begin[0] + s.size[0]; ++r) {
      for (std::int64_t c = s.begin[1]; c < s.begin[1] + s.size[1]; ++c, ++i) {
        const auto counter = static_cast<std::uint64_t>(r * piece.global[1] + c);
        set(piece.data, i, get(piece.data, i) + deviation * normal(seed_, stream, counter));
      }
    }
  }

  const WeightSource& dense_;
  std::map<std::string, Origin> origins_;  // by the mixture's name
  std::uint64_t seed_;
};

double root_mean_square(const WeightSource& source, const ParamSpec& p) {
  std::vector<double> values(static_cast<std::size_t>(p.global[0] * p.global[1]));
  source.read({.name = p.name,
               .num_dims = p.num_dims,
               .global = p.global,
               .slice = {.begin = {0, 0}, .size = p.global},
               .data = Tensor(values.data(), tensor::DType::f64, {p.global[0], p.global[1]})});
  double sum = 0.0;
  for (const double v : values) sum += v * v;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

bool is_noisy(ParamKind kind) {
  return kind == ParamKind::expert_gate || kind == ParamKind::expert_up || kind == ParamKind::expert_down;
}

}  // namespace

spec::ModelSpec upcycled_model(const spec::ModelSpec& dense, const UpcycleOptions& options,
                               std::string_view where) {
  Problems problems;
  check_dense(dense, options, std::string(where), problems);
  problems.throw_if_any();
  spec::ModelSpec m = dense;
  m.family = mixture_of(dense.family);
  spec::MoeSpec moe;
  moe.num_experts = options.num_experts;
  moe.num_experts_per_tok = options.top_k;
  moe.norm_topk_prob = true;
  if (m.family != spec::Family::mixtral) moe.moe_intermediate_size = dense.intermediate_size;
  if (m.family == spec::Family::qwen2_moe) {
    moe.shared_intermediate_size = dense.intermediate_size;
    moe.shared_expert_gate = true;
  }
  m.moe = moe;
  return m;
}

std::unique_ptr<WeightSource> upcycle(const spec::ModelSpec& dense, const WeightSource& weights,
                                      const spec::ModelSpec& moe, const UpcycleOptions& options) {
  std::map<std::pair<std::int32_t, ParamKind>, std::vector<ParamSpec>>
      have;  // of one layer and kind, in order
  for (ParamSpec& p : model_parameters(dense)) have[{p.layer, p.kind}].push_back(std::move(p));
  std::map<const ParamSpec*, double> measured;
  std::map<std::pair<std::int32_t, ParamKind>, std::size_t> used;
  std::map<std::string, Origin> origins;
  for (ParamSpec& p : model_parameters(moe)) {
    Origin from;
    const bool is_new = p.kind == ParamKind::router || p.kind == ParamKind::router_correction ||
                        p.kind == ParamKind::shared_down || p.kind == ParamKind::shared_expert_gate;
    if (p.kind == ParamKind::router) from.deviation = moe.initializer_range;
    if (!is_new) {
      const auto found = have.find({p.layer, dense_kind(p.kind)});
      TESSERA_CHECK(found != have.end(), "the dense model has what the mixture starts from");
      const bool copied = dense_kind(p.kind) != p.kind;
      // Norms: a layer has two, in the same order in both models.
      const std::size_t index = copied ? 0 : used[{p.layer, p.kind}]++;
      const ParamSpec& dense_param = found->second.at(index);
      from.name = dense_param.name;
      if (is_noisy(p.kind) && options.noise > 0.0) {
        const auto [entry, first] = measured.try_emplace(&dense_param, 0.0);
        if (first) entry->second = root_mean_square(weights, dense_param);
        from.deviation = options.noise * entry->second;
      }
    }
    std::string name = p.name;
    from.param = std::move(p);
    origins.emplace(std::move(name), std::move(from));
  }
  return std::make_unique<UpcycledSource>(weights, std::move(origins), options.seed);
}

}  // namespace tessera::ckpt
