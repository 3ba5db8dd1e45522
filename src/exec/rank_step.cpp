// A step of the rank engine: the batch, the actions, the sums over the world, the update.
#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "exec/rank_engine.h"
#include "moe/correction.h"
#include "optim/lr_schedule.h"

namespace tessera::exec {

using layout::Axis;

namespace {

// Every row becomes the mean of the rows.
void average_rows(const Tensor& x) {
  const std::int64_t rows = x.rows();
  for (std::int64_t c = 0; c < x.dim(1); ++c) {
    double sum = 0.0;
    for (std::int64_t r = 0; r < rows; ++r) sum += x.as<double>()[r * x.dim(1) + c];
    for (std::int64_t r = 0; r < rows; ++r)
      x.as<double>()[r * x.dim(1) + c] = sum / static_cast<double>(rows);
  }
}

optim::LrDecay to_optim(spec::LrDecay d) {
  switch (d) {
    case spec::LrDecay::constant:
      return optim::LrDecay::constant;
    case spec::LrDecay::cosine:
      return optim::LrDecay::cosine;
    case spec::LrDecay::wsd:
      return optim::LrDecay::wsd;
  }
  return optim::LrDecay::cosine;
}

}  // namespace

void RankEngine::load_batch(const BatchSource& data, std::int64_t first_sequence,
                            std::int32_t num_microbatches) {
  const plan::Plan& plan = *options_.plan;
  const std::int64_t mbs = plan.job.train.micro_batch_size;
  const std::int64_t replicas = plan.job.parallel.dp;
  const std::int64_t replica = plan.layout.dense.coordinate(options_.rank, Axis::dp);
  first_sequence_ = first_sequence;
  for (std::int64_t j = 0; j < num_microbatches; ++j) {
    tokens_.load(data, j, first_sequence + (j * replicas + replica) * mbs);
  }
}

nn::Microbatch RankEngine::microbatch(MicrobatchId mb) const {
  const plan::Plan& plan = *options_.plan;
  const spec::Job& job = plan.job;
  const std::int64_t replica = plan.layout.dense.coordinate(options_.rank, Axis::dp);
  const std::int64_t before =
      (std::int64_t{mb.value} * job.parallel.dp + replica) * job.train.micro_batch_size;
  nn::Microbatch out = tokens_.microbatch(mb.value);
  out.first_token = (first_sequence_ + before) * job.train.sequence_length;
  return out;
}

nn::LossWeights RankEngine::loss_weights(std::int64_t targets, std::int64_t sequences) const {
  const spec::Recipe& r = options_.plan->job.train;
  nn::LossWeights w;
  w.ce = 1.0 / static_cast<double>(std::max<std::int64_t>(1, targets));
  w.z_token = 1.0 / static_cast<double>(sequences * r.sequence_length);
  switch (r.moe.aux_loss_unit) {
    case spec::BalanceUnit::sequence:
      w.aux_unit = 1.0 / static_cast<double>(sequences);
      break;
    case spec::BalanceUnit::micro_batch:
      w.aux_unit = static_cast<double>(r.micro_batch_size) / static_cast<double>(sequences);
      break;
    case spec::BalanceUnit::global_batch:
      w.aux_unit = 1.0;
      break;
  }
  return w;
}

void RankEngine::begin_step(const StepOrder& order) {
  const spec::Recipe& r = options_.plan->job.train;
  const std::int64_t first = order.batch * r.global_batch_size;
  const std::int64_t start = wall_ns();
  const std::int64_t start_cpu = thread_cpu_ns();
  options_.kernels->reset_flops();
  if (options_.whereabouts != nullptr) options_.whereabouts->set_step(order.step, comm::Phase::load);
  for (Communicator* c : comms_.all()) c->reset_counters();
  load_batch(*options_.data, first, options_.plan->num_microbatches());
  ctx_->weights = loss_weights(options_.data->num_targets(first, r.global_batch_size), r.global_batch_size);
  ctx_->training = true;
  store_->zero_grads(*options_.kernels);
  exposed_reduce_ns_ = 0;
  shards_->begin_step();
  options_.kernels->memory()->synchronise();  // kernels of an evaluation may still add to these
  std::ranges::fill(local_losses_2_.span<double>(), 0.0);
  for (StageState& s : states_) {
    s.num_weight_done = 0;
    for (const Stage::Mixture& m : s.stage->mixtures()) m.moe->reset_stats();
  }
  timed_phase("begin", start, start_cpu);
}

void RankEngine::run_actions() {
  const schedule::ActionList& list = actions();
  for (std::size_t i = 0; i < list.size(); ++i) {
    const std::int64_t backward = pair_at(i);
    if (backward < 0) {
      run_timed(i);
    } else {
      run_pair(i, static_cast<std::size_t>(backward));
      i = static_cast<std::size_t>(backward);
    }
  }
}

const StepResult& RankEngine::train_step(const StepOrder& order, const Accept& accept) {
  begin_step(order);
  run_actions();
  at(comm::Phase::update);
  finish_reductions();
  step_flops_ = options_.kernels->flops();
  share_results();
  if (!accept || accept(result_)) {
    note_frequencies();
    update(order);
    move_corrections();
  }
  at(comm::Phase::report);
  return result_;
}

void RankEngine::timed_phase(const char* name, std::int64_t start_ns, std::int64_t start_cpu_ns) {
  if (observer_ == nullptr) return;
  observer_->phase(name, {start_ns, wall_ns(), thread_cpu_ns() - start_cpu_ns});
}

void RankEngine::reduce_completed(StageState& s, std::int32_t position) {
  const bool last = s.num_weight_done == options_.plan->num_microbatches();
  store_->visit_completed(s.stage->id(), position, [&](std::size_t bucket) {
    if (last || !store_->buckets()[bucket].keeps_grad) shards_->reduce(bucket);
  });
}

void RankEngine::finish_reductions() {
  const std::int64_t start = wall_ns();
  const std::int64_t cpu = thread_cpu_ns();
  if (options_.worker != nullptr) options_.worker->wait_all();
  exposed_reduce_ns_ += wall_ns() - start;
  store_->sum_tied(*options_.kernels, *comms_.tie);
  timed_phase("gradient reductions", start, cpu);
}

std::size_t RankEngine::moe_index(std::int32_t layer) const {
  return static_cast<std::size_t>(std::ranges::find(moe_layers_, layer) - moe_layers_.begin());
}

void RankEngine::share_results() {
  const std::int64_t start = wall_ns();
  const std::int64_t cpu = thread_cpu_ns();
  std::span<double> sums = sums_.span<double>();
  std::span<std::int64_t> counts = counts_.span<std::int64_t>();
  std::ranges::fill(sums, 0.0);
  std::ranges::fill(counts, 0);
  for (const optim::Bucket& b : store_->buckets())
    optim::add_sum_squares(sums_.narrow_rows(3, 1), b, *options_.kernels);
  const spec::ModelSpec& model = options_.plan->job.model;
  const std::size_t experts = model.moe ? static_cast<std::size_t>(model.moe->num_experts) : 0;
  const std::size_t width = 2 * experts + 1;
  options_.kernels->memory()->synchronise();
  const double* losses = local_losses_2_.as<double>();
  sums[0] = comms_.tp->rank() == 0 ? losses[0] : 0.0;
  for (StageState& s : states_) {
    for (const Stage::Mixture& m : s.stage->mixtures()) {
      const std::size_t at = moe_index(m.layer);
      const moe::Stats& stats = m.moe->stats();
      sums[1] += stats.aux_loss;
      sums[2] += stats.z_loss;
      sums[4 + at] = stats.entropy;
      std::int64_t* row = &counts[at * width];
      std::ranges::copy(stats.chosen, row);
      std::ranges::copy(stats.dropped, row + experts);
      row[2 * experts] = stats.tokens;
    }
  }
  const bool mtp = model.num_nextn_predict_layers > 0;
  if (mtp) sums.back() = comms_.tp->rank() == 0 ? losses[1] : 0.0;
  comms_.world->all_reduce_direct(sums_, comm::Op::sum);
  if (model.moe) comms_.world->all_reduce_direct(counts_, comm::Op::sum);
  result_.ce_loss = sums[0];
  result_.aux_loss = sums[1];
  result_.z_loss = sums[2];
  result_.mtp_loss = mtp ? sums.back() : 0.0;
  result_.grad_norm = std::sqrt(sums[3]);
  result_.routing.resize(moe_layers_.size());
  for (std::size_t l = 0; l < result_.routing.size(); ++l) {
    LayerRouting& r = result_.routing[l];
    const std::int64_t* row = &counts[l * width];
    r.layer = moe_layers_[l];
    r.chosen.assign(row, row + experts);
    r.dropped.assign(row + experts, row + 2 * experts);
    r.tokens = row[2 * experts];
    r.entropy = r.tokens > 0 ? sums[4 + l] / static_cast<double>(r.tokens) : 0.0;
  }
  timed_phase("share results", start, cpu);
}

void RankEngine::note_frequencies() {
  if (frequencies_.empty()) return;
  double* f = frequencies_.as<double>();
  for (const LayerRouting& r : result_.routing) {
    std::int64_t all = 0;
    for (const std::int64_t n : r.chosen) all += n;
    for (const std::int64_t n : r.chosen) {
      *f++ = static_cast<double>(n) / static_cast<double>(std::max<std::int64_t>(1, all));
    }
  }
  const spec::MoeRecipe& recipe = options_.plan->job.train.moe;
  if (recipe.aux_loss_normalisation == spec::AuxNormalisation::huggingface) average_rows(frequencies_);
  use_routing_frequencies();
}

void RankEngine::use_routing_frequencies() {
  if (frequencies_.empty()) return;
  for (StageState& s : states_) {
    for (const Stage::Mixture& m : s.stage->mixtures()) {
      const auto at = static_cast<std::int64_t>(moe_index(m.layer));
      m.moe->set_global_frequency(frequencies_.narrow_rows(at, 1).span<double>());
    }
  }
}

// Every rank has the counts of the whole world, so all copies of a bias move alike.
void RankEngine::move_corrections() {
  const spec::MoeRecipe& r = options_.plan->job.train.moe;
  if (r.balancing != spec::Balancing::bias) return;
  const auto mean = r.bias_update_centred ? moe::CorrectionMean::centred : moe::CorrectionMean::uncentred;
  for (StageState& s : states_) {
    for (const Stage::Mixture& m : s.stage->mixtures()) {
      on_host(*options_.kernels->memory(), m.moe->correction_E(), tensor::Access::read_write,
              [&](const Tensor& bias_E) {
                moe::move_correction(bias_E, result_.routing[moe_index(m.layer)].chosen, r.bias_update_rate,
                                     mean);
              });
    }
  }
}

void RankEngine::update(const StepOrder& order) {
  const std::int64_t start = wall_ns();
  const std::int64_t cpu = thread_cpu_ns();
  const spec::Recipe& r = options_.plan->job.train;
  const spec::OptimizerSpec& o = r.optimizer;
  const optim::LrSchedule lr{.lr = o.lr,
                             .min_lr = o.min_lr,
                             .decay = to_optim(o.lr_decay),
                             .warmup_steps = o.lr_warmup_steps,
                             .decay_steps = o.lr_wsd_decay_steps,
                             .total_steps = r.steps};
  result_.lr = lr.at(order.step);
  const auto t = static_cast<double>(order.updates + 1);
  const kernels::AdamWOptions adam{.lr = result_.lr,
                                   .beta1 = o.beta1,
                                   .beta2 = o.beta2,
                                   .eps = o.eps,
                                   .weight_decay = o.weight_decay,
                                   .bias_correction1 = 1.0 - std::pow(o.beta1, t),
                                   .bias_correction2 = 1.0 - std::pow(o.beta2, t),
                                   .grad_scale = optim::clip_coefficient(result_.grad_norm, o.clip_grad)};
  for (optim::Bucket& b : store_->buckets()) optim::apply(b, *options_.kernels, adam);
  shards_->gather_updated();
  timed_phase("optimizer", start, cpu);
}

}  // namespace tessera::exec
