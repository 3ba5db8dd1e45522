#include "cli/simulate_input.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "cli/placed_load.h"
#include "cost/step.h"
#include "graph/block.h"
#include "graph/practice.h"
#include "spec/presets.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
using spec::Precision;

constexpr const char* kFlags = "tessera simulate";

std::vector<std::string> names_of(const std::vector<spec::PresetInfo>& presets) {
  std::vector<std::string> names;
  for (const spec::PresetInfo& p : presets) names.push_back(p.name);
  return names;
}

std::string known_or_near(const std::string& word, const std::vector<std::string>& known) {
  const std::string near = nearest(word, known);
  return (near.empty() ? "" : "did you mean " + near + "? ") + "use one of " + join(known, ", ");
}

constexpr std::array<Precision, 8> kPrecisions = {Precision::f32,   Precision::f64,  Precision::bf16,
                                                  Precision::fp16,  Precision::fp8,  Precision::fp8_block,
                                                  Precision::mxfp8, Precision::nvfp4};

// Whether the device computes in it; what it lacks would be priced as bf16.
bool has(const cost::Calibration& c, Precision precision) {
  switch (precision) {
    case Precision::f32:
    case Precision::f64:
      return c.f32.peak > 0.0;
    case Precision::bf16:
    case Precision::fp16:
      return c.bf16.peak > 0.0;
    case Precision::fp8:
      return c.fp8.peak > 0.0;
    case Precision::fp8_block:
      return c.fp8_block.peak > 0.0;
    case Precision::mxfp8:
      return c.mxfp8.peak > 0.0;
    case Precision::nvfp4:
      return c.nvfp4.peak > 0.0;
  }
  return false;
}

bool to_number(std::string_view text, std::int32_t& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}
bool to_number(std::string_view text, double& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

class Reader {
 public:
  explicit Reader(const SimulateFlags& flags) : flags_(flags) {}

  SimulateInput read() {
    sources();
    cluster();
    software();
    if (have_model_ || have_job_) job();
    problems_.throw_if_any();
    finish();
    problems_.throw_if_any();
    return std::move(out_);
  }

 private:
  // Keeps the problems of what throws them.
  template <class F>
  bool tried(F&& f) {
    try {
      f();
      return true;
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::config && e.kind() != ErrorKind::io) throw;
      for (const Problem& p : e.problems()) problems_.add(p.what, p.where, p.mend);
      return false;
    }
  }

  void sources() {
    plan_path_ = flags_.plan;
    cluster_name_ = flags_.cluster.empty() ? flags_.cluster_flag : flags_.cluster;
    if (!flags_.model.empty() && !plan_path_.empty() && cluster_name_.empty()) {
      std::swap(plan_path_, cluster_name_);  // simulate --model M CLUSTER
    }
    if (!flags_.cluster.empty() && !flags_.cluster_flag.empty()) {
      problems_.add(fmt::format("two clusters: {} and {}", flags_.cluster, flags_.cluster_flag), kFlags,
                    "name one");
    }
    if (plan_path_.empty() == flags_.model.empty()) {
      problems_.add(
          plan_path_.empty() ? "neither a plan nor a model is given"
                             : fmt::format("both a plan ({}) and --model {}", plan_path_, flags_.model),
          kFlags, "give a plan.json or job.yaml, or --model with a layout (--devices 64 --tp 4 --pp 4)");
      return;
    }
    if (!flags_.model.empty()) {
      workload();
      have_model_ = tried([&] { out_.setup.model = spec::find_model(flags_.model); });
      out_.model = fs::path(flags_.model).filename().string();
      return;
    }
    beside_a_plan();
    have_job_ = tried([&] { read_file(); });
  }

  // Layout flags say nothing where a file has the layout.
  void beside_a_plan() {
    const std::pair<const char*, bool> given[] = {
        {"--tp", flags_.tp.has_value()},
        {"--cp", flags_.cp.has_value()},
        {"--pp", flags_.pp.has_value()},
        {"--vpp", flags_.vpp.has_value()},
        {"--dp", flags_.dp.has_value()},
        {"--ep", flags_.ep.has_value()},
        {"--etp", flags_.etp.has_value()},
        {"--mbs", flags_.micro_batch_size.has_value()},
        {"--zero", flags_.zero_stage.has_value()},
        {"--gbs", flags_.global_batch_size.has_value()},
        {"--seq", flags_.sequence_length.has_value()},
        {"--precision", !flags_.precision.empty()},
        {"--schedule", !flags_.schedule.empty()},
        {"--recompute", !flags_.recompute.empty()},
        {"--order", !flags_.order.empty()},
        {"--capacity-factor", flags_.capacity_factor.has_value()},
        {"--no-sequence-parallel", flags_.no_sequence_parallel},
    };
    std::vector<std::string> words;
    for (const auto& [name, is_given] : given) {
      if (is_given) words.emplace_back(name);
    }
    if (words.empty()) return;
    problems_.add(fmt::format("{} beside {}, which has a layout of its own", join(words, " "), plan_path_),
                  kFlags, "change the file, use --set with a job.yaml, or --model instead of a file");
  }

  void read_file() {
    const std::string text = read_text(plan_path_);
    const bool json = trim(text).starts_with("{");
    if (json && text.find("tessera-plan") == std::string::npos) {
      throw Error(
          ErrorKind::config, "this JSON is not a plan", plan_path_,
          fmt::format("give a plan.json that tessera wrote; a model's config goes behind a flag: --model {}",
                      plan_path_));
    }
    if (!json) {
      job_ = spec::read_job(plan_path_, flags_.overrides);
    } else {
      if (!flags_.overrides.empty()) {
        problems_.add(fmt::format("--set {} with a plan file", flags_.overrides.front()), plan_path_,
                      "--set is for job files; make the plan again");
      }
      out_.plan = plan::read_plan(plan_path_);
      out_.keeps_schedule = true;
      job_ = out_.plan->job;
    }
    out_.setup.model = job_.model;
    out_.model = name_of_model();
  }

  // By the file it came from, or the shipped model that it is.
  [[nodiscard]] std::string name_of_model() const {
    const fs::path config = job_.model_config;
    if (config.filename() == "config.json") return config.parent_path().filename().string();
    if (!config.empty()) return config.stem().string();
    for (const spec::PresetInfo& p : spec::model_presets()) {
      if (spec::model_preset(p.name) == job_.model) return p.name;
    }
    return std::string(spec::name(job_.model.family));
  }

  void cluster() {
    const plan::PlannedFor planned = out_.plan ? out_.plan->planned_for : plan::PlannedFor{};
    if (cluster_name_.empty() && !planned.cluster) {
      if (!plan_path_.empty() && !have_job_) return;  // a plan that cannot be read may name one
      problems_.add(
          "no cluster is named", kFlags,
          fmt::format("name a cluster file or one of {}", join(names_of(spec::cluster_presets()), ", ")));
      return;
    }
    have_cluster_ = tried([&] {
      out_.setup.cluster = cluster_name_.empty() ? *planned.cluster : spec::find_cluster(cluster_name_);
      if (flags_.devices) out_.setup.cluster = spec::with_devices(out_.setup.cluster, *flags_.devices);
      out_.setup.calibration = flags_.calibration.empty() ? cost::calibration(out_.setup.cluster.device)
                                                          : cost::read_calibration(flags_.calibration);
    });
  }

  void software() {
    if (!flags_.practice.empty()) tried([&] { out_.setup.practice = graph::practice(flags_.practice); });
    if (!flags_.routing.empty())
      tried([&] { out_.setup.routing = cost::parse_routing_load(flags_.routing); });
  }

  // The job that the flags say.
  void job() {
    if (have_model_) from_flags();
    const Precision precision = job_.train.precision;
    if (flags_.practice.empty()) {
      const bool own = precision == Precision::f32 || precision == Precision::f64;
      const std::string planned = out_.plan ? out_.plan->planned_for.practice : "";
      out_.setup.practice = graph::practice(own               ? "tessera"
                                            : planned.empty() ? graph::kDefaultPractice
                                                              : planned);
    }
    if (have_cluster_ && !has(out_.setup.calibration, precision)) {
      std::vector<std::string> words;
      for (const Precision p : kPrecisions) {
        if (has(out_.setup.calibration, p)) words.emplace_back(spec::name(p));
      }
      problems_.add(fmt::format("{} has no {}", out_.setup.calibration.name, spec::name(precision)),
                    have_model_ ? "--precision" : plan_path_ + ": train.precision",
                    "use one of " + join(words, ", "));
    }
    check_job();
    const spec::ModelSpec& m = job_.model;
    if (!out_.setup.routing.histogram.empty() &&
        (!m.moe ||
         std::ssize(out_.setup.routing.histogram) / out_.setup.routing.num_layers != m.moe->num_experts)) {
      problems_.add(fmt::format("the file counts {} experts, the model has {}",
                                std::ssize(out_.setup.routing.histogram) / out_.setup.routing.num_layers,
                                m.moe ? m.moe->num_experts : 0),
                    "--routing " + flags_.routing, "give one count for each expert of a layer");
    } else if (!flags_.placement.empty()) {
      tried([&] { out_.setup.routing = placed_load(out_.setup.routing, m, flags_.placement); });
    }
  }

  void from_flags() {
    job_.model = out_.setup.model;
    spec::ParallelSpec& p = job_.parallel;
    p.tp = flags_.tp.value_or(1);
    p.cp = flags_.cp.value_or(1);
    p.pp = flags_.pp.value_or(1);
    p.vpp = flags_.vpp.value_or(flags_.schedule == "zb-v" ? 2 : 1);
    p.ep = flags_.ep.value_or(1);
    p.etp = flags_.etp.value_or(1);
    p.sequence_parallel = !flags_.no_sequence_parallel;
    p.schedule = !flags_.schedule.empty() ? flags_.schedule : p.vpp > 1 ? "interleaved" : "1f1b";
    if (!flags_.order.empty()) p.order = flags_.order;
    replicas();
    spec::Recipe& r = job_.train;
    r.steps = 1;
    r.micro_batch_size = flags_.micro_batch_size.value_or(1);
    r.zero_stage = flags_.zero_stage.value_or(1);
    r.precision = Precision::bf16;
    if (job_.model.moe) r.moe.aux_loss_coef = job_.model.moe->router_aux_loss_coef;
    r.moe.capacity_factor = flags_.capacity_factor.value_or(0.0);
    if (!flags_.precision.empty()) precision();
    if (!flags_.recompute.empty()) recompute();
    r.global_batch_size = flags_.global_batch_size.value_or(0);
    r.sequence_length = flags_.sequence_length.value_or(0);
  }

  void workload() {
    if (!flags_.global_batch_size) {
      problems_.add("--gbs is missing", kFlags, "give the sequences of a step, --gbs 512");
    }
    if (!flags_.sequence_length) {
      problems_.add("--seq is missing", kFlags, "give the tokens of a sequence, --seq 4096");
    }
  }

  void replicas() {
    spec::ParallelSpec& p = job_.parallel;
    p.dp = flags_.dp.value_or(1);
    if (flags_.dp || !have_cluster_) return;
    const std::int64_t devices = out_.setup.cluster.num_devices;
    const std::int64_t replica = std::int64_t{p.tp} * p.cp * p.pp;
    if (devices % replica != 0) {
      problems_.add(fmt::format("tp={} * cp={} * pp={} = {} does not divide {} devices", p.tp, p.cp, p.pp,
                                replica, devices),
                    kFlags, "--devices names another number of them, --dp the replicas to use");
      return;
    }
    p.dp = static_cast<std::int32_t>(devices / replica);
  }

  void precision() {
    std::vector<std::string> words;
    for (const Precision p : kPrecisions) {
      words.emplace_back(spec::name(p));
      if (words.back() != flags_.precision) continue;
      job_.train.precision = p;
      return;
    }
    problems_.add(fmt::format("precision {} is not known", flags_.precision), "--precision",
                  known_or_near(flags_.precision, words));
  }

  // none, full, selective, selective:layernorm+moe_act
  void recompute() {
    const std::size_t colon = flags_.recompute.find(':');
    const std::string mode = flags_.recompute.substr(0, colon);
    if (mode == "full" && colon == std::string::npos) {
      job_.train.recompute = spec::Recompute::full;
    } else if (mode == "selective") {
      job_.train.recompute = spec::Recompute::selective;
      if (colon != std::string::npos) {
        job_.train.recompute_modules = split(flags_.recompute.substr(colon + 1), '+');
      }
    } else if (flags_.recompute != "none") {
      problems_.add(fmt::format("recomputation {} is not known", flags_.recompute), "--recompute",
                    "use none, full, selective or selective:layernorm+moe_act");
    }
  }

  // Everything was read; is it a plan that can be priced?
  void finish() {
    set_work();
    tried([&] { out_.candidate = cost::from_job(job_); });
    problems_.throw_if_any();
    if (!out_.keeps_schedule) tried([&] { out_.plan = plan::make_plan(job_); });
    problems_.throw_if_any();
    for (const layout::StageCut& cut : out_.plan->layout.stages) out_.stage_layers.push_back(cut.num_layers);
    cost::Setup& s = out_.setup;
    tried([&] { s.cluster = spec::with_devices(s.cluster, out_.candidate.world_size()); });
    const std::string why = cost::why_invalid(s, out_.candidate);
    if (!why.empty()) {
      problems_.add(why, where(), "change the layout; tessera plan lists those that fit");
    }
  }
  [[nodiscard]] std::string where() const { return have_model_ ? kFlags : plan_path_; }

  void set_work() {
    out_.setup.model = job_.model;
    out_.setup.work = {.global_batch_size = job_.train.global_batch_size,
                       .sequence_length = job_.train.sequence_length,
                       .precision = job_.train.precision,
                       .capacity_factor = job_.train.moe.capacity_factor};
  }

  // How prices cut the layers; a job cuts them otherwise unless told.
  [[nodiscard]] std::vector<std::int32_t> model_split() const {
    const cost::StageSplit cut(job_.model, job_.parallel.pp * job_.parallel.vpp,
                               out_.setup.practice.balanced_stages);
    std::vector<std::int32_t> layers;
    for (std::int32_t s = 0; s < cut.num_stages(); ++s) layers.push_back(cut.layers(s));
    return layers;
  }
  void check_job() {
    const spec::ParallelSpec& p = job_.parallel;
    const std::int64_t stages = std::int64_t{p.pp} * p.vpp;
    if (have_model_ && stages > 1 && stages <= job_.model.num_hidden_layers + 2) {
      job_.parallel.stage_layers = model_split();
    }
    if (have_model_ && flags_.global_batch_size && flags_.sequence_length) {
      Problems found;
      spec::validate(job_, "flags", found);
      problems_.append(found);
    }
    // Each degree alone is at most 2^31.
    const double world = double{1.0} * p.tp * p.cp * p.dp * p.pp;
    if (have_cluster_ && world > out_.setup.cluster.num_devices) {
      problems_.add(
          fmt::format("{:.0f} ranks on the {} devices of {}", world, out_.setup.cluster.num_devices,
                      cluster_name_),
          where(),
          fmt::format("--devices {:.0f} simulates more of the same machines; or use a smaller layout",
                      world));
    }
    stragglers();
  }

  void stragglers() {
    const std::int32_t pp = job_.parallel.pp;
    for (const std::string& list : flags_.stragglers) {
      for (const std::string& one : split(list, ',')) {
        const std::size_t sign = one.find('=');
        std::int32_t rank = -1;
        double factor = 0.0;
        const bool readable = sign != std::string::npos && to_number(one.substr(0, sign), rank) &&
                              to_number(one.substr(sign + 1), factor);
        if (!readable || rank < 0 || rank >= pp || !(factor >= 0.1 && factor <= 100.0)) {
          problems_.add(
              fmt::format("{} is no straggler", one), "--stragglers",
              fmt::format("use RANK=FACTOR: a pipeline rank from 0 to {} and a factor from 0.1 to 100 "
                          "on its compute time, 0=1.2",
                          pp - 1));
          continue;
        }
        out_.rank_slowdown.resize(static_cast<std::size_t>(pp), 1.0);
        out_.rank_slowdown[static_cast<std::size_t>(rank)] = factor;
      }
    }
  }

  const SimulateFlags& flags_;
  Problems problems_;
  SimulateInput out_;
  std::string plan_path_, cluster_name_;
  spec::Job job_;
  bool have_model_ = false, have_job_ = false, have_cluster_ = false;
};

}  // namespace

SimulateInput read_simulate_input(const SimulateFlags& flags) {
  return Reader(flags).read();
}

}  // namespace tessera::cli
