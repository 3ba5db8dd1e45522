#include "exec/unit_shards.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/clock.h"

namespace tessera::exec {

namespace {
std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}
}  // namespace

UnitShards::UnitShards(ParamStore& store, kernels::Kernels& kernels, comm::CommWorker* worker,
                       const Ahead& ahead)
    : store_(store),
      kernels_(kernels),
      worker_(worker),
      ahead_(ahead.gathers && worker != nullptr),
      reduces_ahead_(ahead.reduces),
      uses_(store.buckets().size()) {
  std::int32_t buffers = 0;
  for (const ParamStore::Span& span : store.spans()) buffers = std::max(buffers, span.grad_buffer + 1);
  grad_user_.assign(at(buffers), -1);
  forward_order_.resize(uses_.size());
  std::iota(forward_order_.begin(), forward_order_.end(), std::size_t{0});
  std::ranges::stable_sort(forward_order_, {}, [&](std::size_t b) {
    return std::pair(store_.spans()[b].stage.value, store_.spans()[b].last);
  });
}

bool UnitShards::needs_values(UnitPass pass, std::int32_t position) {
  switch (pass) {
    case UnitPass::forward:
      return true;
    case UnitPass::backward_input:
    case UnitPass::backward:
      return position != kEmbeddingPosition;
    case UnitPass::backward_weight:
      return false;
  }
  return true;
}

template <class Visit>
void UnitShards::visit_values(StageId stage, std::int32_t position, Visit visit) {
  const std::vector<ParamStore::Span>& spans = store_.spans();
  for (std::size_t b = 0; b < spans.size(); ++b) {
    if (spans[b].stage != stage || spans[b].first != position) continue;
    const std::size_t holder = spans[b].shares_value_of >= 0 ? at(spans[b].shares_value_of) : b;
    if (!store_.buckets()[holder].keeps_value) visit(holder);
  }
}

void UnitShards::ask(std::size_t bucket) {
  Use& use = uses_[bucket];
  if (use.comes) return;
  use.comes = true;
  optim::Bucket& b = store_.buckets()[bucket];
  if (worker_ != nullptr) {
    use.values = worker_->post([gathered = &b] { optim::gather(*gathered); });
    return;
  }
  const std::int64_t start = wall_ns();
  optim::gather(b);
  exposed_ns_ += wall_ns() - start;
}

// A bucket that the unit at work uses stays as it is.
void UnitShards::ask_ahead(const Expected& ahead, StageId stage, std::int32_t position) {
  if (ahead.position == kNoUnit || !needs_values(ahead.pass, ahead.position)) return;
  visit_values(ahead.stage, ahead.position, [&](std::size_t next) {
    bool free = true;
    visit_values(stage, position, [&](std::size_t now) {
      free = free && store_.spans()[now].value_buffer != store_.spans()[next].value_buffer;
    });
    if (free) ask(next);
  });
}

void UnitShards::wait(Ticket ticket) {
  if (worker_ == nullptr || ticket.number < 0) return;
  const std::int64_t start = wall_ns();
  worker_->wait(ticket);
  exposed_ns_ += wall_ns() - start;
}

void UnitShards::before_unit(StageId stage, UnitPass pass, std::int32_t position, std::int32_t next) {
  if (needs_values(pass, position)) {
    visit_values(stage, position, [&](std::size_t b) { ask(b); });
    visit_values(stage, position, [&](std::size_t b) {
      wait(uses_[b].values);
      uses_[b].comes = false;
    });
  }
  const Expected following = next == kNoUnit ? std::exchange(expected_, {}) : Expected{stage, pass, next};
  if (ahead_) ask_ahead(following, stage, position);
  if (some_left_ && pass == UnitPass::forward) bring_left(stage, position);
  if (pass != UnitPass::backward && pass != UnitPass::backward_weight) return;
  for (std::size_t b = 0; b < uses_.size(); ++b) {
    const ParamStore::Span& span = store_.spans()[b];
    if (span.stage != stage || span.first != position || span.grad_buffer < 0) continue;
    std::int32_t& user = grad_user_[at(span.grad_buffer)];
    if (user >= 0) wait(uses_[at(user)].gradients);
    user = static_cast<std::int32_t>(b);
    kernels_.fill(store_.buckets()[b].grad, 0.0);
  }
}

void UnitShards::expect(StageId stage, UnitPass pass, std::int32_t position) {
  expected_ = {stage, pass, position};
}

void UnitShards::reduce(std::size_t bucket) {
  optim::Bucket& b = store_.buckets()[bucket];
  if (b.group->size() == 1) return;
  if (worker_ != nullptr) {
    uses_[bucket].gradients = worker_->post([reduced = &b, k = &kernels_] { optim::reduce(*reduced, *k); });
    if (!reduces_ahead_) wait(uses_[bucket].gradients);
    return;
  }
  const std::int64_t start = wall_ns();
  optim::reduce(b, kernels_);
  exposed_ns_ += wall_ns() - start;
}

void UnitShards::gather_updated() {
  if (ahead_) {
    for (std::size_t b = 0; b < uses_.size(); ++b) {
      const optim::Bucket& bucket = store_.buckets()[b];
      uses_[b].left = bucket.sharded && bucket.keeps_value && bucket.updated;
      some_left_ = some_left_ || uses_[b].left;
      if (!uses_[b].left) store_.pack_bucket(kernels_, b);
    }
    return;
  }
  const std::int64_t start = wall_ns();
  for (optim::Bucket& b : store_.buckets()) {
    if (b.keeps_value) optim::gather(b);
  }
  exposed_ns_ += wall_ns() - start;
  store_.pack(kernels_);
}

void UnitShards::ask_for_left() {
  for (const std::size_t b : forward_order_) {
    if (uses_[b].left) ask(b);
  }
}

void UnitShards::forget_update() {
  for (Use& use : uses_) use.left = false;
  some_left_ = false;
}

void UnitShards::bring_left(StageId stage, std::int32_t position) {
  ask_for_left();  // an evaluation comes without a step's beginning
  for (std::size_t b = 0; b < uses_.size(); ++b) {
    const ParamStore::Span& span = store_.spans()[b];
    const std::size_t holder = span.shares_value_of >= 0 ? at(span.shares_value_of) : b;
    // The unit of the head has the layers behind the last one, too.
    const bool here =
        span.stage == stage && ((span.first >= position && span.last <= position) ||
                                (position == kHeadPosition && span.first >= store_.num_layers()));
    if (here && uses_[holder].left) {
      wait(uses_[holder].values);
      uses_[holder].left = uses_[holder].comes = false;
      store_.pack_bucket(kernels_, holder);
    }
  }
  some_left_ = std::ranges::any_of(uses_, &Use::left);
}

void UnitShards::begin_step() {
  exposed_ns_ = 0;
  expected_ = {};
  if (some_left_) ask_for_left();
}

}  // namespace tessera::exec
