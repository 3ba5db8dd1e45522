// MTP layers: their loss against its formula by hand, every gradient against central differences, any layout
// against one rank, and the main model as it is without them.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "run.h"

namespace tessera::testing {
namespace {

spec::Job mtp_job(std::int32_t depths, bool tied = false) {
  spec::Job job = small_job({});
  job.model = mtp_model(depths);
  job.model.tie_word_embeddings = tied;
  job.train.mtp_loss_coef = 0.3;
  job.train.sequence_length = 8;
  job.train.global_batch_size = 4;
  job.train.micro_batch_size = 2;
  return job;
}

const exec::StoredParam& stored(exec::RankEngine& engine, const std::string& name) {
  for (const exec::StoredParam& p : engine.store().params()) {
    if (p.spec.name == name && !p.spec.tied_copy) return p;
  }
  throw std::runtime_error("no parameter " + name);
}

std::vector<double> values(exec::RankEngine& engine, const std::string& name) {
  const auto v = stored(engine, name).value.span<double>();
  return {v.begin(), v.end()};
}

// y = x / rms(x) * w
std::vector<double> normed(const std::vector<double>& x, const std::vector<double>& w, double eps) {
  double squares = 0.0;
  for (const double v : x) squares += v * v;
  const double scale = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  std::vector<double> y;
  for (std::size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * scale * w[i]);
  return y;
}

std::vector<double> row(const std::vector<double>& table, std::int64_t r, std::size_t width) {
  return {table.begin() + r * static_cast<std::int64_t>(width),
          table.begin() + (r + 1) * static_cast<std::int64_t>(width)};
}

std::vector<double> product(const std::vector<double>& w, const std::vector<double>& x) {
  std::vector<double> y(w.size() / x.size(), 0.0);
  for (std::size_t r = 0; r < y.size(); ++r)
    for (std::size_t c = 0; c < x.size(); ++c) y[r] += w[r * x.size() + c] * x[c];
  return y;
}

double cross_entropy(const std::vector<double>& logits, std::int32_t target) {
  double sum = 0.0;
  for (const double l : logits) sum += std::exp(l);
  return std::log(sum) - logits.at(target);
}

// Without outputs of attention and experts a layer is the identity, so the loss can be written down: M_k,
// three norms, embedding and head.
double loss_by_hand(exec::RankEngine& engine, const spec::Job& job, const exec::BatchSource& data) {
  const auto width = static_cast<std::size_t>(job.model.hidden_size);
  const std::int64_t seq = job.train.sequence_length;
  const double eps = job.model.rms_norm_eps;
  const std::vector<double> table = values(engine, "model.embed_tokens.weight");
  const std::vector<double> head = values(engine, "lm_head.weight");
  const std::int32_t depths = job.model.num_nextn_predict_layers;
  double sum = 0.0;
  for (std::int64_t b = 0; b < job.train.global_batch_size; ++b) {
    std::vector<std::int32_t> ids(seq), targets(seq);
    data.fill(b, ids, targets);
    for (std::int64_t i = 0; i < seq; ++i) {
      std::vector<double> h = row(table, ids[i], width);
      for (std::int32_t k = 1; k <= depths && i + k < seq; ++k) {
        const std::string prefix = fmt::format("model.layers.{}.", job.model.num_hidden_layers + k - 1);
        std::vector<double> cat =
            normed(row(table, ids[i + k], width), values(engine, prefix + "enorm.weight"), eps);
        const std::vector<double> stream = normed(h, values(engine, prefix + "hnorm.weight"), eps);
        cat.insert(cat.end(), stream.begin(), stream.end());
        h = product(values(engine, prefix + "eh_proj.weight"), cat);
        if (targets[i + k] < 0) continue;
        sum +=
            cross_entropy(product(head, normed(h, values(engine, prefix + "shared_head.norm.weight"), eps)),
                          targets[i + k]);
      }
    }
  }
  const auto counted = static_cast<double>(data.num_targets(0, job.train.global_batch_size));
  return job.train.mtp_loss_coef / depths * sum / counted;
}

TEST(Mtp, LossIsThatOfTheFormula) {
  for (const std::int32_t depths : {1, 2}) {
    const spec::Job job = mtp_job(depths);
    const SyntheticTokens data(job.model.vocab_size, job.train.sequence_length, 5);
    double want = NAN;
    const auto start = [&](exec::RankEngine& engine) {
      engine.initialise();
      for (const exec::StoredParam& p : engine.store().params()) {
        const bool output =
            p.spec.name.ends_with("o_proj.weight") || p.spec.name.ends_with("down_proj.weight");
        const bool norm = p.spec.name.ends_with("norm.weight");
        double v = 0.7;
        for (double& x : p.value.span<double>()) {
          if (output) x = 0.0;
          if (norm) x = v = v < 1.4 ? v + 0.03 : 0.7;
        }
      }
      engine.weights_changed();
      want = loss_by_hand(engine, job, data);
    };
    const RunResult got = run_job(job, {.steps = 1, .ignore_every = 5, .start = start});
    EXPECT_GT(want, 0.1);
    EXPECT_NEAR(got.steps[0].mtp_loss, want, 1e-12) << depths;
  }
}

// The whole loss: of the MTP layers' own parameters, of what they share with the main model and of the main
// model below them.
TEST(Mtp, EveryGradientIsThatOfCentralDifferences) {
  for (const bool tied : {false, true}) {
    spec::Job job = mtp_job(2, tied);
    job.train.global_batch_size = 2;
    const RunResult base = run_job(job, {.steps = 1, .ignore_every = 7});
    const auto loss_with = [&](const std::string& name, std::size_t element, double change) {
      const auto start = [&](exec::RankEngine& engine) {
        engine.initialise();
        stored(engine, name).value.span<double>()[element] += change;
        engine.weights_changed();
      };
      return run_job(job, {.steps = 1, .ignore_every = 7, .start = start}).steps[0].loss();
    };
    std::int32_t checked = 0;
    for (const auto& [name, gradient] : base.gradients) {
      const bool expert = name.find(".experts.") != std::string::npos;
      if (expert && name.find(".experts.1.") == std::string::npos) continue;
      // A tied head changes what the first MTP layer shares, no more.
      if (tied && !name.starts_with("model.embed") && !name.starts_with("model.layers.3.")) continue;
      const auto at = static_cast<std::size_t>(
          std::ranges::max_element(gradient, {}, [](double g) { return std::abs(g); }) - gradient.begin());
      const double h = 1e-5;
      const double want = (loss_with(name, at, h) - loss_with(name, at, -h)) / (2 * h);
      EXPECT_TRUE(std::abs(gradient[at] - want) <= 1e-7 * std::max(1.0, std::abs(want)))
          << name << "[" << at << "]: " << gradient[at] << ", wanted " << want;
      ++checked;
    }
    EXPECT_GE(checked, tied ? 20 : 80);
  }
}

struct Placed {
  spec::ParallelSpec parallel;
  spec::Recompute recompute = spec::Recompute::none;
  std::int32_t zero_stage = 0;
};

TEST(Mtp, AnyLayoutEqualsOneRank) {
  const std::vector<Placed> layouts{
      {{.tp = 2}},
      {{.dp = 2, .ep = 2}, spec::Recompute::selective, 1},
      {{.pp = 2}},
      {{.tp = 2, .dp = 2, .ep = 4}},
      {{.tp = 4, .ep = 2, .etp = 2}, spec::Recompute::none, 1},
      {{.tp = 2, .pp = 2, .ep = 2, .schedule = "zb-h1"}, spec::Recompute::full},
      {{.pp = 2, .vpp = 1, .schedule = "gpipe"}, spec::Recompute::full},
      {{.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2}, spec::Recompute::selective, 1},
      {{.dp = 2, .pp = 2, .ep = 2, .vpp = 2, .schedule = "zb-v"}, spec::Recompute::none, 1},
      {{.dp = 2, .pp = 2, .ep = 1, .vpp = 2, .schedule = "interleaved"}},
      {{.cp = 2}},
      {{.cp = 2, .dp = 2, .ep = 4}, spec::Recompute::selective, 1},
      {{.tp = 2, .cp = 2, .pp = 2, .ep = 2, .etp = 2, .schedule = "zb-h1"}, spec::Recompute::full},
  };
  for (const bool tied : {false, true}) {
    for (const Placed& l : layouts) {
      spec::Job job = mtp_job(tied ? 1 : 2, tied);
      job.train.global_batch_size = 8;
      if (l.parallel.vpp == 2) job.model.num_hidden_layers = 4;
      job.train.moe.aux_loss_coef = 0.01;
      job.train.moe.z_loss_coef = 0.001;
      job.train.moe.capacity_factor = l.zero_stage == 1 ? 1.0 : 0.0;
      const RunResult one = run_job(job, {.ignore_every = 5});
      ASSERT_GT(one.steps[0].mtp_loss, 0.0);
      job.parallel = l.parallel;
      job.train.zero_stage = l.zero_stage;
      job.train.recompute = l.recompute;
      expect_parity(one, run_job(job, {.worker = l.zero_stage == 1, .ignore_every = 5}),
                    fmt::format("tied {} tp{} cp{} dp{} pp{} vpp{} ep{} etp{} {}", tied, l.parallel.tp,
                                l.parallel.cp, l.parallel.dp, l.parallel.pp, l.parallel.vpp, l.parallel.ep,
                                l.parallel.etp, l.parallel.schedule));
      if (HasFailure()) return;
    }
  }
}

TEST(Mtp, ABiasMovesTheExpertsOfTheMtpLayerToo) {
  spec::Job job = mtp_job(1);
  job.train.moe.balancing = spec::Balancing::bias;
  job.train.moe.bias_update_rate = 0.01;
  const RunResult one = run_job(job);
  ASSERT_EQ(one.steps[0].routing.size(), 3U);  // layers 1 and 2, and the MTP layer
  EXPECT_EQ(one.steps[0].routing[2].layer, 3);
  EXPECT_EQ(one.steps[0].routing[2].tokens, 4 * 8);
  job.parallel = {.tp = 2, .pp = 2, .ep = 2};
  expect_parity(one, run_job(job), "balancing by bias");
}

// Parameters start from their names, so both models begin alike.
TEST(Mtp, LeavesTheMainModelsLossAndItsEvaluationAlone) {
  const spec::Job with = mtp_job(2);
  spec::Job without = with;
  without.model.num_nextn_predict_layers = 0;
  without.train.mtp_loss_coef = 0.0;
  const auto evaluated = [](const spec::Job& job, double* loss) {
    const SyntheticTokens data(job.model.vocab_size, job.train.sequence_length);
    const RunResult r = run_job(job, {.steps = 1, .start = [&](exec::RankEngine& engine) {
                                        engine.initialise();
                                        *loss = engine.evaluate(data, 0, 4);
                                      }});
    return r.steps[0];
  };
  double a = 0.0;
  double b = 1.0;
  const exec::StepResult first = evaluated(with, &a);
  const exec::StepResult second = evaluated(without, &b);
  EXPECT_EQ(a, b);
  EXPECT_EQ(first.ce_loss, second.ce_loss);
  EXPECT_GT(first.mtp_loss, 0.0);
  EXPECT_EQ(second.mtp_loss, 0.0);
  EXPECT_EQ(second.loss(), second.ce_loss + second.aux_loss + second.z_loss);
}

}  // namespace
}  // namespace tessera::testing
