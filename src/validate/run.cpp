#include "validate/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

namespace tessera::validate {
namespace {

void predict(Outcome& o, const Predictor& predictor) {
  o.cost.reset();
  Prediction p = predictor(o.question->setup, o.question->candidate);
  if (p.cost && (!std::isfinite(p.cost->seconds()) || !(p.cost->seconds() > 0.0))) {
    o.reason = "prediction is not a positive number";
    return;
  }
  o.cost = std::move(p.cost);
  if (!o.cost) {
    // Grouped by the words before the first number.
    const std::size_t digit = p.reason.find_first_of("0123456789");
    o.reason = "layout refused: " + p.reason.substr(0, digit == std::string::npos ? digit : digit);
    o.detail = p.reason;
  }
}

}  // namespace

Predictor step_model() {
  return [](const cost::Setup& setup, const cost::Candidate& candidate) {
    Prediction p;
    p.reason = cost::why_invalid(setup, candidate);
    if (!p.reason.empty()) return p;
    cost::StepModel model(setup);
    p.cost = model.predict(candidate);
    return p;
  };
}

void parallel_for(std::int64_t count, std::int64_t chunk, std::int32_t threads,
                  const std::function<void(std::int64_t)>& body) {
  if (threads <= 1 || count < 2) {
    for (std::int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto work = [&] {
    try {
      for (std::int64_t begin = next.fetch_add(chunk); begin < count; begin = next.fetch_add(chunk)) {
        for (std::int64_t i = begin; i < std::min(count, begin + chunk); ++i) body(i);
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next.store(count);
    }
  };
  {
    std::vector<std::jthread> pool;
    for (std::int32_t t = 1; t < threads; ++t) pool.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

std::vector<Outcome> run(std::span<const Row> rows, const Library& library, const Predictor& predictor,
                         std::int32_t threads) {
  std::vector<Outcome> outcomes(rows.size());
  parallel_for(static_cast<std::int64_t>(rows.size()), 16, threads, [&](std::int64_t i) {
    Outcome& o = outcomes[static_cast<std::size_t>(i)];
    o.row = rows[static_cast<std::size_t>(i)];
    Mapped mapped = to_case(o.row, library);
    if (!mapped.value) {
      o.reason = std::move(mapped.reason);
      o.detail = std::move(mapped.detail);
      return;
    }
    o.question = std::move(mapped.value);
    predict(o, predictor);
  });
  return outcomes;
}

void predict_again(std::span<Outcome> outcomes, const Predictor& predictor, std::int32_t threads) {
  parallel_for(static_cast<std::int64_t>(outcomes.size()), 16, threads, [&](std::int64_t i) {
    Outcome& o = outcomes[static_cast<std::size_t>(i)];
    if (o.question) predict(o, predictor);
  });
}

std::vector<ReasonCount> reasons(std::span<const Outcome> outcomes) {
  std::map<std::string, ReasonCount> by_reason;
  for (const Outcome& o : outcomes) {
    std::string reason = o.reason;
    if (o.cost) {
      if (o.question->step_seconds || o.row.status != Status::ok || o.question->memory) continue;
      reason = "no measured step time in the row";
    }
    ReasonCount& count = by_reason[reason];
    count.reason = reason;
    if (count.rows++ == 0) {
      count.example = o.detail.empty() ? o.row.id : fmt::format("{}: {}", o.row.id, o.detail);
    }
    std::string origin;
    if (o.row.quality != Quality::c && o.row.status == Status::ok && measured_step(o.row, origin)) {
      ++count.good_rows;
    }
  }
  std::vector<ReasonCount> out;
  for (auto& [reason, count] : by_reason) out.push_back(std::move(count));
  std::stable_sort(out.begin(), out.end(),
                   [](const ReasonCount& a, const ReasonCount& b) { return a.rows > b.rows; });
  return out;
}

}  // namespace tessera::validate
