#include "exec/divergence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace tessera::exec {

namespace {
constexpr std::size_t kFixed = 4;  // numbers of the state before the samples
}

DivergenceWatch::DivergenceWatch(const spec::DivergenceSpec& spec) : spec_(spec) {}

StepOrder DivergenceWatch::order(std::int64_t step) const {
  return {.step = step, .batch = step + batches_jumped_, .updates = step - updates_left_out_};
}

std::string DivergenceWatch::find_fault(const StepResult& result) const {
  const bool loss = std::isfinite(result.loss());
  const bool norm = std::isfinite(result.grad_norm);
  if (!loss && !norm) return "the loss and the gradient norm are not finite";
  if (!loss) return "the loss is not finite";
  if (!norm) return "the gradient norm is not finite";
  if (std::ssize(recent_) < std::max<std::int64_t>(1, spec_.window / 2)) return {};
  Sample mean;
  for (const Sample& s : recent_) {
    mean.loss += s.loss;
    mean.grad_norm += s.grad_norm;
  }
  const auto count = static_cast<double>(recent_.size());
  const auto above = [&](const char* what, double value, double sum, double ratio) {
    if (!(ratio > 0.0) || !(value * count > ratio * sum)) return std::string();
    return fmt::format("the {} {:.4g} is {:.3g} times the mean of the last {} good steps", what, value,
                       value * count / sum, recent_.size());
  };
  const std::string spike = above("loss", result.loss(), mean.loss, spec_.max_loss_ratio);
  return spike.empty() ? above("gradient norm", result.grad_norm, mean.grad_norm, spec_.max_grad_norm_ratio)
                       : spike;
}

bool DivergenceWatch::judge(const StepResult& result) {
  finite_ = std::isfinite(result.loss()) && std::isfinite(result.grad_norm);
  fault_ = find_fault(result);
  if (!fault_.empty()) return false;
  if (spec_.max_loss_ratio > 0.0 || spec_.max_grad_norm_ratio > 0.0) {
    if (std::ssize(recent_) >= spec_.window) recent_.erase(recent_.begin());
    recent_.push_back({result.loss(), result.grad_norm});
  }
  return true;
}

spec::OnDivergence DivergenceWatch::decide(std::int64_t step) {
  TESSERA_CHECK(!fault_.empty(), "a step diverged");
  // Skips in a row; after a rollback the row goes on until the step is passed.
  if (step > last_ + 1) in_a_row_ = 0;
  last_ = std::max(last_, step);
  ++in_a_row_;
  if (in_a_row_ > spec_.most) return spec::OnDivergence::stop;
  if (spec_.action == spec::OnDivergence::skip) ++updates_left_out_;
  return spec_.action;
}

void DivergenceWatch::rolled_back(std::int64_t from, std::int64_t batch, std::int64_t to) {
  TESSERA_CHECK(to <= from, "a rollback goes back");
  batches_jumped_ = batch + 1 - to;
}

std::vector<double> DivergenceWatch::state() const {
  if (recent_.empty() && updates_left_out_ == 0 && batches_jumped_ == 0) return {};
  std::vector<double> state = {static_cast<double>(updates_left_out_), static_cast<double>(batches_jumped_),
                               static_cast<double>(in_a_row_), static_cast<double>(last_)};
  for (const Sample& s : recent_) {
    state.push_back(s.loss);
    state.push_back(s.grad_norm);
  }
  return state;
}

void DivergenceWatch::restore(std::span<const double> state) {
  recent_.clear();
  updates_left_out_ = 0;
  batches_jumped_ = 0;
  if (state.size() < kFixed) return;
  updates_left_out_ = static_cast<std::int64_t>(state[0]);
  batches_jumped_ = static_cast<std::int64_t>(state[1]);
  in_a_row_ = std::max(in_a_row_, static_cast<std::int64_t>(state[2]));
  last_ = std::max(last_, static_cast<std::int64_t>(state[3]));
  for (std::size_t i = kFixed; i + 1 < state.size(); i += 2) recent_.push_back({state[i], state[i + 1]});
  const auto most = static_cast<std::size_t>(spec_.window);
  if (recent_.size() > most)
    recent_.erase(recent_.begin(), recent_.end() - static_cast<std::ptrdiff_t>(most));
}

}  // namespace tessera::exec
