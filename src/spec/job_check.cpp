// Cross-checks of a job, grouped as the sections of the file.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "base/text.h"
#include "spec/internal.h"
#include "spec/schedule_names.h"

namespace tessera::spec {

using std::int64_t;

namespace {

constexpr int64_t kMaxCount = int64_t{1} << 30;  // of tokens, sequences, steps in one field
constexpr int64_t kMaxWorld = int64_t{1} << 20;

bool between(Checker& c, std::string_view key, int64_t value, int64_t smallest, int64_t largest) {
  return c.check(
      value >= smallest && value <= largest, {key},
      fmt::format("{}={} is not between {} and {}", key.substr(key.find('.') + 1), value, smallest, largest),
      fmt::format("use a whole number from {} to {}", smallest, largest));
}

bool at_least_zero(Checker& c, std::string_view key, double value) {
  return c.check(value >= 0.0, {key}, fmt::format("{}={} is below 0", key.substr(key.find('.') + 1), value),
                 "use 0 or more");
}

bool fraction(Checker& c, std::string_view key, double value) {
  return c.check(value >= 0.0 && value < 1.0, {key},
                 fmt::format("{}={} is not in [0, 1)", key.substr(key.find('.') + 1), value),
                 "use 0 or more and less than 1");
}

bool has_dense_layers(const ModelSpec& m) {
  return !m.moe || m.moe->first_k_dense_replace > 0 || m.moe->moe_layer_freq > 1;
}

void check_optimizer(const Job& job, Checker& c) {
  const OptimizerSpec& o = job.train.optimizer;
  at_least_zero(c, "train.lr", o.lr);
  at_least_zero(c, "train.min_lr", o.min_lr);
  c.check(o.min_lr <= o.lr, {"train.min_lr", "train.lr"},
          fmt::format("min_lr={} is above lr={}", o.min_lr, o.lr),
          fmt::format("use min_lr from 0 to {}", o.lr));
  fraction(c, "train.beta1", o.beta1);
  fraction(c, "train.beta2", o.beta2);
  c.check(o.eps > 0.0, {"train.eps"}, fmt::format("eps={} is not above 0", o.eps), "use for example 1e-8");
  at_least_zero(c, "train.weight_decay", o.weight_decay);
  at_least_zero(c, "train.clip_grad", o.clip_grad);
  between(c, "train.lr_warmup_steps", o.lr_warmup_steps, 0, kMaxCount);
  between(c, "train.lr_wsd_decay_steps", o.lr_wsd_decay_steps, 0, kMaxCount);
  c.check(o.lr_wsd_decay_steps == 0 || o.lr_decay == LrDecay::wsd,
          {"train.lr_wsd_decay_steps", "train.lr_decay"},
          fmt::format("lr_wsd_decay_steps={} has no effect without lr_decay: wsd", o.lr_wsd_decay_steps),
          "set lr_decay: wsd, or remove lr_wsd_decay_steps");
  if (!c.sound({"train.lr_warmup_steps", "train.lr_wsd_decay_steps"})) return;
  c.check(o.lr_warmup_steps + o.lr_wsd_decay_steps <= job.train.steps,
          {"train.lr_warmup_steps", "train.lr_wsd_decay_steps", "train.steps"},
          fmt::format("lr_warmup_steps={} and lr_wsd_decay_steps={} are more than steps={}",
                      o.lr_warmup_steps, o.lr_wsd_decay_steps, job.train.steps),
          fmt::format("use together at most {} steps", job.train.steps));
}

void check_divergence(const Job& job, Checker& c) {
  const DivergenceSpec& d = job.train.divergence;
  const auto ratio = [&](std::string_view key, double value) {
    c.check(value == 0.0 || (value > 1.0 && value < 1e300), {key},
            fmt::format("{}={} is neither 0 nor above 1", key.substr(key.find('.') + 1), value),
            "use for example 2.0, or 0 for steps that are not finite only");
  };
  ratio("train.max_loss_ratio", d.max_loss_ratio);
  ratio("train.max_grad_norm_ratio", d.max_grad_norm_ratio);
  between(c, "train.divergence_window", d.window, 2, 4096);
  between(c, "train.max_divergences", d.most, 1, kMaxCount);
  c.check(d.action != OnDivergence::rollback || !job.checkpoint.folder.empty(),
          {"train.on_divergence", "checkpoint.folder"},
          "on_divergence=rollback has no checkpoint to go back to",
          "add checkpoint.folder and checkpoint.every, or use on_divergence: skip");
}

void check_recompute(const Job& job, Checker& c) {
  const Recipe& t = job.train;
  const ModelSpec& m = job.model;
  static const std::vector<std::string> kKnown = {"core_attn", "layernorm",   "mlp",           "moe",
                                                  "moe_act",   "mla_up_proj", "shared_experts"};
  const auto at = [&](bool good, std::string what, std::string mend) {
    return c.check(good, {"train.recompute_modules"}, std::move(what), std::move(mend));
  };
  if (!t.recompute_modules.empty()) {
    c.check(t.recompute == Recompute::selective, {"train.recompute_modules", "train.recompute"},
            fmt::format("recompute_modules=[{}] has no effect without recompute: selective",
                        join(t.recompute_modules, ", ")),
            "set recompute: selective, or remove recompute_modules");
  }
  for (const std::string& module : t.recompute_modules) {
    const std::string near = nearest(module, kKnown);
    const bool known = std::ranges::find(kKnown, module) != kKnown.end();
    at(known, fmt::format("recompute_modules has \"{}\"", module),
       fmt::format("use {}{}", join(kKnown, ", "), near.empty() ? "" : "; did you mean " + near + "?"));
    at(std::ranges::count(t.recompute_modules, module) == 1,
       fmt::format("recompute_modules has {} twice", module), "name it once");
    if (!c.sound({"model"})) continue;
    const auto part = [&](std::string_view word, bool there, std::string_view what) {
      if (module == word) {
        c.check(there, {"train.recompute_modules", "model"},
                fmt::format("recompute_modules has {}, and the model has no {}", word, what), "remove it");
      }
    };
    part("moe", m.moe.has_value(), "experts");
    part("mla_up_proj", m.mla.has_value(), "latent attention");
    part("shared_experts", m.moe && m.moe->shared_intermediate_size > 0, "shared experts");
    part("mlp", has_dense_layers(m), "dense MLP");
  }
}

void check_train(const Job& job, Checker& c) {
  const Recipe& t = job.train;
  between(c, "train.steps", t.steps, 1, kMaxCount);
  between(c, "train.sequence_length", t.sequence_length, 1, kMaxCount);
  between(c, "train.global_batch_size", t.global_batch_size, 1, kMaxCount);
  between(c, "train.micro_batch_size", t.micro_batch_size, 1, kMaxCount);
  between(c, "train.zero_stage", t.zero_stage, 0, 3);
  between(c, "train.bucket_bytes", t.bucket_bytes, 1, int64_t{1} << 40);
  // Rope and ALiBi go on past the length of the published model; a table of positions ends.
  if (job.model.position == PositionKind::learned) check_positions(job, c);
  check_recompute(job, c);
  check_optimizer(job, c);
  check_divergence(job, c);
  at_least_zero(c, "train.mtp_loss_coef", t.mtp_loss_coef);
  if (!c.sound({"model"})) return;
  c.check(t.mtp_loss_coef == 0.0 || job.model.num_nextn_predict_layers > 0, {"train.mtp_loss_coef", "model"},
          fmt::format("mtp_loss_coef={} needs a model with MTP layers (num_nextn_predict_layers=0)",
                      t.mtp_loss_coef),
          "remove it, or set model.num_nextn_predict_layers: 1 in a deepseek_v3 model");
}

std::string_view word(DispatchForm form) {
  return form == DispatchForm::all_gather     ? "all_gather"
         : form == DispatchForm::hierarchical ? "hierarchical"
                                              : "all_to_all";
}

std::string_view word(RouterChoice router) {
  return router == RouterChoice::hash ? "hash" : "expert_choice";
}

void check_balancing(const Job& job, Checker& c) {
  const MoeRecipe& m = job.train.moe;
  if (m.router != RouterChoice::model) {
    c.check(m.balancing == Balancing::none, {"moe.balancing", "moe.router"},
            fmt::format("balancing has nothing to move with router: {}", word(m.router)),
            "use balancing: none, or router: model");
  }
  c.check(m.aux_loss_coef == 0.0 || m.balancing != Balancing::none, {"moe.aux_loss_coef", "moe.balancing"},
          fmt::format("aux_loss_coef={} has no effect with balancing: none", m.aux_loss_coef),
          "use balancing: loss, or remove aux_loss_coef");
  if (m.balancing == Balancing::bias) {
    c.check(m.bias_update_rate > 0.0, {"moe.bias_update_rate"},
            fmt::format("bias_update_rate={} is not above 0 with balancing: bias", m.bias_update_rate),
            "use for example 0.001, or balancing: none for a bias that stays");
  } else {
    c.check(m.bias_update_rate == 0.0, {"moe.bias_update_rate", "moe.balancing"},
            fmt::format("bias_update_rate={} has no effect without balancing: bias", m.bias_update_rate),
            "use balancing: bias, or remove bias_update_rate");
    c.check(!m.bias_update_centred, {"moe.bias_update_centred", "moe.balancing"},
            "bias_update_centred=true has no effect without balancing: bias",
            "use balancing: bias, or remove bias_update_centred");
  }
  const std::int64_t stages = int64_t{job.parallel.pp} * job.parallel.vpp;
  const bool joined = m.aux_loss_normalisation == AuxNormalisation::huggingface && m.aux_loss_coef > 0.0 &&
                      m.aux_loss_unit != BalanceUnit::global_batch;
  c.check(!joined || stages == 1,
          {"moe.aux_loss_normalisation", "moe.aux_loss_unit", "parallel.pp", "parallel.vpp"},
          fmt::format("aux_loss_normalisation=huggingface is a product over all layers of a micro-batch, and "
                      "pp={} * vpp={} stages do not see them all",
                      job.parallel.pp, job.parallel.vpp),
          "use one stage, aux_loss_unit: global_batch, or aux_loss_normalisation: tessera");
}

void check_moe(const Job& job, Checker& c) {
  const MoeRecipe& m = job.train.moe;
  at_least_zero(c, "moe.aux_loss_coef", m.aux_loss_coef);
  at_least_zero(c, "moe.z_loss_coef", m.z_loss_coef);
  at_least_zero(c, "moe.capacity_factor", m.capacity_factor);
  at_least_zero(c, "moe.bias_update_rate", m.bias_update_rate);
  fraction(c, "moe.router_jitter", m.router_jitter);
  if (!c.sound({"model"})) return;
  if (job.model.moe) {
    check_balancing(job, c);
    c.check(!m.pad_to_capacity || m.capacity_factor > 0.0 || m.router == RouterChoice::expert_choice,
            {"moe.pad_to_capacity", "moe.capacity_factor"},
            "pad_to_capacity=true and capacity_factor=0: there is no capacity to pad to",
            "use for example capacity_factor: 1.25, or remove pad_to_capacity");
    return;
  }
  const std::string why = "needs a model with experts, and this one is dense";
  const std::string mend = "remove it, or use a mixtral model";
  const auto moe_only = [&](bool unused, std::string_view key, const std::string& value) {
    c.check(unused, {key, "model"}, fmt::format("{}={} {}", key.substr(key.find('.') + 1), value, why), mend);
  };
  const auto number = [&](std::string_view key, double value) {
    moe_only(value == 0.0, key, fmt::format("{}", value));
  };
  number("moe.aux_loss_coef", m.aux_loss_coef);
  number("moe.z_loss_coef", m.z_loss_coef);
  number("moe.capacity_factor", m.capacity_factor);
  number("moe.router_jitter", m.router_jitter);
  number("moe.bias_update_rate", m.bias_update_rate);
  moe_only(m.router == RouterChoice::model, "moe.router", std::string(word(m.router)));
  moe_only(m.balancing != Balancing::bias, "moe.balancing", "bias");
  moe_only(!m.bias_update_centred, "moe.bias_update_centred", "true");
  moe_only(!m.pad_to_capacity, "moe.pad_to_capacity", "true");
  moe_only(m.dispatch == DispatchForm::automatic, "moe.dispatch", std::string(word(m.dispatch)));
  moe_only(m.overlap_dispatch, "moe.overlap_dispatch", "false");
  moe_only(job.parallel.ep <= 1, "parallel.ep", fmt::format("{}", job.parallel.ep));
  moe_only(job.parallel.etp <= 1, "parallel.etp", fmt::format("{}", job.parallel.etp));
}

bool check_degrees(const Job& job, Checker& c) {
  const ParallelSpec& p = job.parallel;
  bool good = c.sound({"parallel.tp", "parallel.cp", "parallel.dp", "parallel.pp", "parallel.ep",
                       "parallel.etp", "parallel.vpp"});
  const auto degree = [&](std::string_view key, std::int32_t value) {
    good &= between(c, key, value, 1, kMaxWorld);
  };
  degree("parallel.tp", p.tp);
  degree("parallel.cp", p.cp);
  degree("parallel.dp", p.dp);
  degree("parallel.pp", p.pp);
  degree("parallel.ep", p.ep);
  degree("parallel.etp", p.etp);
  degree("parallel.vpp", p.vpp);
  if (!good) return false;
  const double world = double{1.0} * p.tp * p.cp * p.dp * p.pp;
  const double experts = double{1.0} * p.etp * p.ep;
  return c.check(
      world <= double{kMaxWorld} && experts <= double{kMaxWorld} &&
          double{1.0} * p.pp * p.vpp <= double{kMaxWorld},
      {"parallel.tp", "parallel.dp", "parallel.pp"},
      fmt::format("tp={} * cp={} * dp={} * pp={} ranks, etp={} * ep={}, pp * vpp={} stages: more than {}",
                  p.tp, p.cp, p.dp, p.pp, p.etp, p.ep, double{1.0} * p.pp * p.vpp, kMaxWorld),
      "use smaller degrees");
}

void check_experts(const Job& job, Checker& c) {
  if (!job.model.moe) return;
  const ParallelSpec& p = job.parallel;
  const int64_t replica = int64_t{p.tp} * p.cp * p.dp;
  const int64_t experts = int64_t{p.etp} * p.ep;
  const KeyNames& k = key_names(job.model.family);
  const int64_t width = expert_intermediate_size(job.model);
  const std::string_view width_key =
      job.model.moe->moe_intermediate_size > 0 ? k.expert_width : "intermediate_size";
  const int64_t num = job.model.moe->num_experts;
  bool good = c.check(width % p.etp == 0, {"parallel.etp", "model"},
                      fmt::format("etp={} does not divide the expert width {}={}", p.etp, width_key, width),
                      fmt::format("use etp in {}", divisor_choices(std::gcd(width, replica))));
  good &= c.check(num % p.ep == 0, {"parallel.ep", "model"},
                  fmt::format("ep={} does not divide {}={}", p.ep, k.experts, num),
                  fmt::format("use ep in {}", divisor_choices(std::gcd(num, replica))));
  if (!good) return;
  c.check(replica % experts == 0, {"parallel.ep", "parallel.etp", "model"},
          fmt::format("etp={} * ep={} = {} does not divide tp * cp * dp = {}", p.etp, p.ep, experts, replica),
          fmt::format("use etp * ep in {} (etp * ep * edp = tp * cp * dp)", divisor_choices(replica)));
}

// Every expert once in the slots of each MoE layer.
void check_expert_slots(const Job& job, Checker& c) {
  const std::vector<std::int32_t>& slots = job.parallel.expert_slots;
  if (slots.empty()) return;
  const std::vector<std::int32_t> layers =
      job.model.moe ? moe_layers(job.model) : std::vector<std::int32_t>{};
  const std::int32_t experts = job.model.moe ? job.model.moe->num_experts : 0;
  const std::int64_t wanted = std::ssize(layers) * std::int64_t{experts};
  if (!c.check(std::ssize(slots) == wanted, {"parallel.expert_slots", "model"},
               fmt::format("expert_slots has {} entries for {} MoE layers of {} experts", slots.size(),
                           layers.size(), experts),
               fmt::format("give {} entries, layer by layer, or leave expert_slots out", wanted)))
    return;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    std::vector<bool> seen(static_cast<std::size_t>(experts), false);
    for (std::size_t s = l * seen.size(); s < (l + 1) * seen.size(); ++s) {
      const bool fits = slots[s] >= 0 && slots[s] < experts;
      const bool first = fits && !seen[static_cast<std::size_t>(slots[s])];
      if (!c.check(first, {"parallel.expert_slots"},
                   fits ? fmt::format("expert {} stands twice in the slots of layer {}", slots[s], layers[l])
                        : fmt::format("slot {} of layer {} has expert {}, the experts are 0 to {}",
                                      s - l * seen.size(), layers[l], slots[s], experts - 1),
                   "give every expert of a layer one slot (replicas serve generation only)"))
        return;
      seen[static_cast<std::size_t>(slots[s])] = true;
    }
  }
}

// Nodes and the ep groups on them.
void check_nodes(const Job& job, Checker& c) {
  const ParallelSpec& p = job.parallel;
  if (!at_least_zero(c, "parallel.ranks_per_node", p.ranks_per_node) || !job.model.moe) return;
  const DispatchForm form = job.train.moe.dispatch;
  const std::int32_t group = p.ep * p.etp;
  if (p.ranks_per_node == 0 || group <= p.ranks_per_node) {
    c.check(form != DispatchForm::hierarchical, {"moe.dispatch", "parallel.ranks_per_node"},
            p.ranks_per_node == 0
                ? "dispatch=hierarchical needs to know the nodes: parallel.ranks_per_node is not set"
                : fmt::format("dispatch=hierarchical with an expert group of {} ranks on one node of {}",
                              group, p.ranks_per_node),
            "set parallel.ranks_per_node to less than etp * ep, or use dispatch: auto");
    return;
  }
  if (form == DispatchForm::all_to_all || form == DispatchForm::all_gather) return;
  c.check(group % p.ranks_per_node == 0 && p.ranks_per_node % p.etp == 0,
          {"parallel.ranks_per_node", "parallel.ep", "parallel.etp"},
          fmt::format("nodes of {} ranks do not share etp={} * ep={} = {} ranks evenly", p.ranks_per_node,
                      p.etp, p.ep, group),
          fmt::format("use ranks_per_node in {} that etp divides, or moe.dispatch: all_to_all",
                      divisor_choices(group)));
}

void check_batch(const Job& job, Checker& c) {
  const Recipe& t = job.train;
  if (!c.sound({"train.micro_batch_size", "train.global_batch_size"})) return;
  const int64_t per_round = int64_t{job.parallel.dp} * t.micro_batch_size;
  const int64_t below = t.global_batch_size / per_round * per_round;
  const std::string near =
      below > 0 ? fmt::format("{} or {}", below, below + per_round) : fmt::format("{}", per_round);
  c.check(t.global_batch_size % per_round == 0, {"train.global_batch_size", "train.micro_batch_size"},
          fmt::format("dp={} * micro_batch_size={} = {} does not divide global_batch_size={}",
                      job.parallel.dp, t.micro_batch_size, per_round, t.global_batch_size),
          fmt::format("use global_batch_size={}, or dp * micro_batch_size in {}", near,
                      divisor_choices(t.global_batch_size)));
}

void check_schedule(const Job& job, Checker& c) {
  const ParallelSpec& p = job.parallel;
  const auto at = std::find_if(kScheduleNames.begin(), kScheduleNames.end(),
                               [&](const ScheduleName& s) { return s.name == p.schedule; });
  if (at == kScheduleNames.end()) {
    std::vector<std::string> words;
    for (const ScheduleName& s : kScheduleNames) words.emplace_back(s.name);
    const std::string near = nearest(p.schedule, words);
    c.check(false, {"parallel.schedule"}, fmt::format("schedule={} is not known", p.schedule),
            fmt::format("use {}{}", join(words, ", "), near.empty() ? "" : "; did you mean " + near + "?"));
    return;
  }
  if (at->vpp == 0) {
    c.check(p.vpp >= 2, {"parallel.vpp", "parallel.schedule"},
            fmt::format("schedule {} has vpp={}, and needs 2 or more stages per rank", p.schedule, p.vpp),
            "use vpp=2, or schedule 1f1b");
  } else {
    c.check(p.vpp == at->vpp, {"parallel.vpp", "parallel.schedule"},
            fmt::format("schedule {} has vpp={}, and needs vpp={}", p.schedule, p.vpp, at->vpp),
            at->vpp == 1 ? "use vpp=1, or schedule interleaved" : fmt::format("use vpp={}", at->vpp));
  }
}

void check_stages(const Job& job, Checker& c) {
  const ParallelSpec& p = job.parallel;
  const std::int32_t layers = job.model.num_hidden_layers;
  const int64_t stages = int64_t{p.pp} * p.vpp;
  // Embedding and head may stand alone, where stage_layers say so.
  const std::int32_t most = p.stage_layers.empty() ? layers : layers + 2;
  c.check(stages <= most, {"parallel.pp", "parallel.vpp", "model"},
          fmt::format("pp={} * vpp={} = {} stages, and the model has num_hidden_layers={}", p.pp, p.vpp,
                      stages, layers),
          fmt::format("use pp * vpp from 1 to {}", most));
  if (p.stage_layers.empty()) return;
  c.check(std::ssize(p.stage_layers) == stages, {"parallel.stage_layers", "parallel.pp", "parallel.vpp"},
          fmt::format("stage_layers has {} entries for pp={} * vpp={} = {} stages", p.stage_layers.size(),
                      p.pp, p.vpp, stages),
          fmt::format("give {} entries, or leave stage_layers out", stages));
  const auto enough = [&](std::size_t i) {
    const bool end = i == 0 || i + 1 == p.stage_layers.size();
    return p.stage_layers[i] >= (end ? 0 : 1);
  };
  bool all = true;
  for (std::size_t i = 0; i < p.stage_layers.size(); ++i) all = all && enough(i);
  const bool positive =
      c.check(all, {"parallel.stage_layers"},
              fmt::format("stage_layers=[{}] has a stage without a layer", fmt::join(p.stage_layers, ", ")),
              "give every stage at least 1 layer; only the first and the last may have 0");
  if (!positive) return;
  const int64_t sum = std::accumulate(p.stage_layers.begin(), p.stage_layers.end(), int64_t{0});
  c.check(sum == layers, {"parallel.stage_layers", "model"},
          fmt::format("stage_layers=[{}] sum to {}, and the model has num_hidden_layers={}",
                      fmt::join(p.stage_layers, ", "), sum, layers),
          fmt::format("make them sum to {}", layers));
}

void check_files(const Job& job, Checker& c) {
  const DataSpec& d = job.data;
  c.check(d.train.empty() || d.text.empty(), {"data.text", "data.train"},
          "data.train and data.text are both given", "keep train (a token file) or text (UTF-8 text)");
  c.check(d.vocab_size >= 0 && d.vocab_size <= job.model.vocab_size, {"data.vocab_size", "model"},
          fmt::format("vocab_size={} of the tokenizer is not between 0 and the model's vocab_size={}",
                      d.vocab_size, job.model.vocab_size),
          "use 0 for the model's vocab_size, or a smaller number");
  fraction(c, "data.validation_fraction", d.validation_fraction);
  between(c, "checkpoint.every", job.checkpoint.every, 0, kMaxCount);
  between(c, "checkpoint.keep", job.checkpoint.keep, 1, 1'000'000);
  c.check(job.checkpoint.every == 0 || !job.checkpoint.folder.empty(),
          {"checkpoint.every", "checkpoint.folder"},
          fmt::format("every={} and no folder to write to", job.checkpoint.every), "add checkpoint.folder");
  between(c, "output.trace_steps", job.output.trace_steps, 0, kMaxCount);
  between(c, "output.sample_tokens", job.output.sample_tokens, 0, kMaxCount);
}

}  // namespace

void check_positions(const Job& job, Checker& c) {
  const int64_t positions = job.model.max_position_embeddings;
  c.check(job.train.sequence_length <= positions, {"train.sequence_length", "model"},
          fmt::format("sequence_length={} is above the model's max_position_embeddings={}",
                      job.train.sequence_length, positions),
          fmt::format("use sequence_length from 1 to {}", positions));
}

void check_tp(const Job& job, Checker& c, JobUse use) {
  const std::int32_t tp = job.parallel.tp;
  const std::int32_t cp = job.parallel.cp;
  const ModelSpec& m = job.model;
  const KeyNames& k = key_names(m.family);
  const bool engine = use == JobUse::train;
  struct Divided {
    std::string_view name;
    int64_t value;
  };
  std::vector<Divided> sizes = {{k.heads, m.num_attention_heads}};
  if (engine) sizes.push_back({k.kv_heads, m.num_key_value_heads});
  if (has_dense_layers(m)) sizes.push_back({"intermediate_size", m.intermediate_size});
  if (m.moe && m.moe->shared_intermediate_size > 0) {
    sizes.push_back({"the width of the shared experts", m.moe->shared_intermediate_size});
  }
  const bool cut =
      job.parallel.sequence_parallel && c.sound({"train.micro_batch_size", "train.sequence_length"});
  if (cut && job.train.sequence_length % cp == 0) {
    sizes.push_back(
        {cp > 1 ? "micro_batch_size * sequence_length / cp" : "micro_batch_size * sequence_length",
         job.train.micro_batch_size * (job.train.sequence_length / cp)});
  }
  int64_t common = 0;
  for (const Divided& d : sizes) common = std::gcd(common, d.value);
  for (const Divided& d : sizes) {
    c.check(d.value % tp == 0, {"parallel.tp", "model"},
            fmt::format("tp={} does not divide {}={}", tp, d.name, d.value),
            fmt::format("use tp in {}", divisor_choices(common)));
  }
  c.check(m.vocab_size >= tp, {"parallel.tp", "model"},
          fmt::format("tp={} is more than vocab_size={}", tp, m.vocab_size), "use a smaller tp");
  if (engine) return;
  c.check(
      m.num_key_value_heads % tp == 0 || tp % m.num_key_value_heads == 0, {"parallel.tp", "model"},
      fmt::format("neither of tp={} and num_key_value_heads={} divides the other", tp, m.num_key_value_heads),
      fmt::format("use tp in {}, or a multiple of {}", divisor_choices(m.num_key_value_heads),
                  m.num_key_value_heads));
}

namespace {

void check_order(const Job& job, Checker& c) {
  const std::vector<std::string> known = {"cp", "dp", "ep", "pp", "tp"};
  std::vector<std::string> axes = split(job.parallel.order, '-');
  std::ranges::sort(axes);
  c.check(axes == known, {"parallel.order"},
          fmt::format("order={} does not name each of tp, cp, ep, dp and pp once", job.parallel.order),
          "use tp-cp-ep-dp-pp, or for example tp-cp-ep-pp-dp");
}

void check_cp(const Job& job, Checker& c) {
  const int64_t cp = job.parallel.cp;
  if (cp <= 1 || cp > kMaxWorld) return;
  const int64_t length = job.train.sequence_length;
  c.check(
      length % (2 * cp) == 0, {"parallel.cp", "train.sequence_length"},
      fmt::format("2 * cp={} does not divide sequence_length={}: each rank holds an early and a late part",
                  2 * cp, length),
      fmt::format("use cp in {}", divisor_choices(std::max<int64_t>(length / 2, 1))));
}

}  // namespace

void validate_job(const Job& job, Checker& c, JobUse use) {
  check_train(job, c);
  check_moe(job, c);
  check_files(job, c);
  check_schedule(job, c);
  check_order(job, c);
  if (check_degrees(job, c)) {
    check_batch(job, c);
    check_stages(job, c);
    check_cp(job, c);
    if (c.sound({"model"})) {
      if (use == JobUse::plan) check_tp(job, c, use);
      check_experts(job, c);
      check_nodes(job, c);
      check_expert_slots(job, c);
    }
  }
  if (use == JobUse::train) check_engine(job, c, EngineOn::cpu);
  if (use == JobUse::train_on_gpu) check_engine(job, c, EngineOn::gpu);
}

}  // namespace tessera::spec
