#include "cli/question.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "cli/placed_load.h"
#include "spec/presets.h"

namespace tessera::cli {
namespace {

using spec::Precision;

constexpr std::array<Precision, 8> kPrecisions = {Precision::bf16,      Precision::fp16,  Precision::fp8,
                                                  Precision::fp8_block, Precision::mxfp8, Precision::nvfp4,
                                                  Precision::f32,       Precision::f64};
constexpr double kDefaultStepTokens = 4.0e6;
constexpr std::int64_t kDefaultSequence = 4096;

Precision parse_precision(const std::string& word) {
  std::vector<std::string> words;
  for (const Precision p : kPrecisions) {
    words.emplace_back(spec::name(p));
    if (word == words.back()) return p;
  }
  const std::string near = nearest(word, words);
  throw Error(ErrorKind::config, fmt::format("there is no precision \"{}\"", word), "--precision",
              (near.empty() ? "" : "did you mean " + near + "? ") + "use one of " + join(words, ", "));
}

bool has(const cost::Calibration& c, Precision precision) {
  return cost::gemm_model(c, precision).peak > 0.0 &&
         (precision == Precision::bf16 || precision == Precision::fp16 ||
          &cost::gemm_model(c, precision) != &c.bf16);
}

class Reader {
 public:
  explicit Reader(const QuestionFlags& flags) : flags_(flags) {}

  // Null: the model of the flags.
  Question read(const spec::ModelSpec* model) {
    const QuestionFlags& flags = flags_;
    cost::Setup& setup = question_.setup;
    attempt([&] { setup.model = model != nullptr ? *model : spec::find_model(flags.model); });
    attempt([&] {
      setup.cluster = spec::find_cluster(flags.cluster);
      if (flags.devices > 0) setup.cluster = spec::with_devices(setup.cluster, flags.devices);
      setup.calibration = flags.calibration.empty() ? cost::calibration(setup.cluster.device)
                                                    : cost::read_calibration(flags.calibration);
    });
    attempt([&] { setup.practice = graph::practice(flags.practice); });
    attempt([&] { setup.work.precision = parse_precision(flags.precision); });
    attempt([&] { setup.routing = cost::parse_routing_load(flags.routing); });
    search::apply_pins(flags.pins, question_.space, problems_);
    problems_.throw_if_any();
    finish();
    problems_.throw_if_any();
    return std::move(question_);
  }

 private:
  template <class F>
  void attempt(const F& f) {
    try {
      f();
    } catch (const Error& e) {
      if (e.kind() == ErrorKind::internal) throw;
      for (const Problem& p : e.problems()) problems_.add(p.what, p.where, p.mend);
    }
  }

  void finish() {
    cost::Setup& setup = question_.setup;
    const spec::ModelSpec& m = setup.model;
    cost::Workload& w = setup.work;
    const std::int64_t longest = m.max_position_embeddings;
    w.sequence_length = flags_.sequence_length > 0 ? flags_.sequence_length
                        : longest > 0              ? std::min(kDefaultSequence, longest)
                                                   : kDefaultSequence;
    if (longest > 0 && w.sequence_length > longest) {
      problems_.add(
          fmt::format("{} tokens are more than the model's {} positions", w.sequence_length, longest),
          "--seq", fmt::format("use --seq from 1 to {}", longest));
    }
    const double sequences = kDefaultStepTokens / static_cast<double>(w.sequence_length);
    w.global_batch_size = flags_.global_batch_size > 0
                              ? flags_.global_batch_size
                              : static_cast<std::int64_t>(std::bit_ceil(
                                    static_cast<std::uint64_t>(std::max(1.0, sequences * 0.75))));
    w.capacity_factor = flags_.capacity_factor;
    if (!has(setup.calibration, w.precision)) {
      std::vector<std::string> words;
      for (const Precision p : kPrecisions) {
        if (has(setup.calibration, p)) words.emplace_back(spec::name(p));
      }
      problems_.add(fmt::format("{} has no {}", setup.calibration.name, spec::name(w.precision)),
                    "--precision", "use one of " + join(words, ", "));
    }
    const auto experts = m.moe ? std::int64_t{m.moe->num_experts} : 0;
    if (!setup.routing.histogram.empty() &&
        std::ssize(setup.routing.histogram) / setup.routing.num_layers != experts) {
      problems_.add(fmt::format("the file counts {} experts, the model has {}",
                                std::ssize(setup.routing.histogram) / setup.routing.num_layers, experts),
                    "--routing " + flags_.routing, "give one count for each expert of a layer");
    } else if (!flags_.placement.empty()) {
      attempt([&] { setup.routing = placed_load(setup.routing, m, flags_.placement); });
    }
    search::check_space(setup, question_.space, problems_);
  }

  const QuestionFlags& flags_;
  Problems problems_;
  Question question_;
};

}  // namespace

Question read_question(const QuestionFlags& flags) {
  return Reader(flags).read(nullptr);
}
Question read_question(const QuestionFlags& flags, const spec::ModelSpec& model) {
  return Reader(flags).read(&model);
}

}  // namespace tessera::cli
