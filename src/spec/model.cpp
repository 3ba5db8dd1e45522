#include "spec/model.h"

#include <fmt/format.h>

#include "base/file.h"
#include "base/text.h"
#include "spec/internal.h"

namespace tessera::spec {

std::string_view name(Family family) {
  switch (family) {
    case Family::llama:
      return "llama";
    case Family::mixtral:
      return "mixtral";
    case Family::llama4:
      return "llama4";
    case Family::mistral:
      return "mistral";
    case Family::qwen2:
      return "qwen2";
    case Family::qwen3:
      return "qwen3";
    case Family::qwen2_moe:
      return "qwen2_moe";
    case Family::qwen3_moe:
      return "qwen3_moe";
    case Family::deepseek_v2:
      return "deepseek_v2";
    case Family::deepseek_v3:
      return "deepseek_v3";
    case Family::olmoe:
      return "olmoe";
    case Family::gpt_oss:
      return "gpt_oss";
    case Family::gpt2:
      return "gpt2";
    case Family::gpt_neox:
      return "gpt_neox";
    case Family::mpt:
      return "mpt";
    case Family::bloom:
      return "bloom";
    case Family::falcon:
      return "falcon";
  }
  return "unknown";
}

namespace {

std::int64_t attention_weights(const ModelSpec& m) {
  return 2 * m.hidden_size * m.q_dim() + 2 * m.hidden_size * m.kv_dim();
}
std::int64_t mlp_weights(const ModelSpec& m) {  // one dense MLP, or one expert
  return 3 * m.hidden_size * m.intermediate_size;
}
std::int64_t router_weights(const ModelSpec& m) {
  return m.moe ? m.moe->num_experts * m.hidden_size : 0;
}
std::int64_t norm_weights(const ModelSpec& m) {
  return m.hidden_size * (2 * std::int64_t{m.num_hidden_layers} + 1);
}

// Weights of a layer with `mlps` MLPs or experts: all of them, or those that one token meets.
std::int64_t layer_matrices(const ModelSpec& m, std::int64_t mlps) {
  return attention_weights(m) + router_weights(m) + mlps * mlp_weights(m);
}
std::int64_t parameters_with(const ModelSpec& m, std::int64_t mlps) {
  const std::int64_t table = m.vocab_size * m.hidden_size;
  return m.num_hidden_layers * layer_matrices(m, mlps) + norm_weights(m) +
         (m.tie_word_embeddings ? table : 2 * table);
}

}  // namespace

std::int64_t num_parameters(const ModelSpec& m) {
  return parameters_with(m, m.moe ? m.moe->num_experts : 1);
}
std::int64_t num_active_parameters(const ModelSpec& m) {
  return parameters_with(m, m.moe ? m.moe->num_experts_per_tok : 1);
}

double train_flops_per_token(const ModelSpec& m, std::int64_t seq, AttentionFlops convention) {
  // Forward: 2 per weight of a matmul (the embedding lookup and norms are none; the head is one, tied or
  // not), and per layer 2 keys q_dim for the scores plus as much for the sum over values. Backward is twice
  // the forward.
  const std::int64_t mlps = m.moe ? m.moe->num_experts_per_tok : 1;
  const auto weights =
      static_cast<double>(m.num_hidden_layers * layer_matrices(m, mlps) + m.vocab_size * m.hidden_size);
  const auto s = static_cast<double>(seq);
  double keys = 0.0;
  switch (convention) {
    case AttentionFlops::causal:
      keys = (s + 1.0) / 2.0;
      break;
    case AttentionFlops::full:
      keys = s;
      break;
  }
  const double attention =
      static_cast<double>(m.num_hidden_layers) * 4.0 * keys * static_cast<double>(m.q_dim());
  return 3.0 * (2.0 * weights + attention);
}

std::string divisor_choices(std::int64_t n) {
  constexpr std::int64_t kLargestTried = 100'000;
  constexpr std::ptrdiff_t kMostShown = 16;
  std::vector<std::string> low;
  std::vector<std::string> high;
  for (std::int64_t d = 1; d <= kLargestTried && d <= n / d; ++d) {
    if (n % d != 0) continue;
    low.push_back(fmt::format("{}", d));
    if (d != n / d) high.insert(high.begin(), fmt::format("{}", n / d));
  }
  low.insert(low.end(), high.begin(), high.end());
  if (std::ssize(low) > kMostShown) {
    low.erase(low.begin() + kMostShown - 1, low.end() - 1);
    low.insert(low.end() - 1, "...");
  }
  return "{" + join(low, ", ") + "}";
}

bool Checker::sound(std::initializer_list<std::string_view> keys) const {
  for (const std::string_view key : keys)
    if (faulty_.contains(key)) return false;
  return true;
}

bool Checker::check(bool good, std::initializer_list<std::string_view> keys, std::string what,
                    std::string mend) {
  if (good || !sound(keys)) return good;
  const std::string_view first = *keys.begin();
  problems_.add(std::move(what), where_(first), std::move(mend));
  if (keys.size() == 1) faulty_.emplace(first);
  return false;
}

namespace {

// Far above every model there is, and low enough that products of two never overflow 63 bits.
constexpr std::int64_t kMaxSize = std::int64_t{1} << 30;
constexpr std::int64_t kMaxLayers = 100'000;
constexpr double kMaxParameters = 1e18;

bool in_range(Checker& checker, std::string_view key, std::int64_t value, std::int64_t largest) {
  return checker.check(value >= 1 && value <= largest, {key},
                       fmt::format("{}={} is not between 1 and {}", key, value, largest),
                       fmt::format("use a whole number from 1 to {}", largest));
}

bool validate_rope(const ModelSpec& m, Checker& checker) {
  const RopeScaling& r = m.rope_scaling;
  bool good = checker.check(m.rope_theta > 0.0, {"rope_theta"},
                            fmt::format("rope_theta={} is not above 0", m.rope_theta),
                            "use the value of the published model, for example 10000.0");
  if (r.kind == RopeKind::none) return good;
  good &=
      checker.check(r.factor >= 1.0, {"rope_scaling"},
                    fmt::format("rope_scaling factor={} is below 1", r.factor), "use a factor of 1 or more");
  if (r.kind == RopeKind::linear) return good;
  good &= checker.check(r.low_freq_factor > 0.0 && r.high_freq_factor > r.low_freq_factor, {"rope_scaling"},
                        fmt::format("rope_scaling low_freq_factor={} and high_freq_factor={} are no range",
                                    r.low_freq_factor, r.high_freq_factor),
                        "use 0 < low_freq_factor < high_freq_factor, for example 1.0 and 4.0");
  good &= checker.check(r.original_max_position_embeddings >= 1, {"rope_scaling"},
                        fmt::format("rope_scaling original_max_position_embeddings={} is not above 0",
                                    r.original_max_position_embeddings),
                        "use the context length before scaling, for example 8192");
  return good;
}

bool validate_moe(const ModelSpec& m, Checker& checker) {
  if (!checker.check((m.family == Family::mixtral) == m.moe.has_value(), {"model_type"},
                     m.moe ? "a llama model has experts" : "a mixtral model has no experts",
                     "use model_type mixtral exactly when num_local_experts is given")) {
    return false;
  }
  if (!m.moe) return true;
  const std::int32_t experts = m.moe->num_experts;
  bool good = in_range(checker, "num_local_experts", experts, 1 << 20);
  good &= in_range(checker, "num_experts_per_tok", m.moe->num_experts_per_tok, 1 << 20);
  good &= checker.check(m.moe->num_experts_per_tok <= experts, {"num_experts_per_tok", "num_local_experts"},
                        fmt::format("num_experts_per_tok={} is above num_local_experts={}",
                                    m.moe->num_experts_per_tok, experts),
                        fmt::format("use num_experts_per_tok from 1 to {}", experts));
  good &= checker.check(m.moe->router_aux_loss_coef >= 0.0, {"router_aux_loss_coef"},
                        fmt::format("router_aux_loss_coef={} is below 0", m.moe->router_aux_loss_coef),
                        "use 0 or more");
  return good;
}

}  // namespace

bool validate_model(const ModelSpec& m, Checker& checker) {
  bool good = in_range(checker, "num_hidden_layers", m.num_hidden_layers, kMaxLayers);
  good &= in_range(checker, "hidden_size", m.hidden_size, kMaxSize);
  good &= in_range(checker, "intermediate_size", m.intermediate_size, kMaxSize);
  good &= in_range(checker, "num_attention_heads", m.num_attention_heads, kMaxLayers);
  good &= in_range(checker, "num_key_value_heads", m.num_key_value_heads, kMaxLayers);
  good &= in_range(checker, "head_dim", m.head_dim, kMaxSize);
  good &= in_range(checker, "vocab_size", m.vocab_size, kMaxSize);
  good &= in_range(checker, "max_position_embeddings", m.max_position_embeddings, kMaxSize);
  if (m.num_attention_heads >= 1 && m.num_key_value_heads >= 1) {
    good &= checker.check(
        m.num_attention_heads % m.num_key_value_heads == 0, {"num_key_value_heads", "num_attention_heads"},
        fmt::format("num_key_value_heads={} does not divide num_attention_heads={}", m.num_key_value_heads,
                    m.num_attention_heads),
        fmt::format("use num_key_value_heads in {}", divisor_choices(m.num_attention_heads)));
  }
  if (m.head_dim >= 1) {
    good &= checker.check(m.head_dim % 2 == 0, {"head_dim", "hidden_size", "num_attention_heads"},
                          fmt::format("head_dim={} is odd; rotary embedding turns pairs", m.head_dim),
                          fmt::format("use an even head_dim, for example {}", m.head_dim + 1));
  }
  good &=
      checker.check(m.rms_norm_eps > 0.0, {"rms_norm_eps"},
                    fmt::format("rms_norm_eps={} is not above 0", m.rms_norm_eps), "use for example 1e-5");
  good &= checker.check(m.initializer_range >= 0.0, {"initializer_range"},
                        fmt::format("initializer_range={} is below 0", m.initializer_range),
                        "use for example 0.02");
  good &= validate_rope(m, checker);
  good &= validate_moe(m, checker);
  if (!good) return false;
  const double experts = m.moe ? m.moe->num_experts : 1;
  const double size =
      static_cast<double>(m.num_hidden_layers) * static_cast<double>(m.hidden_size) *
          (3.0 * experts * static_cast<double>(m.intermediate_size) +
           4.0 * static_cast<double>(m.num_attention_heads) * static_cast<double>(m.head_dim)) +
      2.0 * static_cast<double>(m.vocab_size) * static_cast<double>(m.hidden_size);
  return checker.check(size <= kMaxParameters, {"hidden_size"},
                       fmt::format("the model has {} parameters", human_count(size)),
                       "reduce hidden_size, intermediate_size, num_hidden_layers or num_local_experts");
}

void validate(const ModelSpec& m, std::string_view where, Problems& problems) {
  Checker checker([&](std::string_view key) { return fmt::format("{}: {}", where, key); }, {}, problems);
  validate_model(m, checker);
}

ModelSpec parse_hf_config(std::string_view json, std::string_view where, Problems& problems) {
  try {
    const Value root = parse_json(json, where);
    if (root.kind != Value::Kind::map) {
      problems.add("the text is not one JSON object", std::string(where),
                   "give a config.json of Hugging Face");
      return {};
    }
    const Place place{.file = std::string(where), .path = ""};
    MapReader reader(root, place, problems);
    ModelSpec m = read_model(reader, problems);
    Checker checker([&](std::string_view key) { return place.where(key, root.find(key)); }, reader.faulty(),
                    problems);
    // With the family unknown nothing else was read.
    if (!reader.faulty().contains("model_type")) validate_model(m, checker);
    return m;
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
    return {};
  }
}

ModelSpec read_hf_config(const std::filesystem::path& path) {
  const std::filesystem::path file = std::filesystem::is_directory(path) ? path / "config.json" : path;
  Problems problems;
  ModelSpec m;
  try {
    m = parse_hf_config(read_text(file), file.string(), problems);
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
  }
  problems.throw_if_any();
  return m;
}

std::string to_hf_config(const ModelSpec& m) {
  return to_json(model_value(m));
}

}  // namespace tessera::spec
