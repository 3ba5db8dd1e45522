#include "exec/rank_engine.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "base/clock.h"
#include "base/math.h"
#include "comm/thread_world.h"
#include "exec/rope.h"
#include "graph/dispatch_form.h"
#include "moe/correction.h"
#include "optim/lr_schedule.h"

namespace tessera::exec {

using layout::Axis;
using schedule::ActionKind;

namespace {

DType dtype_of(spec::Precision p) {
  switch (p) {
    case spec::Precision::f64:
      return DType::f64;
    case spec::Precision::f32:
    case spec::Precision::bf16:
    case spec::Precision::fp16:
    case spec::Precision::fp8:
    case spec::Precision::fp8_block:
    case spec::Precision::mxfp8:
    case spec::Precision::nvfp4:
      return DType::f32;  // the others are refused before a plan is run
  }
  return DType::f32;
}

// Replicas whose micro-batches meet in this rank's etp x ep group.
std::int64_t replicas_in_expert_group(const layout::Layout& layout, Rank rank) {
  std::set<std::int32_t> replicas;
  for (const Rank r : layout.expert.group(rank, {Axis::etp, Axis::ep})) {
    replicas.insert(layout.dense.coordinate(r, Axis::dp) * layout.dense.size(Axis::cp) +
                    layout.dense.coordinate(r, Axis::cp));
  }
  return static_cast<std::int64_t>(replicas.size());
}

// What a normalisation makes of the coefficient of the balancing loss, on top of what the layers do.
double aux_loss_scale(const spec::Job& job) {
  const spec::MoeRecipe& r = job.train.moe;
  if (!job.model.moe || r.aux_loss_unit != spec::BalanceUnit::global_batch) return 1.0;
  switch (r.aux_loss_normalisation) {
    case spec::AuxNormalisation::tessera:
      return 1.0;
    case spec::AuxNormalisation::huggingface:  // k times the value, a mean over the layers
      return static_cast<double>(job.model.moe->num_experts_per_tok) /
             static_cast<double>(std::max<std::size_t>(1, spec::moe_layers(job.model).size()));
    case spec::AuxNormalisation::megatron:  // its gradients are means over dp, its counts already sums
      return 1.0 / job.parallel.dp;
  }
  return 1.0;
}

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

moe::DispatchForm to_moe(spec::DispatchForm f) {
  switch (f) {
    case spec::DispatchForm::automatic:  // resolved before
    case spec::DispatchForm::all_to_all:
      return moe::DispatchForm::all_to_all;
    case spec::DispatchForm::all_gather:
      return moe::DispatchForm::all_gather;
    case spec::DispatchForm::hierarchical:
      return moe::DispatchForm::hierarchical;
  }
  return moe::DispatchForm::all_to_all;
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

RankEngine::RankEngine(Options options) : options_(std::move(options)) {
  const plan::Plan& plan = *options_.plan;
  spec::require_engine_runs(plan.job, "job");  // a plan may hold more than the engine runs
  comms_ = make_communicators(plan.layout, options_.rank, layout::shares_embedding(plan.job.model),
                              graph::dispatch_nodes(plan.job), options_.communicators);
  Arena counting;
  build(counting, planned_);
  planned_arena_ = counting.used();
  if (options_.dry_run) return;
  arena_ = Arena(planned_arena_);
  scratch_ = Arena(planned_scratch_);
  plan::RankMemory real;
  build(arena_, real);
  TESSERA_CHECK(real == planned_, "the set-up takes what its dry run took");
  fill_rope_tables(plan.job.model, cos_, sin_);
  if (!frequencies_.empty()) {
    std::ranges::fill(frequencies_.span<double>(), 1.0 / static_cast<double>(frequencies_.dim(1)));
    use_routing_frequencies();
  }
  ctx_ = std::make_unique<nn::Context>(nn::Context{.kernels = *options_.kernels,
                                                   .tp = *comms_.tp,
                                                   .scratch = scratch_,
                                                   .weights = {},
                                                   .worker = overlaps_dispatch() ? options_.worker : nullptr,
                                                   .whereabouts = options_.whereabouts});
  // The ranks of a tensor-parallel group do the same layers of the same micro-batches, one after another.
  comms_.tp->compare_sites(options_.whereabouts != nullptr && !runs_pairs());
  if (runs_pairs()) {
    pair_scratch_ = Arena(planned_scratch_);
    pair_ctx_ = std::make_unique<nn::Context>(nn::Context{.kernels = *options_.kernels,
                                                          .tp = *comms_.tp,
                                                          .scratch = pair_scratch_,
                                                          .weights = {},
                                                          .worker = options_.worker});
    pair_ = std::make_unique<PassPair>();
    pair_ctx_->turn = pair_.get();
  }
  times_.resize(actions().size());
}

RankEngine::~RankEngine() {
  // The helper thread may still be inside a reduction, where an exception ends the step.
  if (options_.worker != nullptr) options_.worker->drain();
}

bool RankEngine::overlaps_dispatch() const {
  const spec::Job& job = options_.plan->job;
  return options_.worker != nullptr && job.train.moe.overlap_dispatch && job.model.moe &&
         job.model.moe->shared_intermediate_size > 0 && comms_.ep->size() * comms_.etp->size() > 1;
}

std::int64_t RankEngine::hidden_dispatch_ns() const {
  std::int64_t sum = 0;
  for (const StageState& s : states_) {
    for (const Stage::Mixture& m : s.stage->mixtures()) sum += m.moe->stats().hidden_transfer_ns;
  }
  return sum;
}

nn::Dims RankEngine::dims() const {
  const spec::Job& job = options_.plan->job;
  return {.dtype = dtype_of(job.train.precision),
          .batch = job.train.micro_batch_size,
          .seq = job.train.sequence_length,
          .hidden = job.model.hidden_size,
          .tp = job.parallel.tp};
}

void RankEngine::build(Arena& arena, plan::RankMemory& memory) {
  using plan::MemoryKind;
  const plan::Plan& plan = *options_.plan;
  const spec::Job& job = plan.job;
  const nn::Dims d = dims();
  stages_.clear();
  states_.clear();
  store_ = std::make_unique<ParamStore>(layout::parameters(job.model, plan.layout, options_.rank),
                                        StoreOptions{.dtype = d.dtype,
                                                     .bucket_bytes = job.train.bucket_bytes,
                                                     .zero1 = job.train.zero_stage == 1,
                                                     .tied = layout::shares_embedding(job.model)},
                                        comms_, *options_.kernels, arena);
  moe_layers_ = spec::moe_layers(job.model);
  cos_ = arena.take(d.dtype, {d.seq, job.model.rotated_dim() / 2});
  sin_ = arena.take(d.dtype, {d.seq, job.model.rotated_dim() / 2});
  for (const StageId id : plan.layout.stages_of(options_.rank)) {
    stages_.emplace_back(
        Stage::Options{.model = job.model,
                       .recipe = job.train,
                       .cut = plan.layout.stages.at(static_cast<std::size_t>(id.value)),
                       .id = id,
                       .dims = d,
                       .etp = job.parallel.etp,
                       .units_in_group = replicas_in_expert_group(plan.layout, options_.rank),
                       .aux_loss_scale = aux_loss_scale(job),
                       .dispatch = to_moe(graph::dispatch_form(job)),
                       .slot_of_expert = plan.layout.slot_of_expert},
        *store_, comms_, cos_, sin_);
  }
  const StoreBytes& stored = store_->bytes();
  memory[MemoryKind::packed_weights] = stored.packed;
  memory[MemoryKind::gradients] = stored.gradients;
  memory[MemoryKind::optimizer] = stored.optimizer;
  // The rest that the store took: values, and the rotary tables beside them.
  memory[MemoryKind::weights] = arena.used() - stored.packed - stored.gradients - stored.optimizer;
  planned_scratch_ = Bytes(0);
  const auto grown = [&](MemoryKind kind, const auto& reserve) {
    const Bytes before = arena.used();
    reserve();
    memory[kind] += arena.used() - before;
  };
  for (Stage& stage : stages_) {
    StageState s;
    s.stage = &stage;
    s.counts = slot_counts(stage.id());
    grown(MemoryKind::saved, [&] { stage.reserve_live(s.counts, arena); });
    grown(MemoryKind::deferred, [&] { stage.reserve_deferred(arena); });
    planned_scratch_ = std::max(planned_scratch_, stage.scratch_bytes());
    states_.push_back(std::move(s));
  }
  memory[MemoryKind::scratch] =
      planned_scratch_ * (runs_pairs() ? 2 : 1) + options_.kernels->workspace_bytes();
  grown(MemoryKind::tokens, [&] { reserve_step_buffers(arena); });
  link_stages();
}

void RankEngine::reserve_step_buffers(Arena& arena) {
  const spec::Job& job = options_.plan->job;
  const std::int64_t m = options_.plan->num_microbatches();
  ids_ = arena.take(DType::i32, {m, dims().tokens()});
  targets_ = arena.take(DType::i32, {m, dims().tokens()});
  const std::int64_t experts = job.model.moe ? job.model.moe->num_experts : 0;
  const auto layers = std::ssize(moe_layers_);
  const bool mtp = job.model.num_nextn_predict_layers > 0;
  sums_ = arena.take(DType::f64, {4 + layers + (mtp ? 1 : 0)});
  counts_ = arena.take(DType::i64, {std::max<std::int64_t>(1, layers * (2 * experts + 1))});
  if (job.train.moe.aux_loss_unit == spec::BalanceUnit::global_batch && layers > 0) {
    frequencies_ = arena.take(DType::f64, {layers, experts});
  }
}

void RankEngine::link_stages() {
  const schedule::Schedule& lists = options_.plan->schedule;
  const std::int32_t here = comms_.pp->rank();
  const std::size_t m = static_cast<std::size_t>(lists.num_microbatches);
  for (StageState& s : states_) {
    const std::int32_t id = s.stage->id().value;
    s.deferred_of.assign(m, -1);
    s.deferred_used.assign(static_cast<std::size_t>(s.counts.deferred), false);
    s.sent_gradient.assign(static_cast<std::size_t>(s.counts.gradient), kNoMessage);
    s.sent_output.assign(static_cast<std::size_t>(s.counts.live), kNoMessage);
    const auto neighbour = [&](std::int32_t other, std::int32_t& rank, StageState*& local) {
      if (other < 0 || other >= lists.num_stages()) return;
      rank = lists.rank_of(StageId(other));
      if (rank == here) local = &state(StageId(other));
    };
    neighbour(id - 1, s.previous_rank, s.previous_here);
    neighbour(id + 1, s.next_rank, s.next_here);
  }
}

SlotCounts RankEngine::slot_counts(StageId stage) const {
  const schedule::StageSlots& proven = options_.plan->proof.stages.at(static_cast<std::size_t>(stage.value));
  SlotCounts counts{.live = proven.peak_live, .deferred = 0, .gradient = proven.peak_unreceived_backward + 1};
  std::int32_t deferred = 0;
  std::int32_t waiting = 0;  // gradients handed to a stage of the same rank and not yet taken
  for (const schedule::Action& a : actions()) {
    const bool input = a.kind == ActionKind::backward_input || a.kind == ActionKind::backward;
    if (input && a.stage.value == stage.value - 1) --waiting;
    if (a.stage != stage) continue;
    if (input) counts.gradient = std::max(counts.gradient, ++waiting);
    if (a.kind == ActionKind::backward_input) {
      counts.deferred = std::max(counts.deferred, ++deferred);
      counts.fused = false;
    }
    if (a.kind == ActionKind::backward) counts.deferred = std::max(counts.deferred, deferred + 1);
    if (a.kind == ActionKind::backward_weight) --deferred;
  }
  // Only a neighbour on this rank takes gradients from the slots; a remote one is counted by the proof.
  const schedule::Schedule& lists = options_.plan->schedule;
  const bool local = stage.value > 0 && lists.rank_of(StageId(stage.value - 1)) == comms_.pp->rank();
  if (!local) counts.gradient = proven.peak_unreceived_backward + 1;
  return counts;
}

const schedule::ActionList& RankEngine::actions() const {
  return options_.plan->schedule.ranks.at(static_cast<std::size_t>(comms_.pp->rank()));
}

RankEngine::StageState& RankEngine::state(StageId stage) {
  for (StageState& s : states_) {
    if (s.stage->id() == stage) return s;
  }
  throw Error(ErrorKind::internal, "an action names a stage of another rank", "rank engine",
              "this is a defect of Tessera: please report it with the job");
}

plan::RankMemory RankEngine::measured_memory() const {
  plan::RankMemory m = planned_;
  m[plan::MemoryKind::scratch] += scratch_.peak() - planned_scratch_;
  if (pair_) m[plan::MemoryKind::scratch] += pair_scratch_.peak() - planned_scratch_;
  m[plan::MemoryKind::saved] += arena_.peak() - planned_arena_;
  return m;
}

void RankEngine::initialise() {
  store_->initialise(options_.plan->job.train.seed, options_.plan->job.model.initializer_range);
  weights_changed();
}

void RankEngine::weights_changed() {
  store_->pack(*options_.kernels);
}

// ---------------------------------------------------------------------------------------------- a step

void RankEngine::load_batch(const BatchSource& data, std::int64_t first_sequence,
                            std::int32_t num_microbatches) {
  const plan::Plan& plan = *options_.plan;
  const std::int64_t mbs = plan.job.train.micro_batch_size;
  const std::int64_t seq = plan.job.train.sequence_length;
  const std::int64_t replicas = plan.job.parallel.dp;
  const std::int64_t replica = plan.layout.dense.coordinate(options_.rank, Axis::dp);
  first_sequence_ = first_sequence;
  for (std::int64_t j = 0; j < num_microbatches; ++j) {
    const std::int64_t first = first_sequence + (j * replicas + replica) * mbs;
    const auto row = [&](Tensor t, std::int64_t b) {
      return t.narrow_rows(j, 1).flat().narrow_rows(b * seq, seq).span<std::int32_t>();
    };
    for (std::int64_t b = 0; b < mbs; ++b) data.fill(first + b, row(ids_, b), row(targets_, b));
  }
}

nn::Microbatch RankEngine::microbatch(MicrobatchId mb) const {
  const plan::Plan& plan = *options_.plan;
  const spec::Job& job = plan.job;
  const std::int64_t replica = plan.layout.dense.coordinate(options_.rank, Axis::dp);
  const std::int64_t before =
      (std::int64_t{mb.value} * job.parallel.dp + replica) * job.train.micro_batch_size;
  return {.ids_T = ids_.narrow_rows(mb.value, 1).flat(),
          .targets_T = targets_.narrow_rows(mb.value, 1).flat(),
          .index = mb.value,
          .first_token = (first_sequence_ + before) * job.train.sequence_length};
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

const StepResult& RankEngine::train_step(std::int64_t step) {
  const spec::Recipe& r = options_.plan->job.train;
  const std::int64_t first = step * r.global_batch_size;
  const std::int64_t start = wall_ns();
  const std::int64_t start_cpu = thread_cpu_ns();
  options_.kernels->reset_flops();
  if (options_.whereabouts != nullptr) options_.whereabouts->set_step(step, comm::Phase::load);
  for (Communicator* c : comms_.all()) c->reset_counters();
  load_batch(*options_.data, first, options_.plan->num_microbatches());
  ctx_->weights = loss_weights(options_.data->num_targets(first, r.global_batch_size), r.global_batch_size);
  ctx_->training = true;
  store_->zero_grads(*options_.kernels);
  local_ce_ = 0.0;
  local_mtp_ = 0.0;
  exposed_reduce_ns_ = 0;
  for (StageState& s : states_) {
    s.num_weight_done = 0;
    for (const Stage::Mixture& m : s.stage->mixtures()) m.moe->reset_stats();
  }
  timed_phase("begin", start, start_cpu);
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
  at(comm::Phase::update);
  finish_reductions();
  step_flops_ = options_.kernels->flops();
  share_results();
  update(step);
  move_corrections();
  at(comm::Phase::report);
  return result_;
}

void RankEngine::timed_phase(const char* name, std::int64_t start_ns, std::int64_t start_cpu_ns) {
  if (observer_ == nullptr) return;
  observer_->phase(name, {start_ns, wall_ns(), thread_cpu_ns() - start_cpu_ns});
}

void RankEngine::reduce_completed(StageState& s, std::int32_t position) {
  if (s.num_weight_done != options_.plan->num_microbatches()) return;
  store_->visit_completed(s.stage->id(), position, [&](optim::Bucket& bucket) {
    if (bucket.group->size() == 1) return;
    if (options_.worker == nullptr) {
      const std::int64_t start = wall_ns();
      optim::reduce(bucket);
      exposed_reduce_ns_ += wall_ns() - start;
    } else {
      options_.worker->post([b = &bucket] { optim::reduce(*b); });
    }
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
  sums[0] = comms_.tp->rank() == 0 ? local_ce_ : 0.0;
  for (const optim::Bucket& b : store_->buckets()) sums[3] += optim::sum_squares(b, *options_.kernels);
  const spec::ModelSpec& model = options_.plan->job.model;
  const std::size_t experts = model.moe ? static_cast<std::size_t>(model.moe->num_experts) : 0;
  const std::size_t width = 2 * experts + 1;
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
  if (mtp) sums.back() = comms_.tp->rank() == 0 ? local_mtp_ : 0.0;
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
  note_frequencies();
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
      moe::move_correction(m.moe->correction_E(), result_.routing[moe_index(m.layer)].chosen,
                           r.bias_update_rate, mean);
    }
  }
}

void RankEngine::update(std::int64_t step) {
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
  result_.lr = lr.at(step);
  const auto t = static_cast<double>(step + 1);
  const kernels::AdamWOptions adam{.lr = result_.lr,
                                   .beta1 = o.beta1,
                                   .beta2 = o.beta2,
                                   .eps = o.eps,
                                   .weight_decay = o.weight_decay,
                                   .bias_correction1 = 1.0 - std::pow(o.beta1, t),
                                   .bias_correction2 = 1.0 - std::pow(o.beta2, t),
                                   .grad_scale = optim::clip_coefficient(result_.grad_norm, o.clip_grad)};
  for (optim::Bucket& b : store_->buckets()) optim::apply(b, *options_.kernels, adam);
  const std::int64_t gather_start = wall_ns();
  for (optim::Bucket& b : store_->buckets()) optim::gather(b);
  exposed_reduce_ns_ += wall_ns() - gather_start;
  store_->pack(*options_.kernels);
  timed_phase("optimizer", start, cpu);
}

plan::MemoryPlan plan_memory(const plan::Plan& plan) {
  comm::ThreadWorld world({.size = plan.layout.world_size()});
  plan::MemoryPlan memory;
  for (std::int32_t r = 0; r < world.size(); ++r) {
    const RankEngine engine(
        {.plan = &plan,
         .rank = Rank(r),
         .kernels = kernels::make_cpu(),
         .communicators = [&](std::span<const Rank> members,
                              std::string_view label) { return world.communicator(Rank(r), members, label); },
         .dry_run = true});
    memory.ranks.push_back(engine.planned_memory());
  }
  return memory;
}

}  // namespace tessera::exec
