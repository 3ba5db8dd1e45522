#include "exec/scorer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/clock.h"
#include "base/math.h"
#include "comm/thread_world.h"

namespace tessera::exec {

using tensor::DType;

namespace {

ForwardOptions forward_of(const spec::ModelSpec& model, const ScoreOptions& o) {
  ForwardOptions forward{.model = model, .parallel = o.parallel, .dtype = o.dtype, .context = o.context};
  forward.compute = o.compute;
  return forward;
}

ScoreOptions resolved(const spec::ModelSpec& model, std::int64_t num_tokens, ScoreOptions o) {
  Problems problems;
  if (o.stride == 0) o.stride = o.context;
  if (o.stride < 1 || o.stride > o.context) {
    problems.add(fmt::format("stride={} is not between 1 and the context of {}", o.stride, o.context),
                 "scoring: stride", "use the context itself, or half of it");
  }
  if (o.batch < 1)
    problems.add(fmt::format("batch={} is below 1", o.batch), "scoring: batch", "use 1 or more");
  if (num_tokens < 2) {
    problems.add(fmt::format("the text has {} tokens: there is nothing to predict", num_tokens),
                 "scoring: text", "give a longer text");
  }
  check_forward(forward_of(model, o), problems);
  problems.throw_if_any();
  o.batch = round_up(o.batch, o.parallel.tp);
  return o;
}

// Which part of the text a window holds.
class Windows {
 public:
  Windows(std::span<const std::int32_t> tokens, const ScoreOptions& o)
      : tokens_(tokens), context_(o.context), stride_(o.stride) {
    const std::int64_t targets = std::ssize(tokens) - 1;
    count_ = 1 + (targets > context_ ? div_ceil(targets - context_, stride_) : 0);
  }
  [[nodiscard]] std::int64_t count() const { return count_; }
  // ids and targets of window w; nothing (targets -1) behind the text and for a window that there is not. The
  // number of targets.
  std::int64_t fill(std::int64_t w, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const {
    const std::int64_t begin = w * stride_;
    const std::int64_t first = w == 0 ? 0 : context_ - stride_;  // targets before it are the earlier window's
    std::int64_t scored = 0;
    for (std::int64_t i = 0; i < context_; ++i) {
      const bool there = w < count_ && begin + i + 1 < std::ssize(tokens_);
      const auto at = static_cast<std::size_t>(i);
      ids[at] = there ? tokens_[static_cast<std::size_t>(begin + i)] : 0;
      targets[at] = there && i >= first ? tokens_[static_cast<std::size_t>(begin + i + 1)] : -1;
      scored += targets[at] >= 0 ? 1 : 0;
    }
    return scored;
  }

 private:
  std::span<const std::int32_t> tokens_;
  std::int64_t context_, stride_, count_ = 0;
};

class RankScorer {
 public:
  RankScorer(const ForwardOptions& forward, const ScoreOptions& options, Rank rank,
             const CommFactory& factory, const ckpt::WeightSource& source)
      : o_(options), model_(forward, rank, factory) {
    model_.set_up([&](Arena& arena) {
      stage_ = model_.make_stage(o_.batch, o_.context, ForwardModel::Parts::all, false);
      stage_->reserve_live({.live = 1, .deferred = 0, .gradient = 0}, arena);
      for (Tensor* t : {&ids_, &targets_}) *t = arena.take(DType::i32, {o_.batch, o_.context});
      return stage_->scratch_size();
    });
    model_.load(source);
  }

  Score run(const Windows& windows, const OnScored& on_scored) {
    const Communicators& comms = model_.comms();
    const std::int64_t dp = comms.dp->size(), replica = comms.dp->rank();
    const std::int64_t per_call = o_.batch * dp;
    std::array<double, 2> sums{0.0, 0.0};  // nats, scored
    Score score;
    const std::int64_t start = wall_ns();
    for (std::int64_t first = 0; first < windows.count(); first += per_call) {
      model_.kernels().memory()->synchronise();  // the call before may still read its tokens
      for (std::int64_t b = 0; b < o_.batch; ++b) {
        sums[1] +=
            static_cast<double>(windows.fill(first + replica * o_.batch + b, row(ids_, b), row(targets_, b)));
      }
      nn::Context ctx = model_.context();
      stage_->forward(ctx, {.live = 0, .deferred = 0, .gradient = 0},
                      {.ids_T = ids_.flat(), .targets_T = targets_.flat()});
      nn::host_turn(ctx);
      sums[0] += stage_->loss(0);
      score.run += per_call * o_.context;
      if (on_scored && comms.world->rank() == 0)
        on_scored(std::min(first + per_call, windows.count()), windows.count());
    }
    if (dp > 1) comms.dp->all_reduce_direct(Tensor(sums.data(), DType::f64, {2}), comm::Op::sum);
    score.seconds = Seconds(static_cast<double>(wall_ns() - start) * 1e-9);
    score.nats = sums[0];
    score.scored = static_cast<std::int64_t>(sums[1]);
    return score;
  }

 private:
  static std::span<std::int32_t> row(Tensor t, std::int64_t b) {
    return t.narrow_rows(b, 1).span<std::int32_t>();
  }
  ScoreOptions o_;
  ForwardModel model_;
  std::unique_ptr<Stage> stage_;
  Tensor ids_, targets_;
};

}  // namespace

Score score_tokens(const spec::ModelSpec& model, const ckpt::WeightSource& source,
                   std::span<const std::int32_t> tokens, const ScoreOptions& options,
                   const OnScored& on_scored) {
  const ScoreOptions o = resolved(spec::require_trainable(model, "model"), std::ssize(tokens), options);
  const Windows windows(tokens, o);
  const ForwardOptions forward = forward_of(model, o);
  comm::ThreadWorld world({.size = o.parallel.world_size(), .cores = o.cores});
  Score score;
  world.run([&](Rank rank) {
    const CommFactory factory = [&](std::span<const Rank> members, std::string_view label) {
      return world.communicator(rank, members, label);
    };
    RankScorer scorer(forward, o, rank, factory, source);
    const Score mine = scorer.run(windows, on_scored);
    if (rank.value == 0) score = mine;
  });
  return score;
}

}  // namespace tessera::exec
