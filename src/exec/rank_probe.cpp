// Where a step went bad: it is run again, unit by unit under a probe.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <tuple>

#include "exec/rank_engine.h"

namespace tessera::exec {

namespace {

template <class T>
bool all_finite(Tensor x) {
  return std::ranges::all_of(x.span<T>(), [](T v) { return std::isfinite(v); });
}

bool is_finite(tensor::Memory& memory, const Tensor& x) {
  if (x.empty()) return true;
  bool finite = true;
  on_host(memory, x, tensor::Access::read, [&](const Tensor& here) {
    finite = here.dtype() == DType::f64 ? all_finite<double>(here) : all_finite<float>(here);
  });
  return finite;
}

// The unit of a stage as people count: from the embedding to the head.
std::string unit_text(const layout::StageCut& cut, std::size_t unit) {
  const auto u = static_cast<std::int32_t>(unit) - (cut.has_embedding ? 1 : 0);
  if (u < 0) return "the embedding";
  return u < cut.num_layers ? fmt::format("layer {}", cut.first_layer + u) : "the head";
}

using Pass = StepProbe::Pass;

// The part of a weight that this rank updates; the others look at the rest.
Tensor owned_value(ParamStore& store, const StoredParam& p) {
  if (p.bucket < 0) return p.value;
  const optim::Bucket& b = store.buckets()[static_cast<std::size_t>(p.bucket)];
  const std::int64_t from = std::max(p.offset, b.owned_begin());
  const std::int64_t to = std::min(p.offset + p.spec.num_elements(), b.owned_begin() + b.owned_size());
  if (from >= to || !b.updated) return {};
  return b.owned_value().narrow_rows(from - b.owned_begin(), to - from);
}

constexpr std::int64_t kTextWords = 32;
constexpr std::int64_t kRow = 4 + kTextWords;  // pass, micro-batch, place, size of the text, the text

}  // namespace

void RankEngine::probe_action(const schedule::Action& action) {
  probe_->microbatch = action.microbatch.value;
}

void RankEngine::probe_forward(const StageState& s, MicrobatchId mb) {
  const layout::StageCut& cut = s.stage->cut();
  const std::int32_t live = live_slot(s, mb);
  for (std::size_t u = 0; u <= s.stage->num_units(); ++u) {
    if (is_finite(*options_.kernels->memory(), s.stage->boundary(live, u))) continue;
    // The stream before a stage's first unit came out of another stage, which names it itself.
    const std::int64_t place = cut.first_layer + static_cast<std::int64_t>(u) - (cut.has_embedding ? 1 : 0);
    probe_->note({Pass::forward, mb.value, place},
                 u == 0 ? fmt::format("the stream before {}, micro-batch {}", unit_text(cut, u), mb.value)
                        : fmt::format("the output of {}, micro-batch {}", unit_text(cut, u - 1), mb.value));
    return;
  }
  if (cut.has_head && !std::isfinite(s.stage->loss(live) + s.stage->mtp_loss(live)))
    probe_->note({Pass::forward, mb.value, kHeadPosition},
                 fmt::format("the loss of micro-batch {}", mb.value));
}

void RankEngine::probe_backward(const StageState& s, MicrobatchId mb) {
  if (s.stage->cut().has_embedding ||
      is_finite(*options_.kernels->memory(), s.stage->gradient(gradient_slot(s, mb))))
    return;
  probe_->note({Pass::backward, mb.value, 1 - 2 * std::int64_t{s.stage->cut().first_layer}},
               fmt::format("the gradient of the stream before layer {}, micro-batch {}",
                           s.stage->cut().first_layer, mb.value));
}

void RankEngine::weight_done(StageState& s, std::int32_t position) {
  if (probe_) {
    for (const StoredParam& p : store_->params()) {
      if (p.spec.stage != s.stage->id() || store_->unit_of(p.spec) != position ||
          is_finite(*options_.kernels->memory(), p.grad))
        continue;
      probe_->note({Pass::backward, probe_->microbatch, -2 * std::int64_t{position}},
                   fmt::format("the gradient of {}, micro-batch {}", p.spec.name, probe_->microbatch));
    }
  }
  reduce_completed(s, position);
}

BadTensor RankEngine::first_of_all(const StepProbe& probe) {
  std::array<std::int64_t, kRow> mine{};
  const std::string text = probe.what.substr(0, 8 * kTextWords);
  mine[0] = static_cast<std::int64_t>(probe.first.pass);
  mine[1] = probe.first.microbatch;
  mine[2] = probe.first.place;
  mine[3] = std::ssize(text);
  std::memcpy(&mine[4], text.data(), text.size());
  Communicator& world = *comms_.world;
  std::vector<std::int64_t> all(static_cast<std::size_t>(world.size() * kRow));
  world.all_gather({all.data(), DType::i64, {world.size(), kRow}}, {mine.data(), DType::i64, {1, kRow}});
  BadTensor best;
  std::tuple<std::int64_t, std::int64_t, std::int64_t> least;
  for (std::int32_t r = 0; r < world.size(); ++r) {
    const std::int64_t* row = &all[static_cast<std::size_t>(r * kRow)];
    if (row[3] == 0 || (!best.what.empty() && least <= std::tuple(row[0], row[1], row[2]))) continue;
    least = {row[0], row[1], row[2]};
    best.rank = Rank(r);
    best.what.assign(static_cast<std::size_t>(row[3]), ' ');
    std::memcpy(best.what.data(), row + 4, best.what.size());
  }
  return best;
}

BadTensor RankEngine::find_bad_tensor(const StepOrder& order) {
  probe_ = std::make_unique<StepProbe>();
  for (const StoredParam& p : store_->params())
    if (!is_finite(*options_.kernels->memory(), owned_value(*store_, p)))
      probe_->note({Pass::weights, -1, position_of(p.spec)}, fmt::format("the weight {}", p.spec.name));
  begin_step(order);
  run_actions();
  at(comm::Phase::update);
  finish_reductions();
  at(comm::Phase::report);
  const BadTensor bad = first_of_all(*probe_);
  probe_.reset();
  return bad;
}

BadTensor RankEngine::find_largest_gradient() {
  StepProbe probe;
  double largest = 0.0;
  for (const StoredParam& p : store_->params()) {
    if (p.bucket < 0) continue;
    const optim::Bucket& b = store_->buckets()[static_cast<std::size_t>(p.bucket)];
    const std::int64_t from = std::max(p.offset, b.owned_begin());
    const std::int64_t to = std::min(p.offset + p.spec.num_elements(), b.owned_begin() + b.owned_size());
    if (from >= to) continue;
    const Tensor grad = b.owned_grad().narrow_rows(from - b.owned_begin(), to - from);
    const double norm = std::sqrt(options_.kernels->sum_squares(grad));
    if (!(norm > largest)) continue;
    largest = norm;
    probe.what =
        fmt::format("the gradient of {} is the largest, norm {:.4g} of the part here", p.spec.name, norm);
  }
  // The largest first.
  probe.first = {Pass::backward, 0, -static_cast<std::int64_t>(std::min(largest, 1e12) * 1e6)};
  return first_of_all(probe);
}

}  // namespace tessera::exec
