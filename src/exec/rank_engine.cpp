#include "exec/rank_engine.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <utility>

#include "base/clock.h"
#include "base/math.h"
#include "comm/planned.h"
#include "exec/expert_moves.h"
#include "exec/rope.h"
#include "graph/dispatch_form.h"

namespace tessera::exec {

using layout::Axis;
using schedule::ActionKind;

namespace {

spec::EngineOn engine_on(const kernels::Kernels& kernels) {
  return kernels.takes_bf16() ? spec::EngineOn::gpu : spec::EngineOn::cpu;
}

// Replicas whose micro-batches meet in this rank's etp x ep group.
std::int64_t replicas_in_expert_group(const layout::Layout& layout, Rank rank) {
  std::set<std::int32_t> replicas;
  for (const Rank r : layout.expert.group(rank, {Axis::etp, Axis::ep}))
    replicas.insert(layout.dense.coordinate(r, Axis::dp));
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

}  // namespace

RankEngine::RankEngine(Options options)
    : options_(std::move(options)), exceptions_at_start_(std::uncaught_exceptions()) {
  TESSERA_CHECK(options_.kernels != nullptr, "an engine computes with something");
  const plan::Plan& plan = *options_.plan;
  spec::require_engine_runs(plan.job, "job", engine_on(*options_.kernels));  // a plan may hold more than that
  join_ranks();
  Arena counting;
  build(counting, planned_);
  planned_arena_ = counting.size();
  if (options_.dry_run) return;
  const std::shared_ptr<tensor::Memory>& memory = options_.kernels->memory();
  arena_ = Arena(memory, planned_arena_);
  scratch_ = Arena(memory, planned_scratch_);
  plan::RankMemory real;
  build(arena_, real);
  TESSERA_CHECK(real == planned_, "the set-up takes what its dry run took");
  fill_rope_tables(plan.job.model, sequence_cut(), cos_, sin_, *memory);
  forget_frequencies();
  if (overlaps_dispatch() || runs_pairs()) {
    rows_worker_ = std::make_unique<comm::CommWorker>(
        comm::CommWorker::Options{.on_unwind = options_.worker->on_unwind()});
    rows_worker_->attach(memory);
  }
  ctx_ =
      std::make_unique<nn::Context>(nn::Context{.kernels = *options_.kernels,
                                                .tp = *comms_.tp,
                                                .scratch = scratch_,
                                                .weights = {},
                                                .worker = overlaps_dispatch() ? rows_worker_.get() : nullptr,
                                                .whereabouts = options_.whereabouts,
                                                .cp = comms_.cp.get()});
  // The ranks of these groups do the same layers of the same micro-batches, one after another.
  for (Communicator* c : {comms_.tp.get(), comms_.cp.get()})
    c->compare_sites(options_.whereabouts != nullptr && !runs_pairs());
  if (runs_pairs()) {
    pair_scratch_ = Arena(memory, planned_scratch_);
    pair_ctx_ = std::make_unique<nn::Context>(nn::Context{.kernels = *options_.kernels,
                                                          .tp = *comms_.tp,
                                                          .scratch = pair_scratch_,
                                                          .weights = {},
                                                          .worker = rows_worker_.get(),
                                                          .cp = comms_.cp.get()});
    pair_ = std::make_unique<PassPair>();
    pair_ctx_->turn = pair_.get();
  }
  times_.resize(actions().size());
  shards_ = std::make_unique<UnitShards>(*store_, *options_.kernels, options_.worker,
                                         UnitShards::Ahead{.gathers = plan.job.train.overlap_param_gather,
                                                           .reduces = plan.job.train.overlap_grad_reduce});
  if (plan.job.train.zero_stage < 1) return;
  for (Stage& stage : stages_) stage.set_unit_guard(shards_.get());
}

void RankEngine::join_ranks() {
  const plan::Plan& plan = *options_.plan;
  const std::shared_ptr<tensor::Memory>& memory = options_.kernels->memory();
  comms_ = make_communicators(plan.layout, options_.rank, layout::shares_embedding(plan.job.model),
                              graph::dispatch_nodes(plan.job), options_.communicators,
                              {.memory = memory,
                               .network = options_.network.get(),
                               .tp_messages = plan.job.parallel.tp_comm_overlap});
  if (options_.worker != nullptr) options_.worker->attach(memory);
  if (!options_.network) return;
  memory->set_check([this](std::int64_t waited_ns) {
    try {
      for (Communicator* c : comms_.all()) c->check(waited_ns);
    } catch (...) {
      options_.network->end_all();  // or this GPU waits on
      throw;
    }
  });
}

RankEngine::~RankEngine() {
  if (options_.network && std::uncaught_exceptions() > exceptions_at_start_) options_.network->end_all();
  // The helper thread may still be inside a reduction, where an exception ends the step.
  if (options_.worker != nullptr) options_.worker->drain();
  rows_worker_.reset();
  options_.kernels->memory()->set_check({});  // nobody waits there any more
}

void RankEngine::set_wait_listener(comm::WaitListener* listener) {
  if (options_.worker != nullptr) options_.worker->set_wait_listener(listener);
  if (rows_worker_) rows_worker_->set_wait_listener(listener);
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
          .seq = sequence_cut().rows(),
          .hidden = job.model.hidden_size,
          .tp = job.parallel.tp,
          .tp_comm_overlap = job.parallel.tp_comm_overlap,
          .cp = job.parallel.cp};
}

SequenceCut RankEngine::sequence_cut() const {
  const plan::Plan& plan = *options_.plan;
  return {.length = plan.job.train.sequence_length,
          .cp = plan.job.parallel.cp,
          .rank = plan.layout.dense.coordinate(options_.rank, Axis::cp)};
}

void RankEngine::build(Arena& arena, plan::RankMemory& memory) {
  using plan::MemoryKind;
  const plan::Plan& plan = *options_.plan;
  const spec::Job& job = plan.job;
  const nn::Dims d = dims();
  stages_.clear();
  states_.clear();
  layout_ = plan.layout;
  store_ = std::make_unique<ParamStore>(layout::parameters(job.model, plan.layout, options_.rank),
                                        StoreOptions{.dtype = d.dtype,
                                                     .bucket_bytes = job.train.bucket_bytes,
                                                     .zero_stage = job.train.zero_stage,
                                                     .num_layers = job.model.num_hidden_layers,
                                                     .tied = layout::shares_embedding(job.model)},
                                        comms_, *options_.kernels, arena);
  moe_layers_ = spec::moe_layers(job.model);
  cos_ = arena.take(d.stats(), {d.seq, job.model.rotated_dim() / 2});
  sin_ = arena.take(d.stats(), {d.seq, job.model.rotated_dim() / 2});
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
                       .expert_of_slot = plan.layout.expert_of_slot},
        *store_, comms_, cos_, sin_);
  }
  const StoreBytes& stored = store_->bytes();
  memory[MemoryKind::packed_weights] = stored.packed;
  memory[MemoryKind::gradients] = stored.gradients;
  memory[MemoryKind::optimizer] = stored.optimizer;
  // The rest that the store took: values, and the rotary tables beside them.
  memory[MemoryKind::weights] = arena.used() - stored.packed - stored.gradients - stored.optimizer;
  planned_scratch_ = {};
  const auto grown = [&](MemoryKind kind, const auto& reserve) {
    const Bytes before = arena.used();
    reserve();
    memory[kind] += arena.used() - before;
  };
  for (Stage& stage : stages_) {
    StageState s;
    s.stage = &stage;
    s.counts = slot_counts(stage.id());
    grown(MemoryKind::tokens, [&] {
      for (const Stage::Mixture& m : stage.mixtures()) m.moe->reserve_routing(arena);
    });
    grown(MemoryKind::saved, [&] { stage.reserve_live(s.counts, arena); });
    grown(MemoryKind::deferred, [&] { stage.reserve_deferred(arena); });
    planned_scratch_ = planned_scratch_.join(stage.scratch_size());
    states_.push_back(std::move(s));
  }
  memory[MemoryKind::scratch] =
      planned_scratch_.all * (runs_pairs() ? 2 : 1) + options_.kernels->workspace_bytes();
  grown(MemoryKind::tokens, [&] { reserve_step_buffers(arena); });
  link_stages();
}

void RankEngine::reserve_step_buffers(Arena& arena) {
  const spec::Job& job = options_.plan->job;
  const std::int64_t m = options_.plan->num_microbatches();
  tokens_ = StepTokens(arena, m, job.train.micro_batch_size, sequence_cut());
  const std::int64_t experts = job.model.moe ? job.model.moe->num_experts : 0;
  const auto layers = std::ssize(moe_layers_);
  const bool mtp = job.model.num_nextn_predict_layers > 0;
  local_losses_2_ = arena.take_shared(DType::f64, {2});
  sums_ = arena.take_shared(DType::f64, {4 + layers + (mtp ? 1 : 0)});
  counts_ = arena.take(DType::i64, {std::max<std::int64_t>(1, layers * (2 * experts + 1))});
  if (job.train.moe.aux_loss_unit == spec::BalanceUnit::global_batch && layers > 0) {
    frequencies_ = arena.take_shared(DType::f64, {layers, experts});
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
  m[plan::MemoryKind::scratch] += scratch_.peak() - planned_scratch_.all;
  if (pair_) m[plan::MemoryKind::scratch] += pair_scratch_.peak() - planned_scratch_.all;
  m[plan::MemoryKind::saved] += arena_.peak() - planned_arena_.all;
  return m;
}

void RankEngine::initialise() {
  store_->initialise(options_.plan->job.train.seed, options_.plan->job.model.initializer_range);
  for (const optim::Bucket& b : store_->buckets()) {  // of steps that a rollback takes back
    if (!b.updated) continue;
    options_.kernels->fill(b.m, 0.0);
    options_.kernels->fill(b.v, 0.0);
  }
  forget_frequencies();
  weights_changed();
}

std::int64_t RankEngine::place_experts(std::span<const std::int32_t> slots) {
  const spec::ModelSpec& model = options_.plan->job.model;
  TESSERA_CHECK(layout_ && !layout_->expert_of_slot.empty(), "the plan names the slots of experts that move");
  layout::Layout next = *layout_;
  layout::place_experts(next, model, slots);
  at(comm::Phase::update);
  move_experts(*store_, comms_, *options_.kernels, *layout_, next);
  store_->rename(layout::parameters(model, next, options_.rank));
  for (Stage& stage : stages_) {
    for (const Stage::Mixture& m : stage.mixtures())
      m.moe->place_experts(next.expert_of_slot[static_cast<std::size_t>(m.layer)]);
  }
  std::int64_t moved = 0;
  for (const std::int32_t l : moe_layers_) moved += count_moves(*layout_, next, l, comms_.ep->size());
  layout_ = std::move(next);
  return moved;
}

void RankEngine::forget_frequencies() {
  if (frequencies_.empty()) return;
  std::ranges::fill(frequencies_.span<double>(), 1.0 / static_cast<double>(frequencies_.dim(1)));
  use_routing_frequencies();
}

void RankEngine::weights_changed() {
  shards_->forget_update();
  store_->pack(*options_.kernels);
}

DType dtype_of(spec::Precision p) {
  switch (p) {
    case spec::Precision::f64:
      return DType::f64;
    case spec::Precision::bf16:
      return DType::bf16;
    case spec::Precision::f32:
    case spec::Precision::fp16:
    case spec::Precision::fp8:
    case spec::Precision::fp8_block:
    case spec::Precision::mxfp8:
    case spec::Precision::nvfp4:
      return DType::f32;  // the others are refused before a plan is run
  }
  return DType::f32;
}

std::unique_ptr<kernels::Kernels> kernels_for(Rank rank, const MakeKernels& make) {
  return make ? make(rank) : kernels::make_cpu();
}

plan::RankMemory plan_memory(const plan::Plan& plan, Rank rank, const MakeKernels& make) {
  const auto place = [&](std::span<const Rank> members, std::string_view label) {
    const auto at = std::ranges::find(members, rank) - members.begin();
    return comm::make_planned(static_cast<std::int32_t>(at), static_cast<std::int32_t>(members.size()),
                              label);
  };
  const RankEngine engine({.plan = &plan,
                           .rank = rank,
                           .kernels = kernels_for(rank, make),
                           .communicators = place,
                           .dry_run = true});
  return engine.planned_memory();
}

plan::MemoryPlan plan_memory(const plan::Plan& plan, const MakeKernels& make) {
  const layout::Layout& l = plan.layout;
  // Sizes differ with the stages and with the remainders of what tp, cp and etp cut; dp, ep and edp cut
  // evenly.
  using Place = std::array<std::int32_t, 4>;
  std::map<Place, plan::RankMemory> known;
  plan::MemoryPlan memory;
  for (std::int32_t r = 0; r < l.world_size(); ++r) {
    const Rank rank(r);
    const Place place{l.dense.coordinate(rank, Axis::pp), l.dense.coordinate(rank, Axis::tp),
                      l.dense.coordinate(rank, Axis::cp), l.expert.coordinate(rank, Axis::etp)};
    auto at = known.find(place);
    if (at == known.end()) at = known.emplace(place, plan_memory(plan, rank, make)).first;
    memory.ranks.push_back(at->second);
  }
  return memory;
}

}  // namespace tessera::exec
