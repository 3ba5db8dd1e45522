#include "exec/tracer.h"

#include <string>

namespace tessera::exec {

using schedule::ActionKind;
using trace::Category;

namespace {

Category category_of(ActionKind kind) {
  switch (kind) {
    case ActionKind::forward:
      return Category::forward;
    case ActionKind::backward_input:
      return Category::backward_input;
    case ActionKind::backward_weight:
      return Category::backward_weight;
    case ActionKind::backward:
      return Category::backward_input;
    case ActionKind::send_forward:
    case ActionKind::recv_forward:
    case ActionKind::send_backward:
    case ActionKind::recv_backward:
      return Category::wait;
    case ActionKind::reduce_grad:
      return Category::other;
  }
  return Category::other;
}

// The tie of first and last stage runs along the pipeline.
trace::Axis axis_of(std::string_view label) {
  for (std::int32_t a = 1; a < trace::kNumAxes; ++a) {
    if (trace::name(static_cast<trace::Axis>(a)) == label) return static_cast<trace::Axis>(a);
  }
  return trace::Axis::pp;
}

}  // namespace

Tracer::Tracer(Rank rank, trace::Runner runner, std::int64_t capacity)
    : recorder_({.rank = rank, .capacity = capacity, .runner = runner}),
      compute_(recorder_.stream(runner == trace::Runner::rank ? "compute" : "reductions")) {
  streams_.reserve(trace::kNumAxes);
  for (std::int32_t a = 0; a < trace::kNumAxes; ++a) {
    const std::string axis(trace::name(static_cast<trace::Axis>(a)));
    streams_.push_back(recorder_.stream(runner == trace::Runner::rank ? axis : axis + " (beside compute)"));
  }
  action_names_.reserve(schedule::kNumActionKinds);
  for (std::int32_t k = 0; k < schedule::kNumActionKinds; ++k) {
    action_names_.push_back(recorder_.name(schedule::name(static_cast<ActionKind>(k))));
  }
  call_names_.reserve(comm::kNumCalls);
  for (std::int32_t c = 0; c < comm::kNumCalls; ++c) {
    call_names_.push_back(recorder_.name(comm::name(static_cast<comm::Call>(c))));
  }
  wait_name_ = recorder_.name("wait for helper");
}

void Tracer::start(std::int64_t step) {
  on_ = true;
  recorder_.set_step(static_cast<std::int32_t>(step));
}

void Tracer::action(const schedule::Action& action, const ActionTime& time) {
  if (!on_ || !schedule::is_compute(action.kind)) return;  // messages are told by on_call
  recorder_.record({.name = action_names_[static_cast<std::size_t>(action.kind)],
                    .category = category_of(action.kind),
                    .stream = compute_,
                    .start_ns = time.start_ns,
                    .end_ns = time.end_ns,
                    .cpu_ns = time.cpu_ns,
                    .stage = action.stage.value,
                    .microbatch = action.microbatch.value});
}

void Tracer::phase(const char* name, const ActionTime& time) {
  if (!on_) return;
  const bool optimizer = std::string_view(name) == "optimizer";
  recorder_.record({.name = recorder_.literal(name),
                    .category = optimizer ? Category::optimizer : Category::other,
                    .stream = compute_,
                    .start_ns = time.start_ns,
                    .end_ns = time.end_ns,
                    .cpu_ns = time.cpu_ns});
}

void Tracer::on_call(const comm::Communicator& comm, comm::Call call, Bytes sent, std::int64_t start_ns,
                     std::int64_t end_ns) {
  if (!on_ || comm.size() == 1) return;
  const trace::Axis axis = axis_of(comm.label());
  const std::lock_guard lock(mutex_);
  recorder_.record({.name = call_names_[static_cast<std::size_t>(call)],
                    .category = Category::communication,
                    .axis = axis,
                    .stream = streams_[static_cast<std::size_t>(axis)],
                    .start_ns = start_ns,
                    .end_ns = end_ns,
                    .bytes = sent});
}

void Tracer::on_wait(std::int64_t start_ns, std::int64_t end_ns) {
  if (!on_) return;
  recorder_.record({.name = wait_name_,
                    .category = Category::wait,
                    .stream = compute_,
                    .start_ns = start_ns,
                    .end_ns = end_ns});
}

}  // namespace tessera::exec
