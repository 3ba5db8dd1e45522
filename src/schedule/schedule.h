// Pipeline schedules as data: for each pipeline rank the list of actions (kind, stage, micro-batch) that it
// runs in order. Generators write compute only; lower() adds messages and gradient reductions; check.h proves
// a schedule, simulate.h times it, text.h reads and writes it. The engine walks the lowered lists and knows
// no schedule by name.
//
//   const Schedule s = lower(generate({.kind = Kind::one_f_one_b, .pp = 4, .num_microbatches = 8}));
//   for (const Action& a : s.ranks[0]) ...
//
// All functions are pure and thread safe. `stage` runs over pp * vpp model pieces in model order; `rank` here
// is the pipeline rank (coordinate on the pp axis), not the world rank.
#pragma once
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/quantity.h"

namespace tessera::schedule {

// Text forms as in PyTorch's pipelining: 0F0 2I0 2W0 1B3 1SEND_F3 2RECV_F3 1SEND_B3 0RECV_B3 1REDUCE_GRAD.
enum class ActionKind : std::uint8_t {
  forward,          // F
  backward_input,   // I: gradient of the stage's input; keeps what W needs
  backward_weight,  // W: adds to the gradients of the stage's weights; frees the saved values
  backward,         // B: I then W at once
  send_forward,     // SEND_F: output of `stage` to the rank of stage + 1. Never blocks
  recv_forward,     // RECV_F: input of `stage` from the rank of stage - 1. Blocks
  send_backward,    // SEND_B: gradient of the input of `stage` to the rank of stage - 1. Never blocks
  recv_backward,    // RECV_B: gradient of the output of `stage` from the rank of stage + 1. Blocks
  reduce_grad,      // REDUCE_GRAD: all weight gradients of `stage` are complete. Micro-batch 0, unwritten
};
inline constexpr std::int32_t kNumActionKinds = 9;
[[nodiscard]] std::string_view name(ActionKind kind);  // "F", "SEND_F", ...
[[nodiscard]] bool is_compute(ActionKind kind);        // F, I, W, B

// `stage` is always the stage that runs the action, also for messages: 1SEND_F3 is received by 2RECV_F3.
struct Action {
  ActionKind kind{};
  StageId stage;
  MicrobatchId microbatch;
  friend constexpr auto operator<=>(const Action&, const Action&) = default;
};
[[nodiscard]] std::string to_text(const Action& action);

using ActionList = std::vector<Action>;

// Which rank holds stage s. loop: s % pp. vee (two chunks, down and up): s < pp ? s : 2 * pp - 1 - s.
enum class Placement : std::uint8_t { loop, vee };
[[nodiscard]] std::string_view name(Placement placement);

enum class Kind : std::uint8_t { naive, gpipe, one_f_one_b, interleaved, zb_h1, zb_v, combined };
[[nodiscard]] std::string_view name(Kind kind);  // naive, gpipe, 1f1b, ..., combined-1f1b
[[nodiscard]] const std::vector<std::string>& kind_names();

// Throws Error{config} with the nearest known name; `where` is the place of the word in the user's input.
[[nodiscard]] Kind parse_kind(std::string_view word, std::string_view where = "schedule");
[[nodiscard]] Placement placement_of(Kind kind);  // vee for zb_v, else loop
[[nodiscard]] std::int32_t required_vpp(
    Kind kind);  // 1; 2 for zb_v; 0 for interleaved: 2 or more, the user's choice

struct Schedule {
  Kind kind{};
  std::int32_t pp = 1;                // pipeline ranks
  std::int32_t vpp = 1;               // stages per rank
  std::int32_t num_microbatches = 1;  // per step and data-parallel replica
  Placement placement = Placement::loop;
  std::vector<ActionList> ranks;  // [pp]

  [[nodiscard]] std::int32_t num_stages() const { return pp * vpp; }
  [[nodiscard]] std::int32_t rank_of(StageId stage) const;  // REQUIRES 0 <= stage < num_stages()
  [[nodiscard]] std::vector<StageId> stages_of(std::int32_t rank) const;  // ascending
  [[nodiscard]] bool is_last(StageId stage) const { return stage.value == num_stages() - 1; }
  [[nodiscard]] bool is_lowered() const;  // holds any message or reduction
  friend bool operator==(const Schedule&, const Schedule&) = default;
};

// Times of one micro-batch on each stage [num_stages]; I and W are the halves of B.
struct StageCosts {
  std::vector<Seconds> forward;
  std::vector<Seconds> backward_input;
  std::vector<Seconds> backward_weight;
  // From the end of the producer to the earliest start of the consumer on another rank.
  Seconds p2p_latency{};

  [[nodiscard]] static StageCosts uniform(std::int32_t num_stages, Seconds f, Seconds i, Seconds w);
};

struct GenerateOptions {
  Kind kind = Kind::one_f_one_b;
  std::int32_t pp = 1;
  std::int32_t vpp = 1;
  std::int32_t num_microbatches = 1;
  // Only zb_v looks at them (its order depends on them); empty means F = I = W = 1 on every stage.
  StageCosts costs{};
};

// The largest pp * vpp * num_microbatches of a schedule: 2^24.
inline constexpr std::int64_t kMaxCells = std::int64_t{1} << 24;

// Compute actions only. Every m >= 1 is valid for every kind, m < pp and pp = 1 included. F, I and W of one
// stage each run in ascending micro-batch order in all kinds, so weight gradients are bit-identical across
// them. Throws Error{config} with all problems of the options (degrees below 1, vpp that the kind does not
// allow, costs of another length or below zero).
//
// naive: one micro-batch at a time through the whole pipeline, forward then backward.
//
// gpipe: all F, then all B (Huang et al. 2019, arXiv 1811.06965).
//
// one_f_one_b: pp - 1 - rank F, then F and B in turn (Narayanan et al. 2021, arXiv 2104.04473).
//
// interleaved: 1F1B over vpp chunks in groups of pp micro-batches, of which the last may be incomplete (same
// paper, 2.2). Its idle time is the closed form when pp divides m.
//
// zb_h1: 1F1B order with B split; rank r postpones r W's (Qi et al. 2024, arXiv 2401.10241). Idles
// (pp-1)(F+I-W) when W <= F <= I and m >= pp, and never longer than 1F1B.
//
// zb_v: V placement, at most 2 * pp live chunk activations per rank, order chosen by the costs (Qi et al.
// 2024, arXiv 2405.15362). Idles (pp-1)F/2 when F = I = W and m >= 2 pp.
//
// combined: 1F1B with twice the warm-up and one more, so that F and B of a steady pair are of different
// micro-batches on every rank and independent: they may run beside each other, one computing while rows of
// the other travel to experts (Megatron-Core's combined 1F1B; DeepSeek-V3's DualPipe, arXiv 2412.19437
// section
// 3.2.1, without its second direction). Run one after the other it idles (pp-1)(F+B); rank r keeps
// 2 (pp - r) micro-batches.
[[nodiscard]] Schedule generate(const GenerateOptions& options);

// Adds a receive directly before each consumer and a send directly after each producer whose neighbour stage
// lies on another rank (of `combined`: receives before a pair of F and B), and REDUCE_GRAD of a stage
// directly after its last W or B. Messages already there are replaced, so lower(lower(s)) == lower(s).
[[nodiscard]] Schedule lower(const Schedule& schedule);

// Forwards of a rank before its first pair in `combined`.
[[nodiscard]] std::int32_t combined_warm_up(std::int32_t pp, std::int32_t rank);
// Of F and B that stand one after the other, with nothing but SEND_F between: they are of different
// micro-batches, so nothing orders them.
[[nodiscard]] bool may_run_beside(const Action& forward, const Action& backward);

// Drops everything but F, I, W, B.
[[nodiscard]] Schedule compute_only(const Schedule& schedule);

}  // namespace tessera::schedule
